"""What only the Triton kernels have; `test_paths.py` runs them too. On a GPU, or in the interpreter."""

from __future__ import annotations

import exact_inputs
import pytest
import torch
from exact_inputs import KINDS, Source, make_block, make_params
from test_paths import DEVICE, NEEDS_TRITON, same
from torch import Tensor

from lalic_kernels import exact
from lalic_kernels.exact import reference

pytestmark = NEEDS_TRITON


def both(function, *tensors: Tensor):
    """The function's results from the reference and from the kernels."""
    return [function(*tensors, backend=name) for name in ("reference", "triton")]


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_and_block(kind: str) -> None:
    """The WKV has few lengths, to save time in the interpreter: one token, three chunks, two chunks."""
    lengths = {"normal": (1, 130), "wild": (65,)}.get(kind, ())
    expected, result = (exact_inputs.results(kind, path, DEVICE, lengths) for path in ("reference", "triton"))
    assert len(result) == 18 + len(lengths)
    assert not [name for name in result if not same(expected[name], result[name])]


def test_largest_sums_stay_exact() -> None:
    """The largest number of terms, all of them the largest: each sum of digits is 2^29, and two share one int32."""
    terms = 2**17
    weight = exact.prepare_linear(torch.full((2, terms), 8191.0) * torch.tensor([[1.0], [-1.0]])).to(DEVICE)
    x = torch.full((1, terms), 8191.0).to(DEVICE)
    assert same(*both(lambda x, backend: exact.linear(x, weight, backend=backend), x))


def test_more_than_one_block_of_everything() -> None:
    """Products with more rows, outputs and terms than a block; several blocks of channels at each tap."""
    x = Source(26, DEVICE).normal
    weight, rows = exact.prepare_linear(x(70, 200), x(70)), x(130, 200)
    assert same(*both(lambda a, backend: exact.linear(a, weight, backend=backend), rows))
    image = x(2, 6, 8, 130)
    for kernel in (
        exact.prepare_conv(x(40, 130, 3, 3), x(40), padding=1, taps=[(0, 1), (1, 0), (2, 2)]),
        exact.prepare_conv(x(130, 5, 3, 3), x(5), 2, 1, True, 1),
    ):
        assert same(*both(lambda a, backend: exact.conv(a, kernel, backend=backend), image))  # noqa: B023


@pytest.mark.parametrize("kind", ["normal", "wild"])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_shift_digits(kind: str, size: int) -> None:
    """Digits of the shifted image are the reference's quantised integers, with one scale per position."""
    from lalic_kernels.exact import gpu

    x = getattr(Source(27, DEVICE), kind)
    image, shift = x(2, 3, 5, 70), exact.prepare_depthwise(x(70, size, size))
    bits = image.abs().flatten(1, 2).amax(1).view(torch.int32)
    digits = gpu.shift_digits(image, bits, shift)
    q, exponent = exact.quantise(reference.depthwise(image, shift).flatten(0, 2), (-1,))
    assert torch.equal(128 * digits.high.int() + digits.low.int(), torch.nn.functional.pad(q, (0, digits.depth - 70)))
    assert torch.equal(digits.scales, torch.ldexp(torch.ones(30), exponent.flatten().cpu() - 12).to(DEVICE))


def test_the_epilogues_of_a_product() -> None:
    """Squares, gates and residuals in the product's launch, and maxima of keys; any row stride."""
    from lalic_kernels.exact import gpu

    x = Source(28, DEVICE).wild
    rows, weight, wide = x(66, 19), exact.prepare_linear(x(40, 19)), x(66, 90)
    residual, gate, gamma = wide[:, :40], wide[:, 45:85], x(40)
    y = reference.linear(rows, weight)
    squared = torch.cat((reference.squared_relu(y[:, :33]), y[:, 33:]), dim=1)
    with gpu.checked(rows.device) as status:
        digits, factor = gpu.digits_of(rows, status, 19), gpu.factor_of(weight)
        assert same(gpu.product(digits, factor, squared=33), squared)
        result = gpu.product(digits, factor, gate=gate, residual=residual)
        assert same(result, reference.residual(residual, reference.gate(gate, y)))
        result = gpu.product(digits, factor, residual=residual, gamma=gamma)
        assert same(result, reference.residual(residual, y, gamma))
        assert same(gpu.product(digits, factor, partial=residual), residual + y)
        max_key = torch.zeros(3, 13, dtype=torch.int32, device=DEVICE)
        assert same(gpu.product(digits, factor, max_key=max_key), y)
    assert torch.equal(max_key, exact_inputs.order_key(y.reshape(3, 22, 40)[..., :13].amax(1)))


def test_digits_are_the_quantised_integers() -> None:
    """Halves round to even; the digits give the integers of `quantise`, also for extremes."""
    from lalic_kernels.exact import gpu

    halves = torch.arange(-40, 40) + 0.5
    rows = torch.stack([
        torch.cat((halves, torch.tensor([4096.0]))),  # its exponent is 12: scale 1
        torch.cat((halves * 2.0**-70, torch.tensor([2.0**-57]))),
        torch.cat((halves * 2.0**-140, torch.tensor([0.0]))),  # subnormal
        torch.cat((halves * 2.0**90, torch.tensor([3.0e38]))),
        torch.cat((halves * 2.0**-20, torch.tensor([8191.9]))),  # rounds to 8192, which is clipped
        torch.zeros(81),
    ]).to(DEVICE)  # fmt: skip
    q, exponent = exact.quantise(rows, (-1,))
    digits = gpu.digits_of(rows, torch.zeros(1, dtype=torch.int32, device=DEVICE), rows.shape[1])
    assert torch.equal(128 * digits.high.int() + digits.low.int(), torch.nn.functional.pad(q, (0, digits.depth - 81)))
    assert int(digits.high.abs().max()) <= 64 and int(digits.low.abs().max()) <= 64
    assert torch.equal(digits.scales, torch.ldexp(torch.ones(6), exponent.flatten().cpu() - 12).to(DEVICE))


def test_strided_inputs() -> None:
    x = Source(22, DEVICE).normal
    image, block, params = x(2, 6, 4, 9).transpose(1, 2), make_block(x, 9, 2), make_params(x, 9, 5, 10)
    weight, kernel = exact.prepare_linear(x(5, 9)), exact.prepare_conv(x(4, 9, 3, 3), padding=1)
    for function in (
        lambda backend: exact.linear(image, weight, backend=backend),
        lambda backend: exact.conv(image, kernel, backend=backend),
        lambda backend: exact.rwkv_block(image, block, backend=backend),
        lambda backend: exact.entropy_params(image, params, partial=image[..., 2:7], backend=backend),
    ):
        assert same(*both(function))


def test_one_check_for_many_calls() -> None:
    from lalic_kernels.exact.gpu_state import one_check

    x = Source(24, DEVICE).normal
    good, weight, reached = x(2, 5), exact.prepare_linear(x(3, 5)), []
    with pytest.raises(exact.NotFinite, match="must be finite"), one_check():
        exact.linear(good / 0.0, weight, backend="triton")
        reached.append(exact.linear(good, weight, backend="triton"))
    assert len(reached) == 1  # the first call did not raise
    with one_check(), one_check():
        exact.linear(good, weight, backend="triton")
    with pytest.raises(exact.NotFinite, match="must be finite"):
        exact.linear(good / 0.0, weight, backend="triton")
