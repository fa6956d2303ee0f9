"""Triton kernel of the spatial mix's two products. Matrices are contiguous and row-major, rows are tokens."""

import triton
import triton.language as tl

from lalic_kernels._core.kernels_linear import product, tile_of, transposed_of


@triton.jit
def rows_linear_kernel(
    x_ptr,  # (rows, C)
    matrix_ptr,  # (PLANES * C, C)
    residual_ptr,  # (rows, C); unused without RESIDUAL
    gamma_ptr,  # (C,) float32; unused without RESIDUAL
    y_ptr,  # (PLANES, rows, C), written
    rows,
    channels,  # C, at most MAIN + REST if HELD
    per,  # blocks of outputs a program
    VEC: tl.constexpr,  # C is a multiple of it
    PLANES: tl.constexpr,
    RESIDUAL: tl.constexpr,  # only with one plane
    HELD: tl.constexpr,  # 1: a program reads its rows of x once; 0: for each block of outputs
    MAIN: tl.constexpr,
    REST: tl.constexpr,  # 0 for none
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,  # unless HELD
):
    """y = x @ matrix^T, or residual + gamma * (), a plane for each C outputs. Grid (blocks of rows, groups of blocks).

    Sums are float32; float32 inputs are multiplied as IEEE float32.
    """
    channels = (channels // VEC) * VEC
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c0 = tl.arange(0, MAIN)
    c1 = MAIN + tl.arange(0, REST if REST > 0 else 1)
    if HELD:
        x0 = tile_of(x_ptr, row, c0, rows, channels)
        if REST > 0:
            x1 = tile_of(x_ptr, row, c1, rows, channels)
    across = tl.cdiv(channels, BLOCK_N)
    first = tl.program_id(1) * per
    for tile in range(first, tl.minimum(first + per, PLANES * across)):
        plane = tile // across
        n = tile % across * BLOCK_N + tl.arange(0, BLOCK_N)
        matrix = matrix_ptr + plane * channels * channels
        if HELD:
            y = tl.dot(x0, transposed_of(matrix, n, c0, channels, channels), input_precision="ieee")
            if REST > 0:
                y = tl.dot(x1, transposed_of(matrix, n, c1, channels, channels), y, input_precision="ieee")
        else:
            y = product(x_ptr, matrix, row, n, rows, channels, channels, BLOCK_M, BLOCK_N, BLOCK_K)
        mask = (row < rows)[:, None] & (n < channels)[None, :]
        offset = row.to(tl.int64)[:, None] * channels + n[None, :]
        if RESIDUAL:
            gamma = tl.load(gamma_ptr + n, mask=n < channels, other=0.0)
            y = tl.load(residual_ptr + offset, mask=mask, other=0.0).to(tl.float32) + gamma[None, :] * y
        tl.store(y_ptr + plane.to(tl.int64) * rows * channels + offset, y.to(y_ptr.dtype.element_ty), mask=mask)
