"""What coding a slice needs of the exact arithmetic, in few launches: parts of first products, aggregation networks.

`lalic.coder.decoder` says what is computed. Images are (B, H, W, C) with their positions one after the other, any
distance apart; "by colour" is (2, B, H W / 2, C), anchors first, positions of a colour in the order of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lalic_kernels.exact import kernels_aggregation, kernels_rows
from lalic_kernels.exact.blocks import ExactEntropyParams
from lalic_kernels.exact.gpu import conv, eps_area, maxima, raise_maxima
from lalic_kernels.exact.gpu_blocks import channel_mix, hidden_factor, rows_pay, rwkv_blocks_and_largest
from lalic_kernels.exact.gpu_products import Factor, Rows, digits_by_colour, digits_of_seen, factor_of, product
from lalic_kernels.exact.gpu_state import checked, one_check, positions, require
from lalic_kernels.exact.launches import DEPTH, LAUNCHES, options
from lalic_kernels.exact.weights import ExactLinear
from lalic_kernels.launch import blocks

__all__ = [
    "Seen", "aggregation", "conv", "linear_by_colour", "maxima", "raise_maxima", "rwkv_blocks_and_largest",
    "two_products",
]  # fmt: skip


def linear_by_colour(x: Tensor, weights: ExactLinear) -> Tensor:
    """x (B, H, W, K), W even -> x w^T + bias by colour, (2, B, H W / 2, O), in two launches: for many outputs."""
    require(x)
    images, height, width, _ = x.shape
    with checked(x.device) as status:
        digits = digits_by_colour(x, status)
        return product(digits, factor_of(weights)).reshape(2, images, height * width // 2, -1)


def rows_linear(x: Tensor, weights: ExactLinear, partial: Tensor | None = None, by_colour: bool = False) -> Tensor:
    """x (B, H, W, K) -> partial + (x w^T + bias), in one launch: for few outputs.

    The result is (B, H, W, O), or by colour (2, B, H W / 2, O), as is partial then; its rows may be any distance apart.
    """
    require(x)
    images, height, width, inner = x.shape
    factor = factor_of(weights)
    rows, outputs = images * height * width, factor.high.shape[0]
    shape = (2, images, height * width // 2, outputs) if by_colour else (images, height, width, outputs)
    y = torch.empty(shape, device=x.device)
    launch = LAUNCHES["rows_linear"]
    with checked(x.device) as status:
        kernels_rows.exact_rows_linear_kernel[(blocks(rows, launch["BLOCK_M"]), blocks(outputs, launch["BLOCK_N"]))](
            x, factor.digits, factor.scales, factor.scales if factor.bias is None else factor.bias,
            y if partial is None else partial, y, status, rows, inner, positions(x), factor.depth, outputs,
            0 if partial is None else partial.stride(2), height, width // 2, HAS_BIAS=factor.bias is not None,
            HAS_PARTIAL=partial is not None, PACKED=by_colour, **options("rows_linear"),
        )  # fmt: skip
    return y


def two_products(x: Tensor, first: ExactLinear, second: ExactLinear, partial: Tensor) -> Tensor:
    """x (B, H, W, K) -> partial + second (first x), both by colour (2, B, H W / 2, O); in one launch if it pays."""
    require(x, partial)
    images, height, width, inner = x.shape
    rows = images * height * width
    if not rows_pay(rows, 2 * (first.weight.numel() + second.weight.numel())):
        return rows_linear(rows_linear(x, first), second, partial, True)
    a, b, x = factor_of(first), factor_of(second), x.contiguous()
    middle, outputs = a.high.shape[0], b.high.shape[0]
    y = torch.empty(2, images, height * width // 2, outputs, device=x.device)
    with checked(x.device) as status:
        kernels_rows.exact_two_products_kernel[(blocks(rows, LAUNCHES["two_products"]["BLOCK_M"]),)](
            x, a.digits, a.scales, _bias(a), b.digits, b.scales, partial, torch.empty(rows, middle, device=x.device), y,
            status, rows, inner, a.depth, middle, b.depth, outputs, partial.stride(2), height, width // 2,
            **options("two_products"),
        )  # fmt: skip
    return y


def _bias(factor: Factor) -> Tensor:
    return torch.zeros_like(factor.scales) if factor.bias is None else factor.bias


@dataclass(frozen=True)
class Seen:
    """What the others of a slice see: image (B, H, W, g) with its anchors, taps (n, 2) int32, the product of it all."""

    image: Tensor
    taps: Tensor
    weights: ExactLinear


def aggregation(network: Sequence[ExactEntropyParams], known: Tensor, seen: Seen | None, eps: float = 1e-5) -> Tensor:
    """Parameters (B, P, 2 g) of one colour: the blocks of `network` behind m = spatial context + bias + known.

    known (B, P, width), rows any distance apart. seen: None for anchors, whose m is bias + known. Blocks whose weights
    are few go together into one launch; see `rows_pay`.
    """
    require(known)
    images, positions, _ = known.shape
    rows = images * positions
    x: Tensor | None = None
    with one_check(), checked(known.device) as status:
        for group in _groups(network, rows, 0 if seen is None else 2 * seen.weights.weight.numel()):
            first = group[0] is network[0]
            if len(group) == 1 and not rows_pay(rows, _size(group[0])):
                if first and seen is not None:
                    digits = digits_of_seen(seen.image, seen.taps, status)
                    x = product(digits, factor_of(seen.weights))
                x = _alone(group[0], x, known if first else None, status, eps).reshape(images, positions, -1)
            else:
                x = _together(group, x, known if first else None, seen if first else None, status, eps)
    assert x is not None
    return x


def _alone(
    block: ExactEntropyParams, x: Tensor | None, known: Tensor | None, status: Tensor, eps: float
) -> Tensor:  # fmt: skip
    """A block in four launches, behind mix x + known, of which one may be None: (rows, O)."""
    mix = factor_of(block.mix)
    given = known if x is None else x
    assert given is not None
    outputs = mix.high.shape[0]
    rows = given.numel() // given.shape[-1]
    m = torch.empty(rows, outputs, device=given.device)
    normal = Rows(rows, outputs, given.device)
    kernels_rows.exact_mix_norm_kernel[(blocks(rows, LAUNCHES["mix_norm"]["BLOCK_M"]),)](
        given, mix.digits, mix.scales, _bias(mix), given if known is None else known, block.norm_weight,
        block.norm_bias, m, normal.high, normal.low, normal.scales, status, rows, given.shape[-1], mix.depth, outputs,
        normal.depth, 0 if known is None else known.stride(1), eps_area(eps, outputs), HAS_X=x is not None,
        HAS_KNOWN=known is not None, **options("mix_norm"),
    )  # fmt: skip
    return channel_mix(normal, block, m, None, status)


def _size(block: ExactEntropyParams) -> int:
    """Bytes of a block's digits."""
    return 2 * sum(w.weight.numel() for w in (block.mix, block.key, block.receptance, block.value))


def _groups(network: Sequence[ExactEntropyParams], rows: int, more: int) -> list[list[ExactEntropyParams]]:
    """Blocks that go together, by what their programs would read; the first has `more` bytes of spatial context."""
    found: list[list[ExactEntropyParams]] = []
    size = more
    for block in network:
        if found and rows_pay(rows, size + _size(block)):
            found[-1].append(block)
            size += _size(block)
        else:
            found.append([block])
            size = _size(block) + (more if len(found) == 1 else 0)
    return found


class _Packed:
    """Blocks' digits and floats one after the other, and the table that says where; see `exact_aggregation_kernel`."""

    def __init__(self, group: Sequence[ExactEntropyParams], eps: float):
        device = group[0].norm_weight.device
        digits: list[Tensor] = []
        floats: list[Tensor] = []
        table, without_mix = [], []
        self.inputs = group[0].mix.weight.shape[1]
        self.wide = self.inputs
        self.inner = 0
        for block in group:
            mix = factor_of(block.mix)
            both, value = hidden_factor(block.key, block.receptance), factor_of(block.value)
            outputs, inner = mix.high.shape[0], block.key.weight.shape[0]
            place = sum(part.numel() for part in digits) // DEPTH
            table.append([outputs, inner, place, sum(part.numel() for part in floats)])
            without_mix.append([outputs, inner, place + 2 * outputs * mix.depth // DEPTH, table[-1][3]])
            digits += [factor.digits.flatten() for factor in (mix, both, value)]
            area = torch.tensor([eps_area(eps, outputs)], device=device)
            floats += [mix.scales, _bias(mix), block.norm_weight, block.norm_bias, both.scales, value.scales, area]
            self.wide, self.inner = max(self.wide, outputs), max(self.inner, inner)
        self.outputs = table[-1][0]
        self.wide = blocks(self.wide, 16) * 16
        self.digits, self.floats = torch.cat(digits), torch.cat(floats)
        self.table = torch.tensor(table, dtype=torch.int32, device=device)
        # Anchors have no product in front: the first block's digits begin behind its mix.
        self.table_of_known = torch.tensor([without_mix[0], *table[1:]], dtype=torch.int32, device=device)


def _packed(group: Sequence[ExactEntropyParams], eps: float) -> _Packed:
    name = "triton", eps, tuple(id(block) for block in group[1:])
    found = group[0].kept.get(name)
    if found is None:
        found = group[0].kept[name] = tuple(group), _Packed(group, eps)  # the blocks too: their ids are theirs so long
    packed: _Packed = found[1]
    return packed


def _together(
    group: Sequence[ExactEntropyParams], x: Tensor | None, known: Tensor | None, seen: Seen | None, status: Tensor,
    eps: float,
) -> Tensor:  # fmt: skip
    """The blocks of a group in one launch, behind x (B, P, inputs), or behind what is known and seen."""
    packed = _packed(group, eps)
    given = known if x is None else x
    assert given is not None
    images, rows, _ = given.shape
    stride = 2 * packed.wide + blocks(packed.inner, 16) * 16
    y = torch.empty(images, rows, packed.outputs, device=given.device)
    scratch = torch.empty(images * rows, stride, device=given.device)
    # What a variant does not read is given something of the right type.
    digits, floats, table = packed.digits, packed.floats, packed.table
    near = packed.outputs if known is None else known.stride(1)
    spatial: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = given, table, digits, floats, floats
    sizes = [packed.inputs, 0, 0, 1, 1, 1, 1]
    start = "known" if x is None else "rows"
    if seen is not None:
        factor = factor_of(seen.weights)
        spatial = seen.image, seen.taps, factor.digits, factor.scales, _bias(factor)
        _, height, width, channels = seen.image.shape
        sizes[1:] = [factor.depth, positions(seen.image), height, width // 2, seen.taps.shape[0], channels]
        start = "seen"
    elif x is None:
        table, sizes[0] = packed.table_of_known, 0
    kernels_aggregation.exact_aggregation_kernel[(blocks(rows, LAUNCHES["aggregation"]["BLOCK_M"]), images)](
        *spatial, given if known is None else known, digits, floats, table, scratch, y, status, rows, *sizes,
        near, stride, packed.wide, len(group), START=start, **options("aggregation"),
    )  # fmt: skip
    return y
