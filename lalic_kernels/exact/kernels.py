"""Exact kernels of one step each: LayerNorm, maxima, digits, linear product, convolution, shift, Gaussian head.

A quantised factor q, |q| <= 8191, has two int8 digits, q = 128 high + low, both in -64..64. A matrix product is four
products of digits with int32 sums of at most 2^29, combined in int64, and rounded to float32 once. Sums of integers are
exact in any order of blocks; all steps after them are in the definition's order. Maxima are exact in any order too:
programs raise them by atomic operations in memory that starts as zeros.

Sizes of the picture are in `do_not_specialize`: Triton compiles nothing for a picture of another size. Sizes of the
model are not, so that the compiler knows which rows are aligned.

Where one scale holds for a whole row, the row stays in registers between its maximum and its digits: it is one tile,
of the smallest size that holds it (`gpu.row_launch`).

In comments M is BLOCK_M rows (P: BLOCK_P positions), N is BLOCK_N columns or outputs (C: BLOCK_C channels), K is
BLOCK_K inputs of a product.
"""

import triton
import triton.language as tl

from lalic_kernels.exact import numbers as n
from lalic_kernels.exact.kernels_common import (
    LARGEST,
    MIN_EXPONENT,
    SHIFT,
    clip_round,
    digits,
    leading_exponent,
    magnitude,
    power_of_two,
    raise_absmax,
    raise_max_key,
    reciprocal_root,
    set_status,
    settle,
    sigmoid,
    threshold_index,
)
from lalic_kernels.triton_math import Constant, barrier

NORM_LARGEST = Constant(2.0**n.NORM_BITS)
NORM_SHIFT = Constant(n.NORM_BITS - 1)
NORM_MIN = Constant(n.NORM_MIN_EXPONENT)
DEPTH = Constant(64)  # rows of digits are padded to a multiple of it, so that they are aligned


# Rows: LayerNorm and maxima


@triton.jit
def normalised(x_ptr, weight_ptr, bias_ptr, status_ptr, base, row_in, c, width, eps_area):
    """LayerNorm of whole rows: settled (M, N), 0 outside of the rows; base (M,): offsets of rows, c (N,): columns."""
    mask = row_in[:, None] & (c < width)[None, :]
    x = tl.load(x_ptr + base[:, None] + c[None, :], mask=mask, other=0.0)  # [M, N]
    bits = tl.max(magnitude(x), axis=1)
    set_status(status_ptr, bits)
    half = power_of_two(-(leading_exponent(bits, NORM_MIN) - NORM_SHIFT))
    q = clip_round(x * half[:, None], NORM_LARGEST)
    total = tl.sum(q, axis=1)
    wide = total.to(tl.int64)
    variance = tl.sum(q.to(tl.int64) * q, axis=1) * width - wide * wide  # times width^2
    rstd = reciprocal_root(variance.to(tl.float32) + (eps_area * half) * half)
    y = (q * width - total[:, None]).to(tl.float32) * rstd[:, None]
    weight = settle(tl.load(weight_ptr + c, mask=c < width, other=0.0))  # [N]
    bias = settle(tl.load(bias_ptr + c, mask=c < width, other=0.0))  # [N]
    return tl.where(mask, settle(y * weight[None, :] + bias[None, :]), 0.0)


@triton.jit
def store_digits(high_ptr, low_ptr, x, up, row, row_in, c, depth):
    """Write digits of x (M, N) at columns c of rows; up (M,): the powers of two that make them integers."""
    high, low = digits(x, up[:, None])
    target = row.to(tl.int64)[:, None] * depth + c[None, :]
    inside = row_in[:, None] & (c < depth)[None, :]
    tl.store(low_ptr + target, low, mask=inside)
    tl.store(high_ptr + target, high, mask=inside)


@triton.jit(do_not_specialize=["rows"])
def exact_norm_digits_kernel(
    x_ptr,  # (rows, width)
    weight_ptr,  # (width,)
    bias_ptr,  # (width,)
    high_ptr,  # (rows, depth) int8, written
    low_ptr,  # (rows, depth) int8, written
    scale_ptr,  # (rows,), written: 2^(exponent - 12)
    status_ptr,
    rows,
    width,
    depth,  # at least the width; digits after the width are 0
    eps_area,  # eps width^2, float32
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,  # at least the depth
):
    """Digits of the LayerNorm of each row, with one scale per row. Grid (blocks of rows,)."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_in = row < rows
    c = tl.arange(0, BLOCK_N)
    y = normalised(x_ptr, weight_ptr, bias_ptr, status_ptr, row.to(tl.int64) * width, row_in, c, width, eps_area)
    exponent = leading_exponent(tl.max(magnitude(y), axis=1), MIN_EXPONENT)
    tl.store(scale_ptr + row, power_of_two(exponent - SHIFT), mask=row_in)
    store_digits(high_ptr, low_ptr, y, power_of_two(-(exponent - SHIFT)), row, row_in, c, depth)


@triton.jit(do_not_specialize=["rows"])
def exact_layer_norm_kernel(
    x_ptr,  # (images * rows, width), rows x_stride apart
    weight_ptr,  # (width,)
    bias_ptr,  # (width,)
    y_ptr,  # (images * rows, width), written
    absmax_ptr,  # (images, width) int32, raised to each channel's magnitude bits of y
    status_ptr,
    rows,  # per image
    width,
    x_stride,
    eps_area,  # eps width^2, float32
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,  # at least the width
):
    """LayerNorm of each row, and its channels' maxima over an image. Grid (blocks of rows, images)."""
    image = tl.program_id(1)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_in = row < rows
    index = image.to(tl.int64) * rows + row
    c = tl.arange(0, BLOCK_N)
    y = normalised(x_ptr, weight_ptr, bias_ptr, status_ptr, index * x_stride, row_in, c, width, eps_area)
    tl.store(y_ptr + index[:, None] * width + c[None, :], y, mask=row_in[:, None] & (c < width)[None, :])
    raise_absmax(absmax_ptr + image * width + c, tl.max(magnitude(y), axis=0), c < width)


@triton.jit(do_not_specialize=["rows"])
def exact_absmax_kernel(
    x_ptr,  # (images * rows, width), rows x_stride apart
    absmax_ptr,  # (images,) int32, raised to the largest magnitude bits of each image
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
    x_bits = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    for start in range(0, width, BLOCK_N):
        c = start + tl.arange(0, BLOCK_N)
        x = tl.load(x_ptr + base + c[None, :], mask=(row < rows)[:, None] & (c < width)[None, :], other=0.0)  # [M, N]
        x_bits = tl.maximum(x_bits, magnitude(x))
    bits = tl.max(x_bits, axis=1)
    set_status(status_ptr, bits)
    tl.atomic_max(absmax_ptr + image, tl.max(bits, axis=0), sem="relaxed")


@triton.jit(do_not_specialize=["rows"])
def exact_head_kernel(
    x_ptr,  # (rows, x_stride): `width` scales, then `width` means
    thresholds_ptr,  # (63,)
    index_ptr,  # (rows, width) int32, written
    mean_ptr,  # (rows, width), written
    status_ptr,
    rows,
    width,
    x_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The number of thresholds below each scale, and a copy of the means. Grid (blocks of rows, blocks of width)."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (row < rows)[:, None] & (c < width)[None, :]
    source = row.to(tl.int64)[:, None] * x_stride + c[None, :]
    out = row.to(tl.int64)[:, None] * width + c[None, :]
    scale = tl.load(x_ptr + source, mask=mask, other=0.0)  # [M, N]
    tl.store(index_ptr + out, threshold_index(thresholds_ptr, scale), mask=mask)
    mean = tl.load(x_ptr + source + width, mask=mask, other=0.0)  # [M, N]
    tl.store(mean_ptr + out, mean, mask=mask)
    set_status(status_ptr, tl.maximum(magnitude(scale), magnitude(mean)))


# Digits


@triton.jit
def row_by_colour(row, area, height, half):
    """The row of images (B, height, 2 half) for `row` of (2, B, height, half), the order by colour, anchors first.

    area: B height half. Anchors are the positions with row + column even.
    """
    colour = row // area
    position = row % area
    line = position // half  # counted over all images
    column = 2 * (position % half) + ((line % height + colour) & 1)
    return line.to(tl.int64) * (2 * half) + column


@triton.jit
def neighbours(x_ptr, image, row, column, k, channels, taps_ptr, taps, height, width, x_stride, row_in):
    """The neighbours of positions (row, column) of an image, (M, K): tap k // channels, channel k % channels.

    x: (B, height, width, channels) with x_stride between positions; zeros outside. taps_ptr: (taps, 2) int32 offsets.
    """
    tap = k // channels
    k_in = tap < taps
    y = row[:, None] + tl.load(taps_ptr + 2 * tap, mask=k_in, other=0)[None, :]  # [K] -> [M, K]
    x = column[:, None] + tl.load(taps_ptr + 2 * tap + 1, mask=k_in, other=0)[None, :]  # [K] -> [M, K]
    inside = row_in[:, None] & k_in[None, :] & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    offset = ((image * height + y).to(tl.int64) * width + x) * x_stride + (k % channels)[None, :]
    return tl.load(x_ptr + offset, mask=inside, other=0.0)  # [M, K]


@triton.jit(do_not_specialize=["rows", "height", "half"])
def exact_digits_kernel(
    x_ptr,  # "rows", "image", "by_colour": rows x_stride apart; "neighbours": images for `neighbours`
    absmax_ptr,  # (images,) int32 magnitude bits, in "image": all rows of an image have one scale
    taps_ptr,  # (taps, 2) int32 offsets, in "neighbours"
    high_ptr,  # (images * rows, depth) int8, written
    low_ptr,  # (images * rows, depth) int8, written
    scale_ptr,  # (images * rows,) float32, or in "image" (images,), written: 2^(exponent - 12)
    status_ptr,
    rows,  # per image; in "by_colour" of all images
    width,
    x_stride,
    depth,  # at least the width; digits after the width are 0
    height,  # of images, in "by_colour" and "neighbours"
    half,  # half of the images' width, in these two
    channels,  # of x, in "neighbours"
    SOURCE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Digits of x and their scales. Grid (blocks of rows, images); one image except in "image" and "neighbours".

    "by_colour": the rows of images (B, height, 2 half) by colour. "neighbours": neighbours of the second colour.
    A row of up to BLOCK_N columns is read once; of a longer one, the columns after the first block twice.
    """
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    image = tl.program_id(1)
    row_in = row < rows
    index = image.to(tl.int64) * rows + row
    # The source of each row of digits.
    source = index
    if SOURCE == "by_colour":
        source = row_by_colour(tl.where(row_in, row, 0), rows // 2, height, half)
    line = row // half
    column = 2 * (row % half) + ((line + 1) & 1)
    taps = width // channels
    base = source[:, None] * x_stride
    # The first block, and scales.
    k = tl.arange(0, BLOCK_N)
    if SOURCE == "neighbours":
        x = neighbours(x_ptr, image, line, column, k, channels, taps_ptr, taps, height, 2 * half, x_stride, row_in)
    else:
        x = tl.load(x_ptr + base + k[None, :], mask=row_in[:, None] & (k < width)[None, :], other=0.0)  # [M, N]
    if SOURCE == "image":
        bits = tl.zeros([BLOCK_M], tl.int32) + tl.load(absmax_ptr + image)  # [] -> [M]
    else:
        x_bits = magnitude(x)
        for start in range(BLOCK_N, width, BLOCK_N):
            c = start + k
            if SOURCE == "neighbours":
                more = neighbours(
                    x_ptr, image, line, column, c, channels, taps_ptr, taps, height, 2 * half, x_stride, row_in
                )
            else:
                mask = row_in[:, None] & (c < width)[None, :]
                more = tl.load(x_ptr + base + c[None, :], mask=mask, other=0.0)  # [M, N]
            x_bits = tl.maximum(x_bits, magnitude(more))
        bits = tl.max(x_bits, axis=1)
    set_status(status_ptr, bits)
    exponent = leading_exponent(bits, MIN_EXPONENT)
    if SOURCE == "image":
        tl.store(scale_ptr + image + tl.zeros_like(row), power_of_two(exponent - SHIFT), mask=row == 0)
    else:
        tl.store(scale_ptr + index, power_of_two(exponent - SHIFT), mask=row_in)
    # Digits.
    up = power_of_two(-(exponent - SHIFT))
    store_digits(high_ptr, low_ptr, x, up, index, row_in, k, depth)
    for start in range(BLOCK_N, depth, BLOCK_N):
        c = start + k
        if SOURCE == "neighbours":
            more = neighbours(
                x_ptr, image, line, column, c, channels, taps_ptr, taps, height, 2 * half, x_stride, row_in
            )
        else:
            more = tl.load(x_ptr + base + c[None, :], mask=row_in[:, None] & (c < width)[None, :], other=0.0)  # [M, N]
        store_digits(high_ptr, low_ptr, more, up, index, row_in, c, depth)


# Linear products


@triton.jit
def add_products(x_high, x_low, w_high, w_low, hh, hl, lh, ll):
    """Add the four products of a block's digits to their sums (M, N): x (M, K), w (K, N).

    Each has a sum of its own: Triton 3.6 to 3.8 compile two products of a loop into one sum wrongly for sm_100.
    """
    hh = tl.dot(x_high, w_high, hh, out_dtype=tl.int32)
    hl = tl.dot(x_high, w_low, hl, out_dtype=tl.int32)
    lh = tl.dot(x_low, w_high, lh, out_dtype=tl.int32)
    ll = tl.dot(x_low, w_low, ll, out_dtype=tl.int32)
    return hh, hl, lh, ll


@triton.jit
def dequantised(hh, hl, lh, ll, scale, weight_scale, bias_ptr, n, outputs):
    """`quantise.dequantise` of the sums of products (M, N): scale (M,), weight_scale (N,)."""
    sums = hh.to(tl.int64) * 16384 + (hl + lh).to(tl.int64) * 128 + ll
    y = sums.to(tl.float32) * scale[:, None] * weight_scale[None, :]
    if bias_ptr is not None:
        y = y + tl.load(bias_ptr + n, mask=n < outputs, other=0.0)[None, :]  # [N] -> [1, N]
    return settle(y)


@triton.jit
def _raise_max_keys(max_key_ptr, y, row, n, rows, tokens, channels):
    """Raise order keys (images, channels) to the maxima of y's first columns; an image has `tokens` rows."""
    first = tl.min(row, axis=0) // tokens
    last = tl.minimum(tl.max(row, axis=0), rows - 1) // tokens
    for image in range(first, last + 1):
        in_image = (row // tokens == image) & (row < rows)
        largest = tl.max(tl.where(in_image[:, None], y, float("-inf")), axis=0)
        raise_max_key(max_key_ptr + image * channels + n, largest, n < channels)


_STRIDES = "gate_stride", "residual_stride", "partial_stride"


# Only sizes and pointers of the loop are specialised: elsewhere alignment saves less than a compilation costs.
@triton.jit(
    do_not_specialize=["rows", "outputs", "squared", "tokens", "keys", *_STRIDES],
    do_not_specialize_on_alignment=["gate_ptr", "residual_ptr", "partial_ptr"],
)
def exact_linear_kernel(
    x_high_ptr,  # (rows, depth) int8
    x_low_ptr,  # (rows, depth) int8
    x_scale_ptr,  # (rows,)
    w_high_ptr,  # (outputs, depth) int8
    w_low_ptr,  # (outputs, depth) int8
    w_scale_ptr,  # (outputs,)
    bias_ptr,  # (outputs,) or None
    gate_ptr,  # rows of stride gate_stride, or None: y becomes sigmoid(gate) y
    residual_ptr,  # rows of stride residual_stride, or None: y becomes residual + gamma y
    gamma_ptr,  # (outputs,) or None
    partial_ptr,  # rows of stride partial_stride, or None: y becomes partial + y, not settled
    max_key_ptr,  # (images, keys) int32 or None: order keys, raised to the maxima of the first `keys` outputs
    y_ptr,  # (rows, outputs), written
    rows,
    depth,  # a multiple of DEPTH
    outputs,
    squared,  # outputs below it become relu()^2, with HAS_SQUARED
    gate_stride,
    residual_stride,
    partial_stride,
    tokens,  # rows of an image, for max_key
    keys,
    HAS_SQUARED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y = x @ w^T + bias, and its epilogue. Grid (blocks of rows, blocks of outputs)."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = (depth // DEPTH) * DEPTH  # so that the compiler knows that rows are aligned
    row_in, n_in = row < rows, n < outputs
    x_base = row.to(tl.int64)[:, None] * depth
    w_base = n.to(tl.int64)[None, :] * depth
    # Sums of products of digits.
    hh = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    hl = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    lh = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    ll = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    for start in range(0, depth, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x_in, w_in = row_in[:, None] & (k < depth)[None, :], n_in[None, :] & (k < depth)[:, None]
        x_high = tl.load(x_high_ptr + x_base + k[None, :], mask=x_in, other=0)  # [M, K]
        x_low = tl.load(x_low_ptr + x_base + k[None, :], mask=x_in, other=0)  # [M, K]
        w_high = tl.load(w_high_ptr + w_base + k[:, None], mask=w_in, other=0)  # [K, N]
        w_low = tl.load(w_low_ptr + w_base + k[:, None], mask=w_in, other=0)  # [K, N]
        hh, hl, lh, ll = add_products(x_high, x_low, w_high, w_low, hh, hl, lh, ll)
    # Floats.
    scale = tl.load(x_scale_ptr + row, mask=row_in, other=1.0)  # [M]
    weight_scale = tl.load(w_scale_ptr + n, mask=n_in, other=1.0)  # [N]
    y = dequantised(hh, hl, lh, ll, scale, weight_scale, bias_ptr, n, outputs)
    # The epilogue.
    mask = row_in[:, None] & n_in[None, :]
    offset = row.to(tl.int64)[:, None] * outputs + n[None, :]
    if HAS_SQUARED:
        y = tl.where((n < squared)[None, :], settle(tl.where(y > 0, y * y, 0.0)), y)
    if gate_ptr is not None:
        gate = tl.load(gate_ptr + row.to(tl.int64)[:, None] * gate_stride + n[None, :], mask=mask, other=0.0)  # [M, N]
        y = settle(sigmoid(gate) * y)
    if gamma_ptr is not None:
        y = settle(settle(tl.load(gamma_ptr + n, mask=n_in, other=0.0))[None, :] * y)  # [N] -> [1, N]
    if residual_ptr is not None:
        before = row.to(tl.int64)[:, None] * residual_stride + n[None, :]
        y = settle(tl.load(residual_ptr + before, mask=mask, other=0.0) + y)  # [M, N]
    if partial_ptr is not None:
        before = row.to(tl.int64)[:, None] * partial_stride + n[None, :]
        y = tl.load(partial_ptr + before, mask=mask, other=0.0) + y  # [M, N]
    tl.store(y_ptr + offset, y, mask=mask)
    if max_key_ptr is not None:
        _raise_max_keys(max_key_ptr, y, row, n, rows, tokens, keys)


# Positions that read their neighbours: convolution and shift


@triton.jit(do_not_specialize=["images", "height", "width", "rows", "columns", "taps", "in_step", "out_step"])
def exact_conv_kernel(
    x_high_ptr,  # (images, height, width, depth) int8
    x_low_ptr,  # (images, height, width, depth) int8
    x_scale_ptr,  # (images,)
    w_high_ptr,  # (outputs, taps, depth) int8, a phase's taps one after the other
    w_low_ptr,  # (outputs, taps, depth) int8
    w_scale_ptr,  # (outputs,)
    bias_ptr,  # (outputs,) or None
    offsets_ptr,  # (taps, 2) int32: (dy, dx)
    phases_ptr,  # (phases, 4) int32: row, column, first tap, number of taps
    previous_ptr,  # pixels previous_stride apart, or None: y becomes previous + y
    y_ptr,  # (images, rows, columns, outputs), written
    images,
    height,
    width,
    depth,  # a multiple of DEPTH, which is one of BLOCK_K
    rows,
    columns,
    outputs,
    taps,
    in_step,
    out_step,
    previous_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A convolution as a product over taps and channels. Grid (blocks of a phase's pixels, blocks of outputs, phases).

    A phase has the outputs (row + out_step i, column + out_step j), which read x[in_step i + dy, in_step j + dx].
    """
    # The phase, and its pixels (i, j) of all images.
    phase = phases_ptr + 4 * tl.program_id(2)
    first_row, first_column = tl.load(phase), tl.load(phase + 1)  # []
    first_tap, count = tl.load(phase + 2), tl.load(phase + 3)  # []
    phase_rows = (rows - first_row + out_step - 1) // out_step
    phase_columns = (columns - first_column + out_step - 1) // out_step
    pixel = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    pixel_in = pixel < images * phase_rows * phase_columns
    area = tl.maximum(phase_rows * phase_columns, 1)
    image = pixel // area
    i = (pixel % area) // tl.maximum(phase_columns, 1)
    j = pixel % tl.maximum(phase_columns, 1)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    n_in = n < outputs
    depth = (depth // BLOCK_K) * BLOCK_K  # so that the compiler knows that rows are aligned
    # Sums of products of digits, tap by tap.
    hh = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    hl = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    lh = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    ll = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    for tap in range(first_tap, first_tap + count):
        y = i * in_step + tl.load(offsets_ptr + 2 * tap)  # []
        x = j * in_step + tl.load(offsets_ptr + 2 * tap + 1)  # []
        inside = (pixel_in & (y >= 0) & (y < height) & (x >= 0) & (x < width))[:, None]
        x_base = ((image * height + y).to(tl.int64) * width + x)[:, None] * depth
        w_base = (n.to(tl.int64) * taps + tap)[None, :] * depth
        for start in range(0, depth, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            x_high = tl.load(x_high_ptr + x_base + k[None, :], mask=inside, other=0)  # [M, K]
            x_low = tl.load(x_low_ptr + x_base + k[None, :], mask=inside, other=0)  # [M, K]
            w_high = tl.load(w_high_ptr + w_base + k[:, None], mask=n_in[None, :], other=0)  # [K, N]
            w_low = tl.load(w_low_ptr + w_base + k[:, None], mask=n_in[None, :], other=0)  # [K, N]
            hh, hl, lh, ll = add_products(x_high, x_low, w_high, w_low, hh, hl, lh, ll)
    # Floats.
    scale = tl.load(x_scale_ptr + image, mask=pixel_in, other=1.0)  # [M]
    weight_scale = tl.load(w_scale_ptr + n, mask=n_in, other=1.0)  # [N]
    value = dequantised(hh, hl, lh, ll, scale, weight_scale, bias_ptr, n, outputs)
    # Add `previous`; write.
    target = (image * rows + first_row + i * out_step).to(tl.int64) * columns + first_column + j * out_step
    if previous_ptr is not None:
        before = target[:, None] * previous_stride + n[None, :]
        value = tl.load(previous_ptr + before, mask=pixel_in[:, None] & n_in[None, :], other=0.0) + value  # [M, N]
    tl.store(y_ptr + target[:, None] * outputs + n[None, :], value, mask=pixel_in[:, None] & n_in[None, :])


@triton.jit
def shifted(
    x_ptr, absmax_ptr, taps_ptr, w_scale_ptr, pixel, c, height, width, channels,
    SIZE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Depth-wise SIZE x SIZE convolution, (P, C), at positions (P,) and channels c (C,); pointers to the image.

    0 after the last channel.
    """
    row, column = pixel // width, pixel % width
    c_in = c < channels
    exponent = leading_exponent(tl.load(absmax_ptr + c, mask=c_in, other=0), MIN_EXPONENT)  # [C]
    up = power_of_two(-(exponent - SHIFT))[None, :]
    sums = tl.zeros([BLOCK_P, BLOCK_C], tl.int32)
    for tap in tl.static_range(SIZE * SIZE):  # without a loop, so that no load waits for the one before
        y, x = row + tap // SIZE - SIZE // 2, column + tap % SIZE - SIZE // 2
        inside = ((y >= 0) & (y < height) & (x >= 0) & (x < width))[:, None] & c_in[None, :]
        offset = (y * width + x).to(tl.int64)[:, None] * channels + c[None, :]
        value = tl.load(x_ptr + offset, mask=inside, other=0.0)  # [P, C]
        weight = tl.load(taps_ptr + tap * channels + c, mask=c_in, other=0).to(tl.int32)  # [C]
        sums += clip_round(value * up, LARGEST) * weight[None, :]
    weight_scale = tl.load(w_scale_ptr + c, mask=c_in, other=1.0)  # [C]
    return settle(sums.to(tl.float32) * power_of_two(exponent - SHIFT)[None, :] * weight_scale[None, :])


@triton.jit(do_not_specialize=["height", "width"])
def exact_shift_digits_kernel(
    x_ptr,  # (images, height, width, channels)
    absmax_ptr,  # (images, channels) int32 magnitude bits
    taps_ptr,  # (SIZE^2, channels) int16
    w_scale_ptr,  # (channels,)
    y_ptr,  # (images, height, width, channels), scratch for the convolution; None if depth is at most BLOCK_C
    high_ptr,  # (images * height * width, depth) int8, written
    low_ptr,  # (images * height * width, depth) int8, written
    scale_ptr,  # (images * height * width,), written: 2^(exponent - 12)
    height,
    width,
    channels,
    depth,  # at least channels; digits after them are 0
    SIZE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Digits of a depth-wise convolution, with one scale per position. Grid (blocks of positions, images)."""
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    image = tl.program_id(1).to(tl.int64)
    inside = pixel < height * width
    start = image * height * width
    x_ptr += start * channels
    absmax_ptr += image * channels
    c = tl.arange(0, BLOCK_C)
    base = (start + pixel)[:, None] * channels + c[None, :]
    # The convolution, and each position's largest magnitude. The last block stays in registers.
    last = 0
    if y_ptr is None:
        y = shifted(
            x_ptr, absmax_ptr, taps_ptr, w_scale_ptr, pixel, c, height, width, channels, SIZE, BLOCK_P, BLOCK_C
        )  # fmt: skip
        y_bits = magnitude(y)
    else:
        last = (depth - 1) // BLOCK_C * BLOCK_C
        y = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
        y_bits = tl.zeros([BLOCK_P, BLOCK_C], tl.int32)
        for begin in range(0, depth, BLOCK_C):
            y = shifted(
                x_ptr, absmax_ptr, taps_ptr, w_scale_ptr, pixel, begin + c, height, width, channels, SIZE, BLOCK_P,
                BLOCK_C,
            )  # fmt: skip
            tl.store(y_ptr + begin + base, y, mask=inside[:, None] & (begin + c < channels)[None, :])
            y_bits = tl.maximum(y_bits, magnitude(y))
    exponent = leading_exponent(tl.max(y_bits, axis=1), MIN_EXPONENT)
    tl.store(scale_ptr + start + pixel, power_of_two(exponent - SHIFT), mask=inside)
    # Digits.
    up = power_of_two(-(exponent - SHIFT))
    store_digits(high_ptr, low_ptr, y, up, start + pixel, inside, last + c, depth)
    if y_ptr is not None:
        barrier()  # other threads will read what was written
        for begin in range(0, last, BLOCK_C):
            y = tl.load(y_ptr + begin + base, mask=inside[:, None], other=0.0)  # [P, C]
            store_digits(high_ptr, low_ptr, y, up, start + pixel, inside, begin + c, depth)
