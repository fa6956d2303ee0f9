"""The Triton kernels give the reference's bits, on a GPU or in the interpreter."""

from __future__ import annotations

import json
from pathlib import Path

import exact_inputs
import pytest
import torch
from exact_inputs import KINDS, Source, make_block, make_params
from test_paths import same
from torch import Tensor

from lalic_kernels import exact, installed
from lalic_kernels.dispatch import BackendUnavailable
from lalic_kernels.exact import op, reference
from lalic_kernels.exact.numbers import THRESHOLDS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [
    pytest.mark.skipif(
        not installed.TRITON or (DEVICE == "cpu" and not installed.interpreting()),
        reason="needs triton, and a GPU or the interpreter",
    ),
    # The interpreter uses numpy, which warns of overflows that the definition settles.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
GOLDEN = Path(__file__).with_name("golden.json")


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


@pytest.mark.gpu
def test_golden_hashes_on_a_gpu() -> None:
    golden, result = json.loads(GOLDEN.read_text())["hashes"], exact_inputs.all_hashes("triton", "cuda")
    assert [name for name in result if result[name] != golden[name]] == []


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


def test_sigmoid_over_all_exponents() -> None:
    x = exact_inputs.every_exponent(DEVICE)
    x = torch.nn.functional.pad(x, (0, -len(x) % 32)).reshape(-1, 32)
    assert same(exact_inputs.Gpu().sigmoid(x), reference.sigmoid(x))


@pytest.mark.parametrize("width", [1, 2, 127, 129, 4096])
def test_layer_norm_of_extremes(width: int) -> None:
    rows, weight, bias = exact_inputs.norm_extremes(Source(20, DEVICE), width)
    assert same(exact_inputs.Gpu().layer_norm(rows, weight, bias), reference.layer_norm(rows, weight, bias))


def test_scale_index_at_the_thresholds() -> None:
    thresholds = torch.tensor(THRESHOLDS)
    infinity = torch.tensor(float("inf"))
    x = torch.cat([thresholds, *(torch.nextafter(thresholds, sign * infinity) for sign in (1, -1)), -thresholds])
    x = torch.cat((x, torch.tensor([0.0, -0.0, 1e30, -1e30]))).to(DEVICE)
    parameters = x.reshape(2, 16, 8)
    expected, result = both(exact.gaussian_head, parameters)
    assert torch.equal(expected[0], result[0]) and same(expected[1], result[1])
    expected, result = both(exact.gaussian_head, torch.stack((x, x), dim=1))
    assert torch.equal(expected[0], result[0]) and same(expected[1], result[1])


@pytest.mark.parametrize("batch", [1, 3])
def test_blocks(batch: int) -> None:
    """Images with values of very different sizes: the fused launches equal the composition, and each image alone."""
    x = Source(21, DEVICE).normal
    factors = torch.tensor([1.0, 2.0**20, 2.0**-20], device=DEVICE)[:batch].reshape(-1, 1, 1, 1)
    block, image = make_block(x, 37, 2), x(batch, 5, 7, 37) * factors
    expected, result = both(lambda a, backend: exact.rwkv_block(a, block, backend=backend), image)
    assert same(expected, result)
    assert same(exact.rwkv_block(image[-1:], block, backend="triton"), result[-1:])
    params, partial = make_params(x, 37, 33, 70), x(batch, 5, 7, 33)
    for tokens, part in ((image, None), (image, partial), (image[..., :0], None), (image[..., :0], partial)):
        assert same(
            *both(lambda a, b, backend: exact.entropy_params(a, params, partial=b, backend=backend), tokens, part)
        )


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


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused(value: float) -> None:
    x = Source(23, DEVICE).normal
    good = x(1, 4, 6, 8)
    bad = good.clone()
    bad[0, 3, 5, 7] = value
    block, params, kernel = make_block(x, 8, 2), make_params(x, 8, 8, 10), exact.prepare_conv(x(3, 8, 3, 3))
    t = {"backend": "triton"}
    for function in (
        lambda: exact.linear(bad, block.key, **t),
        lambda: exact.conv(bad, kernel, **t),
        lambda: exact.gaussian_head(bad, **t),
        lambda: exact.gaussian_head(bad.flip(3), **t),
        lambda: exact.rwkv_block(bad, block, **t),
        lambda: exact.entropy_params(bad, params, **t),
        lambda: exact.entropy_params(good, params, partial=bad, **t),
        lambda: exact.entropy_params(good[..., :0], params, partial=bad, **t),
    ):
        with pytest.raises(exact.NotFinite, match="must be finite"):
            function()


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


def test_what_cannot_run_is_refused() -> None:
    x = Source(25, DEVICE).normal
    weight = exact.prepare_linear(x(3, 4))
    with pytest.raises(TypeError, match="must be float32"):
        exact.linear(x(2, 4).double(), weight, backend="triton")
    with pytest.raises(BackendUnavailable, match="triton"):
        exact.linear(x(2, 4).to("meta"), weight, backend="triton")
    assert exact.linear(x(0, 4), weight, backend="triton").shape == (0, 3)
    assert exact.rwkv_block(x(0, 2, 2, 4), make_block(x, 4, 2), backend="triton").shape == (0, 2, 2, 4)
    assert exact.entropy_params(x(0, 4), make_params(x, 4, 3, 6), backend="triton").shape == (0, 3)
    assert op.backend_of("cuda") == "triton"
