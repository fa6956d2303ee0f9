"""Launches of the exact Triton kernels: the functions of `reference.py` on CUDA tensors, or in Triton's interpreter.

A product and its epilogue are one launch, and so is what makes the digits that the next product reads: quantisation
needs the largest value of a row, and several programs share a row's outputs. So programs are many and short. Programs
that computed whole rows through several products would save launches, but do ten times as many steps one after the
other on a part of the GPU (`benchmarks.counting.steps`).

Launch shapes are fixed. Each public call checks once that its inputs were finite, which waits for the device; inside
`gpu_state.one_check()` many calls share one check at its end.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lalic_kernels.exact import kernels, kernels_wkv, reference
from lalic_kernels.exact import numbers as n
from lalic_kernels.exact.gpu_state import checked, evenly_spaced, one_check, position_stride, zeros
from lalic_kernels.exact.quantise import power_of_two, require_float32
from lalic_kernels.exact.weights import ExactBlock, ExactConv, ExactDepthwise, ExactEntropyParams, ExactLinear
from lalic_kernels.launch import Launch, blocks

# Round every operation separately, on every GPU and for any default of Triton.
OPTIONS: dict[str, Any] = {"enable_fp_fusion": False}
DEPTH = int(kernels.DEPTH)  # rows of digits are padded to a multiple of it
# All these are estimates, not tuned on a GPU.
LAUNCHES = {
    "head": Launch((("BLOCK_M", 8), ("BLOCK_N", 64)), num_warps=4),
    "rows of 512": Launch((("BLOCK_M", 4), ("BLOCK_N", 512)), num_warps=4),
    "rows of 1024": Launch((("BLOCK_M", 2), ("BLOCK_N", 1024)), num_warps=4),
    "rows of 4096": Launch((("BLOCK_M", 1), ("BLOCK_N", 4096)), num_warps=16),
    "absmax": Launch((("BLOCK_M", 16), ("BLOCK_N", 64)), num_warps=4),
    "linear": Launch((("BLOCK_M", 64), ("BLOCK_N", 32), ("BLOCK_K", 128)), num_warps=4, num_stages=3),
    "conv": Launch((("BLOCK_M", 64), ("BLOCK_N", 32), ("BLOCK_K", 64)), num_warps=4, num_stages=3),
    "shift of 128": Launch((("BLOCK_P", 1), ("BLOCK_C", 128)), num_warps=2),
    "shift of 512": Launch((("BLOCK_P", 1), ("BLOCK_C", 512)), num_warps=4),
    "wkv_sums": Launch((("BLOCK_T", 16), ("BLOCK_C", 32)), num_warps=2),
    "wkv_states": Launch((("BLOCK_C", 32),), num_warps=2),
    "wkv of 128": Launch((("BLOCK_C", 128),), num_warps=2),
    "wkv of 512": Launch((("BLOCK_C", 512),), num_warps=4),
}
# Else the last terms of a convolution would be cut off.
assert DEPTH % LAUNCHES["conv"]["BLOCK_K"] == 0, "DEPTH must be a multiple of BLOCK_K"


@functools.cache
def options(name: str) -> Mapping[str, Any]:
    """Keyword arguments of a launch."""
    return LAUNCHES[name].options() | OPTIONS


def channel_launch(name: str, depth: int) -> tuple[str, bool]:
    """The launch for all channels of a position, and whether they fit into its block; else it has a loop."""
    return next(((f"{name} of {size}", True) for size in (128, 512) if depth <= size), (f"{name} of 128", False))


def row_launch(width: int) -> str:
    """The launch for whole rows: the smallest tile that holds one, or the largest."""
    return next((f"rows of {size}" for size in (512, 1024) if width <= size), "rows of 4096")


# Digits


class Factor:
    """A weight's integers (O, ..., K) as digits (O, ..., depth) int8, padded with zeros; scales 2^(exponent - 12)."""

    def __init__(self, weight: Tensor, exponent: Tensor, bias: Tensor | None):
        self.depth = blocks(weight.shape[-1], DEPTH) * DEPTH
        q = torch.nn.functional.pad(weight.to(torch.int32), (0, self.depth - weight.shape[-1]))
        low = ((q + 64) & 127) - 64
        self.high, self.low = ((q - low) >> 7).to(torch.int8), low.to(torch.int8)
        self.scales = power_of_two(exponent - (n.BITS - 1))
        self.bias = bias


def factor_of(weights: ExactLinear) -> Factor:
    """A weight's digits, cached."""
    factor: Factor = weights.cache.get("gpu", (), lambda: Factor(weights.weight, weights.exponent, weights.bias))
    return factor


def hidden_factor(weights: ExactBlock | ExactEntropyParams) -> Factor:
    """key and receptance as one product; each output keeps its scale, so the bits stay the same."""
    key, receptance = weights.key, weights.receptance

    def make() -> Factor:
        weight = torch.cat((key.weight, receptance.weight))
        return Factor(weight, torch.cat((key.exponent, receptance.exponent)), None)

    factor: Factor = weights.cache.get("gpu hidden", (), make)
    return factor


class Rows:
    """Rows of digits (rows, depth), each with one scale."""

    def __init__(self, rows: int, width: int, device: torch.device):
        self.rows, self.depth = rows, blocks(width, DEPTH) * DEPTH
        self.high = torch.empty(rows, self.depth, dtype=torch.int8, device=device)
        self.low = torch.empty_like(self.high)
        self.scales = torch.empty(rows, dtype=torch.float32, device=device)


def _fill(
    digits: Rows, x: Tensor, other: Tensor, status: Tensor, source: str, images: int, rows: int, width: int,
    x_stride: int, height: int = 1, half: int = 1, channels: int = 1,
) -> Rows:  # fmt: skip
    """Write `digits` by `exact_digits_kernel`. other: the images' magnitude bits ("image") or taps ("neighbours")."""
    launch = "rows of 1024" if source == "neighbours" else row_launch(digits.depth)  # one is enough for few launches
    kernels.exact_digits_kernel[(blocks(rows, LAUNCHES[launch]["BLOCK_M"]), images)](
        x, other, other, digits.high, digits.low, digits.scales, status, rows, width, x_stride, digits.depth, height,
        half, channels, SOURCE=source, **options(launch),
    )  # fmt: skip
    return digits


def digits_of(flat: Tensor, status: Tensor, width: int) -> Rows:
    """Digits of the first `width` columns of flat (rows, ...), with one scale per row."""
    rows = flat.shape[0]
    return _fill(Rows(rows, width, flat.device), flat, flat, status, "rows", 1, rows, width, flat.stride(0))


def digits_of_images(x: Tensor, absmax_bits: Tensor, status: Tensor) -> Rows:
    """Digits of the positions of x (B, H, W, C), with one scale per image: the first B scales."""
    images, height, width, channels = x.shape
    area, digits = height * width, Rows(images * height * width, channels, x.device)
    return _fill(digits, x, absmax_bits, status, "image", images, area, channels, position_stride(x))


def digits_by_colour(x: Tensor, status: Tensor) -> Rows:
    """Digits of the positions of x (B, H, W, C), W even; the anchors of all images come first."""
    images, height, width, channels = x.shape
    rows, digits = images * height * width, Rows(images * height * width, channels, x.device)
    return _fill(digits, x, x, status, "by_colour", 1, rows, channels, position_stride(x), height, width // 2)


def digits_of_neighbours(x: Tensor, taps: Tensor, status: Tensor) -> Rows:
    """Digits of the neighbours of the others in x (B, H, W, g): rows (B H W / 2, n g); taps (n, 2) int32 offsets."""
    images, height, width, channels = x.shape
    rows, wide = height * width // 2, taps.shape[0] * channels
    digits, stride = Rows(images * rows, wide, x.device), position_stride(x)
    return _fill(digits, x, taps, status, "neighbours", images, rows, wide, stride, height, width // 2, channels)


@functools.cache
def eps_area(width: int) -> float:
    """eps width^2, one float32 product."""
    return float(np.float32(n.NORM_EPS) * np.float32(width * width))


def norm_digits(x: Tensor, weight: Tensor, bias: Tensor, status: Tensor) -> Rows:
    """Digits of the LayerNorm of contiguous x (rows, C), with one scale per row."""
    rows, width = x.shape
    digits = Rows(rows, width, x.device)
    launch = row_launch(digits.depth)
    kernels.exact_norm_digits_kernel[(blocks(rows, LAUNCHES[launch]["BLOCK_M"]),)](
        x, weight, bias, digits.high, digits.low, digits.scales, status, rows, width, digits.depth, eps_area(width),
        **options(launch),
    )  # fmt: skip
    return digits


def shift_taps(weights: ExactDepthwise) -> tuple[Tensor, Tensor]:
    """A shift's integers (k k, C) int16 and its channels' scales (C,), cached."""

    def make() -> tuple[Tensor, Tensor]:
        return weights.weight.flatten(1).t().contiguous(), power_of_two(weights.exponent - (n.BITS - 1))

    taps: tuple[Tensor, Tensor] = weights.cache.get("gpu", (), make)
    return taps


def shift_digits(x: Tensor, absmax_bits: Tensor, weights: ExactDepthwise) -> Rows:
    """Digits of the depth-wise convolution of contiguous x (B, H, W, C), with one scale per position.

    absmax_bits (B, C): magnitude bits of x's channels.
    """
    images, height, width, channels = x.shape
    digits = Rows(images * height * width, channels, x.device)
    launch, fits = channel_launch("shift", digits.depth)
    kernels.exact_shift_digits_kernel[(blocks(height * width, LAUNCHES[launch]["BLOCK_P"]), images)](
        x, absmax_bits, *shift_taps(weights), None if fits else torch.empty_like(x), digits.high, digits.low,
        digits.scales, height, width, channels, digits.depth, SIZE=weights.weight.shape[-1], **options(launch),
    )  # fmt: skip
    return digits


# Products


def product(
    x: Rows, factor: Factor, squared: int = 0, gate: Tensor | None = None, residual: Tensor | None = None,
    gamma: Tensor | None = None, partial: Tensor | None = None, max_key: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """y (rows, O) = x @ w^T + bias, then each step that is given: relu(y)^2 for columns below `squared`,
    sigmoid(gate) y, residual + gamma y, partial + y. The last sum is not settled.

    max_key (images, n): order keys that are raised to the maxima of the first n outputs over an image's rows.
    """
    outputs = factor.high.shape[0]
    y = torch.empty(x.rows, outputs, device=x.high.device, dtype=torch.float32)
    launch = LAUNCHES["linear"]
    kernels.exact_linear_kernel[(blocks(x.rows, launch["BLOCK_M"]), blocks(outputs, launch["BLOCK_N"]))](
        x.high, x.low, x.scales, factor.high, factor.low, factor.scales,
        factor.bias, gate, residual, gamma, partial, max_key, y, x.rows, x.depth, outputs, squared,
        0 if gate is None else gate.stride(0), 0 if residual is None else residual.stride(0),
        0 if partial is None else partial.stride(0),
        1 if max_key is None else x.rows // max_key.shape[0], 0 if max_key is None else max_key.shape[1],
        HAS_SQUARED=squared > 0, **options("linear"),
    )  # fmt: skip
    return y


def linear(x: Tensor, weights: ExactLinear) -> Tensor:
    """x (..., K) -> (..., O), in two launches."""
    require_float32(x)
    factor = factor_of(weights)
    shape = (*x.shape[:-1], factor.high.shape[0])
    if x.numel() == 0 or 0 in shape:
        return x.new_empty(shape)
    with checked(x.device) as status:
        digits = digits_of(x.contiguous().reshape(-1, x.shape[-1]), status, x.shape[-1])
        return product(digits, factor).reshape(shape)


class _ConvFactor(Factor):
    """A convolution's digits, phase after phase, and the tables of its kernel."""

    def __init__(self, weights: ExactConv):
        order: list[int] = []
        offsets: list[tuple[int, int]] = []
        phases = []
        for phase in weights.phases:
            phases.append((phase.row, phase.column, len(order), len(phase.taps)))
            order += phase.taps
            offsets += phase.offsets
        super().__init__(weights.weight[:, order], weights.exponent, weights.bias)
        device = weights.weight.device
        self.taps = len(order)
        self.offsets = torch.tensor(offsets, dtype=torch.int32, device=device).reshape(-1, 2)
        self.phases = torch.tensor(phases, dtype=torch.int32, device=device)


def raise_absmax(absmax_bits: Tensor, x: Tensor) -> None:
    """Raise absmax_bits (B,) int32 to the largest of each image of x (B, H, W, C), with evenly spaced positions."""
    images, height, width, channels = x.shape
    area = height * width
    with checked(x.device) as status:
        kernels.exact_absmax_kernel[(blocks(area, LAUNCHES["absmax"]["BLOCK_M"]), images)](
            x, absmax_bits, status, area, channels, position_stride(x), **options("absmax")
        )


def conv(
    x: Tensor, weights: ExactConv, previous: Tensor | None = None, absmax_bits: Tensor | None = None
) -> Tensor:  # fmt: skip
    """x (B, H, W, C) -> (B, H', W', O), or previous + that; `previous` with evenly spaced positions.

    absmax_bits (B,): magnitude bits of each image's largest value, or None to compute them.
    """
    require_float32(x)
    factor: _ConvFactor = weights.cache.get("gpu", (), lambda: _ConvFactor(weights))
    images, height, width, _ = x.shape
    rows, columns, outputs = weights.output_size(height), weights.output_size(width), factor.high.shape[0]
    if x.numel() == 0:
        return reference.conv(x, weights)
    y = x.new_empty(images, rows, columns, outputs)
    if y.numel() == 0:
        return y
    out_step, in_step = (weights.stride, 1) if weights.transposed else (1, weights.stride)
    x, launch = evenly_spaced(x), LAUNCHES["conv"]
    with checked(x.device) as status:
        if absmax_bits is None:
            absmax_bits = zeros(x.device, images)
            raise_absmax(absmax_bits, x)
        digits = digits_of_images(x, absmax_bits, status)
        pixels = images * blocks(rows, out_step) * blocks(columns, out_step)
        kernels.exact_conv_kernel[
            (blocks(pixels, launch["BLOCK_M"]), blocks(outputs, launch["BLOCK_N"]), len(weights.phases))
        ](
            digits.high, digits.low, digits.scales, factor.high, factor.low, factor.scales, factor.bias, factor.offsets,
            factor.phases, previous, y, images, height, width, digits.depth, rows, columns, outputs, factor.taps,
            in_step, out_step, 0 if previous is None else position_stride(previous), **options("conv"),
        )  # fmt: skip
    return y


# RWKV blocks


def _channel_mix(
    x: Rows, weights: ExactEntropyParams | ExactBlock, residual: Tensor, gamma: Tensor | None, status: Tensor
) -> Tensor:
    """residual + gamma (sigmoid(R x) V relu(K x)^2) in three launches; residual (rows, C)."""
    inner = weights.key.weight.shape[0]
    first = product(x, hidden_factor(weights), squared=inner)  # (rows, inner + C)
    hidden = digits_of(first, status, inner)
    return product(hidden, factor_of(weights.value), gate=first[:, inner:], residual=residual, gamma=gamma)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, y: Tensor, absmax_bits: Tensor, status: Tensor) -> None:
    """Write the LayerNorm of x (rows of all images, C), any row stride, to y; raise absmax_bits (images, C) to y's."""
    images, width = absmax_bits.shape
    rows = x.shape[0] // images
    launch = row_launch(width)
    kernels.exact_layer_norm_kernel[(blocks(rows, LAUNCHES[launch]["BLOCK_M"]), images)](
        x, weight, bias, y, absmax_bits, status, rows, width, x.stride(0), eps_area(width), **options(launch)
    )


def wkv(w: Tensor, u: Tensor, kvr: Tensor, max_key: Tensor, y: Tensor | None = None) -> Rows:
    """Digits of the gated WKV (B T, C) of kvr (B, T, 3 C): keys, values and gates, contiguous and finite.

    max_key (B, C): order keys of the keys' maxima. y: contiguous, if given the values (B, T, C) themselves are written
    to it.
    """
    images, tokens, channels = kvr.shape[0], kvr.shape[1], kvr.shape[2] // 3
    device = kvr.device
    digits = Rows(images * tokens, channels, device)
    chunks, c_blocks = blocks(tokens, n.CHUNK), blocks(channels, LAUNCHES["wkv_sums"]["BLOCK_C"])
    weights = torch.empty(2, images, tokens, channels, dtype=torch.float64, device=device)
    states = torch.empty(2, 2, images, tokens, channels, dtype=torch.float64, device=device)
    sums, entering = torch.empty(2, images, chunks, 4, channels, dtype=torch.float64, device=device)
    boost = torch.empty(channels, dtype=torch.float64, device=device)
    kernels_wkv.exact_wkv_sums_kernel[(chunks, c_blocks, images)](
        w, u, kvr, max_key, weights, sums, entering, boost, zeros(device, images, c_blocks), tokens, channels,
        **options("wkv_sums"),
    )  # fmt: skip
    kernels_wkv.exact_wkv_states_kernel[(chunks, c_blocks, images)](
        w, weights, entering, states, tokens, channels, **options("wkv_states")
    )
    launch, fits = channel_launch("wkv", digits.depth)
    y = torch.empty(digits.rows, channels, device=device, dtype=torch.float32) if y is None and not fits else y
    kernels_wkv.exact_wkv_digits_kernel[(images * tokens,)](
        kvr, boost, weights, states, y, digits.high, digits.low, digits.scales, images * tokens, channels, digits.depth,
        **options(launch),
    )  # fmt: skip
    return digits


def rwkv_blocks(x: Tensor, sequence: Sequence[ExactBlock]) -> Tensor:
    """x (B, H, W, C) through one block after the other, in twelve launches each."""
    require_float32(x)
    reference.check_norm(x)
    if x.numel() == 0 or not sequence:
        return x
    flat = evenly_spaced(x).view(-1, x.shape[3])
    with one_check(), checked(x.device) as status:
        for block in sequence:
            flat = _rwkv_block(flat, x.shape, block, status)
    return flat.reshape(x.shape)


def _rwkv_block(x: Tensor, shape: torch.Size, block: ExactBlock, status: Tensor) -> Tensor:
    """A block of images of a shape (B, H, W, C), given and returned as rows (B H W, C); x may have any row stride."""
    images, height, width, channels = shape
    tokens = height * width

    def shifted_norm(x: Tensor, weight: Tensor, bias: Tensor, shift: ExactDepthwise) -> Rows:
        normal, bits = torch.empty(shape, device=x.device, dtype=torch.float32), zeros(x.device, images, channels)
        layer_norm(x, weight, bias, normal, bits, status)
        return shift_digits(normal, bits, shift)

    # The spatial mix.
    max_key = zeros(x.device, images, channels)
    s = shifted_norm(x, block.norm1_weight, block.norm1_bias, block.shift1)
    kvr = product(s, factor_of(block.mix), max_key=max_key).reshape(images, tokens, 3 * channels)
    # of the last number of tokens
    w, u = block.cache.get("gpu wkv", (), lambda: block.per_token(tokens), options=tokens)
    x = product(wkv(w, u, kvr, max_key), factor_of(block.output), residual=x, gamma=block.gamma1)
    # The channel mix.
    s = shifted_norm(x, block.norm2_weight, block.norm2_bias, block.shift2)
    return _channel_mix(s, block, x, block.gamma2, status)


# Entropy parameters and Gaussian head


def entropy_rows(block: ExactEntropyParams, x: Tensor | None, partial: Tensor | None, status: Tensor) -> Tensor:
    """A block (rows, C) of x (rows, Cin), contiguous, and partial (rows, C), any row stride, in six launches.

    One of x and partial may be None; x is None if Cin is 0.
    """
    if x is None:
        assert partial is not None
        m = (partial if block.mix.bias is None else partial + block.mix.bias).contiguous()
    else:
        m = product(digits_of(x, status, x.shape[1]), factor_of(block.mix), partial=partial)
    normal = norm_digits(m, block.norm_weight, block.norm_bias, status)
    return _channel_mix(normal, block, m, None, status)


def entropy_params(x: Tensor, block: ExactEntropyParams, partial: Tensor | None = None) -> Tensor:
    """x (..., Cin), partial (..., Cout) -> (..., Cout)."""
    require_float32(x, *(() if partial is None else (partial,)))
    reference.check_norm(block.norm_weight)
    outputs = block.norm_weight.shape[0]
    shape = (*x.shape[:-1], outputs)
    if 0 in shape:
        return x.new_empty(shape)
    flat = x.contiguous().reshape(-1, x.shape[-1]) if x.shape[-1] else None
    added = None if partial is None else partial.contiguous().reshape(-1, outputs)
    if flat is None and added is None:
        added = x.new_zeros(x.shape[:-1].numel(), outputs)
    with checked(x.device) as status:
        return entropy_rows(block, flat, added, status).reshape(shape)


@functools.cache
def _thresholds(device: torch.device) -> Tensor:
    return torch.tensor(n.THRESHOLDS, dtype=torch.float32, device=device)


def gaussian_head(parameters: Tensor) -> tuple[Tensor, Tensor]:
    """parameters (..., 2 g) -> (scale indexes int32, means), each (..., g), in one launch."""
    require_float32(parameters)
    shape = (*parameters.shape[:-1], parameters.shape[-1] // 2)
    index = torch.empty(shape, dtype=torch.int32, device=parameters.device)
    mean = torch.empty(shape, device=parameters.device, dtype=torch.float32)
    if index.numel():
        rows, launch = index.numel() // shape[-1], LAUNCHES["head"]
        with checked(parameters.device) as status:
            kernels.exact_head_kernel[(blocks(rows, launch["BLOCK_M"]), blocks(shape[-1], launch["BLOCK_N"]))](
                parameters.contiguous(), _thresholds(parameters.device), index, mean, status, rows, shape[-1],
                parameters.shape[-1], **options("head"),
            )  # fmt: skip
    return index, mean
