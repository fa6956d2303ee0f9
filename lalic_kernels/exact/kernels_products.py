"""Exact kernels of products: maxima, digits, linear with its epilogues, convolution, depthwise convolution.

A quantised factor q, |q| <= 8191, is two digits, q = 128 high + low, both in -64..64 and int8. A product of matrices is
four products of digits with int32 sums (two of them share one: at most 2^30), put together in int64, rounded to float32
once. Sums of integers are exact, so the order of blocks is free; everything after them is in the definition's order.
"""

import triton
import triton.language as tl

from lalic_kernels.exact.kernels import SHIFT
from lalic_kernels.exact.kernels_common import (
    LARGEST,
    LEAST,
    leading_exponent,
    low_digit,
    magnitude,
    note,
    power_of_two,
    settle,
    sigmoid,
    whole,
)


@triton.jit
def exact_digits_kernel(
    x_ptr,  # (rows, width), rows x_stride apart
    parts_ptr,  # (images, parts) int32 magnitude bits, with SHARED: all rows of an image have one scale
    high_ptr,  # (rows, depth) int8, written
    low_ptr,  # (rows, depth) int8, written
    scale_ptr,  # (rows,) float32, or with SHARED (images,), written: 2^(exponent - 12)
    status_ptr,
    rows,  # of an image with SHARED, of all else
    width,
    x_stride,
    depth,  # at least the width; digits beyond the width are 0
    parts,
    SHARED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Digits of x and its scales. Grid (blocks of rows, images), one image without SHARED."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    image = tl.program_id(1)
    row_in = (row < rows)[:, None]
    place = image.to(tl.int64) * rows + row
    base = place[:, None] * x_stride
    if SHARED:
        found = tl.zeros([BLOCK_K], tl.int32)
        for start in range(0, parts, BLOCK_K):
            j = start + tl.arange(0, BLOCK_K)
            found = tl.maximum(found, tl.load(parts_ptr + image * parts + j, mask=j < parts, other=0))
        bits = tl.zeros([BLOCK_M], tl.int32) + tl.max(found, axis=0)
    else:
        most = tl.zeros([BLOCK_M, BLOCK_K], tl.int32)
        for start in range(0, width, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            x = tl.load(x_ptr + base + k[None, :], mask=row_in & (k < width)[None, :], other=0.0)
            most = tl.maximum(most, magnitude(x))
        bits = tl.max(most, axis=1)
        note(status_ptr, bits)
    exponent = leading_exponent(bits, LEAST)
    if SHARED:
        tl.store(scale_ptr + image + tl.zeros_like(row), power_of_two(exponent - SHIFT), mask=row == 0)
    else:
        tl.store(scale_ptr + row, power_of_two(exponent - SHIFT), mask=row < rows)
    up = power_of_two(-(exponent - SHIFT))[:, None]
    out = place[:, None] * depth
    for start in range(0, depth, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + base + k[None, :], mask=row_in & (k < width)[None, :], other=0.0)
        q = whole(x * up, LARGEST)
        low = low_digit(q)
        inside = row_in & (k < depth)[None, :]
        tl.store(low_ptr + out + k[None, :], low.to(tl.int8), mask=inside)
        tl.store(high_ptr + out + k[None, :], ((q - low) >> 7).to(tl.int8), mask=inside)


@triton.jit
def exact_image_maximum_kernel(
    x_ptr,  # (images, size)
    parts_ptr,  # (images, parts) int32, written: largest magnitude bits of each PART elements
    status_ptr,
    size,
    PART: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """First of two steps to an image's maximum; who needs it takes the parts' maximum. Grid (parts, images)."""
    part, image = tl.program_id(0), tl.program_id(1)
    most = tl.zeros([BLOCK], tl.int32)
    for start in range(0, PART, BLOCK):
        i = part.to(tl.int64) * PART + start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + image.to(tl.int64) * size + i, mask=i < size, other=0.0)
        most = tl.maximum(most, magnitude(x))
    note(status_ptr, most)
    tl.store(parts_ptr + image * tl.num_programs(0) + part, tl.max(most, axis=0))


@triton.jit
def exact_channel_maximum_kernel(
    x_ptr,  # (images, tokens, channels), tokens x_stride apart
    parts_ptr,  # (images, parts, channels), written: int32 magnitude bits, or float32 values with SIGNED
    status_ptr,
    tokens,
    channels,
    x_stride,
    SIGNED: tl.constexpr,
    PART: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """First of two steps to each channel's maximum over an image. Grid (parts, blocks of channels, images)."""
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
    target = parts_ptr + (image.to(tl.int64) * tl.num_programs(0) + part) * channels + c
    if SIGNED:
        tl.store(target, tl.max(top, axis=0), mask=c < channels)
    else:
        tl.store(target, tl.max(most, axis=0), mask=c < channels)


@triton.jit
def _dequantised(high, middle, low, scale, weight_scale, bias_ptr, n, outputs, HAS_BIAS: tl.constexpr):
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
    residual_ptr,  # (rows, outputs), with HAS_RESIDUAL: y becomes residual + gamma y
    gamma_ptr,  # (outputs,), with HAS_GAMMA
    y_ptr,  # (rows, outputs), written
    rows,
    depth,  # a multiple of BLOCK_K
    outputs,
    squared,  # outputs below it become relu()^2
    gate_stride,
    HAS_BIAS: tl.constexpr,
    HAS_SQUARED: tl.constexpr,
    HAS_GATE: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_GAMMA: tl.constexpr,
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
        high = tl.dot(x_high, w_high, high, out_dtype=tl.int32)
        middle = tl.dot(x_high, w_low, middle, out_dtype=tl.int32)
        middle = tl.dot(x_low, w_high, middle, out_dtype=tl.int32)
        low = tl.dot(x_low, w_low, low, out_dtype=tl.int32)
    scale = tl.load(x_scale_ptr + row, mask=row_in, other=1.0)
    weight_scale = tl.load(w_scale_ptr + n, mask=n_in, other=1.0)
    y = _dequantised(high, middle, low, scale, weight_scale, bias_ptr, n, outputs, HAS_BIAS)
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
        y = settle(tl.load(residual_ptr + offset, mask=mask, other=0.0) + y)
    tl.store(y_ptr + offset, y, mask=mask)


@triton.jit
def exact_conv_kernel(
    x_high_ptr,  # (images, height, width, depth) int8
    x_low_ptr,  # (images, height, width, depth) int8
    x_scale_ptr,  # (images,)
    w_high_ptr,  # (outputs, taps, depth) int8, a phase's taps one after the other
    w_low_ptr,  # (outputs, taps, depth) int8
    w_scale_ptr,  # (outputs,)
    bias_ptr,  # (outputs,); unused without HAS_BIAS
    offsets_ptr,  # (taps, 2) int32: (dy, dx)
    phases_ptr,  # (phases, 4) int32: row, column, first tap, number of taps
    y_ptr,  # (images, rows, columns, outputs), written
    images,
    height,
    width,
    depth,  # a multiple of BLOCK_K
    rows,
    columns,  # of y: with PACKED those of one colour
    outputs,
    taps,
    in_step,
    out_step,
    parity,  # the colour, with PACKED
    HAS_BIAS: tl.constexpr,
    PACKED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A convolution as a product over taps and channels. Grid (blocks of a phase's pixels, blocks of outputs, phases).

    A phase is the outputs (row + out_step i, column + out_step j); they read x[in_step i + dy, in_step j + dx].
    """
    phase = phases_ptr + 4 * tl.program_id(2)
    first_row, first_column = tl.load(phase), tl.load(phase + 1)
    first_tap, count = tl.load(phase + 2), tl.load(phase + 3)
    down = (rows - first_row + out_step - 1) // out_step
    across = (columns - first_column + out_step - 1) // out_step
    pixel = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    pixel_in = pixel < images * down * across
    area = tl.maximum(down * across, 1)
    image = pixel // area
    i = (pixel % area) // tl.maximum(across, 1)
    j = pixel % tl.maximum(across, 1)
    column = 2 * j + ((i + parity) & 1) if PACKED else j
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    n_in = n < outputs
    depth = (depth // BLOCK_K) * BLOCK_K
    high = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    middle = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    low = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    for tap in range(first_tap, first_tap + count):
        y = i * in_step + tl.load(offsets_ptr + 2 * tap)
        x = column * in_step + tl.load(offsets_ptr + 2 * tap + 1)
        inside = (pixel_in & (y >= 0) & (y < height) & (x >= 0) & (x < width))[:, None]
        x_base = ((image * height + y).to(tl.int64) * width + x)[:, None] * depth
        w_base = (n.to(tl.int64) * taps + tap)[None, :] * depth
        for start in range(0, depth, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            x_high = tl.load(x_high_ptr + x_base + k[None, :], mask=inside, other=0)
            x_low = tl.load(x_low_ptr + x_base + k[None, :], mask=inside, other=0)
            w_high = tl.load(w_high_ptr + w_base + k[:, None], mask=n_in[None, :], other=0)
            w_low = tl.load(w_low_ptr + w_base + k[:, None], mask=n_in[None, :], other=0)
            high = tl.dot(x_high, w_high, high, out_dtype=tl.int32)
            middle = tl.dot(x_high, w_low, middle, out_dtype=tl.int32)
            middle = tl.dot(x_low, w_high, middle, out_dtype=tl.int32)
            low = tl.dot(x_low, w_low, low, out_dtype=tl.int32)
    scale = tl.load(x_scale_ptr + image, mask=pixel_in, other=1.0)
    weight_scale = tl.load(w_scale_ptr + n, mask=n_in, other=1.0)
    value = _dequantised(high, middle, low, scale, weight_scale, bias_ptr, n, outputs, HAS_BIAS)
    target = (image * rows + first_row + i * out_step).to(tl.int64) * columns + first_column + j * out_step
    tl.store(y_ptr + target[:, None] * outputs + n[None, :], value, mask=pixel_in[:, None] & n_in[None, :])


@triton.jit
def exact_depthwise_kernel(
    x_ptr,  # (images, height, width, channels)
    parts_ptr,  # (images, parts, channels) int32 magnitude bits
    taps_ptr,  # (SIZE^2, channels) int16
    w_scale_ptr,  # (channels,)
    y_ptr,  # as x, written
    height,
    width,
    channels,
    parts,
    SIZE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Depthwise SIZE x SIZE convolution, int32 sums. Grid (blocks of pixels, blocks of channels, images)."""
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    image = tl.program_id(2).to(tl.int64)
    c_in = c < channels
    bits = tl.zeros([BLOCK_C], tl.int32)
    for part in range(0, parts):
        bits = tl.maximum(bits, tl.load(parts_ptr + (image * parts + part) * channels + c, mask=c_in, other=0))
    exponent = leading_exponent(bits, LEAST)
    up = power_of_two(-(exponent - SHIFT))[None, :]
    row, column = pixel // width, pixel % width
    base = x_ptr + image * height * width * channels
    sums = tl.zeros([BLOCK_P, BLOCK_C], tl.int32)
    for tap in range(SIZE * SIZE):
        y, x = row + tap // SIZE - SIZE // 2, column + tap % SIZE - SIZE // 2
        inside = ((y >= 0) & (y < height) & (x >= 0) & (x < width))[:, None] & c_in[None, :]
        value = tl.load(base + (y * width + x).to(tl.int64)[:, None] * channels + c[None, :], mask=inside, other=0.0)
        weight = tl.load(taps_ptr + tap * channels + c, mask=c_in, other=0).to(tl.int32)
        sums += whole(value * up, LARGEST) * weight[None, :]
    weight_scale = tl.load(w_scale_ptr + c, mask=c_in, other=1.0)
    result = settle(sums.to(tl.float32) * power_of_two(exponent - SHIFT)[None, :] * weight_scale[None, :])
    target = y_ptr + (image * height * width + pixel)[:, None] * channels + c[None, :]
    tl.store(target, result, mask=(pixel < height * width)[:, None] & c_in[None, :])
