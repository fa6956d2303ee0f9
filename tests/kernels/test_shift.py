"""Tests of the token shift and the normalised shift that are not in the contract suite."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import test_contract as contract
import torch
import torch.nn.functional as F
from op_specs import INTERPRETER, NORM_SHIFT, Arguments
from torch import Tensor

import lalic_kernels
from lalic_kernels import installed
from lalic_kernels.op import bytes_of
from lalic_kernels.shift import cpu, gpu
from lalic_kernels.shift.reference import norm_shift as reference

EPS32, EPS16 = torch.finfo(torch.float32).eps, torch.finfo(torch.bfloat16).eps
COMPILED = pytest.mark.skipif(not installed.NUMBA, reason="numba is not installed")
INTERPRETED = pytest.mark.skipif(not INTERPRETER, reason="Triton's interpreter is off")


def make(*size: int) -> Arguments:
    return contract.make(NORM_SHIFT, size, torch.float32, "cpu")


def by_torch(x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor) -> Tensor:
    """torch's layer_norm and conv2d in float64."""
    channels = x.shape[-1]
    normed = F.layer_norm(x.double(), (channels,), norm_weight.double(), norm_bias.double())
    y = F.conv2d(normed.permute(0, 3, 1, 2), weight.double()[:, None], padding=2, groups=channels)
    return y.permute(0, 2, 3, 1)


BACKENDS = NORM_SHIFT.backends("cpu")
EACH = pytest.mark.parametrize("backend", BACKENDS)


@EACH
def test_the_padding_comes_after_the_norm(backend: str) -> None:
    """With a bias alone an inner pixel is the sum of all taps, a corner that of the nine taps inside the image."""
    x, norm_weight = torch.randn(1, 6, 7, 3), torch.zeros(3)
    y = lalic_kernels.norm_shift(x, norm_weight, torch.ones(3), torch.ones(3, 5, 5), backend=backend)
    assert y[0, 2, 3].tolist() == [25.0] * 3 and y[0, 0, 0].tolist() == [9.0] * 3
    assert y[0, 5, 6].tolist() == [9.0] * 3


@EACH
def test_wide_images_of_channels(backend: str) -> None:
    """So many channels that a block of statistics has one pixel, and an image in channels-first memory."""
    given = make(1, 2, 3, 518 if backend == "triton" else 1030)  # the interpreter is slow
    given["x"] = given["x"].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert not given["x"].is_contiguous()
    y, truth = lalic_kernels.norm_shift(**given, backend=backend), by_torch(**given)
    # 25 products, a few roundings each; the norm's sums over 1030 channels are added pairwise or in several lanes.
    assert (y - truth).abs().max() <= 32 * EPS32 * truth.abs().max()


@EACH
def test_a_mean_far_from_zero_costs_what_the_input_lost(backend: str) -> None:
    """x = 1000 + noise: the mean is subtracted before squaring, so only x's rounding is amplified."""
    given = make(1, 3, 4, 48)
    given["x"] += 999
    y, truth = lalic_kernels.norm_shift(**given, backend=backend), by_torch(**given)
    # The mean is rounded to 1000 eps, half a unit in the last place, and a few more for its sum; 25 taps add up.
    assert (y - truth).abs().max() <= 8 * 1000 * EPS32 * truth.abs().max()
    # sum(x^2) - mean^2 would lose 1e6 eps of a variance of one, ten times what is allowed.


@COMPILED
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(2, 40, 9, 20), (1, 37, 16, 96)])
def test_threads_do_not_change_a_bit(size: tuple[int, ...], dtype: torch.dtype, threads: Callable[[int], None]) -> None:
    x, norm_weight, norm_bias, weight = make(*size).values()
    upstream = torch.randn(size, generator=torch.Generator().manual_seed(4))
    results = []
    for number in (1, 2, 3):
        threads(number)
        y = cpu.forward(x, weight, norm_weight, norm_bias, 1e-5, dtype)
        results.append((y, *cpu.backward(x, weight, upstream.to(dtype), norm_weight, norm_bias, 1e-5)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@COMPILED
def test_bfloat16_is_rounded_once_to_nearest_even() -> None:
    """A single tap of 1 is the identity, so bfloat16 stays unchanged; another tap gives torch's rounding."""
    weight = torch.zeros(40, 5, 5)
    x = torch.randn(1, 3, 5, 40, generator=torch.Generator().manual_seed(5)).bfloat16()
    x[0, 0, 0, :4] = torch.tensor([float("inf"), -float("inf"), 1e-40, -0.0])
    weight[:, 2, 2] = 1
    finite = x.clone()
    finite[0, 0, 0, :2] = 3.0
    assert torch.equal(lalic_kernels.token_shift(finite, weight, backend="cpu"), finite)
    weight[:, 2, 2] = 1 + 2**-8  # halfway between neighbours for many values: ties to even show
    expected = (finite.float() * (1 + 2**-8)).bfloat16()
    assert torch.equal(lalic_kernels.token_shift(finite, weight, backend="cpu"), expected)
    # Zero taps times infinity are NaN around an infinity, which must stay NaN in 16 bits.
    assert lalic_kernels.token_shift(x, weight, backend="cpu")[0, 1, 1, :2].isnan().all()


@INTERPRETED
def test_tiles_of_large_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tile of large images on a small one, past its edges; and channels split unevenly between programs."""
    given = make(1, 9, 17, 70)
    truth = by_torch(**given)
    for limit in (0, 1 << 30):
        monkeypatch.setattr(gpu, "MANY_PIXELS", limit)
        y = lalic_kernels.norm_shift(**given, backend="triton")
        assert (y - truth).abs().max() <= 16 * EPS32 * truth.abs().max()  # 25 products, added in float32


def test_eps_is_checked() -> None:
    given = make(1, 2, 2, 4)
    with pytest.raises(ValueError, match="norm_shift: eps must be at least 0, but is -1"):
        lalic_kernels.norm_shift(**given, eps=-1)
    larger = lalic_kernels.norm_shift(**given, eps=10.0)
    assert (larger - lalic_kernels.norm_shift(**given, eps=10.0, backend="reference")).abs().max() < 1e-5
    assert not torch.allclose(larger, lalic_kernels.norm_shift(**given), atol=1e-3)


# Channels that do not fill a vector, one column, one pixel, more lines than a partial sum has.
NARROW_SIZES = [(1, 1, 1, 3), (2, 5, 1, 33), (1, 1, 9, 16), (2, 37, 6, 20), (1, 3, 17, 48)]
NARROW = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


@NARROW
@pytest.mark.parametrize("size", NARROW_SIZES)
@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_a_narrower_result_is_the_float32_result_cast(backend: str, size: tuple[int, ...], dtype: torch.dtype) -> None:
    """Bit for bit, also for gradients: rounding at the store and widening at the load change nothing else."""
    if backend == "triton" and size in NARROW_SIZES[3:]:
        pytest.skip("Triton's interpreter is slow, and the dtype is a cast outside the kernels")
    given, upstream = make(*size), torch.randn(size, generator=torch.Generator().manual_seed(4)).to(dtype)
    function = functools.partial(lalic_kernels.norm_shift, backend=backend)
    expected, expected_grads = contract.gradients(lambda **a: function(**a).to(dtype), given, upstream)
    y, grads = contract.gradients(functools.partial(function, dtype=dtype), given, upstream)
    assert y.dtype == dtype and y.is_contiguous() and torch.equal(y, expected)
    for name, grad in grads.items():
        assert grad.dtype == torch.float32 and torch.equal(grad, expected_grads[name]), name


@NARROW
@EACH
def test_registration_with_a_dtype(backend: str, dtype: torch.dtype) -> None:
    leaves = tuple(argument.requires_grad_() for argument in make(1, 3, 4, 3).values())
    torch.library.opcheck(torch.ops.lalic_kernels.norm_shift.default, (*leaves, 1e-5, dtype, backend))


def test_the_dtype_is_checked() -> None:
    x, *parameters = make(1, 2, 2, 4).values()
    for given, dtype, message in (
        (x, torch.float64, "None or float32 or float16 or bfloat16 beside float32 x, but is float64"),
        (x, "bfloat16", "None or float32 or float16 or bfloat16 beside float32 x, but is a str"),
        (x.bfloat16(), torch.float32, "None or bfloat16 beside bfloat16 x, but is float32"),
        (x.double(), torch.bfloat16, "None or float64 beside float64 x, but is bfloat16"),
    ):
        with pytest.raises(TypeError, match=f"norm_shift: dtype must be {message}"):
            lalic_kernels.norm_shift(given, *parameters, dtype=dtype)
    for dtype in (None, torch.float32):
        assert lalic_kernels.norm_shift(x, *parameters, dtype=dtype).dtype == torch.float32
    empty = lalic_kernels.norm_shift(x[:0], *parameters, dtype=torch.bfloat16)
    assert empty.dtype == torch.bfloat16 and empty.shape == (0, 2, 2, 4)
    all_bytes = bytes_of("norm_shift", x, *parameters)
    assert bytes_of("norm_shift", x, *parameters, dtype=torch.bfloat16) == all_bytes - 2 * x.numel()


@COMPILED
@pytest.mark.parametrize("size", NARROW_SIZES)
def test_compiled_gradient_of_16_bit_images(size: tuple[int, ...]) -> None:
    """Nothing is rounded to 16 bits before the end: x's gradient is half a unit in the last place from the truth."""
    given = make(*size)
    given["x"] = given["x"].bfloat16()
    upstream = torch.randn(size, generator=torch.Generator().manual_seed(4)).bfloat16()
    _, true = contract.gradients(reference, contract.wide(given), upstream)
    _, grads = contract.gradients(functools.partial(lalic_kernels.norm_shift, backend="cpu"), given, upstream)
    scale = max(grad.abs().max().item() for grad in true.values())
    for name, grad in grads.items():
        assert grad.dtype == given[name].dtype
        # One rounding to bfloat16, and a few hundred float32 roundings where terms cancel.
        rounding = EPS16 / 2 * true[name].abs() if name == "x" else 0
        assert ((grad - true[name]).abs() <= rounding + 256 * EPS32 * scale).all(), name
