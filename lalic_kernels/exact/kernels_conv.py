"""Exact kernels that see neighbours: convolution, depth-wise shift, and the shift with the digits of its rows."""

import triton
import triton.language as tl

from lalic_kernels.exact.kernels_common import (
    LARGEST,
    LEAST,
    SHIFT,
    digits,
    leading_exponent,
    magnitude,
    power_of_two,
    settle,
    whole,
)
from lalic_kernels.exact.kernels_products import add_products, dequantised


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
    previous_ptr,  # pixels previous_stride apart, with HAS_PREVIOUS: y becomes previous + y
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
    previous_stride,
    HAS_BIAS: tl.constexpr,
    HAS_PREVIOUS: tl.constexpr,
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
            high, middle, low = add_products(x_high, x_low, w_high, w_low, high, middle, low)
    scale = tl.load(x_scale_ptr + image, mask=pixel_in, other=1.0)
    weight_scale = tl.load(w_scale_ptr + n, mask=n_in, other=1.0)
    value = dequantised(high, middle, low, scale, weight_scale, bias_ptr, n, outputs, HAS_BIAS)
    target = (image * rows + first_row + i * out_step).to(tl.int64) * columns + first_column + j * out_step
    if HAS_PREVIOUS:
        before = target[:, None] * previous_stride + n[None, :]
        value = tl.load(previous_ptr + before, mask=pixel_in[:, None] & n_in[None, :], other=0.0) + value
    tl.store(y_ptr + target[:, None] * outputs + n[None, :], value, mask=pixel_in[:, None] & n_in[None, :])


@triton.jit
def shifted(
    x_ptr, maxima_ptr, taps_ptr, w_scale_ptr, row, column, c, height, width, channels,
    SIZE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Depth-wise SIZE x SIZE convolution at positions (P,) and channels c (C,) of one image; pointers to that image."""
    c_in = c < channels
    exponent = leading_exponent(tl.load(maxima_ptr + c, mask=c_in, other=0), LEAST)
    up = power_of_two(-(exponent - SHIFT))[None, :]
    sums = tl.zeros([BLOCK_P, BLOCK_C], tl.int32)
    for tap in range(SIZE * SIZE):
        y, x = row + tap // SIZE - SIZE // 2, column + tap % SIZE - SIZE // 2
        inside = ((y >= 0) & (y < height) & (x >= 0) & (x < width))[:, None] & c_in[None, :]
        value = tl.load(x_ptr + (y * width + x).to(tl.int64)[:, None] * channels + c[None, :], mask=inside, other=0.0)
        weight = tl.load(taps_ptr + tap * channels + c, mask=c_in, other=0).to(tl.int32)
        sums += whole(value * up, LARGEST) * weight[None, :]
    weight_scale = tl.load(w_scale_ptr + c, mask=c_in, other=1.0)
    return settle(sums.to(tl.float32) * power_of_two(exponent - SHIFT)[None, :] * weight_scale[None, :])


@triton.jit
def exact_depthwise_kernel(
    x_ptr,  # (images, height, width, channels)
    maxima_ptr,  # (images, channels) int32 magnitude bits
    taps_ptr,  # (SIZE^2, channels) int16
    w_scale_ptr,  # (channels,)
    y_ptr,  # as x, written
    height,
    width,
    channels,
    SIZE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Depthwise SIZE x SIZE convolution, int32 sums. Grid (blocks of pixels, blocks of channels, images)."""
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    image = tl.program_id(2).to(tl.int64)
    start = image * height * width * channels
    y = shifted(
        x_ptr + start, maxima_ptr + image * channels, taps_ptr, w_scale_ptr, pixel // width, pixel % width, c,
        height, width, channels, SIZE, BLOCK_P, BLOCK_C,
    )  # fmt: skip
    target = y_ptr + start + pixel.to(tl.int64)[:, None] * channels + c[None, :]
    tl.store(target, y, mask=(pixel < height * width)[:, None] & (c < channels)[None, :])


@triton.jit
def exact_depthwise_digits_kernel(
    x_ptr,  # (images, height, width, channels)
    maxima_ptr,  # (images, channels) int32 magnitude bits
    taps_ptr,  # (SIZE^2, channels) int16
    w_scale_ptr,  # (channels,)
    y_ptr,  # as x, written: the convolution itself, for this launch alone
    high_ptr,  # (images * height * width, depth) int8, written
    low_ptr,  # likewise
    scale_ptr,  # (images * height * width,), written: 2^(exponent - 12)
    height,
    width,
    channels,
    depth,  # at least channels; digits beyond are 0
    SIZE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Digits of a depth-wise convolution, quantised by positions. Grid (blocks of pixels, images)."""
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    image = tl.program_id(1).to(tl.int64)
    inside = (pixel < height * width)[:, None]
    start = image * height * width
    place = start + pixel
    most = tl.zeros([BLOCK_P, BLOCK_C], tl.int32)
    for begin in range(0, channels, BLOCK_C):
        c = begin + tl.arange(0, BLOCK_C)
        y = shifted(
            x_ptr + start * channels, maxima_ptr + image * channels, taps_ptr, w_scale_ptr, pixel // width,
            pixel % width, c, height, width, channels, SIZE, BLOCK_P, BLOCK_C,
        )  # fmt: skip
        mask = inside & (c < channels)[None, :]
        tl.store(y_ptr + place[:, None] * channels + c[None, :], y, mask=mask)
        most = tl.maximum(most, tl.where(mask, magnitude(y), 0))
    exponent = leading_exponent(tl.max(most, axis=1), LEAST)
    tl.store(scale_ptr + place, power_of_two(exponent - SHIFT), mask=pixel < height * width)
    up = power_of_two(-(exponent - SHIFT))[:, None]
    tl.debug_barrier()  # another thread may have written what this one reads
    for begin in range(0, depth, BLOCK_C):
        c = begin + tl.arange(0, BLOCK_C)
        y = tl.load(y_ptr + place[:, None] * channels + c[None, :], mask=inside & (c < channels)[None, :], other=0.0)
        high, low = digits(y, up)
        out = place[:, None] * depth + c[None, :]
        tl.store(high_ptr + out, high, mask=inside & (c < depth)[None, :])
        tl.store(low_ptr + out, low, mask=inside & (c < depth)[None, :])
