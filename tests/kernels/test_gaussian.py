"""The Gaussian model's table, index and likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from op_specs import GAUSSIAN_LIKELIHOOD
from torch import Tensor

import lalic_kernels
from lalic_kernels.gaussian import cpu, gpu, lower_bound, op, reference

IMPLEMENTATIONS = pytest.mark.parametrize(
    ("device", "backend"),
    [("cpu", backend) for backend in GAUSSIAN_LIKELIHOOD.backends("cpu")]
    + [pytest.param("cuda", backend, marks=pytest.mark.gpu) for backend in GAUSSIAN_LIKELIHOOD.backends("cuda")],
)


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
        assert value.item() == pytest.approx(max(mass, 1e-9), rel=1e-12)  # two libraries' erfc: a few roundings


def test_likelihoods_of_all_values_add_up() -> None:
    values = torch.arange(-200, 201, dtype=torch.float64)
    for scale in (0.05, 1.0, 20.0):
        total = lalic_kernels.gaussian_likelihood(
            values, torch.full_like(values, scale), torch.full_like(values, 0.3)
        ).sum()
        assert total.item() == pytest.approx(1.0, abs=401e-9)  # each of the 401 may have been raised to 1e-9


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


def tails(device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Both sides of the mean, |y - mean| / s from 0 to 40, scales far below to far above the bound; float32."""
    z = torch.cat((torch.linspace(-40, 40, 401), torch.linspace(-7, 7, 281)))
    scales = torch.tensor([-3.0, 0.0, 1e-30, 0.0999, 0.11, 0.15, 0.31, 1.0, 2.7, 30.0, 256.0, 1e4])
    generator = torch.Generator().manual_seed(3)
    means = (torch.rand(z.numel(), scales.numel(), generator=generator) - 0.5) * scales.clamp(min=0.11)
    y = means + z[:, None] * scales.clamp(min=0.11)
    return y.to(device), scales.expand(y.shape).contiguous().to(device), means.to(device)


def truth(y: Tensor, scales: Tensor, means: Tensor) -> dict[str, Tensor]:
    """In float64: the likelihood, its derivatives in y and in s, and the sizes that the errors are relative to."""
    y, scales, means = y.double(), scales.double(), means.double()
    v, s = (y - means).abs(), scales.clamp(min=0.11)
    a, b = (v - 0.5) / s, (v + 0.5) / s
    tail_a, tail_b = (0.5 * torch.erfc(x * math.sqrt(0.5)) for x in (a, b))
    at_a, at_b = (torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi) / s for x in (a, b))
    return {
        "mass": tail_a - tail_b,
        "grad_y": (at_b - at_a) * (y - means).sign(),
        "grad_s": a * at_a - b * at_b,
        "bound": (op.ROUNDINGS[0] + op.ROUNDINGS[1] * b * b) * torch.finfo(torch.float32).eps,
        "size": tail_a,
        "size_y": at_a + at_b,
        # Not |a|, which is zero at an end of the interval, where a has the rounding error of v.
        "size_s": (1 + a.abs()) * at_a + b * at_b,
    }


@IMPLEMENTATIONS
def test_error_bound_in_both_tails(device: str, backend: str) -> None:
    """The bound in README.md, for values, and for gradients also below the smallest likelihood."""
    y, scales, means = (x.requires_grad_() for x in tails(device))
    t = {name: x.detach() for name, x in truth(y, scales, means).items()}
    value = lalic_kernels.gaussian_likelihood(y, scales, means, backend=backend)
    error = (value.double() - t["mass"].clamp(min=1e-9)).abs()
    assert (t["mass"] < 1e-9).sum() > 1000 and (value > 1e-9).sum() > 1000
    assert (error <= t["bound"] * t["size"] + 1e-16).all()  # 1e-9 itself is not a float32
    # A negative upstream gradient passes the likelihood's bound, so this tests the density down to underflow.
    grad_y, grad_scales, grad_means = torch.autograd.grad(value.sum().neg(), (y, scales, means))
    smallest = 1e-36  # subnormal numbers may be flushed before the division by s
    assert ((grad_y.double() + t["grad_y"]).abs() <= t["bound"] * t["size_y"] + smallest).all()
    assert torch.equal(grad_means, -grad_y)
    expected = -t["grad_s"]
    expected = torch.where((scales >= 0.11) | (expected < 0), expected, 0.0)
    assert ((grad_scales.double() - expected).abs() <= t["bound"] * t["size_s"] + smallest).all()


@IMPLEMENTATIONS
def test_gradients_at_both_bounds(device: str, backend: str) -> None:
    """Below, at and above the scale's bound, above and below the likelihood's, for upstream gradients of both signs."""
    at = torch.tensor(0.11)
    scales = torch.stack((torch.tensor(-2.0), torch.nextafter(at, torch.tensor(0.0)), at, torch.tensor(0.5)))
    y = torch.tensor([0.0, 0.2, -0.45, 0.55, -0.6, 0.75, 3.0, -4.5])
    upstream = torch.tensor([-1.5, 2.0, 0.0])
    grid = torch.meshgrid(y, scales, upstream, indexing="ij")
    y, scales, upstream = (x.contiguous().to(device) for x in grid)
    leaves = tuple(x.requires_grad_() for x in (y, scales, torch.zeros_like(y)))
    expected = torch.autograd.grad(reference.gaussian_likelihood(*leaves), leaves, upstream)
    grads = torch.autograd.grad(lalic_kernels.gaussian_likelihood(*leaves, backend=backend), leaves, upstream)
    for true, got in zip(expected, grads, strict=True):
        # Two float32 computations: b^2 / 2 is up to 2200 before the density is zero, up to 90 where it matters.
        assert torch.allclose(got, true, rtol=2e-5, atol=1e-6)
    grad_scale, blocked = grads[1], upstream > 0
    below = scales < at.to(device)
    mass = reference.gaussian_likelihood(y, torch.full_like(y, 0.11), torch.zeros_like(y))
    far = (y.abs() > 2) & (scales < 0.2)
    assert (mass[far] == torch.tensor(1e-9)).all() and far.any()
    assert not grads[0][far & blocked].any() and not grad_scale[far & blocked].any()
    assert not (grad_scale[below] > 0).any(), "a gradient that would lower the scale passed below its bound"
    assert (grad_scale[below] < 0).any() and (grad_scale[~below] > 0).any() and (grad_scale[~below] < 0).any()


@IMPLEMENTATIONS
def test_nan_stays_nan(device: str, backend: str) -> None:
    for argument in range(3):
        leaves = [torch.ones(5, device=device) for _ in range(3)]
        leaves[argument][2] = torch.nan
        leaves = [x.requires_grad_() for x in leaves]
        value = lalic_kernels.gaussian_likelihood(*leaves, backend=backend)
        assert value.isnan().tolist() == [False, False, True, False, False], argument
        grads = torch.autograd.grad(value.sum(), leaves)
        assert all(grad[[0, 1, 3, 4]].isfinite().all() for grad in grads)


@IMPLEMENTATIONS
def test_halves_of_a_wider_tensor(device: str, backend: str) -> None:
    """Scales and means as two halves of a network's output: values and gradients equal those of contiguous copies."""
    generator = torch.Generator().manual_seed(0)
    for columns in (64, 7):
        wide = torch.randn(2, 4, 3, 2 * columns, generator=generator).to(device).requires_grad_()
        y = torch.randn(2, 4, 3, columns, generator=generator).to(device).requires_grad_()
        halves = wide.chunk(2, dim=3)
        results = []
        for scales, means in (halves, [x.contiguous() for x in halves]):
            value = lalic_kernels.gaussian_likelihood(y, scales, means, backend=backend)
            results.append((value, *torch.autograd.grad(value.square().sum(), (wide, y))))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_rows_are_views_where_strides_allow() -> None:
    wide = torch.randn(2, 4, 3, 10)
    for x in (wide, *wide.chunk(2, dim=3), wide[:, :, :, 3:4], wide[:1, :, 2:, :5], wide[1, 2, 0]):
        assert gpu.as_rows(x).data_ptr() == x.data_ptr() and torch.equal(gpu.as_rows(x), x.reshape(-1, x.shape[-1]))
    for x in (wide[:, :, :2], wide[..., ::2], wide.permute(0, 3, 1, 2)):
        rows = gpu.as_rows(x)
        assert rows.data_ptr() != x.data_ptr() and torch.equal(rows, x.reshape(-1, x.shape[-1]))


def test_threads_do_not_matter(threads: Callable[[int], None]) -> None:
    count = 2 * cpu._LEAST_ELEMENTS + 1025
    generator = torch.Generator().manual_seed(0)
    given = {name: torch.randn(count, generator=generator) for name in ("y", "scales", "means")}

    def run(backend: str) -> list[Tensor]:
        leaves = {name: x.clone().requires_grad_() for name, x in given.items()}
        value = lalic_kernels.gaussian_likelihood(**leaves, backend=backend)
        return [value.detach(), *torch.autograd.grad(value.log().sum(), list(leaves.values()))]

    expected = run("reference")
    for backend in GAUSSIAN_LIKELIHOOD.cpu_backends:
        threads(1)
        alone = run(backend)
        threads(2)
        assert all(torch.equal(a, b) for a, b in zip(alone, run(backend), strict=True)), backend
        if backend == "torch":
            assert torch.equal(alone[0], expected[0]), "the torch path's values are the reference's"
        for got, want in zip(alone, expected, strict=True):
            # A derivative may be a small difference of two terms; the test of the tails has the exact bound.
            assert torch.allclose(got, want, rtol=1e-3, atol=1e-4), backend


def test_dtypes_may_differ() -> None:
    y, scales, means = (x + 1 for x in torch.rand(3, 4, dtype=torch.float64))
    for dtypes, expected in (
        ((torch.bfloat16, torch.float32, torch.float16), torch.float32),
        ((torch.float32, torch.float64, torch.bfloat16), torch.float64),
    ):
        leaves = [x.to(dtype).requires_grad_() for x, dtype in zip((y, scales, means), dtypes, strict=True)]
        value = lalic_kernels.gaussian_likelihood(*leaves)
        assert value.dtype == expected
        assert tuple(grad.dtype for grad in torch.autograd.grad(value.sum(), leaves)) == dtypes
        assert torch.allclose(value, reference.gaussian_likelihood(*leaves), rtol=1e-6)
