"""Launches of the exact Triton kernels: `reference.py`'s functions on CUDA tensors, or in Triton's interpreter.

Launch shapes are fixed. Each public call looks once whether its inputs were finite, which waits for the device; within
`one_check()` many calls share one look at its end.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from lalic_kernels.exact import kernels, kernels_conv, kernels_products, kernels_wkv, reference
from lalic_kernels.exact import numbers as n
from lalic_kernels.exact.gpu_products import Factor, Rows, digits_of, factor_of, fill, product
from lalic_kernels.exact.gpu_state import checked, lined_up, maxima, one_check, positions, require
from lalic_kernels.exact.launches import CHUNKS_TO_WALK, LAUNCHES, TOKENS, options
from lalic_kernels.exact.quantise import power_of_two
from lalic_kernels.exact.weights import ExactConv, ExactDepthwise, ExactLinear
from lalic_kernels.launch import blocks

__all__ = [
    "biwkv", "conv", "depthwise", "exp", "gate", "gaussian_head", "layer_norm", "linear", "one_check", "residual",
    "scale_index", "sigmoid", "squared_relu",
]  # fmt: skip


def linear(x: Tensor, prepared: ExactLinear, squared: bool = False) -> Tensor:
    """As `reference.linear`, with `squared` as `squared_relu` of it."""
    require(x)
    factor = factor_of(prepared)
    shape = (*x.shape[:-1], factor.high.shape[0])
    if x.numel() == 0 or 0 in shape:
        return x.new_empty(shape)
    with checked(x.device) as status:
        digits = digits_of(x.contiguous().reshape(-1, x.shape[-1]), status, x.shape[-1])
        return product(digits, factor, squared=shape[-1] if squared else 0).reshape(shape)


class _ConvFactor(Factor):
    """A convolution's digits, phase after phase, with the tables that its kernel reads."""

    def __init__(self, prepared: ExactConv):
        order = [tap for phase in prepared.phases for tap in phase.taps]
        super().__init__(prepared.weight[:, order], prepared.exponent, prepared.bias)
        offsets = [offset for phase in prepared.phases for offset in phase.offsets]
        first, lines = 0, []
        for phase in prepared.phases:
            lines.append((phase.row, phase.column, first, len(phase.taps)))
            first += len(phase.taps)
        device = prepared.weight.device
        self.taps = len(order)
        self.offsets = torch.tensor(offsets, dtype=torch.int32, device=device).reshape(-1, 2)
        self.phases = torch.tensor(lines, dtype=torch.int32, device=device)


def raise_maxima(most: Tensor, x: Tensor) -> None:
    """Raise most (B,) int32 to the magnitude bits of images x (B, H, W, C), whose positions lie one after the other."""
    images, height, width, channels = x.shape
    area = height * width
    with checked(x.device) as status:
        kernels_products.exact_image_maximum_kernel[(blocks(area, LAUNCHES["image_maximum"]["BLOCK_M"]), images)](
            x, most, status, area, channels, positions(x), **options("image_maximum")
        )


def conv(
    x: Tensor, prepared: ExactConv, parity: int | None = None, previous: Tensor | None = None,
    most: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """As `reference.conv`, or previous + that; `previous` as the result, of any distance between positions.

    most (B,): magnitude bits of each image's largest value, where they are known.
    """
    require(x)
    if parity is not None and len(prepared.phases) > 1:
        return reference.pack(conv(x, prepared), parity)
    factor = prepared.kept.get("triton")
    if factor is None:
        factor = prepared.kept["triton"] = _ConvFactor(prepared)
    images, height, width, channels = x.shape
    rows, columns = prepared.output_size(height), prepared.output_size(width)
    columns = columns if parity is None else columns // 2
    outputs = factor.high.shape[0]
    y = x.new_empty(images, rows, columns, outputs)
    if y.numel() == 0 or x.numel() == 0:
        return y if x.numel() else reference.conv(x, prepared, parity)
    out_step, in_step = (prepared.stride, 1) if prepared.transposed else (1, prepared.stride)
    x = lined_up(x)
    stride, area, launch = positions(x), height * width, LAUNCHES["conv"]
    with checked(x.device) as status:
        if most is None:
            most = maxima(x.device, images)
            raise_maxima(most, x)
        digits = fill(
            Rows(images * area, channels, x.device), x, most, status, "shared", images, area, channels, stride
        )
        scales = digits.scales[:images]
        pixels = images * blocks(rows, out_step) * blocks(columns, out_step)
        kernels_conv.exact_conv_kernel[
            (blocks(pixels, launch["BLOCK_M"]), blocks(outputs, launch["BLOCK_N"]), len(prepared.phases))
        ](
            digits.high, digits.low, scales, factor.high, factor.low, factor.scales,
            factor.scales if factor.bias is None else factor.bias, factor.offsets, factor.phases,
            y if previous is None else previous, y, images, height, width, digits.depth, rows, columns, outputs,
            factor.taps, in_step, out_step, parity or 0, 0 if previous is None else positions(previous),
            HAS_BIAS=factor.bias is not None, HAS_PREVIOUS=previous is not None, PACKED=parity is not None,
            **options("conv"),
        )  # fmt: skip
    return y


def _channel_maxima(x: Tensor, signed: bool, status: Tensor) -> Tensor:
    """(B, C) maxima of x (B, T, C) over its tokens: order keys of its values, or magnitudes' bits."""
    images, tokens, channels = x.shape
    found = maxima(x.device, images, channels)
    across = blocks(channels, LAUNCHES["channel_maximum"]["BLOCK_C"])
    kernels_products.exact_channel_maximum_kernel[(blocks(tokens, TOKENS), across, images)](
        x, found, status, tokens, channels, x.stride(1), SIGNED=signed, **options("channel_maximum")
    )
    return found


def taps_of(prepared: ExactDepthwise) -> tuple[Tensor, Tensor]:
    """A shift's integers (k k, C) and its channels' scales."""
    if "triton" not in prepared.kept:
        taps = prepared.weight.flatten(1).t().contiguous()
        prepared.kept["triton"] = taps, power_of_two(prepared.exponent - (n.BITS - 1))
    found: tuple[Tensor, Tensor] = prepared.kept["triton"]
    return found


def depthwise(x: Tensor, prepared: ExactDepthwise) -> Tensor:
    """As `reference.depthwise`."""
    require(x)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    if y.numel() == 0:
        return y
    images, height, width, channels = x.shape
    launch, x = LAUNCHES["depthwise"], x.contiguous()
    grid = (blocks(height * width, launch["BLOCK_P"]), blocks(channels, launch["BLOCK_C"]), images)
    with checked(x.device) as status:
        most = _channel_maxima(x.reshape(images, -1, channels), False, status)
        kernels_conv.exact_depthwise_kernel[grid](
            x, most, *taps_of(prepared), y, height, width, channels, SIZE=prepared.weight.shape[-1],
            **options("depthwise"),
        )  # fmt: skip
    return y


def depthwise_digits(x: Tensor, most: Tensor, prepared: ExactDepthwise) -> Rows:
    """Digits of `depthwise` of x (B, H, W, C), contiguous, whose channels' maxima are known: a row a position."""
    images, height, width, channels = x.shape
    found = Rows(images * height * width, channels, x.device)
    grid = (blocks(height * width, LAUNCHES["depthwise_digits"]["BLOCK_P"]), images)
    kernels_conv.exact_depthwise_digits_kernel[grid](
        x, most, *taps_of(prepared), torch.empty_like(x), found.high, found.low, found.scales, height, width, channels,
        found.depth, SIZE=prepared.weight.shape[-1], **options("depthwise_digits"),
    )  # fmt: skip
    return found


def eps_area(eps: float, width: int) -> float:
    """eps width^2, one float32 product."""
    return float(np.float32(eps) * np.float32(width * width))


def normalise(
    x: Tensor, images: int, weight: Tensor, bias: Tensor, eps: float, status: Tensor, y: Tensor | None = None,
    digits: Rows | None = None, most: Tensor | None = None,
) -> None:  # fmt: skip
    """LayerNorm of x (rows of all images, C), any distance apart, to y or to digits; most (images, C) is raised."""
    width = x.shape[1]
    rows = x.shape[0] // images
    out = x if y is None else y
    high, low, scales = (out, out, out) if digits is None else (digits.high, digits.low, digits.scales)
    kernels.exact_layer_norm_kernel[(blocks(rows, LAUNCHES["layer_norm"]["BLOCK_M"]), images)](
        x, weight.contiguous(), bias.contiguous(), out, status if most is None else most, high, low, scales, status,
        rows, width, x.stride(0), width if digits is None else digits.depth, eps_area(eps, width),
        DIGITS=digits is not None, MAXIMA=most is not None, **options("layer_norm"),
    )  # fmt: skip


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """As `reference.layer_norm`."""
    require(x, weight, bias)
    reference.check_norm(x, eps)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    if y.numel():
        with checked(x.device) as status:
            normalise(x.contiguous().reshape(-1, x.shape[-1]), 1, weight, bias, eps, status, y=y)
    return y


def _pointwise(function: str, x: Tensor, other: Tensor | None = None) -> Tensor:
    require(x, *(() if other is None else (other,)))
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    if y.numel():
        second = x if other is None else other
        with checked(x.device) as status:
            kernels.exact_pointwise_kernel[(blocks(y.numel(), LAUNCHES["pointwise"]["BLOCK"]),)](
                x.contiguous(), second.contiguous(), y, status, y.numel(), FUNCTION=function, **options("pointwise")
            )
    return y


def exp(x: Tensor) -> Tensor:
    """As `reference.exp`."""
    return _pointwise("exp", x)


def sigmoid(x: Tensor) -> Tensor:
    """As `reference.sigmoid`."""
    return _pointwise("sigmoid", x)


def squared_relu(x: Tensor) -> Tensor:
    """As `reference.squared_relu`."""
    return _pointwise("squared_relu", x)


def gate(r: Tensor, x: Tensor) -> Tensor:
    """As `reference.gate`."""
    return _pointwise("gate", r, x)


def residual(x: Tensor, change: Tensor, gamma: Tensor | None = None) -> Tensor:
    """As `reference.residual`."""
    require(x, change, *(() if gamma is None else (gamma,)))
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    if y.numel():
        width = x.shape[-1]
        rows, launch = y.numel() // width, LAUNCHES["residual"]
        with checked(x.device) as status:
            kernels.exact_residual_kernel[(blocks(rows, launch["BLOCK_M"]), blocks(width, launch["BLOCK_N"]))](
                x.contiguous(), change.contiguous(), x if gamma is None else gamma.contiguous(), y, status, rows, width,
                HAS_GAMMA=gamma is not None, **options("residual"),
            )  # fmt: skip
    return y


def _tokens(x: Tensor) -> Tensor:
    """x (B, T, C) with channels side by side and images T tokens apart: a part of a product's columns is that."""
    good = x.stride(2) == 1 and x.stride(1) >= x.shape[2] and x.stride(0) == x.shape[1] * x.stride(1)
    return x if good else x.contiguous()


def biwkv(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, gate_by: Tensor | None = None, tops: Tensor | None = None
) -> Tensor:  # fmt: skip
    """As `reference.biwkv`; tops (B, C): order keys of the keys' maxima, where they are known."""
    require(w, u, k, v, *(() if gate_by is None else (gate_by,)))
    y = torch.empty(k.shape, device=k.device)
    if y.numel() == 0:
        return y
    images, tokens, channels = k.shape
    k, v, r = _tokens(k), _tokens(v), y if gate_by is None else _tokens(gate_by)
    w, u = w.contiguous(), u.contiguous()
    chunks, across = blocks(tokens, n.CHUNK), blocks(channels, LAUNCHES["wkv_sums"]["BLOCK_C"])
    chained = chunks > CHUNKS_TO_WALK
    with checked(k.device) as status:
        tops = _channel_maxima(k, True, status) if tops is None else tops
        weights, left = torch.empty(2, 2, images, tokens, channels, dtype=torch.float64, device=k.device)
        own = torch.empty(images, chunks, 4, channels, dtype=torch.float64, device=k.device)
        kernels_wkv.exact_wkv_sums_kernel[(chunks, across, images)](
            w, k, v, tops, weights, own, status, tokens, channels, k.stride(1), v.stride(1), **options("wkv_sums")
        )
        sums = torch.empty_like(own) if chained else own
        if chained:
            kernels_wkv.exact_wkv_chain_kernel[(across, images, 2)](
                w, own, sums, tokens, channels, chunks, **options("wkv_chain")
            )
        kernels_wkv.exact_wkv_values_kernel[(chunks, across, images)](
            w, u, v, r, weights, sums, left, y, status, tokens, channels, v.stride(1), r.stride(1),
            GATED=gate_by is not None, CHAINED=chained, **options("wkv_values"),
        )  # fmt: skip
    return y


@functools.cache
def _thresholds(device: torch.device) -> Tensor:
    return torch.tensor(n.THRESHOLDS, dtype=torch.float32, device=device)


def _head(x: Tensor, width: int, means: bool) -> tuple[Tensor, Tensor]:
    """Scales' indexes, and what lies behind the scales, of rows of x whose last dimension has at least `width`."""
    shape = (*x.shape[:-1], width)
    index = torch.empty(shape, dtype=torch.int32, device=x.device)
    mean = torch.empty(shape, device=x.device) if means else x
    if index.numel():
        flat, launch = x.contiguous(), LAUNCHES["head"]
        rows = index.numel() // width
        with checked(x.device) as status:
            kernels.exact_head_kernel[(blocks(rows, launch["BLOCK_M"]), blocks(width, launch["BLOCK_N"]))](
                flat, _thresholds(x.device), index, mean, status, rows, width, x.shape[-1],
                MEANS=means, **options("head"),
            )  # fmt: skip
    return index, mean


def scale_index(scales: Tensor) -> Tensor:
    """As `reference.scale_index`."""
    require(scales)
    flat = scales.reshape(1, -1) if scales.dim() < 2 else scales
    return _head(flat, flat.shape[-1], False)[0].reshape(scales.shape)


def gaussian_head(parameters: Tensor) -> tuple[Tensor, Tensor]:
    """As `reference.gaussian_head`, in one launch."""
    require(parameters)
    return _head(parameters, parameters.shape[-1] // 2, True)
