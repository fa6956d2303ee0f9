"""Exact kernels of the bidirectional WKV: float64, in the order of `reference.biwkv`, bit for bit.

Three launches: weights and the sums of each chunk, the sums that enter each chunk, values. A program is one warp. p v
and p are two planes of (B, T, C); each chunk has four sums. In comments T is BLOCK_T tokens, C is BLOCK_C channels.

A recurrence is a chain of dependent operations with operands from memory. These are loaded for several tokens before
the steps that use them (GROUP tokens, or four if results are stored in between), so that the chain waits for memory
only once for each group. Tokens after the last one do not change the sums.
"""

import triton
import triton.language as tl

from lalic_kernels.exact import numbers as n
from lalic_kernels.exact.kernels_common import (
    clip64,
    double,
    exp64,
    from_order_key,
    settle,
    sigmoid,
)
from lalic_kernels.triton_math import Constant, barrier

CHUNK = Constant(n.CHUNK)
EXP_FLOOR = Constant(n.EXP64_FLOOR)
DECAY_RANGE, BOOST_RANGE = Constant(n.DECAY_RANGE), Constant(n.BOOST_RANGE)
GROUP = Constant(8)


@triton.jit
def _decay_exponent(w_ptr, c, c_in, tokens):
    """-w (C,) float64, clipped so that |w| T is at most 256."""
    count = (tl.full([1], 0, tl.int32) + tokens).to(tl.float64)
    limit = double(DECAY_RANGE) / count
    w = tl.load(w_ptr + c, mask=c_in, other=0.0).to(tl.float64)  # [C]
    return -clip64(w, -limit, limit)


@triton.jit
def _inside(c_in, i, count):
    """c_in if i < count, else False; always a tile (C,)."""
    return c_in & (tl.zeros_like(c_in).to(tl.int32) + i < count)


@triton.jit
def _pair(ptr, plane, index, mask):
    """p v and p at an index of the two planes, (C,) each."""
    pv = tl.load(ptr + index, mask=mask, other=0.0)  # [C]
    p = tl.load(ptr + plane + index, mask=mask, other=0.0)  # [C]
    return pv, p


@triton.jit
def _decayed(ptr, plane, step, begin, count, decay, c_in, BLOCK_C: tl.constexpr):
    """The decayed sums of p v and p, (C,) each, of `count` tokens from index `begin` on in steps of `step`."""
    a = tl.zeros([BLOCK_C], tl.float64)
    b = tl.zeros([BLOCK_C], tl.float64)
    for first in range(0, count, GROUP):
        for i in tl.static_range(GROUP):
            inside = _inside(c_in, first + i, count)
            pv, p = _pair(ptr, plane, begin + (first + i) * step, inside)
            a = tl.where(inside, a * decay + pv, a)
            b = tl.where(inside, b * decay + p, b)
    return a, b


@triton.jit(do_not_specialize=["tokens"])
def exact_wkv_sums_kernel(
    w_ptr,  # (C,)
    kvr_ptr,  # (B, T, 3 C): keys, values, gates
    max_key_ptr,  # (B, C) int32: order keys of the channels' maxima of k
    weights_ptr,  # (2, B, T, C) float64, written: p v, p
    sums_ptr,  # (B, chunks, 4, C) float64, written: of p v and p, decayed to the chunk's end, then to its beginning
    tokens,
    channels,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Weights of a chunk's tokens and their decayed sums. Grid (chunks, blocks of channels, B)."""
    chunk = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    batch = tl.program_id(2).to(tl.int64)
    c_in = c < channels
    max_key = from_order_key(tl.load(max_key_ptr + batch * channels + c, mask=c_in, other=0))  # [C]
    high = tl.where(c_in, max_key, 0.0).to(tl.float64)[None, :]
    plane = tl.num_programs(2).to(tl.int64) * tokens * channels
    first = chunk * CHUNK
    # Weights: [T, C] at a time.
    for start in range(0, CHUNK, BLOCK_T):
        t = first + start + tl.arange(0, BLOCK_T)
        mask = (t < tokens)[:, None] & c_in[None, :]
        token = batch * tokens + t
        source = kvr_ptr + token[:, None] * (3 * channels) + c[None, :]
        k = tl.load(source, mask=mask, other=0.0)  # [T, C]
        v = tl.load(source + channels, mask=mask, other=0.0)  # [T, C]
        below = k.to(tl.float64) - high
        p = exp64(tl.where(below < double(EXP_FLOOR), double(EXP_FLOOR), below))
        target = weights_ptr + token[:, None] * channels + c[None, :]
        tl.store(target, p * settle(v).to(tl.float64), mask=mask)
        tl.store(target + plane, p, mask=mask)
    barrier()  # other threads will read what was written
    # Their sums, to the chunk's end and to its beginning: [C].
    decay = exp64(_decay_exponent(w_ptr, c, c_in, tokens))
    count = tl.minimum(CHUNK, tokens - first)
    weights = weights_ptr + (batch * tokens + first) * channels + c
    target = sums_ptr + (batch * tl.num_programs(0) + chunk) * 4 * channels + c
    a, b = _decayed(weights, plane, channels, 0, count, decay, c_in, BLOCK_C)
    tl.store(target, a, mask=c_in)
    tl.store(target + channels, b, mask=c_in)
    a, b = _decayed(weights, plane, -channels, (count - 1) * channels, count, decay, c_in, BLOCK_C)
    tl.store(target + 2 * channels, a, mask=c_in)
    tl.store(target + 3 * channels, b, mask=c_in)


@triton.jit
def _store_then_add(a, b, i, first, count, pv, p, ptr, plane, index, decay, c_in):
    """One token or chunk: store the sums before it, then add it."""
    inside = _inside(c_in, first + i, count)
    tl.store(ptr + index, a, mask=inside)
    tl.store(ptr + plane + index, b, mask=inside)
    return tl.where(inside, a * decay + pv, a), tl.where(inside, b * decay + p, b)


@triton.jit(do_not_specialize=["tokens", "chunks"])
def exact_wkv_chain_kernel(
    w_ptr,  # (C,)
    sums_ptr,  # (B, chunks, 4, C) float64: each chunk's sums
    entering_ptr,  # (B, chunks, 4, C) float64, written: the sums that enter each chunk
    tokens,
    channels,
    chunks,
    BLOCK_C: tl.constexpr,
):
    """The sums that enter each chunk from the left, or from the right. Grid (blocks of channels, B, 2)."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    batch = tl.program_id(1).to(tl.int64)
    side = tl.program_id(2)
    c_in = c < channels
    # The decay of a whole chunk.
    length = (tl.full([1], 0, tl.int32) + tl.minimum(CHUNK, tokens)).to(tl.float64)
    jump = exp64(_decay_exponent(w_ptr, c, c_in, tokens) * length)
    # Over all chunks: store the sums so far, then add the chunk's.
    begin = ((batch * chunks + side * (chunks - 1)) * 4 + 2 * side) * channels + c
    step = (1 - 2 * side) * 4 * channels
    a = tl.zeros([BLOCK_C], tl.float64)
    b = tl.zeros([BLOCK_C], tl.float64)
    for first in range(0, chunks, 4):
        # Loads come first: the compiler must not move them across stores.
        at = begin + first * step
        a0, b0 = _pair(sums_ptr, channels, at, _inside(c_in, first, chunks))
        a1, b1 = _pair(sums_ptr, channels, at + step, _inside(c_in, first + 1, chunks))
        a2, b2 = _pair(sums_ptr, channels, at + 2 * step, _inside(c_in, first + 2, chunks))
        a3, b3 = _pair(sums_ptr, channels, at + 3 * step, _inside(c_in, first + 3, chunks))
        a, b = _store_then_add(a, b, 0, first, chunks, a0, b0, entering_ptr, channels, at, jump, c_in)
        a, b = _store_then_add(a, b, 1, first, chunks, a1, b1, entering_ptr, channels, at + step, jump, c_in)
        a, b = _store_then_add(a, b, 2, first, chunks, a2, b2, entering_ptr, channels, at + 2 * step, jump, c_in)
        a, b = _store_then_add(a, b, 3, first, chunks, a3, b3, entering_ptr, channels, at + 3 * step, jump, c_in)


@triton.jit(do_not_specialize=["tokens"])
def exact_wkv_values_kernel(
    w_ptr,  # (C,)
    u_ptr,  # (C,)
    kvr_ptr,  # (B, T, 3 C): keys, values, gates
    weights_ptr,  # (2, B, T, C) float64: p v, p
    entering_ptr,  # (B, chunks, 4, C) float64: the sums that enter each chunk
    left_ptr,  # (2, B, T, C) float64, written: each token's sums from the left
    y_ptr,  # (B, T, C), written
    tokens,
    channels,
    BLOCK_C: tl.constexpr,
):
    """y of a chunk's tokens, times sigmoid(gate). Grid (chunks, blocks of channels, B)."""
    chunk = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    batch = tl.program_id(2).to(tl.int64)
    c_in = c < channels
    plane = tl.num_programs(2).to(tl.int64) * tokens * channels
    decay = exp64(_decay_exponent(w_ptr, c, c_in, tokens))
    range_of_boost = double(BOOST_RANGE)
    u = tl.load(u_ptr + c, mask=c_in, other=0.0)  # [C]
    boost = exp64(clip64(u.to(tl.float64), -range_of_boost, range_of_boost))
    count = tl.minimum(CHUNK, tokens - chunk * CHUNK)
    token = batch * tokens + chunk * CHUNK
    first = token * channels + c
    entering = entering_ptr + (batch * tl.num_programs(0) + chunk) * 4 * channels + c
    # From the left: the sums that enter the chunk, then token by token.
    a, b = _pair(entering, channels, 0, c_in)
    for begin in range(0, count, 4):
        # Loads come first: the compiler must not move them across stores.
        at = first + begin * channels
        pv0, p0 = _pair(weights_ptr, plane, at, _inside(c_in, begin, count))
        pv1, p1 = _pair(weights_ptr, plane, at + channels, _inside(c_in, begin + 1, count))
        pv2, p2 = _pair(weights_ptr, plane, at + 2 * channels, _inside(c_in, begin + 2, count))
        pv3, p3 = _pair(weights_ptr, plane, at + 3 * channels, _inside(c_in, begin + 3, count))
        a, b = _store_then_add(a, b, 0, begin, count, pv0, p0, left_ptr, plane, at, decay, c_in)
        a, b = _store_then_add(a, b, 1, begin, count, pv1, p1, left_ptr, plane, at + channels, decay, c_in)
        a, b = _store_then_add(a, b, 2, begin, count, pv2, p2, left_ptr, plane, at + 2 * channels, decay, c_in)
        a, b = _store_then_add(a, b, 3, begin, count, pv3, p3, left_ptr, plane, at + 3 * channels, decay, c_in)
    barrier()
    # From the right: the sums that enter the chunk, then token by token with the values.
    a, b = _pair(entering + 2 * channels, channels, 0, c_in)
    for begin in range(0, count, 4):
        at = first + (count - 1 - begin) * channels
        pv0, p0 = _pair(weights_ptr, plane, at, _inside(c_in, begin, count))
        pv1, p1 = _pair(weights_ptr, plane, at - channels, _inside(c_in, begin + 1, count))
        pv2, p2 = _pair(weights_ptr, plane, at - 2 * channels, _inside(c_in, begin + 2, count))
        pv3, p3 = _pair(weights_ptr, plane, at - 3 * channels, _inside(c_in, begin + 3, count))
        la0, lb0 = _pair(left_ptr, plane, at, _inside(c_in, begin, count))
        la1, lb1 = _pair(left_ptr, plane, at - channels, _inside(c_in, begin + 1, count))
        la2, lb2 = _pair(left_ptr, plane, at - 2 * channels, _inside(c_in, begin + 2, count))
        la3, lb3 = _pair(left_ptr, plane, at - 3 * channels, _inside(c_in, begin + 3, count))
        row = token + count - 1 - begin
        v0, r0 = _inputs(kvr_ptr, row, c, channels, _inside(c_in, begin, count))
        v1, r1 = _inputs(kvr_ptr, row - 1, c, channels, _inside(c_in, begin + 1, count))
        v2, r2 = _inputs(kvr_ptr, row - 2, c, channels, _inside(c_in, begin + 2, count))
        v3, r3 = _inputs(kvr_ptr, row - 3, c, channels, _inside(c_in, begin + 3, count))
        a, b = _value(a, b, 0, begin, count, pv0, p0, la0, lb0, v0, r0, boost, decay, y_ptr, at, c_in)
        a, b = _value(a, b, 1, begin, count, pv1, p1, la1, lb1, v1, r1, boost, decay, y_ptr, at - channels, c_in)
        a, b = _value(a, b, 2, begin, count, pv2, p2, la2, lb2, v2, r2, boost, decay, y_ptr, at - 2 * channels, c_in)
        a, b = _value(a, b, 3, begin, count, pv3, p3, la3, lb3, v3, r3, boost, decay, y_ptr, at - 3 * channels, c_in)


@triton.jit
def _inputs(kvr_ptr, row, c, channels, mask):
    """A token's v and gate, (C,) each."""
    source = kvr_ptr + row * (3 * channels) + c
    v = tl.load(source + channels, mask=mask, other=0.0)  # [C]
    gate = tl.load(source + 2 * channels, mask=mask, other=0.0)  # [C]
    return v, gate


@triton.jit
def _value(a, b, i, first, count, pv, p, left_a, left_b, v, gate, boost, decay, y_ptr, index, c_in):
    """Write y of one token, given the sums a and b from the right; returns these with the token added."""
    inside = _inside(c_in, first + i, count)
    self_weight = boost * p
    num = (left_a + a) + self_weight * settle(v).to(tl.float64)
    den = tl.where(inside, (left_b + b) + self_weight, double(1.0))
    y = settle((num / den).to(tl.float32))
    y = settle(sigmoid(gate) * y)
    tl.store(y_ptr + index, y, mask=inside)
    return tl.where(inside, a * decay + pv, a), tl.where(inside, b * decay + p, b)
