"""Triton kernels of the entropy-parameter block's forward: linear layer, LayerNorm, gated sum.

Matrices are contiguous and row-major; rows are positions. Products accumulate in float32; float32 factors are
multiplied as exactly as float32 (`launch.precision`). Any width works: edges are masked.
"""

import triton
import triton.language as tl

from lalic_kernels.triton_math import product, sigmoid_stable


# Rows are not specialised, so that another size needs no compilation; widths are the model's, and decide on vectors.
@triton.jit(do_not_specialize=["rows"])
def linear_kernel(
    x_ptr,  # (rows, width)
    matrix_ptr,  # (outputs, width)
    bias_ptr,  # (outputs,), or None
    partial_ptr,  # (rows, outputs), or None
    y_ptr,  # (rows, outputs), written
    rows,
    width,
    outputs,
    SQUARED_RELU: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,  # of float32 products: `launch.precision`
):
    """y = x @ matrix^T, then + bias, + partial, relu()^2, each if it is given or set. Width may be 0.

    Grid (blocks of rows, blocks of outputs).
    """
    # The product: [BLOCK_M, BLOCK_N] float32.
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    y = product(x_ptr, matrix_ptr, row, n, rows, width, outputs, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION)
    # Bias, partial and relu()^2; write.
    if bias_ptr is not None:
        y += tl.load(bias_ptr + n, mask=n < outputs, other=0.0).to(tl.float32)[None, :]  # [BLOCK_M, BLOCK_N]
    mask = (row < rows)[:, None] & (n < outputs)[None, :]
    offset = row.to(tl.int64)[:, None] * outputs + n[None, :]
    if partial_ptr is not None:
        y += tl.load(partial_ptr + offset, mask=mask, other=0.0).to(tl.float32)  # [BLOCK_M, BLOCK_N]
    if SQUARED_RELU:
        y = tl.where(y < 0.0, 0.0, y)  # not tl.maximum: a NaN must stay NaN
        y = y * y
    tl.store(y_ptr + offset, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def layer_norm_kernel(
    m_ptr,  # (rows, width) float32
    weight_ptr,  # (width,)
    bias_ptr,  # (width,)
    n_ptr,  # (rows, width), written
    rows,
    width,
    eps,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """n = (m - mean) / sqrt(variance + eps) * weight + bias for each row; the variance is of centred values.

    Grid (blocks of rows,).
    """
    # The mean of each row: [BLOCK_M].
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    base = row.to(tl.int64)[:, None] * width
    row_in = (row < rows)[:, None]
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, width, BLOCK_N):
        c = start + tl.arange(0, BLOCK_N)
        total += tl.load(m_ptr + base + c[None, :], mask=row_in & (c < width)[None, :], other=0.0)  # [BLOCK_M, BLOCK_N]
    mean = tl.sum(total, axis=1) / width
    # 1 / standard deviation of each row: [BLOCK_M].
    squares = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, width, BLOCK_N):
        c = start + tl.arange(0, BLOCK_N)
        inside = row_in & (c < width)[None, :]
        # centred: [BLOCK_M, BLOCK_N]
        centred = tl.where(inside, tl.load(m_ptr + base + c[None, :], mask=inside, other=0.0) - mean[:, None], 0.0)
        squares += centred * centred
    rstd = 1.0 / tl.sqrt(tl.sum(squares, axis=1) / width + eps)
    # Write n.
    for start in range(0, width, BLOCK_N):
        c = start + tl.arange(0, BLOCK_N)
        inside = row_in & (c < width)[None, :]
        m = tl.load(m_ptr + base + c[None, :], mask=inside, other=0.0)  # [BLOCK_M, BLOCK_N]
        weight = tl.load(weight_ptr + c, mask=c < width, other=0.0).to(tl.float32)  # [BLOCK_N]
        bias = tl.load(bias_ptr + c, mask=c < width, other=0.0).to(tl.float32)  # [BLOCK_N]
        n = (m - mean[:, None]) * rstd[:, None] * weight[None, :] + bias[None, :]
        tl.store(n_ptr + base + c[None, :], n.to(n_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def gated_sum_kernel(
    m_ptr,  # (rows, width) float32
    n_ptr,  # (rows, width)
    h_ptr,  # (rows, 2 width)
    receptance_ptr,  # (width, width)
    value_ptr,  # (width, 2 width)
    y_ptr,  # (rows, width), written
    rows,
    width,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,  # of float32 products: `launch.precision`
):
    """y = m + sigmoid(n @ receptance^T) * (h @ value^T). Grid (blocks of rows, blocks of width)."""
    # Both products: [BLOCK_M, BLOCK_N] float32.
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    gate = product(n_ptr, receptance_ptr, row, c, rows, width, width, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION)
    mlp = product(h_ptr, value_ptr, row, c, rows, 2 * width, width, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION)
    # Gate, add, write.
    mask = (row < rows)[:, None] & (c < width)[None, :]
    offset = row.to(tl.int64)[:, None] * width + c[None, :]
    m = tl.load(m_ptr + offset, mask=mask, other=0.0)  # [BLOCK_M, BLOCK_N]
    tl.store(y_ptr + offset, (m + sigmoid_stable(gate) * mlp).to(y_ptr.dtype.element_ty), mask=mask)
