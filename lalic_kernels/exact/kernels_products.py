"""Exact kernels of products: maxima, digits, and the linear product with its epilogues.

A quantised factor q, |q| <= 8191, is two digits, q = 128 high + low, both in -64..64 and int8. A product of matrices is
four products of digits with int32 sums (two of them share one: at most 2^30), put together in int64, rounded to float32
once. Sums of integers are exact, so the order of blocks is free; everything after them is in the definition's order.
So are maxima: programs raise them by atomic operations in memory that began as zeros.
"""

import triton
import triton.language as tl

from lalic_kernels.exact.kernels_common import (
    LEAST,
    SHIFT,
    digits,
    leading_exponent,
    magnitude,
    note,
    power_of_two,
    raise_maximum,
    raise_top,
    settle,
    sigmoid,
)


@triton.jit
def packed_source(row, area, height, half):
    """Row of images (B, height, 2 half) that stands at `row` of (2, B, height, half): by colour, anchors first.

    area: B height half. Anchors are where row + column is even.
    """
    colour = row // area
    rest = row % area
    line = rest // half  # of all images' lines
    column = 2 * (rest % half) + ((line % height + colour) & 1)
    return line.to(tl.int64) * (2 * half) + column


@triton.jit
def seen_tile(x_ptr, image, row, column, k, channels, taps_ptr, taps, height, width, x_stride, row_in):
    """What positions (row, column) of an image see at `taps` places, (M, K): place k // channels, channel k % channels.

    x: (B, height, width), channels side by side, positions x_stride apart; zeros outside. taps_ptr: (taps, 2) int32.
    """
    tap = k // channels
    k_in = tap < taps
    y = row[:, None] + tl.load(taps_ptr + 2 * tap, mask=k_in, other=0)[None, :]
    x = column[:, None] + tl.load(taps_ptr + 2 * tap + 1, mask=k_in, other=0)[None, :]
    inside = row_in[:, None] & k_in[None, :] & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    place = ((image * height + y).to(tl.int64) * width + x) * x_stride + (k % channels)[None, :]
    return tl.load(x_ptr + place, mask=inside, other=0.0)


@triton.jit
def exact_digits_kernel(
    x_ptr,  # "rows", "shared", "packed": rows x_stride apart; "seen": images as `seen_tile` has them
    maxima_ptr,  # (images,) int32 magnitude bits, in "shared": all rows of an image have one scale
    taps_ptr,  # (taps, 2) int32 offsets, in "seen"
    high_ptr,  # (images * rows, depth) int8, written
    low_ptr,  # (images * rows, depth) int8, written
    scale_ptr,  # (images * rows,) float32, or in "shared" (images,), written: 2^(exponent - 12)
    status_ptr,
    rows,  # of an image; in "packed" of all
    width,
    x_stride,
    depth,  # at least the width; digits beyond the width are 0
    height,  # of images, in "packed" and "seen"
    half,  # of images' width, there
    channels,  # that are seen at a tap
    SOURCE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Digits of x and its scales. Grid (blocks of rows, images), one image but in "shared" and "seen".

    "packed": the rows of images (B, height, 2 half) by colour. "seen": what the positions of the second colour see.
    """
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    image = tl.program_id(1)
    row_in = row < rows
    place = image.to(tl.int64) * rows + row
    source = place
    if SOURCE == "packed":
        source = packed_source(tl.where(row_in, row, 0), rows // 2, height, half)
    line = row // half
    column = 2 * (row % half) + ((line + 1) & 1)
    taps = width // channels
    base = source[:, None] * x_stride
    if SOURCE == "shared":
        bits = tl.zeros([BLOCK_M], tl.int32) + tl.load(maxima_ptr + image)
    else:
        most = tl.zeros([BLOCK_M, BLOCK_K], tl.int32)
        for start in range(0, width, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            if SOURCE == "seen":
                x = seen_tile(
                    x_ptr, image, line, column, k, channels, taps_ptr, taps, height, 2 * half, x_stride, row_in
                )
            else:
                x = tl.load(x_ptr + base + k[None, :], mask=row_in[:, None] & (k < width)[None, :], other=0.0)
            most = tl.maximum(most, magnitude(x))
        bits = tl.max(most, axis=1)
    note(status_ptr, bits)
    exponent = leading_exponent(bits, LEAST)
    if SOURCE == "shared":
        tl.store(scale_ptr + image + tl.zeros_like(row), power_of_two(exponent - SHIFT), mask=row == 0)
    else:
        tl.store(scale_ptr + place, power_of_two(exponent - SHIFT), mask=row_in)
    up = power_of_two(-(exponent - SHIFT))[:, None]
    out = place[:, None] * depth
    for start in range(0, depth, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        if SOURCE == "seen":
            x = seen_tile(x_ptr, image, line, column, k, channels, taps_ptr, taps, height, 2 * half, x_stride, row_in)
        else:
            x = tl.load(x_ptr + base + k[None, :], mask=row_in[:, None] & (k < width)[None, :], other=0.0)
        high, low = digits(x, up)
        inside = row_in[:, None] & (k < depth)[None, :]
        tl.store(low_ptr + out + k[None, :], low, mask=inside)
        tl.store(high_ptr + out + k[None, :], high, mask=inside)


@triton.jit
def exact_image_maximum_kernel(
    x_ptr,  # (images * rows, width), rows x_stride apart
    maxima_ptr,  # (images,) int32, raised to the largest magnitude bits of each image
    status_ptr,
    rows,
    width,
    x_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The largest magnitude of each image. Grid (blocks of rows, images)."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    image = tl.program_id(1)
    base = (image.to(tl.int64) * rows + row)[:, None] * x_stride
    most = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    for start in range(0, width, BLOCK_N):
        c = start + tl.arange(0, BLOCK_N)
        x = tl.load(x_ptr + base + c[None, :], mask=(row < rows)[:, None] & (c < width)[None, :], other=0.0)
        most = tl.maximum(most, magnitude(x))
    note(status_ptr, most)
    tl.atomic_max(maxima_ptr + image, tl.max(tl.max(most, axis=1), axis=0), sem="relaxed")


@triton.jit
def exact_channel_maximum_kernel(
    x_ptr,  # (images, tokens, channels), tokens x_stride apart
    maxima_ptr,  # (images, channels) int32, raised to magnitude bits, or with SIGNED to order keys of the values
    status_ptr,
    tokens,
    channels,
    x_stride,
    SIGNED: tl.constexpr,
    PART: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Each channel's maximum over an image. Grid (parts of PART tokens, blocks of channels, images)."""
    part, image = tl.program_id(0), tl.program_id(2)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    most = tl.zeros([BLOCK_P, BLOCK_C], tl.int32)
    top = tl.full([BLOCK_P, BLOCK_C], float("-inf"), tl.float32)
    for start in range(0, PART, BLOCK_P):
        t = part * PART + start + tl.arange(0, BLOCK_P)
        mask = (t < tokens)[:, None] & (c < channels)[None, :]
        offset = (image.to(tl.int64) * tokens + t)[:, None] * x_stride + c[None, :]
        x = tl.load(x_ptr + offset, mask=mask, other=0.0)
        most = tl.maximum(most, magnitude(x))
        if SIGNED:
            top = tl.where(mask & (x > top), x, top)
    note(status_ptr, most)
    target = maxima_ptr + image * channels + c
    if SIGNED:
        raise_top(target, tl.max(top, axis=0), c < channels)
    else:
        raise_maximum(target, tl.max(most, axis=0), c < channels)


@triton.jit
def add_products(x_high, x_low, w_high, w_low, high, middle, low):
    """The four products of a block's digits, added to the sums: x (M, K), w (K, N)."""
    high = tl.dot(x_high, w_high, high, out_dtype=tl.int32)
    middle = tl.dot(x_high, w_low, middle, out_dtype=tl.int32)
    middle = tl.dot(x_low, w_high, middle, out_dtype=tl.int32)
    low = tl.dot(x_low, w_low, low, out_dtype=tl.int32)
    return high, middle, low


@triton.jit
def raise_tops(tops_ptr, y, row, n, rows, tokens, channels, outputs):
    """Raise (images, channels) order keys to the maxima of y's first columns; rows are images of `tokens` each."""
    first = tl.min(row, axis=0) // tokens
    last = tl.minimum(tl.max(row, axis=0), rows - 1) // tokens
    for image in range(first, last + 1):
        own = (row // tokens == image) & (row < rows)
        top = tl.max(tl.where(own[:, None], y, float("-inf")), axis=0)
        raise_top(tops_ptr + image * channels + n, top, n < channels)


@triton.jit
def dequantised(high, middle, low, scale, weight_scale, bias_ptr, n, outputs, HAS_BIAS: tl.constexpr):
    """`quantise.dequantise` of the sums: scale (M,), weight_scale (N,)."""
    sums = high.to(tl.int64) * 16384 + middle.to(tl.int64) * 128 + low
    y = sums.to(tl.float32) * scale[:, None] * weight_scale[None, :]
    if HAS_BIAS:
        y = y + tl.load(bias_ptr + n, mask=n < outputs, other=0.0)[None, :]
    return settle(y)


@triton.jit
def exact_linear_kernel(
    x_high_ptr,  # (rows, depth) int8
    x_low_ptr,  # (rows, depth) int8
    x_scale_ptr,  # (rows,)
    w_high_ptr,  # (outputs, depth) int8
    w_low_ptr,  # (outputs, depth) int8
    w_scale_ptr,  # (outputs,)
    bias_ptr,  # (outputs,); unused without HAS_BIAS
    gate_ptr,  # rows of stride gate_stride, with HAS_GATE: y becomes sigmoid(gate) y
    residual_ptr,  # rows of stride residual_stride, with HAS_RESIDUAL: y becomes residual + gamma y
    gamma_ptr,  # (outputs,), with HAS_GAMMA
    tops_ptr,  # (images, tops) int32, with TOPS: order keys, raised to the maxima of the first `tops` outputs
    y_ptr,  # (rows, outputs), written
    rows,
    depth,  # a multiple of BLOCK_K
    outputs,
    squared,  # outputs below it become relu()^2
    gate_stride,
    residual_stride,
    tokens,  # rows of an image, for TOPS
    tops,
    HAS_BIAS: tl.constexpr,
    HAS_SQUARED: tl.constexpr,
    HAS_GATE: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_GAMMA: tl.constexpr,
    TOPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y = x @ w^T + bias, then what follows it. Grid (blocks of rows, blocks of outputs)."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = (depth // BLOCK_K) * BLOCK_K  # tells the compiler that rows are aligned
    row_in, n_in = row < rows, n < outputs
    x_base = row.to(tl.int64)[:, None] * depth
    w_base = n.to(tl.int64)[None, :] * depth
    high = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    middle = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    low = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    for start in range(0, depth, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x_high = tl.load(x_high_ptr + x_base + k[None, :], mask=row_in[:, None], other=0)
        x_low = tl.load(x_low_ptr + x_base + k[None, :], mask=row_in[:, None], other=0)
        w_high = tl.load(w_high_ptr + w_base + k[:, None], mask=n_in[None, :], other=0)
        w_low = tl.load(w_low_ptr + w_base + k[:, None], mask=n_in[None, :], other=0)
        high, middle, low = add_products(x_high, x_low, w_high, w_low, high, middle, low)
    scale = tl.load(x_scale_ptr + row, mask=row_in, other=1.0)
    weight_scale = tl.load(w_scale_ptr + n, mask=n_in, other=1.0)
    y = dequantised(high, middle, low, scale, weight_scale, bias_ptr, n, outputs, HAS_BIAS)
    mask = row_in[:, None] & n_in[None, :]
    offset = row.to(tl.int64)[:, None] * outputs + n[None, :]
    if HAS_SQUARED:
        y = tl.where((n < squared)[None, :], settle(tl.where(y > 0, y * y, 0.0)), y)
    if HAS_GATE:
        gate = tl.load(gate_ptr + row.to(tl.int64)[:, None] * gate_stride + n[None, :], mask=mask, other=0.0)
        y = settle(sigmoid(gate) * y)
    if HAS_GAMMA:
        y = settle(settle(tl.load(gamma_ptr + n, mask=n_in, other=0.0))[None, :] * y)
    if HAS_RESIDUAL:
        before = row.to(tl.int64)[:, None] * residual_stride + n[None, :]
        y = settle(tl.load(residual_ptr + before, mask=mask, other=0.0) + y)
    tl.store(y_ptr + offset, y, mask=mask)
    if TOPS:
        raise_tops(tops_ptr, y, row, n, rows, tokens, tops, outputs)
