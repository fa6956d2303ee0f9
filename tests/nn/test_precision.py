"""Precision: what it changes, what it does not, and that values beyond its range are errors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import lalic
from lalic.errors import LalicError


@pytest.fixture(scope="module")
def model():
    return lalic.slim()


def picture(seed: int = 0) -> torch.Tensor:
    coarse = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=(64, 128), mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_file_means_the_same_under_every_policy(model, precision: str) -> None:
    """Written in float32 and read in 16 bits, and the other way: the same symbols, pixels that differ a little."""
    narrow = copy.deepcopy(model).set_precision(precision)
    x = picture()
    for writer, reader in ((model, narrow), (narrow, model)):
        sections = writer.encode(x)
        a, b = writer.decode(sections, 64, 128), reader.decode(sections, 64, 128)
        assert a.dtype == b.dtype == torch.float32
        difference = (a - b).abs()
        # bfloat16 keeps 8 bits of each activation; in pixels this is 1 of 255, small enough to use.
        assert 0 < difference.max() < (12 / 255 if precision == "bfloat16" else 2 / 255)
        assert difference.mean() < 1 / 255


def test_only_matrices_are_narrowed(model) -> None:
    narrow = copy.deepcopy(model).set_precision("bfloat16")
    with torch.no_grad():
        narrow(picture())
    assert sorted(narrow.cache) == ["g_a", "g_s", "h_a"]

    def unkept() -> None:
        pytest.fail("the copy of g_s is not kept")

    copied = narrow.cache.get("g_s", list(narrow.g_s.parameters()), unkept, torch.bfloat16)
    for name, parameter in copied.named_parameters():
        matrix = parameter.dim() == 2 or name.split(".")[1] in ("weight", "bias")
        assert parameter.dtype == (torch.bfloat16 if matrix else torch.float32), name
    assert all(p.dtype == torch.float32 for p in narrow.parameters())
    assert narrow.weights_hash() == model.weights_hash()


@torch.no_grad()
def test_float32_on_a_gpu_is_float32(model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TF32, whatever the settings: said with each convolution, as settings are shared between threads."""
    assert not lalic.model._wants_float32(picture())
    x, expected, seen = picture(), model.latents(picture()), []

    class Convolutions(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "convolution" in func._schema.name:
                seen.append((func._schema.name, args[-1]))
            return func(*args, **(kwargs or {}))

    monkeypatch.setattr(lalic.model, "_wants_float32", lambda x: True)
    with Convolutions():
        found = model.latents(x)
        model.synthesise(found, model.as_qualities(None, 1))
    assert torch.equal(found, expected)
    kinds = torch.nn.Conv2d | torch.nn.ConvTranspose2d
    convolutions = [m for transform in (model.g_a, model.g_s) for m in transform if isinstance(m, kinds)]
    assert seen.count(("aten::_convolution", False)) == len(convolutions)


def test_kept_copies_follow_the_weights(model) -> None:
    narrow = copy.deepcopy(model).set_precision("bfloat16")
    x = picture()
    with torch.no_grad():
        before = narrow(x)["x_hat"]
        assert torch.equal(before, narrow(x)["x_hat"])
        narrow.g_s[0].weight.mul_(0.5)
        after = narrow(x)["x_hat"]
        assert not torch.equal(before, after)
        assert torch.equal(after, copy.deepcopy(narrow)(x)["x_hat"])


def test_training_is_not_narrowed(model) -> None:
    narrow = copy.deepcopy(model).set_precision("bfloat16")
    assert torch.equal(narrow(picture())["x_hat"], model(picture())["x_hat"])


def test_overflow_in_float16_is_said(model) -> None:
    narrow = copy.deepcopy(model).set_precision("float16")
    with torch.no_grad():
        narrow.g_s[0].weight.mul_(1e6)
    with (
        pytest.raises(LalicError, match="g_s: values beyond float16's range; use precision bfloat16 or float32"),
        torch.no_grad(),
    ):
        narrow(picture())


def test_an_unknown_policy_is_refused(model) -> None:
    with pytest.raises(ValueError, match="precision: expected one of float32, bfloat16, float16, got 'int8'"):
        model.set_precision("int8")
