"""What kernels of several ops use: constants, a barrier, a sigmoid, loads with masked edges, a matrix product.

Matrices are contiguous and row-major; rows are tokens; any width works. Products accumulate in float32; how float32
factors are multiplied is PRECISION (`launch.precision`).
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


class Constant(tl.constexpr):
    """A constant of a module that kernels read.

    At each launch Triton compares a kernel's constants with copies that it made when it compiled it. Comparing two
    `tl.constexpr` makes a third: with twenty of them this takes longer than all the rest of a launch. This class is its
    own copy, and the same object is equal at once.
    """

    def __ne__(self, other: object) -> Any:
        return False if self is other else super().__ne__(other)

    __hash__ = tl.constexpr.__hash__

    def __copy__(self) -> Constant:
        return self

    def __deepcopy__(self, _: Any) -> Constant:
        return self


if hasattr(tl, "debug_barrier"):

    @triton.jit
    def barrier():
        """Wait for all threads of the program: loads after it see the stores before it."""
        tl.debug_barrier()

else:  # its name in newer versions of Triton

    @triton.jit
    def barrier():
        """Wait for all threads of the program: loads after it see the stores before it."""
        tl.barrier()


@triton.jit
def is_last(counter_ptr, programs):
    """Whether this is the last of `programs` to get here; then it sees the stores of all others. Resets the counter.

    All threads' stores come before the barrier. Then one thread increments the counter with release and acquire for the
    whole device (PTX: bar.warp.sync or bar.sync, then atom.global.acq_rel.gpu), and the others get it after a barrier.
    """
    barrier()
    last = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu") == programs - 1
    if last:
        tl.store(counter_ptr, 0)
    return last


@triton.jit
def sigmoid_stable(x):
    """1 / (1 + exp(-x)) without overflow."""
    z = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, z) / (1.0 + z)


@triton.jit
def tile_of(x_ptr, row, c, rows, width):
    """x[row, c] with zeros outside of x (rows, width); shape (len(row), len(c))."""
    mask = (row < rows)[:, None] & (c < width)[None, :]
    return tl.load(x_ptr + row.to(tl.int64)[:, None] * width + c[None, :], mask=mask, other=0.0)


@triton.jit
def transposed_of(matrix_ptr, row, column, rows, columns):
    """matrix[row, column]^T with zeros outside of matrix (rows, columns); shape (len(column), len(row))."""
    mask = (column < columns)[:, None] & (row < rows)[None, :]
    return tl.load(matrix_ptr + row[None, :] * columns + column[:, None], mask=mask, other=0.0)


@triton.jit
def product(
    x_ptr, matrix_ptr, row, n, rows, width, outputs,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """x[row] @ matrix[n]^T, shape [BLOCK_M, BLOCK_N] float32; x (rows, width), matrix (outputs, width)."""
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, width, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tile_of(x_ptr, row, k, rows, width)  # [BLOCK_M, BLOCK_K]
        matrix = transposed_of(matrix_ptr, n, k, outputs, width)  # [BLOCK_K, BLOCK_N]
        acc = tl.dot(x, matrix, acc, input_precision=PRECISION)
    return acc
