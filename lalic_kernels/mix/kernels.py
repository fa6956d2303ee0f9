"""Triton kernels of the two mixes: the spatial mix's products, and the channel mix's forward in one launch.

Matrices are contiguous and row-major; rows are tokens. Products accumulate in float32; float32 factors are multiplied
as exactly as float32 (`launch.precision`). A tile of all C channels has two parts, MAIN and REST, both powers of two
(96 = 64 + 32, 144 = 128 + 16), so that the model's widths need no padding; other widths are masked.
"""

import triton
import triton.language as tl

from lalic_kernels.triton_math import product, sigmoid_stable, tile_of, transposed_of


@triton.jit
def _store_sum(y, residual_ptr, gamma_ptr, y_ptr, row, c, rows, channels):
    """Write y [rows, columns], or residual + gamma * y, to the rows `row` and columns c of y_ptr."""
    mask = (row < rows)[:, None] & (c < channels)[None, :]
    offset = row.to(tl.int64)[:, None] * channels + c[None, :]
    if residual_ptr is not None:
        gamma = tl.load(gamma_ptr + c, mask=c < channels, other=0.0)  # [columns]
        # y: [rows, columns]
        y = tl.load(residual_ptr + offset, mask=mask, other=0.0).to(tl.float32) + gamma[None, :] * y
    tl.store(y_ptr + offset, y.to(y_ptr.dtype.element_ty), mask=mask)


# Sizes are not specialised, so that another size needs no compilation.
@triton.jit(do_not_specialize=["rows", "channels", "per"])
def rows_linear_kernel(
    x_ptr,  # (rows, C)
    matrix_ptr,  # (PLANES * C, C)
    residual_ptr,  # (rows, C), or None; only with one plane
    gamma_ptr,  # (C,) float32, or None
    y_ptr,  # (PLANES, rows, C), written
    rows,
    channels,  # C, at most MAIN + REST if HELD
    per,  # blocks of outputs per program
    VEC: tl.constexpr,  # C is a multiple of it
    PLANES: tl.constexpr,
    HELD: tl.constexpr,  # 1: a program reads its rows of x once; 0: again for each block of outputs
    MAIN: tl.constexpr,
    REST: tl.constexpr,  # 0 for none
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,  # used only without HELD
    PRECISION: tl.constexpr,  # of float32 products: `launch.precision`
):
    """y = x @ matrix^T, or residual + gamma * (). C outputs form a plane. Grid (blocks of rows, groups of blocks)."""
    # A block of rows; with HELD it stays in registers.
    channels = (channels // VEC) * VEC
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c0 = tl.arange(0, MAIN)
    c1 = MAIN + tl.arange(0, REST if REST > 0 else 1)
    if HELD:
        x0 = tile_of(x_ptr, row, c0, rows, channels)  # [BLOCK_M, MAIN]
        if REST > 0:
            x1 = tile_of(x_ptr, row, c1, rows, channels)  # [BLOCK_M, REST]
    # This program's blocks of outputs.
    across = tl.cdiv(channels, BLOCK_N)
    first = tl.program_id(1) * per
    for tile in range(first, tl.minimum(first + per, PLANES * across)):
        plane = tile // across
        n = tile % across * BLOCK_N + tl.arange(0, BLOCK_N)
        matrix = matrix_ptr + plane * channels * channels
        # The product: [BLOCK_M, BLOCK_N] float32.
        if HELD:
            y = tl.dot(x0, transposed_of(matrix, n, c0, channels, channels), input_precision=PRECISION)
            if REST > 0:
                y = tl.dot(x1, transposed_of(matrix, n, c1, channels, channels), y, input_precision=PRECISION)
        else:
            y = product(x_ptr, matrix, row, n, rows, channels, channels, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION)
        # Residual and gamma; write.
        plane_ptr = y_ptr + plane.to(tl.int64) * rows * channels
        _store_sum(y, residual_ptr, gamma_ptr, plane_ptr, row, n, rows, channels)


@triton.jit(do_not_specialize=["rows", "channels", "hidden"])
def channel_mix_kernel(
    x_ptr,  # (rows, C)
    key_ptr,  # (hidden, C)
    receptance_ptr,  # (C, C)
    value_ptr,  # (C, hidden)
    residual_ptr,  # (rows, C), or None
    gamma_ptr,  # (C,) float32, or None
    y_ptr,  # (rows, C), written
    rows,
    channels,  # C, at most MAIN + REST
    hidden,
    VEC: tl.constexpr,  # C and hidden are multiples of it
    HELD: tl.constexpr,  # 1: x stays in registers; 0: it is read again for each block of the hidden layer
    MAIN: tl.constexpr,
    REST: tl.constexpr,  # 0 for none
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,  # hidden channels at a time
    BLOCK_K: tl.constexpr,  # input channels at a time in the gate's product
    PRECISION: tl.constexpr,  # of float32 products: `launch.precision`
):
    """y = sigmoid(x @ receptance^T) * (relu(x @ key^T)^2 @ value^T), or residual + gamma * ().

    Grid (blocks of rows,). The hidden layer is rounded to x's dtype before the second product, as if it were stored.
    """
    # A block of rows, all channels in two parts; sums [BLOCK_M, MAIN] and [BLOCK_M, REST].
    channels = (channels // VEC) * VEC
    hidden = (hidden // VEC) * VEC
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c0 = tl.arange(0, MAIN)
    acc0 = tl.zeros([BLOCK_M, MAIN], tl.float32)
    if HELD:
        x0 = tile_of(x_ptr, row, c0, rows, channels)  # [BLOCK_M, MAIN]
    if REST > 0:
        c1 = MAIN + tl.arange(0, REST)
        if HELD:
            x1 = tile_of(x_ptr, row, c1, rows, channels)  # [BLOCK_M, REST]
        acc1 = tl.zeros([BLOCK_M, REST], tl.float32)
    for start in range(0, hidden, BLOCK_N):
        # A block of the hidden layer: [BLOCK_M, BLOCK_N].
        h = start + tl.arange(0, BLOCK_N)
        if HELD:
            a = tl.dot(x0, transposed_of(key_ptr, h, c0, hidden, channels), input_precision=PRECISION)
            if REST > 0:
                a = tl.dot(x1, transposed_of(key_ptr, h, c1, hidden, channels), a, input_precision=PRECISION)
        else:
            a = product(x_ptr, key_ptr, row, h, rows, channels, hidden, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION)
        # Squared relu; add the product with value to the sums.
        a = tl.where(a < 0.0, 0.0, a)  # not tl.maximum: a NaN must stay NaN
        a = (a * a).to(x_ptr.dtype.element_ty)
        acc0 = tl.dot(a, transposed_of(value_ptr, c0, h, channels, hidden), acc0, input_precision=PRECISION)
        if REST > 0:
            acc1 = tl.dot(a, transposed_of(value_ptr, c1, h, channels, hidden), acc1, input_precision=PRECISION)
    # Gate, residual and gamma, for each part.
    gate0 = product(x_ptr, receptance_ptr, row, c0, rows, channels, channels, BLOCK_M, MAIN, BLOCK_K, PRECISION)
    _store_sum(sigmoid_stable(gate0) * acc0, residual_ptr, gamma_ptr, y_ptr, row, c0, rows, channels)
    if REST > 0:
        gate1 = product(x_ptr, receptance_ptr, row, c1, rows, channels, channels, BLOCK_M, REST, BLOCK_K, PRECISION)
        _store_sum(sigmoid_stable(gate1) * acc1, residual_ptr, gamma_ptr, y_ptr, row, c1, rows, channels)
