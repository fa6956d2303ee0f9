"""Checkpoints as people save them: wrapped, compiled, averaged, shared, pickled with other things."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_model, save_model
from tiny import tiny

import lalic
from lalic.model import LALIC
from lalic.nn import checkpoints


def prefixed(prefix: str, **others: Any) -> dict[str, Any]:
    return {prefix + name: value for name, value in tiny().state_dict().items()} | others


def in_part(prefix: str) -> dict[str, Any]:
    return {name.replace("g_a.", f"g_a.{prefix}", 1): value for name, value in tiny().state_dict().items()}


class Holder(torch.nn.Module):
    """As training frameworks hold a model beside a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.loss = torch.compile(copy.deepcopy(tiny())), torch.nn.Linear(2, 2)
        self.ema_model = torch.optim.swa_utils.AveragedModel(lalic.LALIC.from_config(tiny().config))


SAVED = {
    "plain": lambda: prefixed(""),
    "parallel": lambda: prefixed("module."),
    "compiled": lambda: prefixed("_orig_mod."),
    "parallel compiled": lambda: prefixed("module._orig_mod."),
    "compiled parallel": lambda: prefixed("_orig_mod.module."),
    "a compiled part": lambda: in_part("_orig_mod."),
    "a parallel part": lambda: in_part("module."),
    "a checkpointed part": lambda: in_part("_checkpoint_wrapped_module."),
    "in a model": lambda: prefixed("model."),
    "in a module, parallel": lambda: prefixed("module.model.net."),
    "with a loss": lambda: prefixed("model.", **{"criterion.weight": torch.ones(3)}),
    "averaged": lambda: prefixed("module.", n_averaged=torch.tensor(3)),
    "state dict": lambda: {"state_dict": prefixed("model."), "epoch": 3, "hyper_parameters": {"lr": 1e-4}},
    "under model": lambda: {"model": prefixed("module."), "optimizer": {"state": {}}, "step": 5},
    "nested": lambda: {"model": {"state_dict": prefixed("")}, "args": {"lr": 1.0}},
    "net": lambda: {"net": prefixed(""), "ema": {"decay": 0.9}},
    "averaged alone": lambda: {"ema": {"module": prefixed("")}, "step": 1},
    "in a holder": lambda: Holder().state_dict(),
}


@pytest.mark.parametrize("case", SAVED)
def test_wrappers_are_taken_off(case: str, tmp_path: Path) -> None:
    torch.save(SAVED[case](), tmp_path / "c.pth")
    assert lalic.load(tmp_path / "c.pth").weights_hash() == tiny().weights_hash()
    model = LALIC.from_config(tiny().config)
    assert str(model.load_state_dict(SAVED[case]())) == "<All keys matched successfully>"


def test_the_trained_weights_are_taken_before_averaged_ones(tmp_path: Path) -> None:
    other = {name: value + 1 if value.is_floating_point() else value for name, value in prefixed("").items()}
    for saved in (
        {"ema": other, "model": prefixed("")},
        {f"ema.{n}": v for n, v in other.items()} | prefixed("model."),
    ):
        assert LALIC.from_state_dict(saved).weights_hash() == tiny().weights_hash()


def test_a_digest_inside_a_wrapper_is_compared() -> None:
    converted = tiny().converted()
    assert LALIC.from_state_dict({"state_dict": converted}).weights_hash() == tiny().weights_hash()
    converted[checkpoints.DIGEST] = converted[checkpoints.DIGEST].flip(0)
    with pytest.raises(lalic.CheckpointError, match="digest"):
        LALIC.from_state_dict({"state_dict": {f"module.{name}": value for name, value in converted.items()}})


def test_what_is_no_checkpoint_is_refused() -> None:
    for saved in ({"optimizer": {}}, {"model": {"a.weight": torch.ones(2)}}, {}, {"state_dict": {}}):
        with pytest.raises(lalic.CheckpointError):
            LALIC.from_state_dict(saved)


def test_safetensors_with_shared_tensors(tmp_path: Path) -> None:
    """save_model keeps one of the two names of h_a and h_s, load_model asks for the other among the missing ones."""
    model, again = copy.deepcopy(tiny()), LALIC.from_config(tiny().config)
    save_model(model, str(tmp_path / "m.safetensors"))
    assert lalic.load(tmp_path / "m.safetensors").weights_hash() == model.weights_hash()
    assert load_model(again, tmp_path / "m.safetensors") == (set(), [])
    assert again.eval().weights_hash() == model.weights_hash()
    for names in (("h_a.", "h_s."), ("latent_codec.hyper.h_a.", "latent_codec.hyper.h_s.")):
        half = {name: value for name, value in model.state_dict().items() if not name.startswith(names)}
        assert LALIC.from_state_dict(half).weights_hash() == model.weights_hash()
        result = again.load_state_dict(half, strict=False)
        assert result.missing_keys and all(name.startswith(names) for name in result.missing_keys)
        assert str(again.load_state_dict(half)) == "<All keys matched successfully>"


class Own:
    pass


@pytest.mark.parametrize(
    ("extra", "name"),
    [
        (argparse.Namespace(lr=1), "argparse.Namespace"),
        (np.float64(3), "numpy"),
        (np.zeros(3), "numpy"),
        (Path("x"), "pathlib"),
        (Own(), "Own"),
        (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
    ],
    ids=lambda x: x if isinstance(x, str) else type(x).__name__,
)
def test_pickled_objects_are_named_in_one_sentence(extra: object, name: str, tmp_path: Path) -> None:
    for saved in ({"state_dict": tiny().state_dict(), "args": extra}, extra):
        torch.save(saved, tmp_path / "c.pth")
        with pytest.raises(lalic.CheckpointError) as caught:
            lalic.load(tmp_path / "c.pth")
        text = str(caught.value)
        assert name in text and "save the state dict alone: torch.save(model.state_dict(), path)" in text
        assert "\n" not in text and "\x1b" not in text and "weights_only" not in text
