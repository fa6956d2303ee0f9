"""The vector functions and the float64 exponential of `numba_math.py` against numpy."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba")

from numba import njit

from lalic_kernels import numba_math as nm

SPECIAL = [0.0, -0.0, 1.0, -1.0, 87.0, -86.99, -87.0, -88.0, -1e4, -3e38, -np.inf, np.nan, 1e-30, -1e-30, 2.5, -2.5]


@njit
def _exp(x, out):
    for i in range(0, x.shape[0], 16):
        nm.store(out, i, nm.exp16(nm.load(x, i)))


@njit(**nm.OPTIONS)
def _scalar_exp(x, out):
    for i in range(x.shape[0]):
        out[i] = nm.exp(x[i])


@njit(**nm.OPTIONS)
def _exp_double(x, out):
    for i in range(x.shape[0]):
        out[i] = nm.exp_double(x[i])


@njit
def _compared(a, b, out):
    x, y = nm.load(a, 0), nm.load(b, 0)
    nm.prefetch(a, 1 << 20)
    nm.store(out, 0, nm.larger(x, y))
    nm.store(out, 16, nm.where_above(x, y, nm.splat(np.float32(2.0)), nm.splat(np.float32(3.0))))
    nm.store(out, 32, nm.minus_abs(x))
    nm.store(out, 48, nm.div(x, y))


def test_exp_over_its_whole_range() -> None:
    x = np.concatenate([np.linspace(-88, 88, 1 << 18), SPECIAL]).astype(np.float32)
    result, scalar = np.empty_like(x), np.empty_like(x)
    _exp(x, result)
    _scalar_exp(x, scalar)
    inside = x > -87
    truth = np.exp(x[inside].astype(np.float64))
    assert np.abs(result[inside] / truth - 1).max() < 1e-7  # the bound in nm.exp's docstring
    assert (result[~inside & ~np.isnan(x)] == 0).all()  # also for -inf
    assert np.isnan(result[np.isnan(x)]).all() and np.isnan(scalar[np.isnan(x)]).all()
    np.testing.assert_allclose(result, scalar, rtol=1.2e-7)  # one rounding: only one may use fused operations


def test_exp_double_over_its_whole_range() -> None:
    x = np.concatenate([np.linspace(-700, 700, 1 << 18), [0.0, -0.0, -1e-300, -701.0, -1e308, -np.inf, np.nan]])
    result = np.empty_like(x)
    _exp_double(x, result)
    inside = x > -700
    assert np.abs(result[inside] / np.exp(x[inside]) - 1).max() < 1e-15
    assert (result[~inside] == 0).all()


def test_comparisons_and_division() -> None:
    a = np.array([1, 2, -3, np.nan, 0, -0.0, np.inf, -np.inf] * 2, np.float32)
    b = np.array([2, 1, -3, 1, np.nan, 1, -np.inf, 4] * 2, np.float32)
    out = np.empty(64, np.float32)
    _compared(a, b, out)
    np.testing.assert_array_equal(out[:16], np.where(b > a, b, a))
    np.testing.assert_array_equal(out[16:32], np.where(a > b, np.float32(2), np.float32(3)))
    np.testing.assert_array_equal(out[32:48], -np.abs(a))
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(out[48:], a / b)
