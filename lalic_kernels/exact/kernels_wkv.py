"""Exact kernels of the bidirectional WKV: float64, in the order that `reference.biwkv` fixes, bit for bit.

Three launches: weights and each chunk's sums; the sums that enter a chunk from either side; the values. Tokens follow
one another, channels lie side by side, one warp a program. Tokens behind the last are left out of every loop: their
part of every sum is an exact zero.
"""

import triton
import triton.language as tl

from lalic_kernels.exact import numbers as n
from lalic_kernels.exact.kernels_common import clip64, double, exp64, magnitude, note, settle, sigmoid

CHUNK = tl.constexpr(n.CHUNK)
EXP_FLOOR = tl.constexpr(n.EXP64_FLOOR)
DECAY_RANGE, BOOST_RANGE = tl.constexpr(n.DECAY_RANGE), tl.constexpr(n.BOOST_RANGE)


@triton.jit
def _decay_exponent(w_ptr, c, c_in, tokens):
    """-w, clipped so that |w| T is at most 256, float64."""
    count = (tl.full([1], 0, tl.int32) + tokens).to(tl.float64)
    limit = double(DECAY_RANGE) / count
    return -clip64(tl.load(w_ptr + c, mask=c_in, other=0.0).to(tl.float64), -limit, limit)


@triton.jit
def exact_wkv_sums_kernel(
    w_ptr,  # (C,)
    k_ptr,  # (B, T, C), tokens k_stride apart
    v_ptr,  # (B, T, C), tokens v_stride apart
    tops_ptr,  # (B, parts, C) maxima of k
    weights_ptr,  # (2, B, T, C) float64, written: p v, p
    sums_ptr,  # (B, chunks, 4, C) float64, written: of p v and p to the chunk's end, of p v and p to its beginning
    status_ptr,
    tokens,
    channels,
    parts,
    k_stride,
    v_stride,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Weights of a chunk's tokens and their decayed sums. Grid (chunks, blocks of channels, B)."""
    chunk = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    batch = tl.program_id(2).to(tl.int64)
    c_in = c < channels
    top = tl.full([BLOCK_C], float("-inf"), tl.float32)
    for part in range(0, parts):
        top = tl.maximum(top, tl.load(tops_ptr + (batch * parts + part) * channels + c, mask=c_in, other=0.0))
    high = top.to(tl.float64)[None, :]
    plane = tl.num_programs(2).to(tl.int64) * tokens * channels
    first = chunk * CHUNK
    bad = tl.zeros([BLOCK_T, BLOCK_C], tl.int32)
    for start in range(0, CHUNK, BLOCK_T):
        t = first + start + tl.arange(0, BLOCK_T)
        mask = (t < tokens)[:, None] & c_in[None, :]
        place = batch * tokens + t
        k = tl.load(k_ptr + place[:, None] * k_stride + c[None, :], mask=mask, other=0.0)
        v = tl.load(v_ptr + place[:, None] * v_stride + c[None, :], mask=mask, other=0.0)
        bad = tl.maximum(bad, tl.maximum(magnitude(k), magnitude(v)))
        below = k.to(tl.float64) - high
        p = exp64(tl.where(below < double(EXP_FLOOR), double(EXP_FLOOR), below))
        target = weights_ptr + place[:, None] * channels + c[None, :]
        tl.store(target, p * settle(v).to(tl.float64), mask=mask)
        tl.store(target + plane, p, mask=mask)
    note(status_ptr, bad)
    note(status_ptr, magnitude(tl.load(w_ptr + c, mask=c_in, other=0.0)))
    tl.debug_barrier()  # what other threads wrote is read below
    decay = exp64(_decay_exponent(w_ptr, c, c_in, tokens))
    count = tl.minimum(CHUNK, tokens - first)
    own = weights_ptr + (batch * tokens + first) * channels + c
    a = tl.zeros([BLOCK_C], tl.float64)
    b = tl.zeros([BLOCK_C], tl.float64)
    for i in range(0, count):
        a = a * decay + tl.load(own + i * channels, mask=c_in, other=0.0)
        b = b * decay + tl.load(own + plane + i * channels, mask=c_in, other=0.0)
    target = sums_ptr + (batch * tl.num_programs(0) + chunk) * 4 * channels + c
    tl.store(target, a, mask=c_in)
    tl.store(target + channels, b, mask=c_in)
    a = tl.zeros([BLOCK_C], tl.float64)
    b = tl.zeros([BLOCK_C], tl.float64)
    for i in range(0, count):
        place = (count - 1 - i) * channels
        a = a * decay + tl.load(own + place, mask=c_in, other=0.0)
        b = b * decay + tl.load(own + plane + place, mask=c_in, other=0.0)
    tl.store(target + 2 * channels, a, mask=c_in)
    tl.store(target + 3 * channels, b, mask=c_in)


@triton.jit
def exact_wkv_chain_kernel(
    w_ptr,  # (C,)
    sums_ptr,  # (B, chunks, 4, C) float64: each chunk's own sums become those that enter it
    tokens,
    channels,
    chunks,
    BLOCK_C: tl.constexpr,
):
    """From the left over all chunks, or from the right. Grid (blocks of channels, B, 2)."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    batch = tl.program_id(1).to(tl.int64)
    side = tl.program_id(2)
    c_in = c < channels
    length = (tl.full([1], 0, tl.int32) + tl.minimum(CHUNK, tokens)).to(tl.float64)
    jump = exp64(_decay_exponent(w_ptr, c, c_in, tokens) * length)
    a = tl.zeros([BLOCK_C], tl.float64)
    b = tl.zeros([BLOCK_C], tl.float64)
    for step in range(0, chunks):
        chunk = tl.where(side == 0, step, chunks - 1 - step)
        place = sums_ptr + ((batch * chunks + chunk) * 4 + 2 * side) * channels + c
        own_a = tl.load(place, mask=c_in, other=0.0)
        own_b = tl.load(place + channels, mask=c_in, other=0.0)
        tl.store(place, a, mask=c_in)
        tl.store(place + channels, b, mask=c_in)
        a = a * jump + own_a
        b = b * jump + own_b


@triton.jit
def exact_wkv_values_kernel(
    w_ptr,  # (C,)
    u_ptr,  # (C,)
    v_ptr,  # (B, T, C), tokens v_stride apart
    gate_ptr,  # (B, T, C), tokens gate_stride apart; unused without GATED
    weights_ptr,  # (2, B, T, C) float64: p v, p
    sums_ptr,  # (B, chunks, 4, C) float64: what enters a chunk, from the left and from the right
    left_ptr,  # (2, B, T, C) float64, written: what comes to a token from the left
    y_ptr,  # (B, T, C), written
    status_ptr,
    tokens,
    channels,
    v_stride,
    gate_stride,
    GATED: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """y of a chunk's tokens, times sigmoid(gate) where there is one. Grid (chunks, blocks of channels, B)."""
    chunk = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    batch = tl.program_id(2).to(tl.int64)
    c_in = c < channels
    plane = tl.num_programs(2).to(tl.int64) * tokens * channels
    decay = exp64(_decay_exponent(w_ptr, c, c_in, tokens))
    range_of_boost = double(BOOST_RANGE)
    u = tl.load(u_ptr + c, mask=c_in, other=0.0)
    boost = exp64(clip64(u.to(tl.float64), -range_of_boost, range_of_boost))
    count = tl.minimum(CHUNK, tokens - chunk * CHUNK)
    token = batch * tokens + chunk * CHUNK
    first = token * channels + c
    entering = sums_ptr + (batch * tl.num_programs(0) + chunk) * 4 * channels + c
    a = tl.load(entering, mask=c_in, other=0.0)
    b = tl.load(entering + channels, mask=c_in, other=0.0)
    for i in range(0, count):
        place = first + i * channels
        tl.store(left_ptr + place, a, mask=c_in)
        tl.store(left_ptr + plane + place, b, mask=c_in)
        a = a * decay + tl.load(weights_ptr + place, mask=c_in, other=0.0)
        b = b * decay + tl.load(weights_ptr + plane + place, mask=c_in, other=0.0)
    tl.debug_barrier()
    a = tl.load(entering + 2 * channels, mask=c_in, other=0.0)
    b = tl.load(entering + 3 * channels, mask=c_in, other=0.0)
    bad = magnitude(u)
    for step in range(0, count):
        i = count - 1 - step
        place = first + i * channels
        pv = tl.load(weights_ptr + place, mask=c_in, other=0.0)
        p = tl.load(weights_ptr + plane + place, mask=c_in, other=0.0)
        left_a = tl.load(left_ptr + place, mask=c_in, other=0.0)
        left_b = tl.load(left_ptr + plane + place, mask=c_in, other=1.0)
        v = tl.load(v_ptr + (token + i) * v_stride + c, mask=c_in, other=0.0)
        own = boost * p
        over = (left_a + a) + own * settle(v).to(tl.float64)
        y = settle((over / ((left_b + b) + own)).to(tl.float32))
        if GATED:
            gate = tl.load(gate_ptr + (token + i) * gate_stride + c, mask=c_in, other=0.0)
            bad = tl.maximum(bad, magnitude(gate))
            y = settle(sigmoid(gate) * y)
        tl.store(y_ptr + place, y, mask=c_in)
        a = a * decay + pv
        b = b * decay + p
    note(status_ptr, bad)
