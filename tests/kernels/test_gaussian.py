"""The Gaussian model's table, index and likelihood."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import lalic_kernels
from lalic_kernels.gaussian import lower_bound


def test_scale_table_is_the_published_one_to_the_bit() -> None:
    with np.load(Path(__file__).resolve().parents[1] / "golden" / "kernels.npz") as file:
        expected = torch.from_numpy(file["gaussian/scale_table"])
    table = lalic_kernels.scale_table()
    assert table.dtype == torch.float32 and torch.equal(table, expected)
    assert table[0] == torch.tensor(0.11)


def test_scale_index_is_the_first_entry_that_is_large_enough() -> None:
    table = lalic_kernels.scale_table()
    above = torch.nextafter(table, torch.tensor(math.inf))
    below = torch.nextafter(table, torch.tensor(0.0))
    numbers = torch.arange(64, dtype=torch.int32)
    assert torch.equal(lalic_kernels.scale_index(table), numbers)
    assert torch.equal(lalic_kernels.scale_index(below), numbers)
    assert torch.equal(lalic_kernels.scale_index(above), (numbers + 1).clamp(max=63))
    odd = torch.tensor([[-1e30, -1.0, 0.0], [1e30, math.inf, 256.0]])
    index = lalic_kernels.scale_index(odd)
    assert index.dtype == torch.int32 and index.tolist() == [[0, 0, 0], [63, 63, 63]]
    assert lalic_kernels.scale_index(torch.empty(0, 3)).shape == (0, 3)


def test_likelihood_is_the_mass_of_a_unit_interval() -> None:
    """Against Python's erfc, in float64, in the middle and in the tails."""
    for y, scale, mean in [(0.0, 1.0, 0.0), (3.0, 0.5, 0.25), (-7.3, 2.0, 1.1), (40.0, 9.0, -3.0), (2.0, -5.0, 1.9)]:
        v, s = abs(y - mean), max(scale, 0.11)
        mass = 0.5 * math.erfc((v - 0.5) / s / math.sqrt(2)) - 0.5 * math.erfc((v + 0.5) / s / math.sqrt(2))
        value = lalic_kernels.gaussian_likelihood(*(torch.tensor(x, dtype=torch.float64) for x in (y, scale, mean)))
        assert value.item() == pytest.approx(max(mass, 1e-9), rel=1e-12)  # erfc of both libraries: a few roundings


def test_likelihoods_of_all_values_add_up() -> None:
    values = torch.arange(-200, 201, dtype=torch.float64)
    for scale in (0.05, 1.0, 20.0):
        total = lalic_kernels.gaussian_likelihood(
            values, torch.full_like(values, scale), torch.full_like(values, 0.3)
        ).sum()
        assert total.item() == pytest.approx(1.0, abs=401e-9)  # each of the 401 may have been lifted to 1e-9


def test_far_tails_and_half_precision_stay_above_zero() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        y = torch.tensor([1000.0, 0.0], dtype=dtype)
        value = lalic_kernels.gaussian_likelihood(y, torch.ones_like(y), torch.zeros_like(y))
        assert value.dtype == torch.float32 and value[0] == torch.tensor(1e-9)


def test_gradients_pass_a_lower_bound_where_they_would_raise_the_value() -> None:
    x = torch.tensor([0.5, 1.0, 2.0, 0.5, 1.0, 2.0], requires_grad=True)
    upstream = torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0])
    value = lower_bound(x, 1.0)
    assert value.tolist() == [1.0, 1.0, 2.0, 1.0, 1.0, 2.0]
    (grad,) = torch.autograd.grad(value, x, upstream)
    assert grad.tolist() == [-1.0, -1.0, -1.0, 0.0, 1.0, 1.0]


def test_likelihood_gradcheck_and_compile() -> None:
    generator = torch.Generator().manual_seed(0)
    y, means = (torch.randn(20, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    scales = (torch.rand(20, generator=generator, dtype=torch.float64) + 0.2).requires_grad_()
    assert torch.autograd.gradcheck(lalic_kernels.gaussian_likelihood, (y, scales, means))
    compiled = torch.compile(lalic_kernels.gaussian_likelihood, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(y, scales, means), lalic_kernels.gaussian_likelihood(y, scales, means))
    torch.compiler.reset()
