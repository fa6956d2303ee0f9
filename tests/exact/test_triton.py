"""The Triton kernels give the reference's bits: in the interpreter, or on a GPU where there is one."""

from __future__ import annotations

import json
from pathlib import Path

import exact_inputs
import numpy as np
import pytest
import torch
from exact_inputs import KINDS, Source
from test_paths import make_block, same
from torch import Tensor

from lalic_kernels import exact, installed
from lalic_kernels.dispatch import BackendUnavailable
from lalic_kernels.exact import op
from lalic_kernels.exact.numbers import THRESHOLDS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [
    pytest.mark.skipif(
        not installed.TRITON or (DEVICE == "cpu" and not installed.interpreting()),
        reason="needs triton, and a GPU or the interpreter",
    ),
    # The interpreter is numpy, which warns where the definition settles what overflows.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
GOLDEN = Path(__file__).with_name("golden.json")


def both(function, *tensors: Tensor):
    """The function's results from the reference and from the kernels."""
    return [function(*tensors, backend=name) for name in ("reference", "triton")]


@pytest.mark.parametrize("kind", KINDS)
def test_every_primitive(kind: str) -> None:
    """The WKV at few lengths, for the interpreter's sake: one token, three chunks with a short last one, two."""
    lengths = {"normal": (1, 130), "wild": (65,)}.get(kind, ())
    wanted, found = (exact_inputs.results(kind, path, DEVICE, lengths) for path in ("reference", "triton"))
    assert wanted.keys() == found.keys()
    assert not [name for name in wanted if not same(wanted[name], found[name])]


@pytest.mark.gpu
def test_golden_hashes_on_a_gpu() -> None:
    assert exact_inputs.all_hashes("triton", "cuda") == json.loads(GOLDEN.read_text())["hashes"]


def test_largest_sums_stay_exact() -> None:
    """As many terms as are allowed, all of them the largest: each sum of digits is 2^29, two share one int32."""
    terms = 2**17
    weight = exact.prepare_linear(torch.full((2, terms), 8191.0) * torch.tensor([[1.0], [-1.0]])).to(DEVICE)
    x = torch.full((1, terms), 8191.0).to(DEVICE)
    assert same(*both(lambda x, backend: exact.linear(x, weight, backend=backend), x))


def test_more_than_one_block_of_everything() -> None:
    """Products wider, deeper and taller than a block; several channels' blocks at each tap of a convolution."""
    x = Source(26, DEVICE).normal
    weight, rows = exact.prepare_linear(x(70, 200), x(70)), x(130, 200)
    assert same(*both(lambda a, backend: exact.linear(a, weight, backend=backend), rows))
    image = x(2, 6, 8, 130)
    for kernel in (
        exact.prepare_conv(x(40, 130, 3, 3), x(40), padding=1, taps=[(0, 1), (1, 0), (2, 2)]),
        exact.prepare_conv(x(130, 5, 3, 3), x(5), 2, 1, True, 1),
    ):
        assert same(*both(lambda a, backend: exact.conv(a, kernel, 1, backend=backend), image))  # noqa: B023


def test_maxima_in_the_last_part() -> None:
    """A maximum over an image is taken in parts of 256 tokens and 64 channels: here it lies in the last one."""
    x = Source(27, DEVICE).normal
    image = x(2, 13, 20, 70)
    image[:, -1, -1] *= 100.0
    shift = exact.prepare_depthwise(x(70, 3, 3))
    assert same(*both(lambda a, backend: exact.depthwise(a, shift, backend=backend), image))
    keys, data = image[:, :, :, :3].flatten(1, 2), image[:, :, :, 3:6].flatten(1, 2)
    vector = x(3) / 260
    assert same(*both(lambda a, backend: exact.biwkv(vector, vector, keys, a, backend=backend), data))


def test_digits_are_the_quantised_integers() -> None:
    """Halves round to even; the digits put together again are `quantise`'s integers, for extremes too."""
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


@pytest.mark.parametrize("name", ["exp", "sigmoid", "squared_relu"])
def test_pointwise_over_all_exponents(name: str) -> None:
    """Every 32771st float32, and all small multiples of a sixteenth: halves of exp's rounding among them."""
    bits = np.arange(0, 2**32, 32771, dtype=np.uint64).astype(np.uint32).view(np.float32)
    x = torch.from_numpy(np.concatenate((bits[np.isfinite(bits)], np.arange(-800, 800, dtype=np.float32) / 16)))
    assert same(*both(getattr(exact, name), x.to(DEVICE)))


@pytest.mark.parametrize("width", [1, 2, 127, 129, 4096])
def test_layer_norm_of_extremes(width: int) -> None:
    x = Source(20, DEVICE)
    signs = torch.ones(width, device=DEVICE)
    signs[::2] = -1.0
    spike = torch.zeros(width, device=DEVICE)
    spike[-1] = 2.0**60
    rows = torch.stack([signs * 2.0**60, signs * 2.0**-60, 0 * signs, spike, 3.0 + 0 * signs, x.normal(width)])
    weight, bias = x.normal(width), x.normal(width)
    assert same(*both(lambda rows, backend: exact.layer_norm(rows, weight, bias, backend=backend), rows))


def test_scale_index_at_the_thresholds() -> None:
    thresholds = torch.tensor(THRESHOLDS)
    infinity = torch.tensor(float("inf"))
    x = torch.cat([thresholds, *(torch.nextafter(thresholds, sign * infinity) for sign in (1, -1)), -thresholds])
    x = torch.cat((x, torch.tensor([0.0, -0.0, 1e30, -1e30]))).to(DEVICE)
    assert torch.equal(*both(exact.scale_index, x))
    assert torch.equal(*both(exact.scale_index, x[5]))
    parameters = x.reshape(2, 16, 8)
    wanted, found = both(exact.gaussian_head, parameters)
    assert torch.equal(wanted[0], found[0]) and same(wanted[1], found[1])


@pytest.mark.parametrize("batch", [1, 3])
def test_blocks(batch: int) -> None:
    """Images of very different size in one batch: the fused launches equal the composition, and each image alone."""
    x = Source(21, DEVICE).normal
    factors = torch.tensor([1.0, 2.0**20, 2.0**-20], device=DEVICE)[:batch].reshape(-1, 1, 1, 1)
    block, image = make_block(x, 37, 2), x(batch, 5, 7, 37) * factors
    wanted, found = both(lambda a, backend: exact.rwkv_block(a, block, backend=backend), image)
    assert same(wanted, found)
    assert same(exact.rwkv_block(image[-1:], block, backend="triton"), found[-1:])
    params = exact.prepare_entropy_params((x(33, 37), x(33)), (x(33), x(33)), x(70, 33), x(33, 33), x(33, 70))
    assert same(*both(lambda a, backend: exact.entropy_params(a, params, backend=backend), image))


def test_strided_inputs() -> None:
    x = Source(22, DEVICE).normal
    image, wide = x(2, 6, 4, 9).transpose(1, 2), x(2, 70, 27)
    k, v, r = wide.split(9, dim=2)
    weight, vector = exact.prepare_linear(x(5, 9)), x(9)
    kernel, shift = exact.prepare_conv(x(4, 9, 3, 3), padding=1), exact.prepare_depthwise(x(9, 3, 3))
    for function in (
        lambda backend: exact.linear(image, weight, backend=backend),
        lambda backend: exact.conv(image, kernel, backend=backend),
        lambda backend: exact.depthwise(image, shift, backend=backend),
        lambda backend: exact.layer_norm(image, vector, vector, backend=backend),
        lambda backend: exact.gate(image, image.contiguous(), backend=backend),
        lambda backend: exact.residual(image, image.contiguous(), vector, backend=backend),
        lambda backend: exact.biwkv(vector, vector, k, v, r, backend=backend),
        lambda backend: exact.biwkv(vector, vector, k.transpose(1, 2).contiguous().transpose(1, 2), v, backend=backend),
    ):
        assert same(*both(function))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused(value: float) -> None:
    x = Source(23, DEVICE).normal
    good = x(1, 4, 6, 8)
    bad = good.clone()
    bad[0, 3, 5, 7] = value
    vector, block = x(8), make_block(x, 8, 2)
    tokens, wrong = good.flatten(1, 2), bad.flatten(1, 2)
    kernel = exact.prepare_conv(x(3, 8, 3, 3))
    t = {"backend": "triton"}
    for function in (
        lambda: exact.linear(bad, block.key, **t),
        lambda: exact.conv(bad, kernel, **t),
        lambda: exact.depthwise(bad, block.shift1, **t),
        lambda: exact.layer_norm(bad, vector, vector, **t),
        lambda: exact.exp(bad, **t),
        lambda: exact.gate(bad, good, **t),
        lambda: exact.gate(good, bad, **t),
        lambda: exact.residual(bad, good, **t),
        lambda: exact.residual(good, bad, vector, **t),
        lambda: exact.biwkv(vector, vector, wrong, tokens, **t),
        lambda: exact.biwkv(vector, vector, tokens, wrong, **t),
        lambda: exact.biwkv(vector, vector, tokens, tokens, wrong, **t),
        lambda: exact.biwkv(vector * value, vector, tokens, tokens, **t),
        lambda: exact.biwkv(vector, vector * value, tokens, tokens, **t),
        lambda: exact.scale_index(bad, **t),
        lambda: exact.gaussian_head(bad, **t),
        lambda: exact.rwkv_block(bad, block, **t),
    ):
        with pytest.raises(ValueError, match="must be finite"):
            function()


def test_one_check_for_many_calls() -> None:
    from lalic_kernels.exact.gpu import one_check

    x = Source(24, DEVICE).normal
    good, reached = x(2, 5), []
    with pytest.raises(ValueError, match="must be finite"), one_check():
        exact.exp(good / 0.0, backend="triton")
        reached.append(exact.exp(good, backend="triton"))
    assert len(reached) == 1  # the first call did not raise by itself
    with one_check(), one_check():
        exact.exp(good, backend="triton")
    with pytest.raises(ValueError, match="must be finite"):
        exact.exp(good / 0.0, backend="triton")


def test_what_cannot_run_is_refused() -> None:
    x = Source(25, DEVICE).normal
    weight = exact.prepare_linear(x(3, 4))
    with pytest.raises(TypeError, match="must be float32"):
        exact.linear(x(2, 4).double(), weight, backend="triton")
    with pytest.raises(BackendUnavailable, match="triton"):
        exact.linear(x(2, 4).to("meta"), weight, backend="triton")
    assert exact.linear(x(0, 4), weight, backend="triton").shape == (0, 3)
    assert exact.biwkv(x(4), x(4), x(2, 0, 4), x(2, 0, 4), backend="triton").shape == (2, 0, 4)
    assert op.backend_of("cuda") == "triton"
