"""Weights with more latent channels: the same function at first, and new channels that something can be made of."""

from __future__ import annotations

import pytest
import torch
from tiny_run import RECIPE, tiny_model
from torch import Tensor

import lalic
from lalic.cli import main
from lalic.errors import LalicError
from lalic.model import LALIC
from lalic.nn import checkpoints
from lalic.training import widen
from lalic.training.data import Crops
from lalic.training.loop import Trainer
from lalic.training.start import init_from

PARTS = ("latent_codec", "channel_context")  # of a slice


def narrow() -> LALIC:
    """Tiny, with gains, and with steps that are fine enough for symbols to differ from zero."""
    model = tiny_model(3)
    with torch.no_grad():
        model.gains.log_gains += 3.0
        model.gains.log_inverses -= 3.0
    model.update()
    return model.eval()


@pytest.fixture
def crops(pictures) -> list[Tensor]:
    batches = Crops([pictures], 128, 2, seed=1)
    return [batches[i] for i in range(4)]


@pytest.mark.parametrize("quality", [1.0, 70.0])
def test_pictures_and_old_symbols_stay(crops, quality):
    old = narrow()
    new = widen.widen(old, (2, 7), crops)
    assert (new.config.M, new.config.groups, new.config.context_width) == (17, (3, 5, 2, 7), 8)
    with torch.no_grad():
        before, after = old(crops[0], quality), new(crops[0], quality)
    # Sums over more channels, whose terms are zero, may be taken in another order.
    torch.testing.assert_close(after["x_hat"], before["x_hat"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(after["likelihoods"]["z"], before["likelihoods"]["z"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(after["likelihoods"]["y"][:, :8], before["likelihoods"]["y"], rtol=1e-4, atol=1e-6)


def test_widened_twice(crops):
    new = widen.widen(widen.widen(narrow(), (2,), crops), (4,), crops)
    assert (new.config.groups, new.config.context_width) == ((3, 5, 2, 4), 8)


def test_new_channels_have_a_size_and_see_what_pictures_miss(crops):
    old = narrow()
    new = widen.widen(old, (6,), crops)
    with torch.no_grad():
        x = torch.cat(crops)
        y = new._gained(new.g_a(x), 100.0)[:, 8:]
        left = (x - old(x, 100.0)["x_hat"].clamp(0, 1)).unflatten(3, (-1, 16)).unflatten(2, (-1, 16))
    spread = y.square().mean((0, 2, 3)).sqrt()
    torch.testing.assert_close(spread, torch.full_like(spread, widen.SPREAD), rtol=1e-3, atol=0)
    blocks = left.permute(0, 2, 4, 1, 3, 5).flatten(0, 2).flatten(1).double()
    missed = explained(y, blocks)
    # As many latents of the model that was not fitted, and the same ones of other places.
    assert missed < 0.8 * explained(new.g_a(x)[:, :6], blocks)
    assert missed < 0.5 * explained(y.roll(1, 3), blocks)


def explained(y: Tensor, blocks: Tensor) -> float:
    """Share of the blocks' energy that no linear function of the latents gives."""
    a = y.detach().permute(0, 2, 3, 1).flatten(0, 2).double()
    a = torch.cat((a, torch.ones(len(a), 1, dtype=torch.float64)), 1)
    left = blocks - a @ torch.linalg.lstsq(a, blocks).solution
    return float(left.square().sum() / blocks.square().sum())


def test_the_command_and_a_run_from_its_weights(pictures, tmp_path, capsys):
    checkpoints.save_weights(narrow(), tmp_path / "narrow.safetensors")
    wide = tmp_path / "wide.safetensors"
    words = [str(tmp_path / "narrow.safetensors"), str(pictures), "-o", str(wide), "--groups", "2", "7"]
    assert widen.main(words) == 0
    assert "groups=(3, 5, 2, 7)" in capsys.readouterr().out
    config = lalic.load_checkpoint(wide).config
    model = LALIC.from_config(config)
    init_from(model, wide)
    new = ("g_a.4.", "g_s.0.", "h_a.0.", "gains", *(f"y.{part}.y{k}." for k in (2, 3) for part in PARTS))
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad and any(words in n for words in new)}
    assert len(parameters) > 40
    before = {name: value.detach().clone() for name, value in parameters.items()}
    Trainer(model, Crops([pictures], 64, 2, seed=1), RECIPE, tmp_path / "run").update()
    assert not [name for name, value in parameters.items() if torch.equal(value, before[name])]


def test_the_train_command_takes_the_shape_of_a_checkpoint(pictures, tmp_path, capsys, one_thread):
    wide = tmp_path / "wide.safetensors"
    checkpoints.save_weights(widen.widen(narrow(), (2,), [torch.rand(1, 3, 64, 64)]), wide)
    words = ["train", str(pictures), "-o", str(tmp_path / "run"), "--model", "init"]
    words += ["--batch", "2", "--patch", "64", "--steps", "1", "--threads", "1"]
    assert main(words) != 0 and "--init must name" in capsys.readouterr().err
    assert main([*words, "--init", str(wide)]) == 0
    assert lalic.load_checkpoint(tmp_path / "run" / "weights.safetensors").config.groups == (3, 5, 2)


def test_a_model_without_gains_is_refused(crops):
    with pytest.raises(LalicError, match="no gains"):
        widen.widen(tiny_model().eval(), (2,), crops)


def test_no_new_channels_are_refused(crops):
    with pytest.raises(LalicError, match="groups"):
        widen.widen(narrow(), (0,), crops)
