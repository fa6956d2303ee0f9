"""The error of the exact arithmetic against the operations in float64, and its agreement with the float ops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from exact_inputs import CHECKERBOARD, Source
from torch import Tensor

import lalic_kernels
from lalic_kernels import exact
from lalic_kernels.biwkv.reference import biwkv as biwkv_reference
from lalic_kernels.exact import numbers, reference

# Both factors are rounded to 13 bits with a scale of at most twice the row's maximum: each error is at most 2^-13 of
# that maximum, which is 3 to 4 standard deviations for normal rows. So one factor's mean relative error is below
# 4 / (2^13 sqrt(12)) = 1.4e-4, and that of both below 2.0e-4, times at most sqrt(2) for an unlucky scale.
PRODUCT = 3e-4


def error(result: Tensor, expected: Tensor) -> float:
    """The relative error in norm, over the whole tensor."""
    return float((result.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("size", [1.0, 1e-10, 1e10])
def test_linear(size: float) -> None:
    x = Source(11).normal
    weight, bias, rows = x(50, 640), x(50), x(40, 640) * size
    expected = F.linear(rows.double(), weight.double(), size * bias.double())
    assert error(exact.linear(rows, exact.prepare_linear(weight, size * bias)), expected) < PRODUCT


@pytest.mark.parametrize(("kernel", "transposed"), [(3, False), (5, False), (3, True), (5, True)])
def test_conv_strided(kernel: int, transposed: bool) -> None:
    x = Source(12).normal
    image, bias = x(2, 10, 6, 8), x(12)
    weight = x(12, 8, kernel, kernel) if not transposed else x(8, 12, kernel, kernel)
    arguments = {"stride": 2, "padding": kernel // 2} | ({"output_padding": 1} if transposed else {})
    function = F.conv_transpose2d if transposed else F.conv2d
    expected = function(image.permute(0, 3, 1, 2).double(), weight.double(), bias.double(), **arguments)
    result = exact.conv(image, exact.prepare_conv(weight, bias, transposed=transposed, **arguments))
    assert error(result, expected.permute(0, 2, 3, 1)) < PRODUCT


def test_masked_conv_is_the_masked_conv() -> None:
    x = Source(13).normal
    image, weight, bias = x(1, 6, 8, 10), x(7, 10, 5, 5), x(7)
    mask = torch.zeros(5, 5)
    for y, column in CHECKERBOARD:
        mask[y, column] = 1
    expected = F.conv2d(image.permute(0, 3, 1, 2).double(), (weight * mask).double(), bias.double(), padding=2)
    prepared = exact.prepare_conv(weight, bias, padding=2, taps=CHECKERBOARD)
    assert prepared.weight.shape == (7, 12, 10)
    assert error(exact.conv(image, prepared), expected.permute(0, 2, 3, 1)) < PRODUCT


def test_depthwise() -> None:
    x = Source(14).normal
    image, weight = x(2, 9, 7, 10), x(10, 5, 5)
    expected = F.conv2d(image.permute(0, 3, 1, 2).double(), weight[:, None].double(), padding=2, groups=10)
    assert error(reference.depthwise(image, exact.prepare_depthwise(weight)), expected.permute(0, 2, 3, 1)) < PRODUCT


@pytest.mark.parametrize("size", [2.0**-30, 1e-3, 1.0, 1e10])
def test_layer_norm(size: float) -> None:
    """17 bits below the row's maximum, about 4 deviations: at worst 4 / (2^17 sqrt(12)) = 9e-6, on average half."""
    x = Source(15).normal
    rows, weight, bias = x(30, 320) * size, x(320), x(320)
    expected = F.layer_norm(rows.double(), (320,), weight.double(), bias.double(), 1e-5)
    assert error(reference.layer_norm(rows, weight, bias), expected) < 1e-5


def test_layer_norm_of_a_constant_is_the_bias() -> None:
    x = Source(16).normal
    weight, bias = x(33), x(33)
    for value in (0.0, 7.0, -1e30):
        result = reference.layer_norm(torch.full((2, 33), value), weight, bias)
        assert torch.equal(result, bias.expand(2, 33))


def test_pointwise() -> None:
    """The polynomial's error is 8e-8; sigmoid adds three roundings of at most 6e-8."""
    x = torch.linspace(-41, 41, 100_001)
    assert float((reference.exp(x).double() / x.double().exp() - 1).abs().max()) < 1e-7
    x = torch.linspace(-41, 41, 100_001)
    assert float((reference.sigmoid(x).double() / x.double().sigmoid() - 1).abs().max()) < 3e-7
    assert torch.equal(reference.squared_relu(torch.tensor([-3.0, -0.0, 0.0, 3.0])), torch.tensor([0.0, 0.0, 0.0, 9.0]))
    ends = reference.exp(torch.tensor([-3e38, -41.5, 41.5, 3e38]))
    assert ends[0] == ends[1] >= numbers.TINY
    assert ends[3] == ends[2] <= numbers.HUGE


@pytest.mark.parametrize("tokens", [1, 3, 64, 65, 300])
@pytest.mark.parametrize(("decay", "keys"), [(1, 1), (20, 10), (-10, 5), (60, 40), (-60, 40)])
def test_biwkv(tokens: int, decay: float, keys: float) -> None:
    """Without clipping (|w| T up to 256) all is float64 except the last rounding to float32."""
    x = Source(17).normal
    k, v, u = x(2, tokens, 9) * keys, x(2, tokens, 9), x(9)
    w = x(9).abs() * (decay / tokens)
    expected = biwkv_reference(w.double(), u.double(), k.double(), v.double())
    assert error(reference.biwkv(w, u, k, v), expected) < 1e-7


def test_biwkv_of_extreme_keys_is_the_value_at_the_largest() -> None:
    k = torch.zeros(1, 5, 1)
    k[0, 3] = 1e30
    v = torch.arange(5.0).reshape(1, 5, 1)
    y = reference.biwkv(torch.zeros(1), torch.zeros(1), k, v)
    assert torch.equal(y, torch.full((1, 5, 1), 3.0))


def test_scale_index_is_that_of_the_float_model() -> None:
    t = torch.tensor(numbers.THRESHOLDS)
    beside = [torch.nextafter(t, torch.full_like(t, side)) for side in (-1e9, 1e9)]
    x = torch.cat([t, *beside, torch.tensor([-1.0, 0.0, 1e30])])
    expected = torch.tensor([*range(63), *range(63), *range(1, 64), 0, 0, 63], dtype=torch.int32)
    assert torch.equal(reference.scale_index(x), expected)
    assert torch.equal(exact.gaussian_head(torch.cat((x, x)))[0], expected)
    # The published table, made by this machine's exp: at most its last bit may differ.
    table = lalic_kernels.scale_table()[:-1].view(torch.int32)
    assert int((table - t.view(torch.int32)).abs().max()) <= 1


def test_settle() -> None:
    x = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e-40, 2.0**-60, -(2.0**-60), 3e38, -3e38, float("inf"), 1.5])
    expected = [0.0, 0.0, 0.0, 0.0, 0.0, 2.0**-60, -(2.0**-60), 2.0**60, -(2.0**60), 2.0**60, 1.5]
    assert torch.equal(exact.settle(x).view(torch.int32), torch.tensor(expected).view(torch.int32))


def test_quantise() -> None:
    x = torch.tensor([[1.0, -0.5, 2.0**-13, 3 * 2.0**-13, 0.0], [8191.7, 1.5, 2.5, -8191.5, 0.4]])
    q, exponent = exact.quantise(x, (1,))
    assert exponent.tolist() == [[0], [12]]
    assert q.tolist() == [[4096, -2048, 0, 2, 0], [8191, 2, 2, -8191, 0]]
    q, exponent = exact.quantise(torch.tensor([[0.0, 0.0], [2.0**-62, 0.0], [2.0**100, 1.0]]), (1,))
    assert exponent.tolist() == [[-60], [-60], [60]]
    assert q.tolist() == [[0, 0], [1024, 0], [8191, 0]]
