"""Products of integers on CPUs: pairs of int16 to int32, their sums exact, for numba.

A factor of 13 bits and sign is an int16, and every vector unit can multiply pairs of those and add each two products as
an int32 (vpdpwssd with AVX-512 VNNI, which adds to the sum as well; pmaddwd since SSE2). So there are no digits here. A
product is at most 8191^2 < 2^26, so that 32 of them fit an int32; from there on sums are kept in float64, in which
integers below 2^53 are exact. Weights are mostly far smaller than 8191: `pack` finds how many terms of the ones at hand
fit an int32 whatever the other factor is. The instructions are LLVM's choice; what is written down is exact on every
processor.

Importing this needs numba.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from lalic_kernels.exact import numbers as n

LANES = 16  # outputs of a vector
ROWS = 4  # rows that one pass over the weights serves: with two vectors, eight sums stay in registers
SAFE_PAIRS = 16  # 32 products of 8191^2 fit an int32
_MOST_PAIRS = 512
Factor = tuple[np.ndarray, np.ndarray, np.ndarray, int]


def pack(weight: np.ndarray) -> tuple[np.ndarray, int]:
    """A weight (O, K) int16 as `multiply` reads it: (blocks of O, pairs of K, 16, 2), zeros behind; pairs to an int32.

    The second result is the largest power of two p such that the absolute weights of 2 p terms from any multiple of
    2 p on, times 8191, sum up to less than 2^31 in every output.
    """
    outputs, terms = weight.shape
    padded = np.zeros((-(-outputs // LANES) * LANES, -(-terms // 2) * 2), np.int16)
    padded[:outputs, :terms] = weight
    pairs = padded.shape[1] // 2
    sizes = np.abs(weight.astype(np.int64))
    chunk = SAFE_PAIRS
    while chunk < min(pairs, _MOST_PAIRS):
        edges = np.arange(0, terms, 4 * chunk)
        if int(np.add.reduceat(sizes, edges, axis=1).max()) * n.LARGEST >= 2**31:
            break
        chunk *= 2
    blocks = padded.reshape(padded.shape[0] // LANES, LANES, pairs, 2).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(blocks), chunk


def _make_tile(vectors: int) -> Any:
    """For compiled code: the sums of ROWS rows with `vectors` blocks of outputs, rounded to float32 at the end."""

    @intrinsic
    def tile(typing: Any, q: Any, row: Any, w: Any, block: Any, chunk: Any, sums: Any) -> Any:
        signature = types.void(q, types.intp, w, types.intp, types.intp, sums)
        return signature, lambda context, builder, sig, args: _emit(context, builder, sig.args, args, vectors)

    return tile


def _emit(context: Any, builder: Any, kinds: Any, args: Any, vectors: int) -> Any:
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
    nothing, undefined = ir.Constant(int32s, [0] * LANES), ir.Constant(wide, ir.Undefined)
    even, odd = (ir.Constant(int32s, [2 * i + side for i in range(LANES)]) for side in (0, 1))
    tiles = [(r, v) for r in range(ROWS) for v in range(vectors)]
    part = {tile: cgutils.alloca_once(builder, int32s) for tile in tiles}
    total = {tile: cgutils.alloca_once_value(builder, ir.Constant(doubles, [0.0] * LANES)) for tile in tiles}
    x_rows, w_blocks = rows_from(row, ROWS, pairs), rows_from(block, vectors, pairs)
    with cgutils.for_range_slice(builder, constant(0), pairs, chunk) as (start, _):
        for tile in tiles:
            builder.store(nothing, part[tile])
        beyond = builder.add(start, chunk)
        stop = builder.select(builder.icmp_signed("<", beyond, pairs), beyond, pairs)
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
                x = as_pairs(builder.shuffle_vector(one, ir.Constant(int32s, ir.Undefined), nothing))
                for v in range(vectors):
                    # Products of neighbours added: the pattern that LLVM turns into one instruction.
                    product = builder.mul(x, factors[v])
                    two = [builder.shuffle_vector(product, undefined, side) for side in (even, odd)]
                    builder.store(builder.add(builder.load(part[r, v]), builder.add(*two)), part[r, v])
        for tile in tiles:
            grown = builder.fadd(builder.load(total[tile]), builder.sitofp(builder.load(part[tile]), doubles))
            builder.store(grown, total[tile])
    for (r, v), first in zip(tiles, (f for f in rows_from(row, ROWS, width) for _ in range(vectors)), strict=True):
        column = builder.mul(builder.add(block, constant(v)), constant(LANES))
        pointer = builder.bitcast(builder.gep(out, [builder.add(first, column)]), floats.as_pointer())
        builder.store(builder.fptrunc(builder.load(total[r, v]), floats), pointer, align=4)
    return context.get_dummy_value()


_tile, _narrow_tile = _make_tile(2), _make_tile(1)


@njit(nogil=True, cache=True)
def multiply(q, w, chunk, rows, sums):
    """sums (R, 16 blocks) float32 = float(q w), the exact sum rounded once, of the first `rows` rows and a few more.

    q (R, 2 pairs) int16 within +-8191, w and chunk as `pack` gives them; R a multiple of ROWS. A factor of a filled-up
    term or output is 0, so that q may hold anything there.
    """
    blocks = w.shape[0]
    for block in range(0, blocks - 1, 2):
        for row in range(0, rows, ROWS):
            _tile(q, row, w, block, chunk, sums)
    if blocks % 2:
        for row in range(0, rows, ROWS):
            _narrow_tile(q, row, w, blocks - 1, chunk, sums)
