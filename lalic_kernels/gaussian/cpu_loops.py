"""The Gaussian likelihood's loops on CPUs, compiled by numba: each is one pass over memory, in float32.

The arithmetic is that of `kernels.py`, which explains the formula of the tail.
"""

from __future__ import annotations

import numpy as np

from lalic_kernels.gaussian.reference import LIKELIHOOD_MIN, SCALE_MIN
from lalic_kernels.numba_math import OPTIONS, exp, f32, njit

_SCALE_MIN, _MASS_MIN = f32(SCALE_MIN), f32(LIKELIHOOD_MIN)
_DENSITY = f32(0.3989422804014327)
BLOCK = 1024  # elements in the work space of `gradients`


@njit(inline="always")
def _tail(z, falling):
    """Q(z) for z >= 0, from falling = exp(-z^2 / 2)."""
    r = f32(1.0) / (z + f32(3.5))
    t = f32(1.0) - f32(7.0) * r
    p = f32(0.00011068939784308895)
    p = p * t + f32(0.0004218978574499488)
    p = p * t - f32(0.0004949436988681555)
    p = p * t - f32(0.003175310790538788)
    p = p * t + f32(0.006493115797638893)
    p = p * t + f32(0.01740637794137001)
    p = p * t - f32(0.1160530373454094)
    p = p * t + f32(0.3154250383377075)
    p = p * t - f32(0.5655617713928223)
    p = p * t + f32(0.7444160580635071)
    return falling * (p * r)


@njit(inline="always")
def _mass(y, scale, mean):
    """The mass before its bound; 1 / s, the interval's ends a and b in units of s, exp(-a^2 / 2), exp(-b^2 / 2)."""
    v = abs(y - mean)
    s = _SCALE_MIN if scale < _SCALE_MIN else scale
    per_s = f32(1.0) / s
    a, b = (v - f32(0.5)) * per_s, (v + f32(0.5)) * per_s
    at_a, at_b = exp(f32(-0.5) * a * a), exp(f32(-0.5) * b * b)
    tail = _tail(abs(a), at_a)
    mass = (f32(1.0) - tail if a < f32(0.0) else tail) - _tail(b, at_b)
    return mass, per_s, a, b, at_a, at_b


@njit(**OPTIONS)
def likelihoods(y, scales, means, start, stop, out):
    """Write out[start:stop]; all arrays (n,) float32."""
    y, scales, means, out = y[start:stop], scales[start:stop], means[start:stop], out[start:stop]
    for i in range(out.size):
        mass, _, _, _, _, _ = _mass(y[i], scales[i], means[i])
        out[i] = _MASS_MIN if mass < _MASS_MIN else mass


@njit(**OPTIONS)
def gradients(y, scales, means, grad, start, stop, grad_y, grad_scales, grad_means):
    """Write the three gradients from start to stop; all arrays (n,) float32.

    Blocks are computed in one small array first: the compiler cannot prove that seven arrays do not overlap, and would
    not vectorise.
    """
    block = np.empty(2 * BLOCK, np.float32)
    block_y, block_scales = block[:BLOCK], block[BLOCK:]
    for begin in range(start, stop, BLOCK):
        end = min(begin + BLOCK, stop)
        y_, scales_, means_, grad_ = y[begin:end], scales[begin:end], means[begin:end], grad[begin:end]
        for i in range(end - begin):
            scale, g = scales_[i], grad_[i]
            mass, per_s, a, b, at_a, at_b = _mass(y_[i], scale, means_[i])
            passing = f32(0.0) if (mass < _MASS_MIN) & (g >= f32(0.0)) else g  # NaN passes
            passing = passing * (_DENSITY * per_s)
            grad_v = passing * (at_b - at_a)  # zero where y is the mean
            block_y[i] = -grad_v if y_[i] < means_[i] else grad_v
            grad_s = passing * (a * at_a - b * at_b)
            block_scales[i] = f32(0.0) if (scale < _SCALE_MIN) & (grad_s >= f32(0.0)) else grad_s
        grad_y[begin:end] = block_y[: end - begin]
        grad_means[begin:end] = -block_y[: end - begin]
        grad_scales[begin:end] = block_scales[: end - begin]
