"""Exact kernels without products: pointwise functions, residual, LayerNorm (with the digits of its rows), scale index.

`status` is an int32 on the device that becomes 1 where an input is not finite; the launches raise for it.
"""

import triton
import triton.language as tl

from lalic_kernels.exact import numbers as n
from lalic_kernels.exact.kernels_common import (
    LEAST,
    exp,
    leading_exponent,
    low_digit,
    magnitude,
    note,
    power_of_two,
    reciprocal_root,
    settle,
    sigmoid,
    threshold_index,
    whole,
)

NORM_LARGEST = tl.constexpr(2.0**n.NORM_BITS)
NORM_SHIFT = tl.constexpr(n.NORM_BITS - 1)
NORM_LEAST = tl.constexpr(n.NORM_LEAST_EXPONENT)
SHIFT = tl.constexpr(n.BITS - 1)


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
def exact_layer_norm_kernel(
    x_ptr,  # (rows, width)
    weight_ptr,  # (width,)
    bias_ptr,  # (width,)
    y_ptr,  # (rows, width), written without DIGITS
    high_ptr,  # (rows, depth) int8, written with DIGITS, as are the next two
    low_ptr,  # (rows, depth) int8
    scale_ptr,  # (rows,) float32: 2^(exponent - 12)
    status_ptr,
    rows,
    width,
    depth,  # at least the width; digits beyond the width are 0
    eps_area,  # eps width^2, float32
    DIGITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """LayerNorm of each row, or the digits of it, quantised by rows. Grid (blocks of rows,)."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_in = row < rows
    base = row.to(tl.int64)[:, None] * width
    most = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    for start in range(0, width, BLOCK_N):
        c = start + tl.arange(0, BLOCK_N)
        x = tl.load(x_ptr + base + c[None, :], mask=row_in[:, None] & (c < width)[None, :], other=0.0)
        most = tl.maximum(most, magnitude(x))
    bits = tl.max(most, axis=1)
    note(status_ptr, bits)
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
    most = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    for start in range(0, width, BLOCK_N):
        c = start + tl.arange(0, BLOCK_N)
        mask = row_in[:, None] & (c < width)[None, :]
        y = _normal(x_ptr, weight_ptr, bias_ptr, base, c, mask, half, total, rate, width)
        if DIGITS:
            most = tl.maximum(most, tl.where(mask, magnitude(y), 0))
        else:
            tl.store(y_ptr + base + c[None, :], y, mask=mask)
    if DIGITS:
        exponent = leading_exponent(tl.max(most, axis=1), LEAST)
        tl.store(scale_ptr + row, power_of_two(exponent - SHIFT), mask=row_in)
        up = power_of_two(-(exponent - SHIFT))[:, None]
        out = row.to(tl.int64)[:, None] * depth
        for start in range(0, depth, BLOCK_N):
            c = start + tl.arange(0, BLOCK_N)
            mask = row_in[:, None] & (c < width)[None, :]
            y = _normal(x_ptr, weight_ptr, bias_ptr, base, c, mask, half, total, rate, width)
            q = tl.where(mask, whole(y * up, 8191.0), 0)
            low = low_digit(q)
            inside = row_in[:, None] & (c < depth)[None, :]
            tl.store(low_ptr + out + c[None, :], low.to(tl.int8), mask=inside)
            tl.store(high_ptr + out + c[None, :], ((q - low) >> 7).to(tl.int8), mask=inside)


@triton.jit
def _normal(x_ptr, weight_ptr, bias_ptr, base, c, mask, half, total, rate, width):
    """The normalised values at columns c, settled; not meant outside the mask."""
    x = tl.load(x_ptr + base + c[None, :], mask=mask, other=0.0)
    q = whole(x * half[:, None], NORM_LARGEST)
    normal = (q * width - total[:, None]).to(tl.float32) * rate[:, None]
    weight = settle(tl.load(weight_ptr + c, mask=c < width, other=0.0))
    bias = settle(tl.load(bias_ptr + c, mask=c < width, other=0.0))
    return settle(normal * weight[None, :] + bias[None, :])


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
