"""float32 arithmetic inside numba functions: bfloat16 in and out, exp, sigmoid. Importing this module needs numba.

Arrays are float32, or uint16 that holds bfloat16; which of the two is known when a function is compiled, and costs
nothing. Loops over these functions vectorise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

f32 = np.float32
_LOG2E = f32(1.4426950408889634)
_LN2_HI = f32(0.693359375)
_LN2_LO = f32(-2.12194440e-4)
_LOWEST = f32(-87.0)

# 'contract' lets a*b+c become one fused operation; nothing else is relaxed, so infinities and order keep their meaning.
OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy", "fastmath": {"contract"}}


@njit(inline="always")
def exp(x):
    """exp for float32 in plain arithmetic, so that the loop round it vectorises; 1e-7 relative, 0 below -87."""
    clipped = max(x, _LOWEST)
    n = np.floor(clipped * _LOG2E + f32(0.5))
    r = clipped - n * _LN2_HI
    r = r - n * _LN2_LO
    p = f32(1.9875691500e-4)
    p = p * r + f32(1.3981999507e-3)
    p = p * r + f32(8.3334519073e-3)
    p = p * r + f32(4.1665795894e-2)
    p = p * r + f32(1.6666665459e-1)
    p = p * r + f32(5.0000001201e-1)
    y = p * r * r + r + f32(1.0)
    scale = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return y * scale if x > _LOWEST else f32(0.0)


@njit(inline="always")
def exp_double(x):
    """exp for float64 up to 700, likewise; 1e-15 relative, 0 below -700."""
    n = np.floor(x * 1.4426950408889634 + 0.5)
    r = x - n * 0.6931471803691238
    r = r - n * 1.9082149292705877e-10
    p = 1.0 / 6227020800.0  # 1 / 13!
    p = p * r + 1.0 / 479001600.0
    p = p * r + 1.0 / 39916800.0
    p = p * r + 1.0 / 3628800.0
    p = p * r + 1.0 / 362880.0
    p = p * r + 1.0 / 40320.0
    p = p * r + 1.0 / 5040.0
    p = p * r + 1.0 / 720.0
    p = p * r + 1.0 / 120.0
    p = p * r + 1.0 / 24.0
    p = p * r + 1.0 / 6.0
    p = p * r + 0.5
    y = p * r * r + r + 1.0
    scale = np.int64((np.int64(n) + np.int64(1023)) << np.int64(52)).view(np.float64)
    return y * scale if x > -700.0 else 0.0


@njit(inline="always")
def sigmoid(x):
    """1 / (1 + exp(-x)) without overflow on either side."""
    z = exp(-abs(x))
    return (f32(1.0) if x >= f32(0.0) else z) / (f32(1.0) + z)


def wide(x):
    """An element, float32 or bfloat16, as float32."""


def stored(row, value):
    """A float32 value as row holds it: as it is, or bfloat16, rounded to nearest, ties to even, a NaN staying one."""


@overload(wide)
def _typed_wide(x):
    if x == types.float32:
        return lambda x: x
    return lambda x: np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)


@overload(stored)
def _typed_stored(row, value):
    if row.dtype == types.float32:
        return lambda row, value: value
    return lambda row, value: _rounded(value)


@njit(inline="always")
def _rounded(value):
    bits = np.float32(value).view(np.uint32)
    word = np.uint32(bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    quiet = np.uint32(bits | np.uint32(0x400000))
    return np.uint16((word if value == value else quiet) >> np.uint32(16))
