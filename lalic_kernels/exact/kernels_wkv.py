"""Exact kernels of the bidirectional WKV: float64, in the order of `reference.biwkv`, bit for bit.

Three launches: weights and sums of chunks, the sums before and after each token, values and their digits. p v and p are
two planes of (B, T, C); each chunk has four sums. In comments T is BLOCK_T tokens, C is BLOCK_C channels. *Sides* are
rows of a tile (2, C): the first row goes from the first token to the last, the second one from the last to the first.

A recurrence is a chain of dependent operations with operands from memory. These are loaded for GROUP tokens before the
steps that use them, so that the chain waits for memory only once for each group. Tokens after the last one do not
change the sums.
"""

import triton
import triton.language as tl

from lalic_kernels.exact import numbers as n
from lalic_kernels.exact.kernels import store_digits
from lalic_kernels.exact.kernels_common import (
    MIN_EXPONENT,
    SHIFT,
    clip64,
    double,
    exp64,
    from_order_key,
    leading_exponent,
    magnitude,
    power_of_two,
    settle,
    sigmoid,
)
from lalic_kernels.triton_math import Constant, barrier, is_last

CHUNK = Constant(n.CHUNK)
EXP_FLOOR = Constant(n.EXP64_FLOOR)
DECAY_RANGE, BOOST_RANGE = Constant(n.DECAY_RANGE), Constant(n.BOOST_RANGE)
GROUP = Constant(16)


@triton.jit
def _decay(w_ptr, c, c_in, tokens, steps):
    """exp(-w steps) (C,) float64, w clipped so that |w| T is at most 256."""
    zero = tl.full([1], 0, tl.int32)
    limit = double(DECAY_RANGE) / (zero + tokens).to(tl.float64)
    w = tl.load(w_ptr + c, mask=c_in, other=0.0).to(tl.float64)  # [C]
    return exp64(-clip64(w, -limit, limit) * (zero + steps).to(tl.float64))


@triton.jit
def _group(x_ptr, plane, index, step, first, count, c_in):
    """GROUP pairs of p v and p from number `first` of `count` on, (2, C) each; zeros after the last."""
    pairs = ()
    for i in tl.static_range(GROUP):
        inside = c_in & (tl.zeros_like(index) + (first + i) < count)
        at = x_ptr + index + (first + i) * step
        pair = tl.load(at, mask=inside, other=0.0), tl.load(at + plane, mask=inside, other=0.0)
        pairs = pairs + (pair,)  # noqa: RUF005 - Triton does not unpack
    return pairs


@triton.jit
def _add(a, b, pair, decay, inside):
    """The sums a and b with one more pair, where it is inside."""
    pv, p = pair
    return tl.where(inside, a * decay + pv, a), tl.where(inside, b * decay + p, b)


@triton.jit
def _sums_before(a, b, x_ptr, y_ptr, plane, index, step, count, decay, c_in):
    """Over `count` pairs of x, from `index` on in steps of `step`: store the sums before each one to y, then add it."""
    for first in range(0, count, GROUP):
        # Loads come first: the compiler must not move them across stores.
        pairs = _group(x_ptr, plane, index, step, first, count, c_in)
        for i in tl.static_range(GROUP):
            inside = c_in & (tl.zeros_like(index) + (first + i) < count)
            at = y_ptr + index + (first + i) * step
            tl.store(at, a, mask=inside)
            tl.store(at + plane, b, mask=inside)
            a, b = _add(a, b, pairs[i], decay, inside)


@triton.jit(do_not_specialize=["tokens"])
def exact_wkv_sums_kernel(
    w_ptr,  # (C,)
    u_ptr,  # (C,)
    kvr_ptr,  # (B, T, 3 C): keys, values, gates
    max_key_ptr,  # (B, C) int32: order keys of the channels' maxima of k
    weights_ptr,  # (2, B, T, C) float64, written: p v, p
    sums_ptr,  # (B, chunks, 4, C) float64, written: of p v and p, decayed to the chunk's end, then to its beginning
    entering_ptr,  # (B, chunks, 4, C) float64, written: the sums that enter each chunk from the left, from the right
    boost_ptr,  # (C,) float64, written: exp(u)
    counter_ptr,  # (B, blocks of channels) int32 zeros
    tokens,
    channels,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Weights of a chunk's tokens and their decayed sums; the last program adds the chunks up.

    Grid (chunks, blocks of channels, B).
    """
    chunk, chunks = tl.program_id(0), tl.num_programs(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    batch = tl.program_id(2).to(tl.int64)
    c_in = c < channels
    max_key = from_order_key(tl.load(max_key_ptr + batch * channels + c, mask=c_in, other=0))  # [C]
    high = tl.where(c_in, max_key, 0.0).to(tl.float64)[None, :]
    plane = tl.num_programs(2).to(tl.int64) * tokens * channels
    first = chunk * CHUNK
    count = tl.minimum(CHUNK, tokens - first)
    # Weights: [T, C] at a time.
    for start in range(0, count, BLOCK_T):
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
    # Their sums from both sides: (2, C).
    side = tl.arange(0, 2)[:, None]
    both_in = c_in[None, :] & (side < 2)
    decay = _decay(w_ptr, c, c_in, tokens, 1)[None, :]
    index = (batch * tokens + first + side * (count - 1)) * channels + c[None, :]
    step = (1 - 2 * side) * channels
    a = tl.zeros([2, BLOCK_C], tl.float64)
    b = tl.zeros([2, BLOCK_C], tl.float64)
    for begin in range(0, count, GROUP):
        pairs = _group(weights_ptr, plane, index, step, begin, count, both_in)
        for i in tl.static_range(GROUP):
            inside = both_in & (tl.zeros_like(index) + (begin + i) < count)
            a, b = _add(a, b, pairs[i], decay, inside)
    target = sums_ptr + ((batch * chunks + chunk) * 4 + 2 * side) * channels + c[None, :]
    tl.store(target, a, mask=both_in)
    tl.store(target + channels, b, mask=both_in)
    # The last program of these channels: the sums that enter each chunk, and the weight of a token for itself.
    if is_last(counter_ptr + batch * tl.num_programs(1) + tl.program_id(1), chunks):
        range_of_boost = double(BOOST_RANGE)
        u = tl.load(u_ptr + c, mask=c_in, other=0.0)  # [C]
        tl.store(boost_ptr + c, exp64(clip64(u.to(tl.float64), -range_of_boost, range_of_boost)), mask=c_in)
        jump = _decay(w_ptr, c, c_in, tokens, tl.minimum(CHUNK, tokens))[None, :]
        index = ((batch * chunks + side * (chunks - 1)) * 4 + 2 * side) * channels + c[None, :]
        zero = tl.zeros([2, BLOCK_C], tl.float64)
        _sums_before(zero, zero, sums_ptr, entering_ptr, channels, index, 4 * step, chunks, jump, both_in)


@triton.jit(do_not_specialize=["tokens"])
def exact_wkv_states_kernel(
    w_ptr,  # (C,)
    weights_ptr,  # (2, B, T, C) float64: p v, p
    entering_ptr,  # (B, chunks, 4, C) float64: the sums that enter each chunk
    states_ptr,  # (2, 2, B, T, C) float64, written: sums of p v and p before each token, then after each token
    tokens,
    channels,
    BLOCK_C: tl.constexpr,
):
    """The decayed sums of all tokens before and after each one. Grid (chunks, blocks of channels, B)."""
    first = tl.program_id(0) * CHUNK
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    batch = tl.program_id(2).to(tl.int64)
    c_in = c < channels
    side = tl.arange(0, 2)[:, None]
    both_in = c_in[None, :] & (side < 2)
    plane = tl.num_programs(2).to(tl.int64) * tokens * channels
    decay = _decay(w_ptr, c, c_in, tokens, 1)[None, :]
    entering = entering_ptr + ((batch * tl.num_programs(0) + tl.program_id(0)) * 4 + 2 * side) * channels + c[None, :]
    a = tl.load(entering, mask=both_in, other=0.0)  # [2, C]
    b = tl.load(entering + channels, mask=both_in, other=0.0)  # [2, C]
    count = tl.minimum(CHUNK, tokens - first)
    index = (batch * tokens + first + side * (count - 1)) * channels + c[None, :]
    step = (1 - 2 * side) * channels
    _sums_before(a, b, weights_ptr, states_ptr + side * 2 * plane, plane, index, step, count, decay, both_in)


@triton.jit
def _values(kvr_ptr, boost_ptr, weights_ptr, states_ptr, plane, row, c, channels):
    """y of a token, times sigmoid(gate), (C,); 0 after the last channel."""
    c_in = c < channels
    source = kvr_ptr + row * (3 * channels) + c
    v = tl.load(source + channels, mask=c_in, other=0.0)  # [C]
    gate = tl.load(source + 2 * channels, mask=c_in, other=0.0)  # [C]
    index = row * channels + c
    p = tl.load(weights_ptr + plane + index, mask=c_in, other=0.0)  # [C]
    left_a = tl.load(states_ptr + index, mask=c_in, other=0.0)  # [C]
    left_b = tl.load(states_ptr + plane + index, mask=c_in, other=0.0)  # [C]
    right_a = tl.load(states_ptr + 2 * plane + index, mask=c_in, other=0.0)  # [C]
    right_b = tl.load(states_ptr + 3 * plane + index, mask=c_in, other=0.0)  # [C]
    self_weight = tl.load(boost_ptr + c, mask=c_in, other=0.0) * p
    num = (left_a + right_a) + self_weight * settle(v).to(tl.float64)
    den = tl.where(c_in, (left_b + right_b) + self_weight, double(1.0))
    return settle(sigmoid(gate) * settle((num / den).to(tl.float32)))


@triton.jit(do_not_specialize=["rows"])
def exact_wkv_digits_kernel(
    kvr_ptr,  # (rows, 3 C): keys, values, gates
    boost_ptr,  # (C,) float64
    weights_ptr,  # (2, rows, C) float64: p v, p
    states_ptr,  # (2, 2, rows, C) float64
    y_ptr,  # (rows, C), written: the values themselves; may be None if depth is at most BLOCK_C
    high_ptr,  # (rows, depth) int8, written
    low_ptr,  # (rows, depth) int8, written
    scale_ptr,  # (rows,), written: 2^(exponent - 12)
    rows,  # B T
    channels,
    depth,  # at least the channels; digits after them are 0
    BLOCK_C: tl.constexpr,
):
    """Digits of y, one token a program. Grid (rows,)."""
    row = tl.program_id(0) + tl.arange(0, 1).to(tl.int64)
    row_in = row < rows
    plane = tl.zeros_like(row) + rows * tl.cast(channels, tl.int64)
    c = tl.arange(0, BLOCK_C)
    # The values, and their largest magnitude. The last block stays in registers.
    last = 0
    if y_ptr is None:
        y = _values(kvr_ptr, boost_ptr, weights_ptr, states_ptr, plane, row, c, channels)
        y_bits = magnitude(y)
    else:
        last = (depth - 1) // BLOCK_C * BLOCK_C
        y = tl.zeros([BLOCK_C], tl.float32)
        y_bits = tl.zeros([BLOCK_C], tl.int32)
        for begin in range(0, depth, BLOCK_C):
            y = _values(kvr_ptr, boost_ptr, weights_ptr, states_ptr, plane, row, begin + c, channels)
            tl.store(y_ptr + row * channels + begin + c, y, mask=begin + c < channels)
            y_bits = tl.maximum(y_bits, magnitude(y))
    exponent = leading_exponent(tl.max(y_bits, axis=0), MIN_EXPONENT) + tl.zeros_like(row).to(tl.int32)
    tl.store(scale_ptr + row, power_of_two(exponent - SHIFT))
    # Digits.
    up = power_of_two(-(exponent - SHIFT))
    store_digits(high_ptr, low_ptr, y[None, :], up, row, row_in, last + c, depth)
    if y_ptr is not None:
        barrier()  # other threads will read what was written
        for begin in range(0, last, BLOCK_C):
            y = tl.load(y_ptr + row * channels + begin + c)  # [C]
            store_digits(high_ptr, low_ptr, y[None, :], up, row, row_in, begin + c, depth)
