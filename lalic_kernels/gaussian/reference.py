"""Gaussian conditional model by its definition: scale table, table index, likelihood of a quantised value."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SCALE_MIN = 0.11
SCALE_MAX = 256.0
SCALE_LEVELS = 64
LIKELIHOOD_MIN = 1e-9


def scale_table() -> Tensor:
    """The 64 standard deviations that have coding tables, float32, from 0.11 up to 256, shape (64,).

    Their logarithms are spaced evenly *in float32*, and exponentiated in float32. A table computed in float64 and then
    rounded differs in most entries, and one different entry can change a coded symbol's table.

    Source: Balle et al., 2018; constants as in CompressAI's GaussianConditional.
    """
    return torch.exp(
        torch.linspace(math.log(SCALE_MIN), math.log(SCALE_MAX), SCALE_LEVELS, dtype=torch.float32, device="cpu")
    )


def scale_index(scales: Tensor) -> Tensor:
    """Index of the first entry of `scale_table()` that is at least the scale, 63 if there is none.

    Args:
        scales: raw scales of any shape and floating dtype. Scales up to 0.11, also negative ones, get index 0.

    Returns:
        int32 of the same shape, values 0..63: 63 minus the number of the first 63 entries that are >= the scale.
    """
    table = scale_table().to(scales.device)
    at_least = scales.unsqueeze(-1) <= table[:-1]
    return (SCALE_LEVELS - 1 - at_least.sum(dim=-1)).to(torch.int32)


class _LowerBound(torch.autograd.Function):
    """max(x, bound) with the gradient that `lower_bound` describes."""

    @staticmethod
    def forward(ctx, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp(min=bound)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (x,) = ctx.saved_tensors
        stops = (x < ctx.bound) & (grad >= 0)
        return grad * ~stops, None  # of a NaN too


def lower_bound(x: Tensor, bound: float) -> Tensor:
    """max(x, bound). The gradient passes where x >= bound or the gradient is negative, and is zero elsewhere.

    With a plain maximum, training could never raise a value that is below the bound.
    """
    return _LowerBound.apply(x, bound)


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * torch.erfc(x * -math.sqrt(0.5))


def gaussian_likelihood(y: Tensor, scales: Tensor, means: Tensor) -> Tensor:
    """Probability mass of the unit interval around y under a normal distribution.

    v = |y - mean|, s = max(scale, 0.11), p = max(Phi((0.5 - v) / s) - Phi((-0.5 - v) / s), 1e-9). Both maxima have the
    gradient of `lower_bound`. Because v >= 0, both arguments are in the tail where erfc is accurate.

    Args:
        y: the value that the decoder will have: rounded (round(y - mean) + mean) or, in training, with additive noise;
            any shape.
        scales, means: y's shape.

    Returns:
        The likelihood, y's shape: float64 if an argument is, else float32, because 1e-9 is zero in float16.

    Source: Balle et al., 2018; constants as in CompressAI's GaussianConditional.
    """
    wide = torch.promote_types(
        torch.promote_types(y.dtype, scales.dtype), torch.promote_types(means.dtype, torch.float32)
    )
    y, scales, means = y.to(wide), scales.to(wide), means.to(wide)
    v = (y - means).abs()
    s = lower_bound(scales, SCALE_MIN)
    mass = _normal_cdf((0.5 - v) / s) - _normal_cdf((-0.5 - v) / s)
    return lower_bound(mass, LIKELIHOOD_MIN)
