"""Triton kernels of BiWKV's forward: factors, sums of chunks, their running sums, rows.

Arithmetic is float32; float64 between chunks. k, v, y are contiguous (B, T, C). A chunk has L = 4 GROUPS tokens. A
thread takes the four tokens of a group and four channels, so that most of a running sum needs no other thread.

These kernels have the range |w| L <= 20 and |u| <= 20. For a channel outside of it (or NaN) they compute with zeros in
place of w and u, and kernels_log.py writes that channel's results again.

* `factors` is float32 (2 L + 10, C): U(i) = exp(w (i - o)) and W(i) = exp(-w (i - o')) for each token of a chunk, where
  (o, o') = (L, 0) for w >= 0, else (0, L), so that none exceeds one; then the constants below.
  exp(|w| L + w) U(i) W(j) = exp(-w (j - 1 - i)) is the weight of token i at token j > i.
* `sums` is float32 (5 or 6, B, chunks, C): numerator and denominator of a chunk's tokens to the right, then to the
  left, and the exponent e that all are relative to: a state (a, b) exp(e). The sixth: see `chunk_sums_kernel`.
* `entering` is float32 (5, B, chunks, C): numerator and denominator of all tokens left of a chunk, the exponent that
  all is relative to, numerator and denominator of all tokens right of it. Times W(j) or exp(w) U(j), they are the parts
  of row j. The exponent is such that no weight of a row exceeds one.
"""

import triton
import triton.language as tl

from lalic_kernels.triton_math import Constant, barrier

# The exponent of an empty sum: finite, so that differences are never NaN, and below any sensible key.
EMPTY = Constant(-1.0e38)
LOWEST = Constant(-3.4e38)
# The fast form's range: max|w| times the tokens of a chunk, and max|u|.
RANGE = Constant(20.0)
# The constants of `factors`, rows from 2 L on; w and u are zero outside of the range.
STEP = Constant(0)  # exp(-w)
SPAN = Constant(1)  # exp(|w| L)
RISE = Constant(2)  # exp(w)
RISE_4 = Constant(3)  # exp(4 w)
BONUS = Constant(4)  # exp(u)
FAST = Constant(5)  # 1 inside of the range, else 0
DECAY = Constant(6)  # w
BOOST = Constant(7)  # u
HEADROOM = Constant(8)  # h = max(-w, 0) L + max(u, 0): how far the exponent of `entering` is above the largest
HEAD = Constant(9)  # exp(h)

# Not specialised: another size needs no compilation, and a size of 1 is no compile-time constant without a type.
SIZES = ["tokens", "channels", "chunks", "plane"]


@triton.jit
def constant(factors_ptr, length, index: tl.constexpr, channels, c, c_in):
    """A constant of `factors`, [BLOCK_C]: 0 outside of c_in."""
    return tl.load(factors_ptr + (2 * length + index) * channels + c, mask=c_in, other=0.0)


@triton.jit(do_not_specialize=["channels", "length"])
def factors_kernel(
    w_ptr,  # (C,) float32
    u_ptr,  # (C,) float32
    factors_ptr,  # (2 L + 10, C) float32, written
    channels,  # C
    length,  # L, a multiple of BLOCK_T
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write the powers of exp(w), computed in float64, and the constants. Grid (blocks of C, blocks of L)."""
    # Parameters of a block of channels.
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_in = c < channels
    w = tl.load(w_ptr + c, mask=c_in, other=0.0)  # [BLOCK_C]
    u = tl.load(u_ptr + c, mask=c_in, other=0.0)  # [BLOCK_C]
    fast = (tl.abs(w) * length <= RANGE) & (tl.abs(u) <= RANGE)  # False for NaN
    w = tl.where(fast, w, 0.0).to(tl.float64)
    u = tl.where(fast, u, 0.0).to(tl.float64)
    # Powers of exp(w) by token, U and W: [BLOCK_T, BLOCK_C].
    i = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)[:, None]
    start_up = tl.where(w >= 0, length, 0)[None, :]
    start_down = length - start_up
    table = factors_ptr + i * channels + c[None, :]
    inside = c_in[None, :] & (i < length)
    tl.store(table, tl.exp(w[None, :] * (i - start_up).to(tl.float64)).to(tl.float32), mask=inside)
    down = tl.exp(-w[None, :] * (i - start_down).to(tl.float64)).to(tl.float32)
    tl.store(table + length * channels, down, mask=inside)
    # The constants: [BLOCK_C].
    if tl.program_id(1) == 0:
        last = factors_ptr + 2 * length * channels + c
        tl.store(last + STEP * channels, tl.exp(-w).to(tl.float32), mask=c_in)
        tl.store(last + SPAN * channels, tl.exp(tl.abs(w) * length).to(tl.float32), mask=c_in)
        tl.store(last + RISE * channels, tl.exp(w).to(tl.float32), mask=c_in)
        tl.store(last + RISE_4 * channels, tl.exp(4 * w).to(tl.float32), mask=c_in)
        tl.store(last + BONUS * channels, tl.exp(u).to(tl.float32), mask=c_in)
        tl.store(last + FAST * channels, fast.to(tl.float32), mask=c_in)
        tl.store(last + DECAY * channels, w.to(tl.float32), mask=c_in)
        tl.store(last + BOOST * channels, u.to(tl.float32), mask=c_in)
        headroom = (tl.maximum(-w, 0.0) * length + tl.maximum(u, 0.0)).to(tl.float32)
        tl.store(last + HEADROOM * channels, headroom, mask=c_in)
        tl.store(last + HEAD * channels, tl.exp(headroom.to(tl.float64)).to(tl.float32), mask=c_in)


@triton.jit
def chunk_position(tokens, channels, chunks, LENGTH: tl.constexpr, BLOCK_C: tl.constexpr):
    """The block of channels and the chunk of a program, in a grid of (B * chunks * blocks of C,), channels first.

    Returns all channels [BLOCK_C] and their mask; the program's index of B * chunks; the offset of the chunk's first
    token; the number of tokens from there to the end.
    """
    across = tl.cdiv(channels, BLOCK_C)
    c = tl.program_id(0) % across * BLOCK_C + tl.arange(0, BLOCK_C)
    program = (tl.program_id(0) // across).to(tl.int64)
    token = program % chunks * LENGTH
    start = (program // chunks * tokens + token) * channels
    return c, c < channels, program, start, (tokens - token).to(tl.int32)


@triton.jit
def load_groups(k_ptr, v_ptr, g, remaining, channels, c, c_in):
    """Keys and values of a chunk: masks, keys, values, each [GROUPS, BLOCK_C] for the four tokens of a group."""
    offset = (4 * g)[:, None] * channels + c[None, :]
    in0 = (4 * g < remaining)[:, None] & c_in[None, :]
    in1 = (4 * g + 1 < remaining)[:, None] & c_in[None, :]
    in2 = (4 * g + 2 < remaining)[:, None] & c_in[None, :]
    in3 = (4 * g + 3 < remaining)[:, None] & c_in[None, :]
    k0 = tl.load(k_ptr + offset, mask=in0, other=-float("inf")).to(tl.float32)
    k1 = tl.load(k_ptr + offset + channels, mask=in1, other=-float("inf")).to(tl.float32)
    k2 = tl.load(k_ptr + offset + 2 * channels, mask=in2, other=-float("inf")).to(tl.float32)
    k3 = tl.load(k_ptr + offset + 3 * channels, mask=in3, other=-float("inf")).to(tl.float32)
    v0 = tl.load(v_ptr + offset, mask=in0, other=0.0).to(tl.float32)
    v1 = tl.load(v_ptr + offset + channels, mask=in1, other=0.0).to(tl.float32)
    v2 = tl.load(v_ptr + offset + 2 * channels, mask=in2, other=0.0).to(tl.float32)
    v3 = tl.load(v_ptr + offset + 3 * channels, mask=in3, other=0.0).to(tl.float32)
    return in0, in1, in2, in3, k0, k1, k2, k3, v0, v1, v2, v3


@triton.jit
def load_powers(factors_ptr, g, channels, c, c_in, GROUPS: tl.constexpr):
    """U and W of the first token of each group, [GROUPS, BLOCK_C]."""
    table = factors_ptr + (4 * g)[:, None] * channels + c[None, :]
    up = tl.load(table, mask=c_in[None, :], other=0.0)
    down = tl.load(table + 4 * GROUPS * channels, mask=c_in[None, :], other=1.0)
    return up, down


@triton.jit(do_not_specialize=SIZES)
def chunk_sums_kernel(
    k_ptr,  # (B, T, C)
    v_ptr,  # (B, T, C)
    factors_ptr,  # (2 L + 10, C) float32
    sums_ptr,  # (5, or 6 if CENTRED, B, chunks, C) float32, written
    tokens,  # T
    channels,  # C
    chunks,
    plane,  # B * chunks * C
    GROUPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    VEC: tl.constexpr,  # C is a multiple of it
    CENTRED: tl.constexpr,  # sums of p (v - peak), where peak, the sixth, is v at the chunk's largest key
):
    """Each chunk's sum, decayed to the first token after it, and to the last token before it.

    Left out are the factors exp(4 w + max(-w, 0) L) to the right and exp(max(-w, 0) L) to the left, which whoever reads
    the sums multiplies in. Grid (B * chunks * blocks of C,).
    """
    # The chunk's position.
    LENGTH: tl.constexpr = 4 * GROUPS
    channels = (channels // VEC) * VEC
    c, c_in, program, start, remaining = chunk_position(tokens, channels, chunks, LENGTH, BLOCK_C)
    out = sums_ptr + program * channels + c
    plane = plane.to(tl.int64)
    # Load keys and values: one tensor [GROUPS, BLOCK_C] for each of the four tokens of a group.
    g = tl.arange(0, GROUPS)
    _, _, _, _, k0, k1, k2, k3, v0, v1, v2, v3 = load_groups(
        k_ptr + start, v_ptr + start, g, remaining, channels, c, c_in
    )
    # Load the powers of exp(w).
    up, down = load_powers(factors_ptr, g, channels, c, c_in, GROUPS)
    step = constant(factors_ptr, LENGTH, STEP, channels, c, c_in)[None, :]  # [1, BLOCK_C]
    w = constant(factors_ptr, LENGTH, DECAY, channels, c, c_in)  # [BLOCK_C]
    # The largest key; values relative to the value at that key.
    e = tl.max(tl.maximum(tl.maximum(k0, k1), tl.maximum(k2, k3)), axis=0)
    e = tl.maximum(e, LOWEST)  # of a chunk of tokens that are masked by keys of -inf: finite, so that p is 0
    if CENTRED:
        z = tl.maximum(tl.where(k0 == e[None, :], v0, EMPTY), tl.where(k1 == e[None, :], v1, EMPTY))
        z = tl.maximum(z, tl.where(k2 == e[None, :], v2, EMPTY))
        z = tl.max(tl.maximum(z, tl.where(k3 == e[None, :], v3, EMPTY)), axis=0)
        tl.store(out + 5 * plane, z, mask=c_in)
        v0 -= z[None, :]
        v1 -= z[None, :]
        v2 -= z[None, :]
        v3 -= z[None, :]
    # The exponent has headroom if weights grow with distance, so that no sum exceeds that of |v|.
    e = tl.where(c_in, e + tl.maximum(-w, 0.0) * LENGTH, 0.0)
    # Sums of p, to the right and to the left: [GROUPS, BLOCK_C] to [BLOCK_C].
    p0 = tl.exp(k0 - e[None, :])
    p1 = tl.exp(k1 - e[None, :])
    p2 = tl.exp(k2 - e[None, :])
    p3 = tl.exp(k3 - e[None, :])
    tl.store(out + plane, tl.sum((((p0 * step + p1) * step + p2) * step + p3) * up, axis=0), mask=c_in)
    tl.store(out + 3 * plane, tl.sum((((p3 * step + p2) * step + p1) * step + p0) * down, axis=0), mask=c_in)
    # Sums of p v.
    p0 *= v0
    p1 *= v1
    p2 *= v2
    p3 *= v3
    tl.store(out, tl.sum((((p0 * step + p1) * step + p2) * step + p3) * up, axis=0), mask=c_in)
    tl.store(out + 2 * plane, tl.sum((((p3 * step + p2) * step + p1) * step + p0) * down, axis=0), mask=c_in)
    tl.store(out + 4 * plane, e, mask=c_in)


@triton.jit
def _max_before(inclusive, before, next_inclusive, next_before):
    """Running maximum, with and without the last element."""
    return tl.maximum(inclusive, next_inclusive), tl.maximum(inclusive, next_before)


@triton.jit
def _recurrence(f, a, b, next_f, next_a, next_b):
    """Two steps s -> f s + (a, b) as one."""
    return f * next_f, a * next_f + next_a, b * next_f + next_b


@triton.jit
def running_states(a, b, e, a_carry, b_carry, e_carry, decay, PIECE: tl.constexpr, BLOCK_C: tl.constexpr):
    """Inclusive running sums of states along axis 0, [PIECE, BLOCK_C] float64, after a carry; and the new carry.

    `decay` [BLOCK_C] is the decay per position. With x_j = e_j + j decay and X its running maximum, the sum at j is
    sum_i (a_i, b_i) exp(x_i - X_j) times exp(X_j - j decay): a recurrence with factors exp(X_{j-1} - X_j) <= 1.
    """
    # The running maximum of exponents, with and without the last: [PIECE, BLOCK_C].
    j = tl.arange(0, PIECE)[:, None].to(tl.float64)
    x = e + j * decay[None, :]
    before = tl.full([PIECE, BLOCK_C], EMPTY, tl.float64)
    e_max, e_max_before = tl.associative_scan((x, before), 0, _max_before)
    carried = (e_carry - decay)[None, :]
    e_max = tl.maximum(e_max, carried)
    e_max_before = tl.maximum(e_max_before, carried)
    # The recurrence, and the carry's part.
    scale = tl.exp(x - e_max)
    f, a, b = tl.associative_scan((tl.exp(e_max_before - e_max), a * scale, b * scale), 0, _recurrence)
    a += f * a_carry[None, :]
    b += f * b_carry[None, :]
    e = e_max - j * decay[None, :]
    # The carry for the next piece: [BLOCK_C].
    last = j == PIECE - 1
    a_carry = tl.sum(tl.where(last, a, 0.0), axis=0)
    b_carry = tl.sum(tl.where(last, b, 0.0), axis=0)
    e_carry = tl.sum(tl.where(last, e, 0.0), axis=0)
    return a, b, e, a_carry, b_carry, e_carry


@triton.jit
def middle_row(
    sums, plane, chunks, channels, decay, to_right, to_left, c_in, PIECE: tl.constexpr, BLOCK_C: tl.constexpr
):
    """y at the boundary of the two middle chunks, [BLOCK_C] float32. The backward computes v and y relative to it.

    The gradients of w and k are sums of p q (v - y). With sharp keys one weight is large and all others are tiny, and
    v - y nearly cancels. Relative to a value that most rows are close to, it stays accurate. The value itself need not
    be accurate, so float32 is enough.
    """
    # Each row sums every PIECE-th chunk, with a running maximum of exponents.
    row = tl.arange(0, PIECE)[:, None]
    num = tl.zeros([PIECE, BLOCK_C], tl.float32)
    den = tl.zeros([PIECE, BLOCK_C], tl.float32)
    e_max = tl.full([PIECE, BLOCK_C], EMPTY, tl.float32)
    middle = chunks // 2
    for start in range(0, chunks, PIECE):
        j = start + row
        mask = (j < chunks) & c_in[None, :]
        before = j < middle
        source = sums + j.to(tl.int64) * channels
        side = tl.where(before, 0, 2 * plane)
        gap = tl.where(before, middle - 1 - j, j - middle).to(tl.float32)
        factor = tl.where(before, to_right, to_left)
        a = tl.load(source + side, mask=mask, other=0.0)  # [PIECE, BLOCK_C]
        b = tl.load(source + side + plane, mask=mask, other=0.0)  # [PIECE, BLOCK_C]
        e = tl.load(source + 4 * plane, mask=mask, other=EMPTY) - gap * decay[None, :]  # [PIECE, BLOCK_C]
        a = (a + tl.load(source + 5 * plane, mask=mask, other=0.0) * b) * factor  # [PIECE, BLOCK_C]
        new_max = tl.maximum(e_max, e)
        old_scale, scale = tl.exp(e_max - new_max), tl.exp(e - new_max)
        num = num * old_scale + a * scale
        den = den * old_scale + b * factor * scale
        e_max = new_max
    # Add the rows: [BLOCK_C].
    scale = tl.exp(e_max - tl.max(e_max, axis=0)[None, :])
    num, den = tl.sum(num * scale, axis=0), tl.sum(den * scale, axis=0)
    return tl.where(den > 0.0, num / tl.where(den > 0.0, den, 1.0), 0.0)


@triton.jit(do_not_specialize=[*SIZES[1:], "length"])
def chunk_scan_kernel(
    factors_ptr,  # (2 L + 10, C) float32
    sums_ptr,  # (5, or 6 if CENTRED, B, chunks, C) float32
    entering_ptr,  # (5, B, chunks, C) float32, written
    centre_ptr,  # (B, C) float32, written if CENTRED: v is relative to it in `entering`
    channels,  # C
    chunks,
    plane,  # B * chunks * C
    length,  # L
    CENTRED: tl.constexpr,
    PIECE: tl.constexpr,  # chunks at a time
    BLOCK_C: tl.constexpr,
):
    """The sums that enter each chunk from its left and from its right. In float64: float32 decay factors would drift.

    Grid (B * blocks of C,).
    """
    # Decays and factors of a block of channels, [BLOCK_C].
    across = tl.cdiv(channels, BLOCK_C)
    item = (tl.program_id(0) // across).to(tl.int64)
    c = tl.program_id(0) % across * BLOCK_C + tl.arange(0, BLOCK_C)
    c_in = c < channels
    w = constant(factors_ptr, length, DECAY, channels, c, c_in).to(tl.float64)
    headroom = tl.maximum(constant(factors_ptr, length, BOOST, channels, c, c_in), 0.0).to(tl.float64)
    decay = w * length
    growth = tl.maximum(-decay, 0.0)
    to_right = tl.exp(4 * w + growth)[None, :]
    to_left = tl.exp(growth)[None, :]
    # The value that v and y are relative to.
    plane = plane.to(tl.int64)
    sums = sums_ptr + item * chunks * channels + c[None, :]
    entering = entering_ptr + item * chunks * channels + c[None, :]
    row = tl.arange(0, PIECE)[:, None]
    centre = tl.zeros([BLOCK_C], tl.float32)
    if CENTRED:
        centre = middle_row(
            sums, plane, chunks, channels, decay.to(tl.float32), to_right.to(tl.float32), to_left.to(tl.float32),
            c_in, PIECE, BLOCK_C,
        )  # fmt: skip
        tl.store(centre_ptr + item * channels + c, centre, mask=c_in)

    # From the left: running states of the chunks before each chunk.
    a_carry = tl.zeros([BLOCK_C], tl.float64)
    b_carry = tl.zeros([BLOCK_C], tl.float64)
    e_carry = tl.full([BLOCK_C], EMPTY, tl.float64)
    for start in range(0, chunks, PIECE):
        j = start + row
        mask = (j >= 1) & (j < chunks) & c_in[None, :]
        source = sums + (j - 1).to(tl.int64) * channels
        a = tl.load(source, mask=mask, other=0.0).to(tl.float64) * to_right  # [PIECE, BLOCK_C]
        b = tl.load(source + plane, mask=mask, other=0.0).to(tl.float64) * to_right  # [PIECE, BLOCK_C]
        e = tl.load(source + 4 * plane, mask=mask, other=EMPTY).to(tl.float64)  # [PIECE, BLOCK_C]
        if CENTRED:
            peak = tl.load(source + 5 * plane, mask=mask, other=0.0)  # [PIECE, BLOCK_C]
            a += (peak.to(tl.float64) - centre[None, :].to(tl.float64)) * b
        a, b, e, a_carry, b_carry, e_carry = running_states(a, b, e, a_carry, b_carry, e_carry, decay, PIECE, BLOCK_C)
        e32 = e.to(tl.float32)
        scale = tl.exp(e - e32.to(tl.float64))
        target = entering + j.to(tl.int64) * channels
        mask = (j < chunks) & c_in[None, :]
        tl.store(target, (a * scale).to(tl.float32), mask=mask)
        tl.store(target + plane, (b * scale).to(tl.float32), mask=mask)
        tl.store(target + 2 * plane, e32, mask=mask)
    barrier()  # other threads of this program will read what was written

    # From the right: running states of the chunks after each chunk; then one exponent for both directions.
    a_carry = tl.zeros([BLOCK_C], tl.float64)
    b_carry = tl.zeros([BLOCK_C], tl.float64)
    e_carry = tl.full([BLOCK_C], EMPTY, tl.float64)
    for start in range(0, chunks, PIECE):
        j = chunks - 1 - start - row
        mask = (j >= 0) & (j < chunks - 1) & c_in[None, :]
        source = sums + (j + 1).to(tl.int64) * channels
        a = tl.load(source + 2 * plane, mask=mask, other=0.0).to(tl.float64) * to_left  # [PIECE, BLOCK_C]
        b = tl.load(source + 3 * plane, mask=mask, other=0.0).to(tl.float64) * to_left  # [PIECE, BLOCK_C]
        e = tl.load(source + 4 * plane, mask=mask, other=EMPTY).to(tl.float64)  # [PIECE, BLOCK_C]
        if CENTRED:
            peak = tl.load(source + 5 * plane, mask=mask, other=0.0)  # [PIECE, BLOCK_C]
            a += (peak.to(tl.float64) - centre[None, :].to(tl.float64)) * b
        a, b, e, a_carry, b_carry, e_carry = running_states(a, b, e, a_carry, b_carry, e_carry, decay, PIECE, BLOCK_C)
        mask = (j >= 0) & c_in[None, :]
        at = j.to(tl.int64) * channels
        target = entering + at
        a_left = tl.load(target, mask=mask, other=0.0)  # [PIECE, BLOCK_C]
        b_left = tl.load(target + plane, mask=mask, other=0.0)  # [PIECE, BLOCK_C]
        e_left = tl.load(target + 2 * plane, mask=mask, other=0.0).to(tl.float64)  # [PIECE, BLOCK_C]
        e_own = tl.load(sums + 4 * plane + at, mask=mask, other=0.0).to(tl.float64)  # [PIECE, BLOCK_C]
        # A chunk's exponent includes the growth of weights within a chunk already.
        e_max = tl.maximum(tl.maximum(e, e_left) + growth[None, :], e_own)
        ref = (e_max + headroom[None, :]).to(tl.float32)
        moved = growth[None, :] - ref.to(tl.float64)
        scale = tl.exp(e + moved)
        tl.store(target + 3 * plane, (a * scale).to(tl.float32), mask=mask)
        tl.store(target + 4 * plane, (b * scale).to(tl.float32), mask=mask)
        scale = tl.exp(e_left + moved)
        tl.store(target, (a_left * scale).to(tl.float32), mask=mask)
        tl.store(target + plane, (b_left * scale).to(tl.float32), mask=mask)
        tl.store(target + 2 * plane, ref, mask=mask)


@triton.jit
def entering_sums(factors_ptr, sums, plane, own, chunks, channels, c, c_in, LENGTH: tl.constexpr, FOLD: tl.constexpr):
    """What chunk_scan_kernel finds for chunk `own`, [BLOCK_C] each: a sum over all chunks, of which there are <= FOLD.

    `sums` points to the batch item's first chunk. Exponents are float64, for decays over many chunks.
    """
    w = constant(factors_ptr, LENGTH, DECAY, channels, c, c_in).to(tl.float64)[None, :]  # [1, BLOCK_C]
    headroom = tl.maximum(constant(factors_ptr, LENGTH, BOOST, channels, c, c_in), 0.0).to(tl.float64)
    growth = tl.maximum(-w, 0.0) * LENGTH
    # Load the sums towards this chunk: [FOLD, BLOCK_C].
    j = tl.arange(0, FOLD)[:, None]
    mask = (j < chunks) & c_in[None, :]
    left = j < own
    source = sums + j.to(tl.int64) * channels + c[None, :]
    side = source + tl.where(left, 0, 2 * plane)
    e = tl.load(source + 4 * plane, mask=mask, other=EMPTY).to(tl.float64)
    a = tl.load(side, mask=mask & (j != own), other=0.0)
    b = tl.load(side + plane, mask=mask & (j != own), other=0.0)
    # Their exponents at this chunk, and the one that all are relative to. The own one includes the growth already.
    gap = tl.where(left, own - 1 - j, j - own - 1).to(tl.float64)
    e = tl.where(j == own, e - growth, e - gap * (w * LENGTH))
    ref = (tl.max(e + growth, axis=0) + headroom).to(tl.float32)
    ref = tl.where(c_in, ref, 0.0)
    left_out = growth + tl.where(left, 4 * w, 0.0)
    scale = tl.exp((e + (growth + left_out - ref[None, :].to(tl.float64))).to(tl.float32))
    a *= scale
    b *= scale
    a_left = tl.sum(tl.where(left, a, 0.0), axis=0)
    b_left = tl.sum(tl.where(left, b, 0.0), axis=0)
    a_right = tl.sum(tl.where(left, 0.0, a), axis=0)
    b_right = tl.sum(tl.where(left, 0.0, b), axis=0)
    return a_left, b_left, ref, a_right, b_right


@triton.jit
def sums_before(a, a_before, b, b_before, next_a, next_a_before, next_b, next_b_before):
    """Two running sums, each with and without the last element: no subtraction, so no cancellation."""
    return a + next_a, a + next_a_before, b + next_b, b + next_b_before


@triton.jit
def row_values(num, den, gate_ptr, offset, mask, GATED: tl.constexpr):
    """num / den, times sigmoid(gate) if GATED, which needs one more exponential but no more division.

    sigmoid(x) = exp(min(x, 0)) / (1 + exp(-|x|)): no exponential has a positive argument, so none overflows.
    """
    if GATED:
        gate = tl.load(gate_ptr + offset, mask=mask, other=0.0).to(tl.float32)  # [rows, BLOCK_C]
        z = tl.exp(-tl.abs(gate))
        num *= tl.where(gate < 0, z, 1.0)
        den *= 1.0 + z
    return num / den


@triton.jit(do_not_specialize=SIZES)
def rows_kernel(
    k_ptr,  # (B, T, C)
    v_ptr,  # (B, T, C)
    gate_ptr,  # (B, T, C), or None
    factors_ptr,  # (2 L + 10, C) float32
    states_ptr,  # (5, B, chunks, C) float32: `entering`, or `sums` if FOLD
    centre_ptr,  # (B, C) float32, or None: `entering` is of v relative to it
    y_ptr,  # (B, T, C), written
    tokens,  # T
    channels,  # C
    chunks,
    plane,  # B * chunks * C
    GROUPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    VEC: tl.constexpr,  # C is a multiple of it
    FOLD: tl.constexpr,  # chunks <= FOLD, whose sums are added here; 0: chunk_scan_kernel has done so
    GATED: tl.constexpr,  # sigmoid(gate) * y instead of y
    CENTRED: tl.constexpr,
):
    """y for one chunk of tokens and a block of channels. Grid (B * chunks * blocks of C,)."""
    # The chunk's position.
    LENGTH: tl.constexpr = 4 * GROUPS
    channels = (channels // VEC) * VEC
    c, c_in, program, start, remaining = chunk_position(tokens, channels, chunks, LENGTH, BLOCK_C)
    plane = plane.to(tl.int64)
    # The sums that enter from both sides, and the exponent that all sums are relative to: [BLOCK_C].
    if FOLD > 0:
        own = (program % chunks).to(tl.int32)
        sums = states_ptr + (program - own) * channels
        a_left, b_left, ref, a_right, b_right = entering_sums(
            factors_ptr, sums, plane, own, chunks, channels, c, c_in, LENGTH, FOLD
        )
    else:
        state = states_ptr + program * channels + c
        a_left = tl.load(state, mask=c_in, other=0.0)
        b_left = tl.load(state + plane, mask=c_in, other=1.0)
        ref = tl.load(state + 2 * plane, mask=c_in, other=0.0)
        a_right = tl.load(state + 3 * plane, mask=c_in, other=0.0)
        b_right = tl.load(state + 4 * plane, mask=c_in, other=0.0)
    # Load keys and values: one tensor [GROUPS, BLOCK_C] for each of the four tokens of a group.
    k_ptr += start
    v_ptr += start
    y_ptr += start
    if GATED:
        gate_ptr += start
    g = tl.arange(0, GROUPS)
    offset = (4 * g)[:, None] * channels + c[None, :]
    in0, in1, in2, in3, k0, k1, k2, k3, v0, v1, v2, v3 = load_groups(k_ptr, v_ptr, g, remaining, channels, c, c_in)
    if CENTRED:
        centre = tl.load(centre_ptr + program // chunks * channels + c, mask=c_in, other=0.0)[None, :]  # [1, BLOCK_C]
        v0 -= centre
        v1 -= centre
        v2 -= centre
        v3 -= centre
    # Load the powers of exp(w).
    up, down = load_powers(factors_ptr, g, channels, c, c_in, GROUPS)
    step = constant(factors_ptr, LENGTH, STEP, channels, c, c_in)[None, :]  # [1, BLOCK_C]
    span = constant(factors_ptr, LENGTH, SPAN, channels, c, c_in)[None, :]  # [1, BLOCK_C]
    rise = constant(factors_ptr, LENGTH, RISE_4, channels, c, c_in)[None, :]  # [1, BLOCK_C]
    bonus = constant(factors_ptr, LENGTH, BONUS, channels, c, c_in)[None, :]  # [1, BLOCK_C]
    # Weights p, and weighted values: from here on v is p v.
    p0 = tl.exp(k0 - ref[None, :])
    p1 = tl.exp(k1 - ref[None, :])
    p2 = tl.exp(k2 - ref[None, :])
    p3 = tl.exp(k3 - ref[None, :])
    v0 *= p0
    v1 *= p1
    v2 *= p2
    v3 *= p3
    # Sums from the left, at the first token of each group.
    a = (((v0 * step + v1) * step + v2) * step + v3) * up
    b = (((p0 * step + p1) * step + p2) * step + p3) * up
    zeros = tl.zeros([GROUPS, BLOCK_C], tl.float32)
    a, num, b, den = tl.associative_scan((a, zeros, b, zeros), 0, sums_before)
    num = (num * (span * rise) + a_left[None, :]) * down
    den = (den * (span * rise) + b_left[None, :]) * down
    # The four tokens of each group: the sums from the left, and the token itself.
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
    # Sums from the right, at the last token of each group.
    a = (((v3 * step + v2) * step + v1) * step + v0) * down
    b = (((p3 * step + p2) * step + p1) * step + p0) * down
    a, num, b, den = tl.associative_scan((a, zeros, b, zeros), 0, sums_before, reverse=True)
    num = (num * span + a_right[None, :]) * (rise * up)
    den = (den * span + b_right[None, :]) * (rise * up)
    # The four tokens of each group: add the sums from the right.
    num3 += num
    den3 += den
    num = num * step + v3
    den = den * step + p3
    num2 += num
    den2 += den
    num = num * step + v2
    den = den * step + p2
    num1 += num
    den1 += den
    num0 += num * step + v1
    den0 += den * step + p1
    if CENTRED:
        num0 += centre * den0
        num1 += centre * den1
        num2 += centre * den2
        num3 += centre * den3
    # Divide, gate and write.
    dtype = y_ptr.dtype.element_ty
    y = row_values(num0, den0, gate_ptr, offset, in0, GATED)
    tl.store(y_ptr + offset, y.to(dtype), mask=in0)
    y = row_values(num1, den1, gate_ptr, offset + channels, in1, GATED)
    tl.store(y_ptr + offset + channels, y.to(dtype), mask=in1)
    y = row_values(num2, den2, gate_ptr, offset + 2 * channels, in2, GATED)
    tl.store(y_ptr + offset + 2 * channels, y.to(dtype), mask=in2)
    y = row_values(num3, den3, gate_ptr, offset + 3 * channels, in3, GATED)
    tl.store(y_ptr + offset + 3 * channels, y.to(dtype), mask=in3)
