"""How the loops read k, v and gate and write y: float32 as it is, bfloat16 widened and rounded chunk by chunk.

bfloat16 is held as uint16. Which of the two an array is, is known when a loop is compiled, and float32 costs nothing.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

from lalic_kernels._core.floats import stored, wide


def room(x, chunk):
    """Where a chunk of x is widened to: of no size for float32, which needs no such place."""


def rows(x, b, first, length, room):
    """A stretch of tokens of x (B, T, C) in float32: a view, or from bfloat16 a copy in `room`."""


def target(y, b, first, length, room):
    """Where the float32 result of a stretch goes: a view of y (B, T, C), or `room`."""


def leave(y, b, first, length, result):
    """Round `result` (length, C) into y (B, T, C), where it is not a view of y already; to nearest, ties to even."""


@overload(room)
def _typed_room(x, chunk):
    if x.dtype == types.float32:
        return lambda x, chunk: np.empty((0, x.shape[2]), np.float32)
    return lambda x, chunk: np.empty((chunk, x.shape[2]), np.float32)


@overload(rows)
def _typed_rows(x, b, first, length, room):
    if x.dtype == types.float32:
        return lambda x, b, first, length, room: x[b, first : first + length]

    def widened(x, b, first, length, room):
        for t in range(length):
            row, target = x[b, first + t], room[t]
            for c in range(x.shape[2]):
                target[c] = wide(row[c])
        return room[:length]

    return widened


@overload(target)
def _typed_target(y, b, first, length, room):
    if y.dtype == types.float32:
        return lambda y, b, first, length, room: y[b, first : first + length]
    return lambda y, b, first, length, room: room[:length]


@overload(leave)
def _typed_leave(y, b, first, length, result):
    if y.dtype == types.float32:
        return lambda y, b, first, length, result: None

    def rounded(y, b, first, length, result):
        for t in range(length):
            row, source = y[b, first + t], result[t]
            for c in range(y.shape[2]):
                row[c] = stored(y, source[c])

    return rounded
