"""Exact kernels whose programs compute whole rows, so that one launch does several products and norms.

Every part of a block except the shift and the WKV works on single positions. A program computes BLOCK_M positions
through all steps: quantisation needs a row's largest magnitude, which is then known without another launch. Results
between steps are in scratch memory of the program, which its cache holds; floats are quantised when they are read. Each
program reads all weights, which is good for few positions: `gpu.rows_pay`. A barrier comes before threads read what
others wrote.

`base` (M, 1) has the offsets of rows. A weight's digits are (2, outputs, depth) int8, high digits first. In comments M
is BLOCK_M rows, N is BLOCK_N outputs or channels, K is BLOCK_K inputs of a product.
"""

import triton
import triton.language as tl

from lalic_kernels.exact.kernels import (
    add_products,
    dequantised,
    neighbours,
    norm_digits,
    norm_rows,
    raised,
    row_bits,
    row_by_colour,
    shifted,
)
from lalic_kernels.exact.kernels_common import (
    MIN_EXPONENT,
    SHIFT,
    digits,
    leading_exponent,
    magnitude,
    power_of_two,
    raise_max_key,
    set_status,
    settle,
    sigmoid,
)


@triton.jit
def _weight_tiles(high_ptr, low_ptr, n, n_in, k, depth):
    """Digits of weights at outputs n and inputs k, (K, N) each."""
    offset = n.to(tl.int64)[None, :] * depth + k[:, None]
    high = tl.load(high_ptr + offset, mask=n_in[None, :], other=0)  # [K, N]
    low = tl.load(low_ptr + offset, mask=n_in[None, :], other=0)  # [K, N]
    return high, low


@triton.jit
def _rows_product(
    x_ptr, base, bits, width, row_in, weight_ptr, outputs, depth, scale_ptr, bias_ptr, n, end,
    HAS_BIAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """x @ w^T + bias at outputs n below `end`, settled (M, N), of rows with largest magnitude bits `bits`."""
    exponent = leading_exponent(bits, MIN_EXPONENT)
    up = power_of_two(-(exponent - SHIFT))[:, None]
    n_in = n < end
    depth = (depth // BLOCK_K) * BLOCK_K  # so that the compiler knows that rows are aligned
    low_ptr = weight_ptr + tl.cast(outputs, tl.int64) * depth
    high = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    middle = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    low = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    for start in range(0, depth, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + base + k[None, :], mask=row_in[:, None] & (k < width)[None, :], other=0.0)  # [M, K]
        x_high, x_low = digits(x, up)
        w_high, w_low = _weight_tiles(weight_ptr, low_ptr, n, n_in, k, depth)
        high, middle, low = add_products(x_high, x_low, w_high, w_low, high, middle, low)
    scale = tl.load(scale_ptr + n, mask=n_in, other=1.0)  # [N]
    return dequantised(high, middle, low, power_of_two(exponent - SHIFT), scale, bias_ptr, n, end, HAS_BIAS)


@triton.jit
def _channel_mix_rows(
    x_ptr, base, bits, hidden_ptr, hidden_base, residual_ptr, residual_base, gamma_ptr, y_ptr, out_base,
    key_ptr, key_scale_ptr, value_ptr, value_scale_ptr, width, inner, depth, inner_depth, row_in,
    HAS_GAMMA: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y = residual + gamma sigmoid(R x) (V relu(K x)^2) of rows; key has K's `inner` outputs, then R's `width` outputs.

    `hidden` is scratch for the hidden layer. Returns the largest magnitude bits of y's rows (M,).
    """
    # hidden = relu(K x)^2: [M, N] at a time.
    hidden_bits = tl.zeros([BLOCK_M], tl.int32)
    for start in range(0, inner, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        mask = row_in[:, None] & (n < inner)[None, :]
        h = _rows_product(
            x_ptr, base, bits, width, row_in, key_ptr, inner + width, depth, key_scale_ptr, key_scale_ptr, n, inner,
            False, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        h = settle(tl.where(h > 0, h * h, 0.0))
        tl.store(hidden_ptr + hidden_base + n[None, :], h, mask=mask)
        hidden_bits = raised(hidden_bits, h, mask)
    tl.debug_barrier()
    # y = residual + gamma sigmoid(R x) (V hidden): [M, N] at a time.
    y_bits = tl.zeros([BLOCK_M], tl.int32)
    for start in range(0, width, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        mask = row_in[:, None] & (n < width)[None, :]
        r = _rows_product(
            x_ptr, base, bits, width, row_in, key_ptr, inner + width, depth, key_scale_ptr, key_scale_ptr, inner + n,
            inner + width, False, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        v = _rows_product(
            hidden_ptr, hidden_base, hidden_bits, inner, row_in, value_ptr, width, inner_depth, value_scale_ptr,
            value_scale_ptr, n, width, False, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        y = settle(sigmoid(r) * v)
        if HAS_GAMMA:
            y = settle(settle(tl.load(gamma_ptr + n, mask=n < width, other=0.0))[None, :] * y)  # [N] -> [1, N]
        y = settle(tl.load(residual_ptr + residual_base + n[None, :], mask=mask, other=0.0) + y)  # [M, N]
        tl.store(y_ptr + out_base + n[None, :], y, mask=mask)
        y_bits = raised(y_bits, y, mask)
    return y_bits


@triton.jit
def exact_rows_linear_kernel(
    x_ptr,  # rows x_stride apart
    weight_ptr,  # (2, outputs, depth) int8
    scale_ptr,  # (outputs,)
    bias_ptr,  # (outputs,); unused without HAS_BIAS
    partial_ptr,  # rows partial_stride apart, with HAS_PARTIAL: y becomes partial + y
    y_ptr,  # (rows, outputs), written
    status_ptr,
    rows,
    width,
    x_stride,
    depth,
    outputs,
    partial_stride,
    height,  # of x's images, with BY_COLOUR
    half,  # half of their width
    HAS_BIAS: tl.constexpr,
    HAS_PARTIAL: tl.constexpr,
    BY_COLOUR: tl.constexpr,  # y's rows are x's by colour
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y = x @ w^T + bias; each row is quantised when it is read. Grid (blocks of rows, blocks of outputs)."""
    # The rows, and their largest magnitudes: [M].
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_in = row < rows
    source = row.to(tl.int64)
    if BY_COLOUR:
        source = row_by_colour(tl.where(row_in, row, 0), rows // 2, height, half)
    base = source[:, None] * x_stride
    bits = row_bits(x_ptr, base, width, row_in, BLOCK_M, BLOCK_K)
    set_status(status_ptr, bits)
    # The product: [M, N].
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    y = _rows_product(
        x_ptr, base, bits, width, row_in, weight_ptr, outputs, depth, scale_ptr, bias_ptr, n, outputs,
        HAS_BIAS, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    mask = row_in[:, None] & (n < outputs)[None, :]
    index = row.to(tl.int64)[:, None]
    if HAS_PARTIAL:
        y = tl.load(partial_ptr + index * partial_stride + n[None, :], mask=mask, other=0.0) + y  # [M, N]
    tl.store(y_ptr + index * outputs + n[None, :], y, mask=mask)


@triton.jit
def exact_two_products_kernel(
    x_ptr,  # (rows, width)
    first_ptr,  # (2, middle, depth) int8
    first_scale_ptr,  # (middle,)
    first_bias_ptr,  # (middle,)
    second_ptr,  # (2, outputs, middle_depth) int8
    second_scale_ptr,  # (outputs,)
    partial_ptr,  # rows partial_stride apart: y is partial + the second product
    middle_ptr,  # (rows, middle), written: scratch of this launch
    y_ptr,  # (rows, outputs), written
    status_ptr,
    rows,
    width,
    depth,
    middle,
    middle_depth,
    outputs,
    partial_stride,
    height,  # of x's images; y's rows are x's by colour
    half,  # half of their width
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y = partial + (x @ first^T + bias) @ second^T. Grid (blocks of rows,)."""
    # The rows, and their largest magnitudes: [M].
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_in = row < rows
    base = row_by_colour(tl.where(row_in, row, 0), rows // 2, height, half)[:, None] * width
    index = row.to(tl.int64)[:, None]
    bits = row_bits(x_ptr, base, width, row_in, BLOCK_M, BLOCK_K)
    set_status(status_ptr, bits)
    # The first product.
    middle_bits = tl.zeros([BLOCK_M], tl.int32)
    for start in range(0, middle, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        mask = row_in[:, None] & (n < middle)[None, :]
        y = _rows_product(
            x_ptr, base, bits, width, row_in, first_ptr, middle, depth, first_scale_ptr, first_bias_ptr, n, middle,
            True, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        tl.store(middle_ptr + index * middle + n[None, :], y, mask=mask)
        middle_bits = raised(middle_bits, y, mask)
    tl.debug_barrier()
    # The second product.
    for start in range(0, outputs, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        mask = row_in[:, None] & (n < outputs)[None, :]
        y = _rows_product(
            middle_ptr, index * middle, middle_bits, middle, row_in, second_ptr, outputs, middle_depth,
            second_scale_ptr, second_scale_ptr, n, outputs, False, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        y = tl.load(partial_ptr + index * partial_stride + n[None, :], mask=mask, other=0.0) + y  # [M, N]
        tl.store(y_ptr + index * outputs + n[None, :], y, mask=mask)


@triton.jit
def exact_mix_norm_kernel(
    x_ptr,  # (rows, width); unused without HAS_X
    weight_ptr,  # (2, outputs, depth) int8, with HAS_X
    scale_ptr,  # (outputs,), with HAS_X
    bias_ptr,  # (outputs,)
    partial_ptr,  # rows partial_stride apart, with HAS_PARTIAL
    norm_weight_ptr,  # (outputs,)
    norm_bias_ptr,  # (outputs,)
    m_ptr,  # (rows, outputs), written: the product, its bias, and partial
    high_ptr,  # (rows, m_depth) int8, written: digits of m's LayerNorm
    low_ptr,  # (rows, m_depth) int8, written
    digit_scale_ptr,  # (rows,), written
    status_ptr,
    rows,
    width,
    depth,
    outputs,
    m_depth,
    partial_stride,
    eps_area,
    HAS_X: tl.constexpr,
    HAS_PARTIAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The mix of an entropy-parameter block and the digits of its LayerNorm. Grid (blocks of rows,)."""
    # The rows, and their largest magnitudes: [M].
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_in = row < rows
    index = row.to(tl.int64)
    base = index[:, None] * width
    m_base = index[:, None] * outputs
    if HAS_X:
        bits = row_bits(x_ptr, base, width, row_in, BLOCK_M, BLOCK_N)
        set_status(status_ptr, bits)
    # m: [M, N] at a time.
    m_bits = tl.zeros([BLOCK_M], tl.int32)
    for start in range(0, outputs, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        mask = row_in[:, None] & (n < outputs)[None, :]
        if HAS_X:
            y = _rows_product(
                x_ptr, base, bits, width, row_in, weight_ptr, outputs, depth, scale_ptr, bias_ptr, n, outputs,
                True, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
        else:
            y = tl.load(bias_ptr + n, mask=n < outputs, other=0.0)[None, :]  # [N] -> [1, N]
        if HAS_PARTIAL:
            part = tl.load(partial_ptr + index[:, None] * partial_stride + n[None, :], mask=mask, other=0.0)  # [M, N]
            y = y + part
        tl.store(m_ptr + m_base + n[None, :], y, mask=mask)
        m_bits = raised(m_bits, y, mask)
    set_status(status_ptr, m_bits)
    tl.debug_barrier()
    # Its LayerNorm, as digits.
    norm_digits(
        m_ptr, m_base, m_bits, norm_weight_ptr, norm_bias_ptr, high_ptr, low_ptr, digit_scale_ptr, index, outputs,
        m_depth, eps_area, row_in, BLOCK_M, BLOCK_N,
    )  # fmt: skip


# RWKV block


@triton.jit
def exact_output_norm_kernel(
    x_ptr,  # (images * rows, width): the WKV's result
    weight_ptr,  # (2, width, depth) int8
    scale_ptr,  # (width,)
    residual_ptr,  # rows residual_stride apart
    gamma_ptr,  # (width,)
    norm_weight_ptr,  # (width,)
    norm_bias_ptr,  # (width,)
    y_ptr,  # (images * rows, width), written: residual + gamma (x @ w^T)
    normal_ptr,  # (images * rows, width), written: LayerNorm of y
    absmax_ptr,  # (images, width) int32, raised to the channels' magnitude bits of normal
    status_ptr,
    rows,  # of an image
    width,
    depth,
    residual_stride,
    eps_area,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The output product of a spatial mix with its residual, and the next norm. Grid (blocks of rows, images)."""
    # The rows, and their largest magnitudes: [M].
    image = tl.program_id(1)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_in = row < rows
    index = (image.to(tl.int64) * rows + row)[:, None]
    base = index * width
    bits = row_bits(x_ptr, base, width, row_in, BLOCK_M, BLOCK_N)
    # y = residual + gamma output: [M, N] at a time.
    y_bits = tl.zeros([BLOCK_M], tl.int32)
    residual_bits = tl.zeros([BLOCK_M], tl.int32)
    for start in range(0, width, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        mask = row_in[:, None] & (n < width)[None, :]
        y = _rows_product(
            x_ptr, base, bits, width, row_in, weight_ptr, width, depth, scale_ptr, scale_ptr, n, width,
            False, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        y = settle(settle(tl.load(gamma_ptr + n, mask=n < width, other=0.0))[None, :] * y)  # [N] -> [1, N]
        before = tl.load(residual_ptr + index * residual_stride + n[None, :], mask=mask, other=0.0)  # [M, N]
        residual_bits = raised(residual_bits, before, mask)
        y = settle(before + y)
        tl.store(y_ptr + base + n[None, :], y, mask=mask)
        y_bits = raised(y_bits, y, mask)
    set_status(status_ptr, residual_bits)
    tl.debug_barrier()
    # Its LayerNorm.
    norm_rows(
        y_ptr, base, y_bits, normal_ptr, base, norm_weight_ptr, norm_bias_ptr, absmax_ptr + image * width, width,
        eps_area, row_in, True, BLOCK_M, BLOCK_N,
    )  # fmt: skip


@triton.jit
def _shift_rows(
    x_ptr, absmax_ptr, taps_ptr, w_scale_ptr, s_ptr, image, row, index, row_in, height, width, channels,
    SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write the depth-wise shift at rows to s. Returns the largest magnitude bits of its rows (M,)."""
    s_bits = tl.zeros([BLOCK_M], tl.int32)
    start = image.to(tl.int64) * height * width * channels
    for begin in range(0, channels, BLOCK_N):
        c = begin + tl.arange(0, BLOCK_N)
        mask = row_in[:, None] & (c < channels)[None, :]
        y = shifted(
            x_ptr + start, absmax_ptr + image * channels, taps_ptr, w_scale_ptr, row // width, row % width, c,
            height, width, channels, SIZE, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        tl.store(s_ptr + index * channels + c[None, :], y, mask=mask)
        s_bits = raised(s_bits, y, mask)
    tl.debug_barrier()
    return s_bits


@triton.jit
def exact_shift_mix_kernel(
    x_ptr,  # (images, height, width, channels), normalised
    absmax_ptr,  # (images, channels) int32 magnitude bits of x
    taps_ptr,  # (SIZE^2, channels) int16
    w_scale_ptr,  # (channels,)
    s_ptr,  # (images, height, width, channels), written: the shifted image, scratch of this launch
    weight_ptr,  # (2, 3 channels, depth) int8: key, value, receptance
    scale_ptr,  # (3 channels,)
    max_key_ptr,  # (images, channels) int32: order keys, raised to the maxima of the keys
    y_ptr,  # (images * height * width, 3 channels), written
    height,
    width,
    channels,
    depth,
    SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The shift and the first products of a spatial mix. Grid (blocks of positions, images)."""
    # The shift.
    image = tl.program_id(1)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_in = row < height * width
    index = (image.to(tl.int64) * height * width + row)[:, None]
    bits = _shift_rows(
        x_ptr, absmax_ptr, taps_ptr, w_scale_ptr, s_ptr, image, row, index, row_in, height, width, channels,
        SIZE, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    # Key, value and receptance, and the keys' maxima: [M, N] at a time.
    outputs = 3 * channels
    for start in range(0, outputs, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        y = _rows_product(
            s_ptr, index * channels, bits, channels, row_in, weight_ptr, outputs, depth, scale_ptr, scale_ptr, n,
            outputs, False, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        tl.store(y_ptr + index * outputs + n[None, :], y, mask=row_in[:, None] & (n < outputs)[None, :])
        largest = tl.max(tl.where(row_in[:, None], y, float("-inf")), axis=0)
        raise_max_key(max_key_ptr + image * channels + n, largest, n < channels)


@triton.jit
def exact_shift_channel_kernel(
    x_ptr,  # (images, height, width, channels), normalised
    absmax_ptr,  # (images, channels) int32 magnitude bits of x
    taps_ptr,  # (SIZE^2, channels) int16
    w_scale_ptr,  # (channels,)
    s_ptr,  # (images, height, width, channels), written: the shifted image, scratch of this launch
    hidden_ptr,  # (images * height * width, inner), written: the hidden layer, scratch of this launch
    key_ptr,  # (2, inner + channels, depth) int8: key, receptance
    key_scale_ptr,  # (inner + channels,)
    value_ptr,  # (2, channels, inner_depth) int8
    value_scale_ptr,  # (channels,)
    residual_ptr,  # (images * height * width, channels)
    gamma_ptr,  # (channels,)
    norm_weight_ptr,  # (channels,), with NEXT
    norm_bias_ptr,  # (channels,), with NEXT
    y_ptr,  # (images * height * width, channels), written
    normal_ptr,  # (images * height * width, channels), written with NEXT: LayerNorm of y
    next_absmax_ptr,  # int32, raised to magnitude bits: with NEXT (images, channels) of normal, else (images,) of y
    height,
    width,
    channels,
    inner,
    depth,
    inner_depth,
    eps_area,
    NEXT: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The shift and a channel mix with its residual, and the next block's norm. Grid (blocks of positions, images)."""
    # The shift, then the channel mix.
    image = tl.program_id(1)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_in = row < height * width
    index = (image.to(tl.int64) * height * width + row)[:, None]
    base = index * channels
    bits = _shift_rows(
        x_ptr, absmax_ptr, taps_ptr, w_scale_ptr, s_ptr, image, row, index, row_in, height, width, channels,
        SIZE, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    y_bits = _channel_mix_rows(
        s_ptr, base, bits, hidden_ptr, index * inner, residual_ptr, base, gamma_ptr, y_ptr, base, key_ptr,
        key_scale_ptr, value_ptr, value_scale_ptr, channels, inner, depth, inner_depth, row_in,
        True, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    # The next block's norm, or each image's largest magnitude.
    if NEXT:
        tl.debug_barrier()
        norm_rows(
            y_ptr, base, y_bits, normal_ptr, base, norm_weight_ptr, norm_bias_ptr, next_absmax_ptr + image * channels,
            channels, eps_area, row_in, True, BLOCK_M, BLOCK_N,
        )  # fmt: skip
    else:
        tl.atomic_max(next_absmax_ptr + image, tl.max(y_bits, axis=0), sem="relaxed")


# Aggregation networks


@triton.jit
def _spatial_rows(
    x_ptr, image, row, row_in, taps_ptr, weight_ptr, scale_ptr, bias_ptr, y_ptr, out_base, status_ptr, outputs,
    depth, x_stride, height, half, taps, group,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Write the product of the second colour's neighbours to y. Returns y's largest magnitude bits (M,)."""
    line = row // half
    column = 2 * (row % half) + ((line + 1) & 1)
    # The rows' scales.
    x_bits = tl.zeros([BLOCK_M, BLOCK_K], tl.int32)
    for start in range(0, taps * group, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = neighbours(x_ptr, image, line, column, k, group, taps_ptr, taps, height, 2 * half, x_stride, row_in)
        x_bits = tl.maximum(x_bits, magnitude(x))
    exponent = leading_exponent(tl.max(x_bits, axis=1), MIN_EXPONENT)
    set_status(status_ptr, x_bits)
    up = power_of_two(-(exponent - SHIFT))[:, None]
    # The product: [M, N] at a time.
    bits = tl.zeros([BLOCK_M], tl.int32)
    depth = (depth // BLOCK_K) * BLOCK_K
    low_ptr = weight_ptr + tl.cast(outputs, tl.int64) * depth
    for begin in range(0, outputs, BLOCK_N):
        n = begin + tl.arange(0, BLOCK_N)
        n_in = n < outputs
        high = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
        middle = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
        low = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
        for start in range(0, depth, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            x = neighbours(x_ptr, image, line, column, k, group, taps_ptr, taps, height, 2 * half, x_stride, row_in)
            x_high, x_low = digits(x, up)
            w_high, w_low = _weight_tiles(weight_ptr, low_ptr, n, n_in, k, depth)
            high, middle, low = add_products(x_high, x_low, w_high, w_low, high, middle, low)
        scale = tl.load(scale_ptr + n, mask=n_in, other=1.0)  # [N]
        y = dequantised(high, middle, low, power_of_two(exponent - SHIFT), scale, bias_ptr, n, outputs, True)
        mask = row_in[:, None] & n_in[None, :]
        tl.store(y_ptr + out_base + n[None, :], y, mask=mask)
        bits = raised(bits, y, mask)
    tl.debug_barrier()
    return bits


@triton.jit
def exact_aggregation_kernel(
    x_ptr,  # "spatial": images for `neighbours`; "rows": (images * rows, inputs); "partial": unused
    taps_ptr,  # (taps, 2) int32 offsets, in "spatial"
    spatial_ptr,  # (2, 2 group, spatial_depth) int8, in "spatial": the product of neighbours
    spatial_scale_ptr,  # (2 group,)
    spatial_bias_ptr,  # (2 group,)
    partial_ptr,  # images * rows rows, partial_stride apart: added to the first mix; unused in "rows"
    digits_ptr,  # int8, for each block: mix, key (inner + outputs) and value, each (2, outputs, depth)
    floats_ptr,  # for each block: mix scales, mix bias, norm weight, norm bias, key scales, value scales, eps_area
    table_ptr,  # (blocks, 4) int32: outputs, inner, offset of digits (in units of 64), offset of floats
    scratch_ptr,  # (images * rows, scratch_stride), written
    y_ptr,  # (images * rows, outputs of the last block), written
    status_ptr,
    rows,  # per image
    inputs,  # of the first mix; 0 in "partial", where the digits of that mix are missing
    spatial_depth,
    x_stride,
    height,
    half,
    taps,
    group,  # channels of x, in "spatial"
    partial_stride,
    scratch_stride,
    wide,  # at least each block's outputs and the first mix's inputs
    blocks,
    START: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Entropy-parameter blocks one after the other. Grid (blocks of rows, images).

    The first block's m is bias + partial ("partial"), the product of the spatial context + partial ("spatial"), or the
    product of x ("rows"). A row's scratch: two slots of `wide` that swap roles, and the hidden layer.
    """
    # Offsets of the rows' scratch, and of the first block's weights.
    image = tl.program_id(1)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_in = row < rows
    index = (image.to(tl.int64) * rows + row)[:, None]
    base = index * scratch_stride
    free = base  # the free slot
    m_at = base + wide  # the slot of m
    hidden = base + 2 * wide
    outputs = tl.load(table_ptr)  # []
    floats = floats_ptr + tl.load(table_ptr + 3)  # []
    digit = digits_ptr + tl.load(table_ptr + 2).to(tl.int64) * 64  # []
    depth = (inputs + 63) // 64 * 64
    # The first mix's input.
    bits = tl.zeros([BLOCK_M], tl.int32)
    source = base
    if START == "spatial":
        bits = _spatial_rows(
            x_ptr, image, row, row_in, taps_ptr, spatial_ptr, spatial_scale_ptr, spatial_bias_ptr, scratch_ptr, free,
            status_ptr, inputs, spatial_depth, x_stride, height, half, taps, group, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        source = free
        source_ptr = scratch_ptr
    if START == "rows":
        source = index * inputs
        source_ptr = x_ptr
        bits = row_bits(x_ptr, source, inputs, row_in, BLOCK_M, BLOCK_K)
        set_status(status_ptr, bits)
    # The first block's m: [M, N] at a time.
    m_bits = tl.zeros([BLOCK_M], tl.int32)
    for start in range(0, outputs, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        mask = row_in[:, None] & (n < outputs)[None, :]
        if START == "partial":
            y = tl.load(floats + outputs + n, mask=n < outputs, other=0.0)[None, :]  # [N] -> [1, N]
        else:
            y = _rows_product(
                source_ptr, source, bits, inputs, row_in, digit, outputs, depth, floats, floats + outputs, n, outputs,
                True, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
        if START != "rows":
            part = tl.load(partial_ptr + index * partial_stride + n[None, :], mask=mask, other=0.0)  # [M, N]
            y = y + part
        tl.store(scratch_ptr + m_at + n[None, :], y, mask=mask)
        m_bits = raised(m_bits, y, mask)
    for block in range(0, blocks):
        # Offsets of the block's weights.
        outputs = tl.load(table_ptr + 4 * block)  # []
        inner = tl.load(table_ptr + 4 * block + 1)  # []
        digit = digits_ptr + tl.load(table_ptr + 4 * block + 2).to(tl.int64) * 64  # []
        floats = floats_ptr + tl.load(table_ptr + 4 * block + 3)  # []
        set_status(status_ptr, m_bits)
        tl.debug_barrier()
        key = digit + 2 * outputs.to(tl.int64) * depth
        depth = (outputs + 63) // 64 * 64
        value = key + 2 * (inner + outputs).to(tl.int64) * depth
        inner_depth = (inner + 63) // 64 * 64
        scales = floats + 4 * outputs
        eps_area = tl.load(scales + inner + 2 * outputs)  # []
        # m's LayerNorm to the free slot; then the channel mix of it, added to m in place.
        bits = norm_rows(
            scratch_ptr, m_at, m_bits, scratch_ptr, free, floats + 2 * outputs, floats + 3 * outputs, table_ptr,
            outputs, eps_area, row_in, False, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        tl.debug_barrier()
        m_bits = _channel_mix_rows(
            scratch_ptr, free, bits, scratch_ptr, hidden, scratch_ptr, m_at, floats, scratch_ptr, m_at,
            key, scales, value, scales + inner + outputs, outputs, inner, depth, inner_depth, row_in,
            False, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        tl.debug_barrier()
        if block + 1 < blocks:
            # The next block's m, from this block's result to the free slot; then swap the slots.
            width = outputs
            outputs = tl.load(table_ptr + 4 * block + 4)  # []
            digit = digits_ptr + tl.load(table_ptr + 4 * block + 6).to(tl.int64) * 64  # []
            floats = floats_ptr + tl.load(table_ptr + 4 * block + 7)  # []
            bits = m_bits
            m_bits = tl.zeros([BLOCK_M], tl.int32)
            for start in range(0, outputs, BLOCK_N):
                n = start + tl.arange(0, BLOCK_N)
                mask = row_in[:, None] & (n < outputs)[None, :]
                y = _rows_product(
                    scratch_ptr, m_at, bits, width, row_in, digit, outputs, depth, floats, floats + outputs, n,
                    outputs, True, BLOCK_M, BLOCK_N, BLOCK_K,
                )  # fmt: skip
                tl.store(scratch_ptr + free + n[None, :], y, mask=mask)
                m_bits = raised(m_bits, y, mask)
            swap = m_at
            m_at = free
            free = swap
        else:
            # Copy the last block's result.
            for start in range(0, outputs, BLOCK_N):
                n = start + tl.arange(0, BLOCK_N)
                mask = row_in[:, None] & (n < outputs)[None, :]
                y = tl.load(scratch_ptr + m_at + n[None, :], mask=mask)  # [M, N]
                tl.store(y_ptr + index * outputs + n[None, :], y, mask=mask)
