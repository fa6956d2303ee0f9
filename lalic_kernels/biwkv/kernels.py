"""Triton kernels of BiWKV's forward: factors, sums of chunks, rows. float32 arithmetic.

Tensors are contiguous, tokens major: k, v, y are (B, T, C). A chunk has 4 GROUPS tokens; a thread takes the four tokens
of a group times as many channels as 16 bytes hold, so that most of a running sum needs no other thread.

* `factors` is float32 (2 GROUPS + 4, C), with n = 4 tokens a group, L = 4 GROUPS, |w| L <= 20:
  rows U(g) = exp(n w (g - o)) and W(g) = exp(-n w (g - o')), where o, o' = GROUPS, 0 for w >= 0, else 0, GROUPS,
  so that none exceeds one; then exp(-w), kappa = exp(n w + |w| L), exp(u), and whether this block of channels takes the
  fast form (1) or the logarithmic one (0). kappa U(g) W(h) = exp(-n w (h - 1 - g)): the weight of group g seen from h.
* `sums` and `entering` are float32 (6, B, chunks, C): numerator a, denominator b, exponent e, meaning (a, b) exp(e), of
  what goes right and of what goes left. README.md has the equations.
"""

import triton
import triton.language as tl

from lalic_kernels.biwkv.kernels_log import log_chunk_sums, log_row

# The exponent of "nothing": finite, so that differences stay numbers, and below any key that is not itself absurd.
NOTHING = tl.constexpr(-1.0e38)
# The fast form's range: max|w| times the tokens of a chunk, and max|u|.
RANGE = tl.constexpr(20.0)

# A size of one must stay a number with a type, not become a compile-time constant.
_SIZES = ["tokens", "channels", "chunks"]


@triton.jit(do_not_specialize=["channels"])
def factors_kernel(
    w_ptr,  # (C,) float32
    u_ptr,  # (C,) float32
    factors_ptr,  # (2 GROUPS + 4, C) float32, written
    channels,  # C
    GROUPS: tl.constexpr,
    PER_GROUP: tl.constexpr,  # tokens a group
    BLOCK_C: tl.constexpr,
):
    """The powers of exp(w) that all programs share, from float64, and each block's form. Grid (blocks of C,)."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_in = c < channels
    w = tl.load(w_ptr + c, mask=c_in, other=0.0)
    u = tl.load(u_ptr + c, mask=c_in, other=0.0)
    within = (tl.abs(w) * (PER_GROUP * GROUPS) <= RANGE) & (tl.abs(u) <= RANGE)  # a NaN is not
    fast = tl.min(within.to(tl.int32), axis=0)
    w = tl.where(within, w, 0.0).to(tl.float64) * PER_GROUP
    u = tl.where(within, u, 0.0).to(tl.float64)
    g = tl.arange(0, GROUPS)[:, None].to(tl.float64)
    start_up = tl.where(w >= 0, GROUPS, 0).to(tl.float64)
    start_down = GROUPS - start_up
    place = factors_ptr + tl.arange(0, GROUPS)[:, None] * channels + c[None, :]
    inside = c_in[None, :] & (g >= 0)
    tl.store(place, tl.exp(w[None, :] * (g - start_up[None, :])).to(tl.float32), mask=inside)
    tl.store(place + GROUPS * channels, tl.exp(-w[None, :] * (g - start_down[None, :])).to(tl.float32), mask=inside)
    last = factors_ptr + 2 * GROUPS * channels + c
    tl.store(last, tl.exp(-w / PER_GROUP).to(tl.float32), mask=c_in)
    tl.store(last + channels, tl.exp(w + tl.abs(w) * GROUPS).to(tl.float32), mask=c_in)
    tl.store(last + 2 * channels, tl.exp(u).to(tl.float32), mask=c_in)
    tl.store(last + 3 * channels, tl.where(c_in, fast, 0).to(tl.float32), mask=c_in)


@triton.jit(do_not_specialize=_SIZES)
def chunk_sums_kernel(
    w_ptr,  # (C,) float32
    k_ptr,  # (B, T, C)
    v_ptr,  # (B, T, C)
    factors_ptr,  # (2 GROUPS + 4, C) float32
    sums_ptr,  # (6, B, chunks, C) float32, written
    peaks_ptr,  # (B, chunks, C) float32, written if CENTRED: v at the chunk's largest key
    tokens,  # T
    channels,  # C
    chunks,
    plane,  # B * chunks * C
    GROUPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    VEC: tl.constexpr,  # C is a multiple of it
    FAST_ONLY: tl.constexpr,  # leaves the logarithmic form out, to count instructions
    CENTRED: tl.constexpr,  # sums of p (v - peak), which `chunk_scan_kernel` goes on from
):
    """Each chunk's sum as the first token after it sees it, and as the last token before it does.

    The fast form leaves out kappa W(GROUPS) and kappa U(-1), which the scan puts in. Grid (blocks of C, B * chunks).
    """
    LENGTH: tl.constexpr = 4 * GROUPS
    channels = (channels // VEC) * VEC
    first = tl.program_id(0) * BLOCK_C
    c = first + tl.arange(0, BLOCK_C)
    c_in = c < channels
    program = tl.program_id(1).to(tl.int64)
    chunk = program % chunks
    start = (program // chunks * tokens + chunk * LENGTH) * channels
    left = (tokens - chunk * LENGTH).to(tl.int32)  # tokens from the chunk's first one on
    w = tl.load(w_ptr + c, mask=c_in, other=0.0)
    out = sums_ptr + program * channels + c
    plane = plane.to(tl.int64)
    if FAST_ONLY or tl.load(factors_ptr + (2 * GROUPS + 3) * channels + first) > 0.5:
        g = tl.arange(0, GROUPS)
        offset = (4 * g)[:, None] * channels + c[None, :]
        in0 = (4 * g < left)[:, None] & c_in[None, :]
        in1 = (4 * g + 1 < left)[:, None] & c_in[None, :]
        in2 = (4 * g + 2 < left)[:, None] & c_in[None, :]
        in3 = (4 * g + 3 < left)[:, None] & c_in[None, :]
        k_ptr += start
        v_ptr += start
        k0 = tl.load(k_ptr + offset, mask=in0, other=NOTHING).to(tl.float32)
        k1 = tl.load(k_ptr + offset + channels, mask=in1, other=NOTHING).to(tl.float32)
        k2 = tl.load(k_ptr + offset + 2 * channels, mask=in2, other=NOTHING).to(tl.float32)
        k3 = tl.load(k_ptr + offset + 3 * channels, mask=in3, other=NOTHING).to(tl.float32)
        v0 = tl.load(v_ptr + offset, mask=in0, other=0.0).to(tl.float32)
        v1 = tl.load(v_ptr + offset + channels, mask=in1, other=0.0).to(tl.float32)
        v2 = tl.load(v_ptr + offset + 2 * channels, mask=in2, other=0.0).to(tl.float32)
        v3 = tl.load(v_ptr + offset + 3 * channels, mask=in3, other=0.0).to(tl.float32)
        table = g[:, None] * channels + c[None, :]
        up = tl.load(factors_ptr + table, mask=c_in[None, :], other=0.0)
        down = tl.load(factors_ptr + GROUPS * channels + table, mask=c_in[None, :], other=0.0)
        step = tl.load(factors_ptr + 2 * GROUPS * channels + c, mask=c_in, other=0.0)[None, :]
        # Where weights grow with distance, room for their growth, so that no sum exceeds that of |v|.
        e = tl.max(tl.maximum(tl.maximum(k0, k1), tl.maximum(k2, k3)), axis=0)
        if CENTRED:
            z = tl.maximum(tl.where(k0 == e[None, :], v0, NOTHING), tl.where(k1 == e[None, :], v1, NOTHING))
            z = tl.maximum(z, tl.where(k2 == e[None, :], v2, NOTHING))
            z = tl.max(tl.maximum(z, tl.where(k3 == e[None, :], v3, NOTHING)), axis=0)
            tl.store(peaks_ptr + program * channels + c, z, mask=c_in)
            v0 -= z[None, :]
            v1 -= z[None, :]
            v2 -= z[None, :]
            v3 -= z[None, :]
        e = tl.where(c_in, e + tl.maximum(-w, 0.0) * LENGTH, 0.0)
        p0 = tl.exp(k0 - e[None, :])
        p1 = tl.exp(k1 - e[None, :])
        p2 = tl.exp(k2 - e[None, :])
        p3 = tl.exp(k3 - e[None, :])
        tl.store(out + plane, tl.sum((((p0 * step + p1) * step + p2) * step + p3) * up, axis=0), mask=c_in)
        tl.store(out + 4 * plane, tl.sum((((p3 * step + p2) * step + p1) * step + p0) * down, axis=0), mask=c_in)
        p0 *= v0
        p1 *= v1
        p2 *= v2
        p3 *= v3
        tl.store(out, tl.sum((((p0 * step + p1) * step + p2) * step + p3) * up, axis=0), mask=c_in)
        tl.store(out + 3 * plane, tl.sum((((p3 * step + p2) * step + p1) * step + p0) * down, axis=0), mask=c_in)
        tl.store(out + 2 * plane, e, mask=c_in)
        tl.store(out + 5 * plane, e, mask=c_in)
    else:
        if CENTRED:
            tl.store(peaks_ptr + program * channels + c, tl.zeros([BLOCK_C], tl.float32), mask=c_in)
        log_chunk_sums(w, k_ptr + start, v_ptr + start, out, plane, left, channels, c, c_in, LENGTH, BLOCK_C)


@triton.jit
def sums_before(a, a_before, b, b_before, a_here, a_before_here, b_here, b_before_here):
    """Two running sums, each with and without the last element: no subtraction, so no cancellation."""
    return a + a_here, a + a_before_here, b + b_here, b + b_before_here


@triton.jit
def row_values(num, den, gate_ptr, mask, GATED: tl.constexpr):
    """num / den, times sigmoid(gate) if GATED, for one exponential more and no division more.

    sigmoid(x) = exp(min(x, 0)) / (1 + exp(-|x|)): the exponential is of nothing positive, so it does not overflow.
    """
    if GATED:
        gate = tl.load(gate_ptr, mask=mask, other=0.0).to(tl.float32)
        z = tl.exp(-tl.abs(gate))
        num *= tl.where(gate < 0, z, 1.0)
        den *= 1.0 + z
    return num / den


@triton.jit(do_not_specialize=_SIZES)
def rows_kernel(
    w_ptr,  # (C,) float32
    u_ptr,  # (C,) float32
    k_ptr,  # (B, T, C)
    v_ptr,  # (B, T, C)
    gate_ptr,  # (B, T, C), read if GATED
    factors_ptr,  # (2 GROUPS + 4, C) float32
    entering_ptr,  # (6, B, chunks, C) float32
    y_ptr,  # (B, T, C), written
    tokens,  # T
    channels,  # C
    chunks,
    plane,  # B * chunks * C
    GROUPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    VEC: tl.constexpr,  # C is a multiple of it
    FAST_ONLY: tl.constexpr,  # leaves the logarithmic form out, to count instructions
    GATED: tl.constexpr,  # sigmoid(gate) * y in place of y
):
    """y for one chunk of tokens and a block of channels. Grid (blocks of C, B * chunks)."""
    LENGTH: tl.constexpr = 4 * GROUPS
    channels = (channels // VEC) * VEC
    first = tl.program_id(0) * BLOCK_C
    c = first + tl.arange(0, BLOCK_C)
    c_in = c < channels
    program = tl.program_id(1).to(tl.int64)
    chunk = program % chunks
    start = (program // chunks * tokens + chunk * LENGTH) * channels
    left = (tokens - chunk * LENGTH).to(tl.int32)
    k_ptr += start
    v_ptr += start
    gate_ptr += start
    y_ptr += start
    g = tl.arange(0, GROUPS)
    offset = (4 * g)[:, None] * channels + c[None, :]
    state = entering_ptr + program * channels + c
    plane = plane.to(tl.int64)
    if FAST_ONLY or tl.load(factors_ptr + (2 * GROUPS + 3) * channels + first) > 0.5:
        in0 = (4 * g < left)[:, None] & c_in[None, :]
        in1 = (4 * g + 1 < left)[:, None] & c_in[None, :]
        in2 = (4 * g + 2 < left)[:, None] & c_in[None, :]
        in3 = (4 * g + 3 < left)[:, None] & c_in[None, :]
        k0 = tl.load(k_ptr + offset, mask=in0, other=NOTHING).to(tl.float32)
        k1 = tl.load(k_ptr + offset + channels, mask=in1, other=NOTHING).to(tl.float32)
        k2 = tl.load(k_ptr + offset + 2 * channels, mask=in2, other=NOTHING).to(tl.float32)
        k3 = tl.load(k_ptr + offset + 3 * channels, mask=in3, other=NOTHING).to(tl.float32)
        v0 = tl.load(v_ptr + offset, mask=in0, other=0.0).to(tl.float32)
        v1 = tl.load(v_ptr + offset + channels, mask=in1, other=0.0).to(tl.float32)
        v2 = tl.load(v_ptr + offset + 2 * channels, mask=in2, other=0.0).to(tl.float32)
        v3 = tl.load(v_ptr + offset + 3 * channels, mask=in3, other=0.0).to(tl.float32)
        table = g[:, None] * channels + c[None, :]
        up = tl.load(factors_ptr + table, mask=c_in[None, :], other=0.0)
        down = tl.load(factors_ptr + GROUPS * channels + table, mask=c_in[None, :], other=1.0)
        constants = factors_ptr + 2 * GROUPS * channels + c
        step = tl.load(constants, mask=c_in, other=0.0)[None, :]
        kappa = tl.load(constants + channels, mask=c_in, other=1.0)[None, :]
        bonus = tl.load(constants + 2 * channels, mask=c_in, other=0.0)[None, :]
        ref = tl.load(state + 2 * plane, mask=c_in, other=0.0)[None, :]
        p0 = tl.exp(k0 - ref)
        p1 = tl.exp(k1 - ref)
        p2 = tl.exp(k2 - ref)
        p3 = tl.exp(k3 - ref)
        v0 *= p0
        v1 *= p1
        v2 *= p2
        v3 *= p3
        # From here on v stands for p v. What comes from the left, as the first token of each group sees it.
        a = (((v0 * step + v1) * step + v2) * step + v3) * up
        b = (((p0 * step + p1) * step + p2) * step + p3) * up
        nothing = tl.zeros([GROUPS, BLOCK_C], tl.float32)
        a, num, b, den = tl.associative_scan((a, nothing, b, nothing), 0, sums_before)
        num = (num + tl.load(state, mask=c_in, other=0.0)[None, :]) * (kappa * down)
        den = (den + tl.load(state + plane, mask=c_in, other=1.0)[None, :]) * (kappa * down)
        num0 = num + bonus * v0
        den0 = den + bonus * p0
        num = num * step + v0
        den = den * step + p0
        num1 = num + bonus * v1
        den1 = den + bonus * p1
        num = num * step + v1
        den = den * step + p1
        num2 = num + bonus * v2
        den2 = den + bonus * p2
        num3 = num * step + v2 + bonus * v3
        den3 = den * step + p2 + bonus * p3
        # What comes from the right, as the last token of each group sees it.
        a = (((v3 * step + v2) * step + v1) * step + v0) * down
        b = (((p3 * step + p2) * step + p1) * step + p0) * down
        a, num, b, den = tl.associative_scan((a, nothing, b, nothing), 0, sums_before, reverse=True)
        num = (num + tl.load(state + 3 * plane, mask=c_in, other=0.0)[None, :]) * (kappa * up)
        den = (den + tl.load(state + 4 * plane, mask=c_in, other=0.0)[None, :]) * (kappa * up)
        y3 = row_values(num3 + num, den3 + den, gate_ptr + offset + 3 * channels, in3, GATED)
        num = num * step + v3
        den = den * step + p3
        y2 = row_values(num2 + num, den2 + den, gate_ptr + offset + 2 * channels, in2, GATED)
        num = num * step + v2
        den = den * step + p2
        y1 = row_values(num1 + num, den1 + den, gate_ptr + offset + channels, in1, GATED)
        y0 = row_values(num0 + num * step + v1, den0 + den * step + p1, gate_ptr + offset, in0, GATED)
        tl.store(y_ptr + offset, y0.to(y_ptr.dtype.element_ty), mask=in0)
        tl.store(y_ptr + offset + channels, y1.to(y_ptr.dtype.element_ty), mask=in1)
        tl.store(y_ptr + offset + 2 * channels, y2.to(y_ptr.dtype.element_ty), mask=in2)
        tl.store(y_ptr + offset + 3 * channels, y3.to(y_ptr.dtype.element_ty), mask=in3)
    else:
        w = tl.load(w_ptr + c, mask=c_in, other=0.0)
        u = tl.load(u_ptr + c, mask=c_in, other=0.0)
        for place in range(4):
            num, den = log_row(
                w, u, k_ptr, v_ptr, state, plane, 4 * g + place, left, channels, c, c_in, LENGTH, BLOCK_C
            )
            mask = (4 * g + place < left)[:, None] & c_in[None, :]
            y = row_values(num, den, gate_ptr + offset + place * channels, mask, GATED)
            tl.store(y_ptr + offset + place * channels, y.to(y_ptr.dtype.element_ty), mask=mask)
