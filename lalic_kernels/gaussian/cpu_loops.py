"""The likelihood's loops on CPUs, compiled by numba: one pass over memory each, float32; `cpu.py` calls them.

The arithmetic is that of `kernels.py`, where the tail's formula is explained.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from lalic_kernels.gaussian.reference import LIKELIHOOD_MIN, SCALE_MIN
from lalic_kernels.numba_math import OPTIONS, exp, f32

_SCALE_MIN, _MASS_MIN = f32(SCALE_MIN), f32(LIKELIHOOD_MIN)
_DENSITY = f32(0.3989422804014327)
BLOCK = 1024  # elements that `gradients` computes before it writes them


@njit(inline="always")
def _tail(z, falling):
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
def _ends(y, scale, mean):
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
    """out[start:stop]; all (n,) float32."""
    y, scales, means, out = y[start:stop], scales[start:stop], means[start:stop], out[start:stop]
    for i in range(out.size):
        mass, _, _, _, _, _ = _ends(y[i], scales[i], means[i])
        out[i] = _MASS_MIN if mass < _MASS_MIN else mass


@njit(**OPTIONS)
def gradients(y, scales, means, grad, start, stop, of_y, of_scales, of_means):
    """The three gradients from start to stop; all (n,) float32.

    By way of one small array: seven arrays at once are more than the compiler tells apart, and it would not vectorise.
    """
    found = np.empty(2 * BLOCK, np.float32)
    first, second = found[:BLOCK], found[BLOCK:]
    for begin in range(start, stop, BLOCK):
        end = min(begin + BLOCK, stop)
        y_, scales_, means_, grad_ = y[begin:end], scales[begin:end], means[begin:end], grad[begin:end]
        for i in range(end - begin):
            scale, g = scales_[i], grad_[i]
            mass, per_s, a, b, at_a, at_b = _ends(y_[i], scale, means_[i])
            passing = g if (mass >= _MASS_MIN) | (g < f32(0.0)) else f32(0.0)
            passing = passing * (_DENSITY * per_s)
            of_v = passing * (at_b - at_a)  # zero where y is the mean
            first[i] = -of_v if y_[i] < means_[i] else of_v
            of_s = passing * (a * at_a - b * at_b)
            second[i] = of_s if (scale >= _SCALE_MIN) | (of_s < f32(0.0)) else f32(0.0)
        of_y[begin:end] = first[: end - begin]
        of_means[begin:end] = -first[: end - begin]
        of_scales[begin:end] = second[: end - begin]
