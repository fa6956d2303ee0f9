"""Coding slices in few launches on a GPU: parts of first products, aggregation networks, contexts of later slices.

Images are (B, H, W, C) with evenly spaced positions. "By colour" is (2, B, H W / 2, C): anchors first, positions of a
colour in row-major order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lalic_kernels.exact import gpu, kernels_rows
from lalic_kernels.exact.gpu import DEPTH, LAUNCHES, eps_area, factor_of, hidden_factor, options, product, rows_pay
from lalic_kernels.exact.gpu_state import checked, one_check, position_stride, zeros
from lalic_kernels.exact.quantise import require_float32
from lalic_kernels.exact.weights import ExactBlock, ExactConv, ExactEntropyParams, ExactLinear
from lalic_kernels.launch import blocks


class _Spatial(NamedTuple):
    """The spatial context of a slice's others: image (B, H, W, g) with its anchors, taps (n, 2) int32, the weights."""

    image: Tensor
    taps: Tensor
    weights: ExactLinear


@dataclass(frozen=True)
class SliceKernels:
    """The kernels of coding slices on a device. Results are settled float32; inputs are float32 and finite.

    Raises of every method:
        TypeError: an input is not float32.
        NotFinite: an input is not finite; inside `exact.one_check` only at its end, inside `exact.statuses` never.
    """

    device: torch.device

    def zero_bits(self, images: int) -> Tensor:
        """(B,) int32 zeros: magnitude bits, to be raised to each image's largest."""
        return zeros(self.device, images)

    def raise_absmax(self, absmax_bits: Tensor, x: Tensor) -> None:
        """Raise absmax_bits (B,) to those of images x (B, H, W, C)."""
        gpu.raise_absmax(absmax_bits, x)

    def conv(
        self, x: Tensor, weights: ExactConv, *, previous: Tensor | None = None, absmax_bits: Tensor | None = None
    ) -> Tensor:
        """`exact.conv` of images x (B, H, W, C) -> (B, H', W', O), or previous + that.

        absmax_bits (B,): magnitude bits of each image's largest value, or None to compute them.
        """
        return gpu.conv(x, weights, previous, absmax_bits)

    def rwkv_blocks(self, x: Tensor, sequence: Sequence[ExactBlock]) -> tuple[Tensor, Tensor | None]:
        """`exact.rwkv_blocks`, and the result's magnitude bits (B,), or None if no launch computed them."""
        return gpu.blocks_and_absmax(x, sequence)

    def linear_by_colour(self, x: Tensor, weights: ExactLinear) -> Tensor:
        """x (B, H, W, K), W even -> x w^T + bias by colour (2, B, H W / 2, O), in two launches, for many outputs."""
        require_float32(x)
        images, height, width, _ = x.shape
        with checked(x.device) as status:
            digits = gpu.digits_by_colour(x, status)
            return product(digits, factor_of(weights)).reshape(2, images, height * width // 2, -1)

    def two_products(self, x: Tensor, first: ExactLinear, second: ExactLinear, partial: Tensor) -> Tensor:
        """x (B, H, W, K) -> partial + second (first x), both by colour (2, B, H W / 2, O).

        One launch, or two for large sizes. second has no bias.
        """
        require_float32(x, partial)
        images, height, width, inner = x.shape
        rows = images * height * width
        if not rows_pay(rows, 2 * (first.weight.numel() + second.weight.numel())):
            return _rows_linear(_rows_linear(x, first), second, partial)
        a, b, x = factor_of(first), factor_of(second), x.contiguous()
        middle, outputs = a.high.shape[0], b.high.shape[0]
        y = torch.empty(2, images, height * width // 2, outputs, device=x.device)
        with checked(x.device) as status:
            kernels_rows.exact_two_products_kernel[(blocks(rows, LAUNCHES["two_products"]["BLOCK_M"]),)](
                x, a.digits, a.scales, a.bias_or_zeros(), b.digits, b.scales, partial,
                torch.empty(rows, middle, device=x.device), y, status, rows, inner, a.depth, middle, b.depth, outputs,
                partial.stride(2), height, width // 2, **options("two_products"),
            )  # fmt: skip
        return y

    def anchors(self, network: Sequence[ExactEntropyParams], partial: Tensor) -> Tensor:
        """Parameters (B, P, 2 g) of the anchors: the blocks of `network`; the first has no input but partial.

        partial (B, P, width): added to the first mix, any row stride. Blocks with few weights share one launch.
        """
        return self._aggregation(network, partial, None)

    def others(
        self, network: Sequence[ExactEntropyParams], partial: Tensor, image: Tensor, taps: Tensor, weights: ExactLinear
    ) -> Tensor:
        """Parameters (B, P, 2 g) of the others: the blocks of `network` after the spatial context.

        The context is the product `weights` of the neighbours in image (B, H, W, g), which has the anchors; taps (n, 2)
        int32 are offsets (dy, dx). partial (B, P, width): added to the first mix, any row stride.
        """
        return self._aggregation(network, partial, _Spatial(image, taps, weights))

    def _aggregation(self, network: Sequence[ExactEntropyParams], partial: Tensor, spatial: _Spatial | None) -> Tensor:
        require_float32(partial)
        images, area, width = partial.shape
        rows = images * area
        x: Tensor | None = None
        with one_check(), checked(partial.device) as status:
            for group in _groups(network, rows, 0 if spatial is None else 2 * spatial.weights.weight.numel()):
                first = group[0] is network[0]
                if len(group) == 1 and not rows_pay(rows, _bytes(group[0])):
                    if first and spatial is not None:
                        digits = gpu.digits_of_neighbours(spatial.image, spatial.taps, status)
                        x = product(digits, factor_of(spatial.weights))
                    flat = None if x is None else x.reshape(rows, -1)
                    added = partial.reshape(rows, width) if first else None
                    x = gpu.entropy_rows(group[0], flat, added, status).reshape(images, area, -1)
                else:
                    x = _fused(group, x, partial if first else None, spatial if first else None, status)
        assert x is not None
        return x


def _rows_linear(x: Tensor, weights: ExactLinear, partial: Tensor | None = None) -> Tensor:
    """x (B, H, W, K) -> x w^T + bias (B, H, W, O), in one launch; good for few outputs.

    With partial (2, B, H W / 2, O), any row stride: partial + that, by colour.
    """
    require_float32(x)
    images, height, width, inner = x.shape
    factor = factor_of(weights)
    rows, outputs = images * height * width, factor.high.shape[0]
    shape = (images, height, width, outputs) if partial is None else (2, images, height * width // 2, outputs)
    y = torch.empty(shape, device=x.device)
    launch = LAUNCHES["rows_linear"]
    with checked(x.device) as status:
        kernels_rows.exact_rows_linear_kernel[(blocks(rows, launch["BLOCK_M"]), blocks(outputs, launch["BLOCK_N"]))](
            x, factor.digits, factor.scales, factor.scales if factor.bias is None else factor.bias,
            y if partial is None else partial, y, status, rows, inner, position_stride(x), factor.depth, outputs,
            0 if partial is None else partial.stride(2), height, width // 2, HAS_BIAS=factor.bias is not None,
            HAS_PARTIAL=partial is not None, BY_COLOUR=partial is not None, **options("rows_linear"),
        )  # fmt: skip
    return y


def _bytes(block: ExactEntropyParams) -> int:
    """Bytes of a block's digits."""
    return 2 * sum(w.weight.numel() for w in (block.mix, block.key, block.receptance, block.value))


def _groups(network: Sequence[ExactEntropyParams], rows: int, more: int) -> list[list[ExactEntropyParams]]:
    """Blocks that share a launch, by the bytes that a program reads; the first has `more` bytes of spatial context."""
    groups: list[list[ExactEntropyParams]] = []
    size = more
    for block in network:
        if groups and rows_pay(rows, size + _bytes(block)):
            groups[-1].append(block)
            size += _bytes(block)
        else:
            groups.append([block])
            size = _bytes(block) + (more if len(groups) == 1 else 0)
    return groups


class _Packed:
    """Blocks' digits and floats in one tensor each, and the table of their offsets, for `exact_aggregation_kernel`."""

    def __init__(self, group: Sequence[ExactEntropyParams]):
        device = group[0].norm_weight.device
        digits: list[Tensor] = []
        floats: list[Tensor] = []
        table, without_mix = [], []
        self.inputs = group[0].mix.weight.shape[1]
        self.wide = self.inputs
        self.inner = 0
        for block in group:
            mix, hidden, value = factor_of(block.mix), hidden_factor(block), factor_of(block.value)
            outputs, inner = mix.high.shape[0], block.key.weight.shape[0]
            start = sum(part.numel() for part in digits) // DEPTH
            table.append([outputs, inner, start, sum(part.numel() for part in floats)])
            without_mix.append([outputs, inner, start + 2 * outputs * mix.depth // DEPTH, table[-1][3]])
            digits += [factor.digits.flatten() for factor in (mix, hidden, value)]
            area = torch.tensor([eps_area(outputs)], device=device)
            floats += [
                mix.scales, mix.bias_or_zeros(), block.norm_weight, block.norm_bias, hidden.scales, value.scales, area,
            ]  # fmt: skip
            self.wide, self.inner = max(self.wide, outputs), max(self.inner, inner)
        self.outputs = table[-1][0]
        self.wide = blocks(self.wide, 16) * 16
        self.digits, self.floats = torch.cat(digits), torch.cat(floats)
        self.table = torch.tensor(table, dtype=torch.int32, device=device)
        # Anchors have no first product: the first block's digits begin after its mix.
        self.table_of_anchors = torch.tensor([without_mix[0], *table[1:]], dtype=torch.int32, device=device)


def _fused(
    group: Sequence[ExactEntropyParams], x: Tensor | None, partial: Tensor | None, spatial: _Spatial | None,
    status: Tensor,
) -> Tensor:  # fmt: skip
    """The blocks of a group in one launch, from x (B, P, inputs), or from partial and the spatial context."""
    packed: _Packed = group[0].cache.get(("gpu", *group[1:]), (), lambda: _Packed(group))
    first = partial if x is None else x
    assert first is not None
    images, rows, _ = first.shape
    stride = 2 * packed.wide + blocks(packed.inner, 16) * 16
    y = torch.empty(images, rows, packed.outputs, device=first.device)
    scratch = torch.empty(images * rows, stride, device=first.device)
    # Arguments that a variant does not read get any tensor of the right type.
    digits, floats, table = packed.digits, packed.floats, packed.table
    partial_stride = packed.outputs if partial is None else partial.stride(1)
    context: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = first, table, digits, floats, floats
    sizes = [packed.inputs, 0, 0, 1, 1, 1, 1]
    start = "partial" if x is None else "rows"
    if spatial is not None:
        factor = factor_of(spatial.weights)
        context = spatial.image, spatial.taps, factor.digits, factor.scales, factor.bias_or_zeros()
        _, height, width, channels = spatial.image.shape
        sizes[1:] = [factor.depth, position_stride(spatial.image), height, width // 2, spatial.taps.shape[0], channels]
        start = "spatial"
    elif x is None:
        table, sizes[0] = packed.table_of_anchors, 0
    kernels_rows.exact_aggregation_kernel[(blocks(rows, LAUNCHES["aggregation"]["BLOCK_M"]), images)](
        *context, first if partial is None else partial, digits, floats, table, scratch, y, status, rows, *sizes,
        partial_stride, stride, packed.wide, len(group), START=start, **options("aggregation"),
    )  # fmt: skip
    return y
