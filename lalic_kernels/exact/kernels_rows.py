"""Exact kernels whose programs own whole rows, so that one launch goes through several products and norms.

Everything in a block but the shift and the WKV is a function of one position. A program takes BLOCK_M positions through
all of it: a row's largest magnitude, which quantisation waits for, is then known without another launch. What is
between two steps lies in memory that the program alone uses and its cache holds; floats are quantised as they are read.
Each program reads all weights, which pays where positions are few: `gpu_blocks.rows_pay`.

Rows begin at `base`, a column (M, 1) of offsets. A weight's digits are (2, outputs, depth) int8, high ones first.
"""

import triton
import triton.language as tl

from lalic_kernels.exact.kernels import norm_digits, norm_factors, normal, row_bits
from lalic_kernels.exact.kernels_common import (
    LEAST,
    SHIFT,
    digits,
    leading_exponent,
    magnitude,
    note,
    power_of_two,
    raise_maximum,
    settle,
    sigmoid,
)
from lalic_kernels.exact.kernels_products import add_products, dequantised, packed_source


@triton.jit
def weight_tiles(high_ptr, low_ptr, n, n_in, k, depth):
    """Digits of weights at outputs n and inputs k, (K, N) each."""
    place = n.to(tl.int64)[None, :] * depth + k[:, None]
    return tl.load(high_ptr + place, mask=n_in[None, :], other=0), tl.load(low_ptr + place, mask=n_in[None, :], other=0)


@triton.jit
def rows_product(
    x_ptr, base, bits, width, row_in, weight_ptr, outputs, depth, scale_ptr, bias_ptr, n, end,
    HAS_BIAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """x @ w^T + bias at outputs n below `end`, settled (M, N), of rows whose largest magnitude bits are known."""
    exponent = leading_exponent(bits, LEAST)
    up = power_of_two(-(exponent - SHIFT))[:, None]
    n_in = n < end
    depth = (depth // BLOCK_K) * BLOCK_K  # tells the compiler that rows are aligned
    low_ptr = weight_ptr + tl.cast(outputs, tl.int64) * depth
    high = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    middle = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    low = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    for start in range(0, depth, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + base + k[None, :], mask=row_in[:, None] & (k < width)[None, :], other=0.0)
        x_high, x_low = digits(x, up)
        w_high, w_low = weight_tiles(weight_ptr, low_ptr, n, n_in, k, depth)
        high, middle, low = add_products(x_high, x_low, w_high, w_low, high, middle, low)
    scale = tl.load(scale_ptr + n, mask=n_in, other=1.0)
    return dequantised(high, middle, low, power_of_two(exponent - SHIFT), scale, bias_ptr, n, end, HAS_BIAS)


@triton.jit
def row_maximum(bits, y, mask):
    """The largest magnitude bits of rows, raised to those of a tile."""
    return tl.maximum(bits, tl.max(tl.where(mask, magnitude(y), 0), axis=1))


@triton.jit
def norm_rows(
    x_ptr, base, bits, y_ptr, out_base, weight_ptr, bias_ptr, maxima_ptr, width, eps_area, row_in,
    MAXIMA: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """LayerNorm of rows to y; each channel's maximum is raised too with MAXIMA. Returns y's largest magnitude bits."""
    half, total, rate = norm_factors(x_ptr, base, bits, width, eps_area, row_in, BLOCK_M, BLOCK_N)
    most = tl.zeros([BLOCK_M], tl.int32)
    for start in range(0, width, BLOCK_N):
        c = start + tl.arange(0, BLOCK_N)
        mask = row_in[:, None] & (c < width)[None, :]
        y = normal(x_ptr, weight_ptr, bias_ptr, base, c, mask, half, total, rate, width)
        tl.store(y_ptr + out_base + c[None, :], y, mask=mask)
        most = row_maximum(most, y, mask)
        if MAXIMA:
            raise_maximum(maxima_ptr + c, tl.max(tl.where(mask, magnitude(y), 0), axis=0), c < width)
    return most


@triton.jit
def gated_rows(
    x_ptr, base, bits, hidden_ptr, hidden_base, residual_ptr, residual_base, gamma_ptr, y_ptr, out_base,
    key_ptr, key_scale_ptr, value_ptr, value_scale_ptr, width, inner, depth, inner_depth, row_in,
    HAS_GAMMA: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y = residual + gamma sigmoid(R x) (V relu(K x)^2) of rows; key holds K's outputs, `inner`, and then R's, `width`.

    The hidden layer goes through `hidden`. Returns the largest magnitude bits of y's rows.
    """
    most = tl.zeros([BLOCK_M], tl.int32)
    for start in range(0, inner, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        mask = row_in[:, None] & (n < inner)[None, :]
        h = rows_product(
            x_ptr, base, bits, width, row_in, key_ptr, inner + width, depth, key_scale_ptr, key_scale_ptr, n, inner,
            False, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        h = settle(tl.where(h > 0, h * h, 0.0))
        tl.store(hidden_ptr + hidden_base + n[None, :], h, mask=mask)
        most = row_maximum(most, h, mask)
    tl.debug_barrier()  # other threads read it
    found = tl.zeros([BLOCK_M], tl.int32)
    for start in range(0, width, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        mask = row_in[:, None] & (n < width)[None, :]
        r = rows_product(
            x_ptr, base, bits, width, row_in, key_ptr, inner + width, depth, key_scale_ptr, key_scale_ptr, inner + n,
            inner + width, False, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        v = rows_product(
            hidden_ptr, hidden_base, most, inner, row_in, value_ptr, width, inner_depth, value_scale_ptr,
            value_scale_ptr, n, width, False, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        y = settle(sigmoid(r) * v)
        if HAS_GAMMA:
            y = settle(settle(tl.load(gamma_ptr + n, mask=n < width, other=0.0))[None, :] * y)
        y = settle(tl.load(residual_ptr + residual_base + n[None, :], mask=mask, other=0.0) + y)
        tl.store(y_ptr + out_base + n[None, :], y, mask=mask)
        found = row_maximum(found, y, mask)
    return found


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
    height,  # of the images that x's rows are, with PACKED
    half,  # of their width
    HAS_BIAS: tl.constexpr,
    HAS_PARTIAL: tl.constexpr,
    PACKED: tl.constexpr,  # y's rows are x's by colour
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y = x @ w^T + bias, each row quantised as it is read. Grid (blocks of rows, blocks of outputs)."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_in = row < rows
    source = row.to(tl.int64)
    if PACKED:
        source = packed_source(tl.where(row_in, row, 0), rows // 2, height, half)
    base = source[:, None] * x_stride
    bits = row_bits(x_ptr, base, width, row_in, BLOCK_M, BLOCK_K)
    note(status_ptr, bits)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    y = rows_product(
        x_ptr, base, bits, width, row_in, weight_ptr, outputs, depth, scale_ptr, bias_ptr, n, outputs,
        HAS_BIAS, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    mask = row_in[:, None] & (n < outputs)[None, :]
    place = row.to(tl.int64)[:, None]
    if HAS_PARTIAL:
        y = tl.load(partial_ptr + place * partial_stride + n[None, :], mask=mask, other=0.0) + y
    tl.store(y_ptr + place * outputs + n[None, :], y, mask=mask)


@triton.jit
def exact_two_products_kernel(
    x_ptr,  # (rows, width)
    first_ptr,  # (2, middle, depth) int8
    first_scale_ptr,  # (middle,)
    first_bias_ptr,  # (middle,)
    second_ptr,  # (2, outputs, middle_depth) int8
    second_scale_ptr,  # (outputs,)
    partial_ptr,  # rows partial_stride apart: y is partial + the second product
    middle_ptr,  # (rows, middle), written: for this launch alone
    y_ptr,  # (rows, outputs), written
    status_ptr,
    rows,
    width,
    depth,
    middle,
    middle_depth,
    outputs,
    partial_stride,
    height,  # of the images that x's rows are; y's rows are x's by colour
    half,  # of their width
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y = partial + (x @ first^T + bias) @ second^T. Grid (blocks of rows,)."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_in = row < rows
    base = packed_source(tl.where(row_in, row, 0), rows // 2, height, half)[:, None] * width
    place = row.to(tl.int64)[:, None]
    bits = row_bits(x_ptr, base, width, row_in, BLOCK_M, BLOCK_K)
    note(status_ptr, bits)
    most = tl.zeros([BLOCK_M], tl.int32)
    for start in range(0, middle, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        mask = row_in[:, None] & (n < middle)[None, :]
        y = rows_product(
            x_ptr, base, bits, width, row_in, first_ptr, middle, depth, first_scale_ptr, first_bias_ptr, n, middle,
            True, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        tl.store(middle_ptr + place * middle + n[None, :], y, mask=mask)
        most = row_maximum(most, y, mask)
    tl.debug_barrier()
    for start in range(0, outputs, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        mask = row_in[:, None] & (n < outputs)[None, :]
        y = rows_product(
            middle_ptr, place * middle, most, middle, row_in, second_ptr, outputs, middle_depth, second_scale_ptr,
            second_scale_ptr, n, outputs, False, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        y = tl.load(partial_ptr + place * partial_stride + n[None, :], mask=mask, other=0.0) + y
        tl.store(y_ptr + place * outputs + n[None, :], y, mask=mask)


@triton.jit
def exact_mix_norm_kernel(
    x_ptr,  # (rows, width); unused without HAS_X
    weight_ptr,  # (2, outputs, depth) int8, with HAS_X
    scale_ptr,  # (outputs,), with HAS_X
    bias_ptr,  # (outputs,)
    known_ptr,  # rows known_stride apart, with HAS_KNOWN
    norm_weight_ptr,  # (outputs,)
    norm_bias_ptr,  # (outputs,)
    m_ptr,  # (rows, outputs), written: the product, its bias, and what is known
    high_ptr,  # (rows, m_depth) int8, written: digits of m's LayerNorm
    low_ptr,  # likewise
    digit_scale_ptr,  # (rows,), written
    status_ptr,
    rows,
    width,
    depth,
    outputs,
    m_depth,
    known_stride,
    eps_area,
    HAS_X: tl.constexpr,
    HAS_KNOWN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """How an entropy-parameter block begins, where the rest of it is launches of their own. Grid (blocks of rows,)."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_in = row < rows
    place = row.to(tl.int64)
    base = place[:, None] * width
    own = place[:, None] * outputs
    if HAS_X:
        bits = row_bits(x_ptr, base, width, row_in, BLOCK_M, BLOCK_N)
    most = tl.zeros([BLOCK_M], tl.int32)
    for start in range(0, outputs, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        mask = row_in[:, None] & (n < outputs)[None, :]
        if HAS_X:
            y = rows_product(
                x_ptr, base, bits, width, row_in, weight_ptr, outputs, depth, scale_ptr, bias_ptr, n, outputs,
                True, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
        else:
            y = tl.load(bias_ptr + n, mask=n < outputs, other=0.0)[None, :]
        if HAS_KNOWN:
            y = y + tl.load(known_ptr + place[:, None] * known_stride + n[None, :], mask=mask, other=0.0)
        tl.store(m_ptr + own + n[None, :], y, mask=mask)
        most = row_maximum(most, y, mask)
    note(status_ptr, most)
    tl.debug_barrier()
    norm_digits(
        m_ptr, own, most, norm_weight_ptr, norm_bias_ptr, high_ptr, low_ptr, digit_scale_ptr, place, outputs, m_depth,
        eps_area, row_in, BLOCK_M, BLOCK_N,
    )  # fmt: skip
