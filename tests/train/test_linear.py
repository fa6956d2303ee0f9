"""The linear start is a principal component analysis, and lets an untrained model code pictures."""

from __future__ import annotations

import math
from dataclasses import replace
from importlib import resources

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import lalic
from lalic.config import SLIM, Config
from lalic.errors import LalicError
from lalic.model import LALIC
from lalic.train import start
from lalic.train.recipe import PRESETS, Recipe
from lalic.train.start import linear_start, quantiser_step, start_gains
from lalic_kernels.layers import derived

TINY = Config(
    "custom", 4, 24, (20, 40, 60, 24, 6, 5), (1, 1, 1, 0), (8, 16), 1, 2,
    context_width=10, kernels=(4, 2, 2, 1), aggregation_widths=(8,),
)  # fmt: skip


def halves() -> tuple[Tensor, Tensor]:
    """Left and right half of the photo that ships, (1, 3, 512, 256) each."""
    with resources.files("lalic").joinpath("assets", "astronaut.png").open("rb") as file:
        pixels = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None] / 255
    return pixels[..., :256], pixels[..., 256:]


def started(config: Config, pictures: Tensor, gamma: float, monkeypatch: pytest.MonkeyPatch) -> LALIC:
    monkeypatch.setattr(start, "GAMMA", gamma)
    torch.manual_seed(0)
    model = LALIC.from_config(config)
    linear_start(model, pictures, 0.013)
    return model.eval()


@pytest.mark.parametrize("more", [0, 5])
def test_synthesis_of_analysis_is_the_identity(more: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With as many components as numbers; more channels than that change nothing."""
    dims = (48 + more, 192 + more, 768 + more, 768, 6, 5)
    everything = replace(TINY, M=768, dims=dims, groups=(768,))
    pictures, others = halves()
    model = started(everything, pictures[..., :128], 0.0, monkeypatch)
    with torch.no_grad():
        # Sums of 768 products of up to 100 steps, three deep, in float32.
        assert (model.g_s(model.g_a(others)) - others).abs().max() < 1e-3


def test_what_is_lost_is_what_the_least_components_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one stage that drops components, the mean square error is the sum of their eigenvalues."""
    config = replace(TINY, dims=(48, 192, 24, 24, 6, 5))
    pictures, _ = halves()
    model = started(config, pictures, 0.0, monkeypatch)
    with torch.no_grad():
        y = model.g_a(pictures)
        error = (model.g_s(y) - pictures).square().mean()
    blocks = pictures - pictures.mean((0, 2, 3), keepdim=True)
    blocks = torch.nn.functional.pixel_unshuffle(blocks, 16).permute(0, 2, 3, 1).flatten(0, 2).double()
    variances = torch.linalg.eigvalsh(blocks.T @ blocks / blocks.shape[0]).flip(0)
    assert float(error) == pytest.approx(float(variances[24:].sum() / 768), rel=1e-3)
    # And the latents are the components over the quantiser's step, largest first.
    found = y.permute(0, 2, 3, 1).flatten(0, 2).square().mean(0).sqrt() * quantiser_step(0.013)
    assert torch.allclose(found, variances[:24].sqrt().float(), rtol=1e-3)


def test_the_step_minimises_the_loss_at_high_rate() -> None:
    """No finer and no coarser quantiser is better for a Gaussian of many steps."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400_000, generator=generator, dtype=torch.float64) * 0.5

    def loss(step: float) -> float:
        symbols = (x / step).round()
        _, counts = symbols.unique(return_counts=True)
        share = counts / counts.sum()
        bits = float(-(share * share.log2()).sum())
        return bits + 0.013 * 255**2 / 3 * float((symbols * step - x).square().mean())

    step = quantiser_step(0.013)
    assert loss(step) < min(loss(step * 1.3), loss(step / 1.3))


def test_every_parameter_has_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    more = replace(TINY, dims=(52, 210, 60, 24, 6, 5))
    model = started(more, halves()[0], start.GAMMA, monkeypatch).train()
    x = halves()[1][:, :, :128, :128]
    out = model(x)
    (out["x_hat"].square().mean() - out["likelihoods"]["y"].log().mean()).backward()
    for name, transform in (("g_a", model.g_a), ("g_s", model.g_s)):
        for n, p in transform.named_parameters():
            assert n in derived(transform) or p.grad.any(), f"{name}.{n}"


def test_an_untrained_slim_codes_a_photo_that_it_has_not_seen() -> None:
    """A file with more than 29 dB at the highest quality, and smaller than the pixels, as the scales fit."""
    pictures, others = halves()
    torch.manual_seed(0)
    model = LALIC.from_config(SLIM)
    start_gains(model, Recipe(**PRESETS["slim"]))
    linear_start(model, pictures, 0.013)
    model.eval().update()
    pixels = (others[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    data = lalic.encode(Image.fromarray(pixels), model=model, quality=100)
    back = np.asarray(lalic.decode(data, model=model)).astype(np.float64)
    assert -10 * math.log10(np.square((back - pixels) / 255).mean()) > 29
    assert len(data) < pixels.nbytes / 2


@pytest.mark.parametrize("value", [0.0, 20 / 255, 1.0])
def test_pictures_of_one_colour_are_refused(value: float) -> None:
    with pytest.raises(LalicError, match="pictures: expected some with a structure, but all are of one colour"):
        linear_start(LALIC.from_config(TINY), torch.full((2, 3, 64, 64), value), 0.013)


def test_pictures_of_other_sides_are_refused() -> None:
    with pytest.raises(LalicError, match=r"pictures: expected .* multiples of 16, got \(1, 3, 64, 40\)"):
        linear_start(LALIC.from_config(TINY), torch.rand(1, 3, 64, 40), 0.013)


def test_kernels_that_overlap_are_refused() -> None:
    with pytest.raises(LalicError, match=r"start: linear needs kernels that do not overlap.*\(5, 3, 3, 3\)"):
        linear_start(LALIC(3, 8, (4, 6, 8, 8, 6, 5), (0, 0, 0, 0), (3, 5)), halves()[0], 0.013)
