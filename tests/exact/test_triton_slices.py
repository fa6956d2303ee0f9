"""Coding slices on a GPU gives the bits of the definition."""

from __future__ import annotations

import itertools

import pytest
import torch
from exact_inputs import Source, make_block, make_params, order_key
from test_paths import DEVICE, NEEDS_TRITON, same
from torch import Tensor

from lalic.nn.context import CHECKERBOARD_TAPS, pack
from lalic_kernels import exact, installed
from lalic_kernels.exact import reference

pytestmark = NEEDS_TRITON
KERNELS = exact.slice_kernels(torch.device(DEVICE), backend="triton") if installed.TRITON else None
TAPS = torch.tensor(CHECKERBOARD_TAPS, dtype=torch.int32) - 2


def by_colour(x: Tensor) -> Tensor:
    return torch.stack((pack(x, 0), pack(x, 1))).flatten(2, 3)


def network(x, first: int, g: int) -> list[exact.ExactEntropyParams]:
    """Three blocks with odd widths from `first` inputs to 2 g outputs."""
    widths = (first, 33, 18, 2 * g)
    return [make_params(x, a, b, 2 * b + 1) for a, b in itertools.pairwise(widths)]


@pytest.mark.parametrize("batch", [1, 2])
def test_blocks_one_after_the_other(batch: int) -> None:
    """Rows that are apart; images with values of very different sizes."""
    x = Source(31, DEVICE).normal
    sequence = [make_block(x, 37, 2), make_block(x, 37, 2)]
    image = (x(batch, 3, 6, 40) * torch.tensor([1.0, 2.0**20], device=DEVICE)[:batch].reshape(-1, 1, 1, 1))[..., :37]
    expected = exact.rwkv_blocks(image, sequence, backend="reference")
    assert same(expected, exact.rwkv_blocks(image, sequence, backend="triton"))


@pytest.mark.parametrize("kind", ["wild", "digits"])
def test_blocks_of_extreme_numbers(kind: str) -> None:
    x = getattr(Source(38, DEVICE), kind)
    sequence, image = [make_block(x, 9, 2), make_block(x, 9, 2)], x(1, 3, 4, 9)
    one, other = (exact.rwkv_blocks(image, sequence, backend=name) for name in ("triton", "reference"))
    assert same(one, other)


def reference_network(blocks, partial: Tensor, context: Tensor | None) -> Tensor:
    y = reference.entropy_params(partial[..., :0] if context is None else context, blocks[0], partial)
    for block in blocks[1:]:
        y = reference.entropy_params(y, block)
    return y


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 2, 2), (2, 6, 10)])
def test_aggregation(batch: int, height: int, width: int) -> None:
    """Anchors, and others with their neighbours: taps outside the image, a slice's channels among those of others."""
    g = 5
    x = Source(33, DEVICE).normal
    blocks, positions = network(x, 2 * g, g), height * width // 2
    partial = x(batch, positions, 40)[..., :33]
    image = x(batch, height, width, 17)[..., 3 : 3 + g]
    weights = exact.prepare_linear(x(2 * g, 12 * g), x(2 * g))
    assert same(KERNELS.anchors(blocks, partial), reference_network(blocks, partial, None))

    wide = torch.nn.functional.pad(image, (0, 0, 2, 2, 2, 2))
    windows = [wide[:, 2 + y : 2 + y + height, 2 + z : 2 + z + width] for y, z in TAPS.tolist()]
    context = exact.linear(pack(torch.cat(windows, dim=3), 1).flatten(1, 2), weights, backend="reference")
    result = KERNELS.others(blocks, partial, image, TAPS.to(DEVICE), weights)
    assert same(result, reference_network(blocks, partial, context))


def test_parts_of_first_products() -> None:
    x = Source(35, DEVICE).normal
    image = x(2, 4, 6, 40)[..., 4:37]
    hyper, first, second = exact.prepare_linear(x(70, 33), x(70)), exact.prepare_linear(x(9, 33), x(9)), x(70, 9)
    expected = by_colour(exact.linear(image, hyper, backend="reference"))
    assert same(KERNELS.linear_by_colour(image, hyper), expected)
    second = exact.prepare_linear(second)
    partial = x(2, 2, 12, 90)[..., 7:77]
    context = exact.linear(image, first, backend="reference")
    expected = partial + by_colour(exact.linear(context, second, backend="reference"))
    assert same(KERNELS.two_products(image, first, second, partial), expected)


def test_convolution_of_a_slice() -> None:
    """Added to the sum of earlier slices, for channels in the middle of the latents, with and without maxima."""
    x = Source(36, DEVICE).normal
    image, previous = x(2, 4, 6, 20)[..., 8:13], x(2, 4, 6, 30)[..., 20:]
    kernel = exact.prepare_conv(x(10, 5, 3, 3), x(10), padding=1)
    expected = previous + exact.conv(image, kernel, backend="reference")
    assert same(KERNELS.conv(image, kernel, previous=previous), expected)
    absmax_bits = KERNELS.zero_bits(2)
    KERNELS.raise_absmax(absmax_bits, image)
    assert torch.equal(absmax_bits, image.abs().flatten(1).amax(1).view(torch.int32))
    assert same(KERNELS.conv(image, kernel, previous=previous, absmax_bits=absmax_bits), expected)


def test_sums_of_many_chunks() -> None:
    """Eighteen chunks, the last one shorter: more than are loaded at once. Digits are the values' integers."""
    from lalic_kernels.exact import gpu

    x, tokens = Source(37, DEVICE).normal, 17 * 64 + 6
    w, u, k, v, r = x(3) / tokens, x(3) / tokens, x(1, tokens, 3), x(1, tokens, 3), x(1, tokens, 3)
    y = torch.empty_like(v)
    digits = gpu.wkv(w, u, torch.cat((k, v, r), dim=2), order_key(k.amax(1)), y)
    assert same(y, reference.biwkv(w, u, k, v, r))
    q, exponent = exact.quantise(y[0], (-1,))
    assert torch.equal(128 * digits.high.int() + digits.low.int(), torch.nn.functional.pad(q, (0, digits.depth - 3)))
    assert torch.equal(digits.scales, torch.ldexp(torch.ones(tokens), exponent.flatten().cpu() - 12).to(DEVICE))


def test_images_with_unevenly_spaced_positions() -> None:
    from lalic_kernels.exact.gpu_state import evenly_spaced, position_stride

    x = torch.zeros(2, 4, 6, 5, device=DEVICE)
    assert position_stride(x) == 5 and position_stride(x[..., 1:3]) == 5
    # One position per image, and one in all.
    assert position_stride(x[:, :1, :1]) == 120 and position_stride(x[:1, :1, :1]) == 5
    for other in (x[:, ::2], x[:, :, :4], x.transpose(1, 2), x.permute(0, 3, 1, 2), x[..., ::2]):
        with pytest.raises(ValueError, match="one after the other"):
            position_stride(other)
        assert evenly_spaced(other).is_contiguous() and torch.equal(evenly_spaced(other), other)
