"""Exact kernels without products: pointwise functions, residual, LayerNorm (with the digits of its rows), scale index.

`status` is an int32 on the device that becomes 1 where an input is not finite; the launches raise for it.
"""

import triton
import triton.language as tl

from lalic_kernels.exact import numbers as n
from lalic_kernels.exact.kernels_common import (
    LEAST,
    SHIFT,
    digits,
    exp,
    leading_exponent,
    magnitude,
    note,
    power_of_two,
    raise_maximum,
    reciprocal_root,
    settle,
    sigmoid,
    threshold_index,
    whole,
)

NORM_LARGEST = tl.constexpr(2.0**n.NORM_BITS)
NORM_SHIFT = tl.constexpr(n.NORM_BITS - 1)
NORM_LEAST = tl.constexpr(n.NORM_LEAST_EXPONENT)


@triton.jit
def exact_pointwise_kernel(
    x_ptr,  # (count,)
    other_ptr,  # (count,); the gate's second factor, unused elsewhere
    y_ptr,  # (count,), written
    status_ptr,
    count,
    FUNCTION: tl.constexpr,  # "exp", "sigmoid", "squared_relu" or "gate"
    BLOCK: tl.constexpr,
):
    """y = FUNCTION(x), or sigmoid(x) other. Grid (blocks of count,)."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < count
    x = tl.load(x_ptr + i, mask=mask, other=0.0)
    note(status_ptr, magnitude(x))
    if FUNCTION == "exp":
        y = exp(x)
    elif FUNCTION == "sigmoid":
        y = sigmoid(x)
    elif FUNCTION == "squared_relu":
        y = settle(tl.where(x > 0, x * x, 0.0))
    else:
        other = tl.load(other_ptr + i, mask=mask, other=0.0)
        note(status_ptr, magnitude(other))
        y = settle(sigmoid(x) * other)
    tl.store(y_ptr + i, y, mask=mask)


@triton.jit
def exact_residual_kernel(
    x_ptr,  # (rows, width)
    change_ptr,  # (rows, width)
    gamma_ptr,  # (width,); unused without HAS_GAMMA
    y_ptr,  # (rows, width), written
    status_ptr,
    rows,
    width,
    HAS_GAMMA: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """y = x + gamma change. Grid (blocks of rows, blocks of width)."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (row < rows)[:, None] & (c < width)[None, :]
    offset = row.to(tl.int64)[:, None] * width + c[None, :]
    x = tl.load(x_ptr + offset, mask=mask, other=0.0)
    change = tl.load(change_ptr + offset, mask=mask, other=0.0)
    note(status_ptr, tl.maximum(magnitude(x), magnitude(change)))
    if HAS_GAMMA:
        gamma = settle(tl.load(gamma_ptr + c, mask=c < width, other=0.0))
        change = settle(gamma[None, :] * change)
    tl.store(y_ptr + offset, settle(x + change), mask=mask)


@triton.jit
def row_bits(x_ptr, base, width, row_in, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Largest magnitude bits of each row (M,); base (M, 1) is where the rows begin."""
    most = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    for start in range(0, width, BLOCK_N):
        c = start + tl.arange(0, BLOCK_N)
        x = tl.load(x_ptr + base + c[None, :], mask=row_in[:, None] & (c < width)[None, :], other=0.0)
        most = tl.maximum(most, magnitude(x))
    return tl.max(most, axis=1)


@triton.jit
def norm_factors(
    x_ptr, base, bits, width, eps_area, row_in, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """What `normal` needs of rows whose largest magnitude bits are known: h, s and g of the definition, each (M,)."""
    half = power_of_two(-(leading_exponent(bits, NORM_LEAST) - NORM_SHIFT))
    totals = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    squares = tl.zeros([BLOCK_M, BLOCK_N], tl.int64)
    for start in range(0, width, BLOCK_N):
        c = start + tl.arange(0, BLOCK_N)
        x = tl.load(x_ptr + base + c[None, :], mask=row_in[:, None] & (c < width)[None, :], other=0.0)
        q = whole(x * half[:, None], NORM_LARGEST)
        totals += q
        squares += q.to(tl.int64) * q
    total = tl.sum(totals, axis=1)
    wide = total.to(tl.int64)
    spread = tl.sum(squares, axis=1) * width - wide * wide
    rate = reciprocal_root(spread.to(tl.float32) + (eps_area * half) * half)
    return half, total, rate


@triton.jit
def normal(x_ptr, weight_ptr, bias_ptr, base, c, mask, half, total, rate, width):
    """The normalised values at columns c, settled; not meant outside the mask."""
    x = tl.load(x_ptr + base + c[None, :], mask=mask, other=0.0)
    q = whole(x * half[:, None], NORM_LARGEST)
    y = (q * width - total[:, None]).to(tl.float32) * rate[:, None]
    weight = settle(tl.load(weight_ptr + c, mask=c < width, other=0.0))
    bias = settle(tl.load(bias_ptr + c, mask=c < width, other=0.0))
    return settle(y * weight[None, :] + bias[None, :])


@triton.jit
def norm_digits(
    x_ptr, base, bits, weight_ptr, bias_ptr, high_ptr, low_ptr, scale_ptr, place, width, depth, eps_area, row_in,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Digits of the LayerNorm of rows, at rows `place` (M,) of (rows, depth), and their scales."""
    half, total, rate = norm_factors(x_ptr, base, bits, width, eps_area, row_in, BLOCK_M, BLOCK_N)
    most = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    for start in range(0, width, BLOCK_N):
        c = start + tl.arange(0, BLOCK_N)
        mask = row_in[:, None] & (c < width)[None, :]
        y = normal(x_ptr, weight_ptr, bias_ptr, base, c, mask, half, total, rate, width)
        most = tl.maximum(most, tl.where(mask, magnitude(y), 0))
    exponent = leading_exponent(tl.max(most, axis=1), LEAST)
    tl.store(scale_ptr + place, power_of_two(exponent - SHIFT), mask=row_in)
    up = power_of_two(-(exponent - SHIFT))[:, None]
    out = place[:, None] * depth
    for start in range(0, depth, BLOCK_N):
        c = start + tl.arange(0, BLOCK_N)
        mask = row_in[:, None] & (c < width)[None, :]
        y = normal(x_ptr, weight_ptr, bias_ptr, base, c, mask, half, total, rate, width)
        high, low = digits(tl.where(mask, y, 0.0), up)
        inside = row_in[:, None] & (c < depth)[None, :]
        tl.store(low_ptr + out + c[None, :], low, mask=inside)
        tl.store(high_ptr + out + c[None, :], high, mask=inside)


@triton.jit
def exact_layer_norm_kernel(
    x_ptr,  # (images * rows, width), rows x_stride apart
    weight_ptr,  # (width,)
    bias_ptr,  # (width,)
    y_ptr,  # (images * rows, width), written without DIGITS
    maxima_ptr,  # (images, width) int32, with MAXIMA: raised to each channel's magnitude bits
    high_ptr,  # (rows, depth) int8, written with DIGITS, as are the next two
    low_ptr,  # (rows, depth) int8
    scale_ptr,  # (rows,) float32: 2^(exponent - 12)
    status_ptr,
    rows,  # of an image
    width,
    x_stride,
    depth,  # at least the width; digits beyond the width are 0
    eps_area,  # eps width^2, float32
    DIGITS: tl.constexpr,
    MAXIMA: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """LayerNorm of each row, or the digits of it, quantised by rows. Grid (blocks of rows, images)."""
    image = tl.program_id(1)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_in = row < rows
    place = image.to(tl.int64) * rows + row
    base = place[:, None] * x_stride
    out = place[:, None] * width
    bits = row_bits(x_ptr, base, width, row_in, BLOCK_M, BLOCK_N)
    note(status_ptr, bits)
    if DIGITS:
        norm_digits(
            x_ptr, base, bits, weight_ptr, bias_ptr, high_ptr, low_ptr, scale_ptr, place, width, depth, eps_area,
            row_in, BLOCK_M, BLOCK_N,
        )  # fmt: skip
    else:
        half, total, rate = norm_factors(x_ptr, base, bits, width, eps_area, row_in, BLOCK_M, BLOCK_N)
        for start in range(0, width, BLOCK_N):
            c = start + tl.arange(0, BLOCK_N)
            mask = row_in[:, None] & (c < width)[None, :]
            y = normal(x_ptr, weight_ptr, bias_ptr, base, c, mask, half, total, rate, width)
            tl.store(y_ptr + out + c[None, :], y, mask=mask)
            if MAXIMA:
                most = tl.max(tl.where(mask, magnitude(y), 0), axis=0)
                raise_maximum(maxima_ptr + image * width + c, most, c < width)


@triton.jit
def exact_head_kernel(
    x_ptr,  # rows of stride x_stride: `width` scales, then, with MEANS, `width` means
    thresholds_ptr,  # (63,)
    index_ptr,  # (rows, width) int32, written
    mean_ptr,  # (rows, width), written with MEANS
    status_ptr,
    rows,
    width,
    x_stride,
    MEANS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """How many thresholds lie below each scale, by six steps of bisection; the means beside it.

    Grid (blocks of rows, blocks of width).
    """
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (row < rows)[:, None] & (c < width)[None, :]
    source = row.to(tl.int64)[:, None] * x_stride + c[None, :]
    offset = row.to(tl.int64)[:, None] * width + c[None, :]
    scale = tl.load(x_ptr + source, mask=mask, other=0.0)
    bits = magnitude(scale)
    tl.store(index_ptr + offset, threshold_index(thresholds_ptr, scale), mask=mask)
    if MEANS:
        mean = tl.load(x_ptr + source + width, mask=mask, other=0.0)
        bits = tl.maximum(bits, magnitude(mean))
        tl.store(mean_ptr + offset, mean, mask=mask)
    note(status_ptr, bits)
