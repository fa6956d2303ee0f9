"""The baselines of the GPU benchmark compute BiWKV's closed form: a wrong baseline would make any ratio worthless."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="the baselines need triton, which is not installed")
from benchmarks.peers import biwkv as baselines
from lalic_kernels.biwkv.reference import biwkv

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # on the CPU Triton's interpreter runs them


@pytest.mark.parametrize("name", ["published", "walking"])
@pytest.mark.parametrize(
    ("shape", "decay"),
    [((1, 1, 1), 1.0), ((1, 2, 3), -0.5), ((2, 31, 5), 0.1), ((1, 67, 20), -0.02), ((1, 129, 33), 0.03)],
    ids=str,
)
def test_baseline_is_the_closed_form(name: str, shape: tuple[int, int, int], decay: float) -> None:
    """Lengths below, at and above 32 chunks, chunks that are empty, widths that are no multiple of a block."""
    generator = torch.Generator().manual_seed(3)
    _, _, channels = shape
    w, u = decay * (1 + torch.rand(channels, generator=generator)), torch.randn(channels, generator=generator)
    k, v = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    y = getattr(baselines, name)(*(x.to(DEVICE) for x in (w, u, k, v))).cpu()
    want = biwkv(*(x.double() for x in (w, u, k, v)))
    # Means of v; a sequential float32 sum of 129 terms is off by up to 129 roundings of 6e-8.
    assert (y.double() - want).abs().max() <= 129 * 2**-24 * v.abs().max()
