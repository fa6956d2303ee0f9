"""Coding slices in few launches gives the bits of the definition, whichever way the launches go."""

from __future__ import annotations

import itertools

import pytest
import torch
from exact_inputs import Source, make_block, make_params, order_key
from test_paths import same
from torch import Tensor

from lalic.nn.context import CHECKERBOARD_TAPS, pack
from lalic_kernels import exact, installed
from lalic_kernels.exact import reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [
    pytest.mark.skipif(
        not installed.TRITON or (DEVICE == "cpu" and not installed.interpreting()),
        reason="needs triton, and a GPU or the interpreter",
    ),
    # The interpreter is numpy, which warns where the definition settles what overflows.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
KERNELS = exact.slice_kernels(torch.device(DEVICE), backend="triton") if installed.TRITON else None
ALL_ROWS, NO_ROWS = 1 << 40, 0  # `rows_pay` always, and never
TAPS = torch.tensor(CHECKERBOARD_TAPS, dtype=torch.int32) - 2


@pytest.fixture(params=[ALL_ROWS, NO_ROWS], ids=["programs own rows", "a launch a step"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    from lalic_kernels.exact import gpu

    monkeypatch.setattr(gpu, "WEIGHTS_READ", request.param)
    return request.param


def by_colour(x: Tensor) -> Tensor:
    return torch.stack((pack(x, 0), pack(x, 1))).flatten(2, 3)


def network(x, first: int, g: int) -> list[exact.ExactEntropyParams]:
    """Three blocks with odd widths from `first` inputs to 2 g outputs."""
    widths = (first, 33, 18, 2 * g)
    return [make_params(x, a, b, 2 * b + 1) for a, b in itertools.pairwise(widths)]


@pytest.mark.parametrize("batch", [1, 2])
def test_blocks_one_after_the_other(way: int, batch: int) -> None:
    """Norms and maxima that a launch finds for the next; images of very different size beside one another."""
    x = Source(31, DEVICE).normal
    sequence = [make_block(x, 37, 2), make_block(x, 37, 2)]
    image = (x(batch, 3, 6, 40) * torch.tensor([1.0, 2.0**20], device=DEVICE)[:batch].reshape(-1, 1, 1, 1))[..., :37]
    wanted = exact.rwkv_blocks(image, sequence, backend="reference")
    found, absmax_bits = KERNELS.rwkv_blocks(image, sequence)
    assert same(wanted, found)
    assert (absmax_bits is not None) == (way == ALL_ROWS)
    if absmax_bits is not None:
        assert torch.equal(absmax_bits, wanted.abs().flatten(1).amax(1).view(torch.int32))


def test_what_is_not_finite_is_seen_on_every_way(way: int) -> None:
    x = Source(32, DEVICE).normal
    block, image = make_block(x, 8, 2), x(1, 4, 6, 8)
    image[0, 3, 5, 7] = float("nan")
    with pytest.raises(ValueError, match="must be finite"):
        exact.rwkv_block(image, block, backend="triton")


@pytest.mark.parametrize("kind", ["wild", "digits"])
def test_blocks_of_extreme_numbers(way: int, kind: str) -> None:
    x = getattr(Source(38, DEVICE), kind)
    sequence, image = [make_block(x, 9, 2), make_block(x, 9, 2)], x(1, 3, 4, 9)
    assert same(KERNELS.rwkv_blocks(image, sequence)[0], exact.rwkv_blocks(image, sequence, backend="reference"))


def reference_network(blocks, known: Tensor, context: Tensor | None) -> Tensor:
    y = reference.entropy_params(known[..., :0] if context is None else context, blocks[0], known)
    for block in blocks[1:]:
        y = reference.entropy_params(y, block)
    return y


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 2, 2), (2, 6, 10)])
def test_aggregation(way: int, batch: int, height: int, width: int) -> None:
    """Anchors, and the others with their neighbours: taps beyond the image, a slice's channels among others'."""
    g = 5
    x = Source(33, DEVICE).normal
    blocks, positions = network(x, 2 * g, g), height * width // 2
    known = x(batch, positions, 40)[..., :33]
    image = x(batch, height, width, 17)[..., 3 : 3 + g]
    weights = exact.prepare_linear(x(2 * g, 12 * g), x(2 * g))
    assert same(KERNELS.anchors(blocks, known), reference_network(blocks, known, None))

    wide = torch.nn.functional.pad(image, (0, 0, 2, 2, 2, 2))
    seen = [wide[:, 2 + y : 2 + y + height, 2 + z : 2 + z + width] for y, z in TAPS.tolist()]
    context = exact.linear(pack(torch.cat(seen, dim=3), 1).flatten(1, 2), weights, backend="reference")
    found = KERNELS.others(blocks, known, image, TAPS.to(DEVICE), weights)
    assert same(found, reference_network(blocks, known, context))


def test_some_blocks_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wide first block alone, the rest in one launch: what the full model's last slice does."""
    from lalic_kernels.exact import gpu, gpu_slices

    x = Source(34, DEVICE).normal
    blocks, known = network(x, 6, 3), x(1, 20, 33)
    sizes = [gpu_slices._bytes(block) for block in blocks]
    monkeypatch.setattr(gpu, "WEIGHTS_READ", 2 * (sizes[1] + sizes[2]))
    assert [len(group) for group in gpu_slices._groups(blocks, 20, 0)] == [1, 2]
    assert same(KERNELS.anchors(blocks, known), reference_network(blocks, known, None))


def test_parts_of_first_products(way: int) -> None:
    x = Source(35, DEVICE).normal
    image = x(2, 4, 6, 40)[..., 4:37]
    hyper, first, second = exact.prepare_linear(x(70, 33), x(70)), exact.prepare_linear(x(9, 33), x(9)), x(70, 9)
    wanted = by_colour(exact.linear(image, hyper, backend="reference"))
    assert same(KERNELS.linear_by_colour(image, hyper), wanted)
    second = exact.prepare_linear(second)
    partial = x(2, 2, 12, 90)[..., 7:77]
    context = exact.linear(image, first, backend="reference")
    wanted = partial + by_colour(exact.linear(context, second, backend="reference"))
    assert same(KERNELS.two_products(image, first, second, partial), wanted)


def test_convolution_of_a_slice() -> None:
    """Added to what earlier slices brought, of channels in the middle of the latents, maxima known or not."""
    x = Source(36, DEVICE).normal
    image, previous = x(2, 4, 6, 20)[..., 8:13], x(2, 4, 6, 30)[..., 20:]
    kernel = exact.prepare_conv(x(10, 5, 3, 3), x(10), padding=1)
    wanted = previous + exact.conv(image, kernel, backend="reference")
    assert same(KERNELS.conv(image, kernel, previous=previous), wanted)
    absmax_bits = KERNELS.zero_bits(2)
    KERNELS.raise_absmax(absmax_bits, image)
    assert torch.equal(absmax_bits, image.abs().flatten(1).amax(1).view(torch.int32))
    assert same(KERNELS.conv(image, kernel, previous=previous, absmax_bits=absmax_bits), wanted)


def test_sums_of_many_chunks_have_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where programs do not walk over all chunks themselves."""
    from lalic_kernels.exact import gpu

    x = Source(37, DEVICE).normal
    w, u, k, v, r = x(3) / 70, x(3) / 70, x(1, 70, 3), x(1, 70, 3), x(1, 70, 3)
    wanted = reference.biwkv(w, u, k, v, r)
    for limit in (0, 2):
        monkeypatch.setattr(gpu, "CHUNKS_TO_WALK", limit)
        assert same(gpu.wkv(w, u, torch.cat((k, v, r), dim=2), order_key(k.amax(1))), wanted)


def test_images_whose_positions_do_not_line_up() -> None:
    from lalic_kernels.exact.gpu_state import evenly_spaced, position_stride

    x = torch.zeros(2, 4, 6, 5, device=DEVICE)
    assert position_stride(x) == 5 and position_stride(x[..., 1:3]) == 5
    assert position_stride(x[:, :1, :1]) == 120 and position_stride(x[:1, :1, :1]) == 5  # of one position an image, and in all
    for other in (x[:, ::2], x[:, :, :4], x.transpose(1, 2), x.permute(0, 3, 1, 2), x[..., ::2]):
        with pytest.raises(ValueError, match="one after the other"):
            position_stride(other)
        assert evenly_spaced(other).is_contiguous() and torch.equal(evenly_spaced(other), other)
