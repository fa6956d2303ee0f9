"""Products of integers on CPUs, for numba: products of int16 pairs with exact sums.

A factor of 13 bits and sign is an int16. Every vector unit can multiply pairs of int16 and add two products as an int32
(pmaddwd since SSE2; vpdpwssd with AVX-512 VNNI also adds to the sum), so no digits are needed. A product is at most
8191^2 < 2^26: 32 of them fit an int32. Longer sums continue in float64, which is exact for integers below 2^53. Weights
are mostly far smaller than 8191: `pack` computes how many terms fit an int32 for any other factor. LLVM chooses the
instructions; the operations in this file are exact on every processor.

Importing this file needs numba.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lalic_kernels.exact import numbers as n
from lalic_kernels.numba_math import EXACT, njit

LANES = 16  # outputs per vector
ROWS = 4  # rows per pass over the weights: with two vectors, eight sums stay in registers
SAFE_PAIRS = 16  # 32 products of 8191^2 fit an int32
_MAX_PAIRS = 512
Factor = tuple[np.ndarray, np.ndarray, np.ndarray, int]


def pack(weight: np.ndarray) -> tuple[np.ndarray, int]:
    """A weight (O, K) int16 in the layout of `multiply`, (blocks of O, pairs of K, 16, 2), padded with zeros; pairs p.

    p is the largest power of two such that in every output the absolute weights of 2 p terms, starting at any multiple
    of 2 p, times 8191, sum to less than 2^31.
    """
    outputs, terms = weight.shape
    padded = np.zeros((-(-outputs // LANES) * LANES, -(-terms // 2) * 2), np.int16)
    padded[:outputs, :terms] = weight
    pairs = padded.shape[1] // 2
    sizes = np.abs(weight.astype(np.int64))
    chunk = SAFE_PAIRS
    while chunk < min(pairs, _MAX_PAIRS):
        edges = np.arange(0, terms, 4 * chunk)
        if int(np.add.reduceat(sizes, edges, axis=1).max()) * n.LARGEST >= 2**31:
            break
        chunk *= 2
    blocks = padded.reshape(padded.shape[0] // LANES, LANES, pairs, 2).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(blocks), chunk


def _make_tile(vectors: int) -> Any:
    """An intrinsic: the sums of ROWS rows with `vectors` blocks of outputs, rounded to float32 at the end."""

    @intrinsic
    def tile(typing: Any, q: Any, row: Any, w: Any, block: Any, chunk: Any, sums: Any) -> Any:
        signature = types.void(q, types.intp, w, types.intp, types.intp, sums)
        return signature, lambda context, builder, sig, args: _emit(context, builder, sig.args, args, vectors)

    return tile


def _emit(context: Any, builder: Any, kinds: Any, args: Any, vectors: int) -> Any:
    """LLVM code of a tile."""
    q, row, w, block, chunk, sums = args
    i32, i64, f64 = ir.IntType(32), ir.IntType(64), ir.DoubleType()
    int32s, int16s = ir.VectorType(i32, LANES), ir.VectorType(ir.IntType(16), 2 * LANES)
    wide, doubles, floats = (
        ir.VectorType(i32, 2 * LANES),
        ir.VectorType(f64, LANES),
        ir.VectorType(ir.FloatType(), LANES),
    )

    def constant(value: int) -> Any:
        return ir.Constant(i64, value)

    def array(position: int, value: Any) -> Any:
        return context.make_array(kinds[position])(context, builder, value)

    def rows_from(start: Any, count: int, size: Any) -> list[Any]:
        return [builder.mul(builder.add(start, constant(i)), size) for i in range(count)]

    def as_pairs(value: Any) -> Any:
        return builder.sext(builder.bitcast(value, int16s), wide)

    weights, target = array(2, w), array(5, sums)
    pairs, width = builder.extract_value(weights.shape, 1), builder.extract_value(target.shape, 1)
    left = builder.bitcast(array(0, q).data, i32.as_pointer())
    right = builder.bitcast(weights.data, int32s.as_pointer())
    out = builder.bitcast(target.data, ir.FloatType().as_pointer())
    zeros, undefined = ir.Constant(int32s, [0] * LANES), ir.Constant(wide, ir.Undefined)
    even, odd = (ir.Constant(int32s, [2 * i + side for i in range(LANES)]) for side in (0, 1))
    # An int32 sum of a chunk of pairs, and the float64 sum of all, for each row and vector.
    indices = [(r, v) for r in range(ROWS) for v in range(vectors)]
    part = {i: cgutils.alloca_once(builder, int32s) for i in indices}
    total = {i: cgutils.alloca_once_value(builder, ir.Constant(doubles, [0.0] * LANES)) for i in indices}
    x_rows, w_blocks = rows_from(row, ROWS, pairs), rows_from(block, vectors, pairs)
    with cgutils.for_range_slice(builder, constant(0), pairs, chunk) as (start, _):
        for i in indices:
            builder.store(zeros, part[i])
        chunk_end = builder.add(start, chunk)
        stop = builder.select(builder.icmp_signed("<", chunk_end, pairs), chunk_end, pairs)
        with cgutils.for_range_slice(builder, start, stop, constant(1)) as (k, _):
            factors = []
            for first in w_blocks:
                vector = builder.load(builder.gep(right, [builder.add(first, k)]))
                vector.align = 2
                factors.append(as_pairs(vector))
            for r, first in enumerate(x_rows):
                pair = builder.load(builder.gep(left, [builder.add(first, k)]))
                pair.align = 2
                one = builder.insert_element(ir.Constant(int32s, ir.Undefined), pair, ir.Constant(i32, 0))
                x = as_pairs(builder.shuffle_vector(one, ir.Constant(int32s, ir.Undefined), zeros))
                for v in range(vectors):
                    # Add neighbouring products: LLVM turns this pattern into one instruction.
                    product = builder.mul(x, factors[v])
                    two = [builder.shuffle_vector(product, undefined, side) for side in (even, odd)]
                    builder.store(builder.add(builder.load(part[r, v]), builder.add(*two)), part[r, v])
        for i in indices:
            sums_64 = builder.fadd(builder.load(total[i]), builder.sitofp(builder.load(part[i]), doubles))
            builder.store(sums_64, total[i])
    for (r, v), first in zip(indices, (f for f in rows_from(row, ROWS, width) for _ in range(vectors)), strict=True):
        column = builder.mul(builder.add(block, constant(v)), constant(LANES))
        pointer = builder.bitcast(builder.gep(out, [builder.add(first, column)]), floats.as_pointer())
        builder.store(builder.fptrunc(builder.load(total[r, v]), floats), pointer, align=4)
    return context.get_dummy_value()


_tile, _narrow_tile = _make_tile(2), _make_tile(1)


@njit(**EXACT)
def multiply(q, w, chunk, rows, sums):
    """sums (R, 16 blocks) float32 = float(q w), each exact sum rounded once, for the first `rows` rows and a few more.

    q (R, 2 pairs) int16 within +-8191, R a multiple of ROWS; w and chunk from `pack`. Padded terms have weight 0, so q
    may have any values there.
    """
    blocks = w.shape[0]
    for block in range(0, blocks - 1, 2):
        for row in range(0, rows, ROWS):
            _tile(q, row, w, block, chunk, sums)
    if blocks % 2:
        for row in range(0, rows, ROWS):
            _narrow_tile(q, row, w, blocks - 1, chunk, sums)
