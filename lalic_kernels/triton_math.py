"""@triton.jit functions that kernels of several ops share: a sigmoid, loads with masked edges, a product with a loop.

Matrices are contiguous and row-major, rows are tokens. Products accumulate in float32, and float32 inputs are
multiplied as IEEE float32 (no TF32): some results choose the entropy coder's tables. Any width works.
"""

import triton
import triton.language as tl


@triton.jit
def sigmoid_stable(x):
    """1 / (1 + exp(-x)) without overflow on either side."""
    z = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, z) / (1.0 + z)


@triton.jit
def tile_of(x_ptr, row, c, rows, width):
    """x[row, c], zero outside: x (rows, width)."""
    mask = (row < rows)[:, None] & (c < width)[None, :]
    return tl.load(x_ptr + row.to(tl.int64)[:, None] * width + c[None, :], mask=mask, other=0.0)


@triton.jit
def transposed_of(matrix_ptr, row, column, rows, columns):
    """matrix[row, column]^T, zero outside: matrix (rows, columns), the result (len(column), len(row))."""
    mask = (column < columns)[:, None] & (row < rows)[None, :]
    return tl.load(matrix_ptr + row[None, :] * columns + column[:, None], mask=mask, other=0.0)


@triton.jit
def product(
    x_ptr, matrix_ptr, row, n, rows, width, outputs,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """x @ matrix^T for the given rows and outputs: x (rows, width), matrix (outputs, width), float32 result."""
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, width, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tile_of(x_ptr, row, k, rows, width)  # [BLOCK_M, BLOCK_K]
        acc = tl.dot(x, transposed_of(matrix_ptr, n, k, outputs, width), acc, input_precision="ieee")
    return acc
