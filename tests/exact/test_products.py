"""Products of int16 pairs are exact for every factor that the definition allows, up to the limits of int32."""

from __future__ import annotations

import platform

import numpy as np
import pytest

from lalic_kernels.exact import numbers as n
from lalic_kernels.exact import op

if not op.installed.NUMBA:
    pytest.skip("numba is not installed; the reference is used", allow_module_level=True)

from numba import njit

from lalic_kernels.exact import cpu_product

STREAM = np.random.RandomState(0)


def check(q: np.ndarray, weight: np.ndarray) -> None:
    """q (R, K), weight (O, K) against Python's integers; padded rows and terms of q have arbitrary values."""
    (rows, terms), outputs = q.shape, weight.shape[0]
    packed, chunk = cpu_product.pack(weight)
    padded = np.full((-(-rows // cpu_product.ROWS) * cpu_product.ROWS, 2 * packed.shape[1]), -32768, np.int16)
    padded[:rows, :terms] = q
    sums = np.full((padded.shape[0], cpu_product.LANES * packed.shape[0]), np.nan, np.float32)
    cpu_product.multiply(padded, packed, chunk, rows, sums)
    exact = q.astype(object) @ weight.T.astype(object)
    assert np.array_equal(sums[:rows, :outputs], exact.astype(np.float64).astype(np.float32))


def integers(*shape: int, largest: int = n.LARGEST) -> np.ndarray:
    return STREAM.randint(-largest, largest + 1, shape).astype(np.int16)


@pytest.mark.parametrize("outputs", [1, 15, 16, 17, 33, 48])
@pytest.mark.parametrize("terms", [1, 2, 31, 32, 33, 34, 100, 129])
def test_all_sizes(outputs: int, terms: int) -> None:
    for rows in (1, 4, 7):
        check(integers(rows, terms), integers(outputs, terms))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("terms", [32, 33, 64, 2560])
def test_the_largest_sums(terms: int, sign: int) -> None:
    check(np.full((5, terms), n.LARGEST, np.int16), np.full((17, terms), sign * n.LARGEST, np.int16))


@pytest.mark.parametrize("scale", [1, 60, 500, 4000])
def test_sums_that_just_fit(scale: int) -> None:
    """Weights of one sign and rows of the largest number: with a chunk twice as long as `pack`'s, sums overflow."""
    weight = np.abs(integers(20, 3000, largest=scale))
    check(np.full((4, 3000), n.LARGEST, np.int16), weight)
    packed, chunk = cpu_product.pack(weight)
    sums = np.abs(weight.astype(np.int64)) * n.LARGEST

    def largest(terms: int) -> int:
        return max(int(sums[:, i : i + terms].sum(axis=1).max()) for i in range(0, 3000, terms))

    assert largest(2 * chunk) < 2**31
    assert chunk == 512 or largest(4 * chunk) >= 2**31
    assert packed.dtype == np.int16


def test_one_heavy_window_bounds_all() -> None:
    weight = integers(16, 1024, largest=3)
    weight[5, 960:] = n.LARGEST
    assert cpu_product.pack(weight)[1] == cpu_product.SAFE_PAIRS
    check(np.full((4, 1024), n.LARGEST, np.int16), weight)


def test_no_terms_sum_to_zero() -> None:
    packed, chunk = cpu_product.pack(np.zeros((3, 0), np.int16))
    sums = np.full((4, 16), np.nan, np.float32)
    cpu_product.multiply(np.zeros((4, 0), np.int16), packed, chunk, 4, sums)
    assert not sums.any()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the instruction's name is of x86")
def test_pairs_are_one_instruction() -> None:
    """Without it the bits are the same, but a product takes several times as long."""
    fresh = njit(cpu_product.multiply.py_func)  # not from numba's cache, which has no listing
    packed, chunk = cpu_product.pack(integers(32, 64))
    fresh(integers(4, 64), packed, chunk, 4, np.empty((4, 32), np.float32))
    code = fresh.inspect_asm(fresh.signatures[0])
    assert "pdpwssd" in code or "pmaddwd" in code
