"""Triton kernels of BiWKV's forward: factors, sums of chunks, their running sums, rows.

Arithmetic is float32; float64 between chunks. k, v, y are contiguous (B, T, C). A chunk has 4 GROUPS tokens. A thread
takes the four tokens of a group and 16 bytes of channels, so that most of a running sum needs no other thread.

* `factors` is float32 (2 GROUPS + 4, C), with n = 4 tokens per group, L = 4 GROUPS, |w| L <= 20. Its rows:
  U(g) = exp(n w (g - o)) and W(g) = exp(-n w (g - o')), where (o, o') = (GROUPS, 0) for w >= 0, else (0, GROUPS), so
  that none exceeds one; then exp(-w), kappa = exp(n w + |w| L), exp(u), and the form of this block of channels: fast
  (1) or logarithmic (0). kappa U(g) W(h) = exp(-n w (h - 1 - g)) is the weight of group g at group h.
* `sums` and `entering` are float32 (6, B, chunks, C): numerator a, denominator b, exponent e, which mean (a, b) exp(e),
  for the direction to the right, then for the direction to the left. README.md has the equations.
"""

import triton
import triton.language as tl

from lalic_kernels.triton_math import Constant, barrier

# The exponent of an empty sum: finite, so that differences are never NaN, and below any sensible key.
EMPTY = Constant(-1.0e38)
# The fast form's range: max|w| times the tokens of a chunk, and max|u|.
RANGE = Constant(20.0)

# Not specialised: another size needs no compilation, and a size of 1 is no compile-time constant without a type.
SIZES = ["tokens", "channels", "chunks", "plane"]


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
    """Write the powers of exp(w), computed in float64, and the form of each block of channels. Grid (blocks of C,)."""
    # Parameters of a block of channels, and its form.
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_in = c < channels
    w = tl.load(w_ptr + c, mask=c_in, other=0.0)  # [BLOCK_C]
    u = tl.load(u_ptr + c, mask=c_in, other=0.0)  # [BLOCK_C]
    within = (tl.abs(w) * (PER_GROUP * GROUPS) <= RANGE) & (tl.abs(u) <= RANGE)  # False for NaN
    fast = tl.min(within.to(tl.int32), axis=0)
    # Powers of exp(w) by group, U and W: [GROUPS, BLOCK_C].
    w = tl.where(within, w, 0.0).to(tl.float64) * PER_GROUP
    u = tl.where(within, u, 0.0).to(tl.float64)
    g = tl.arange(0, GROUPS)[:, None].to(tl.float64)
    start_up = tl.where(w >= 0, GROUPS, 0).to(tl.float64)
    start_down = GROUPS - start_up
    table = factors_ptr + tl.arange(0, GROUPS)[:, None] * channels + c[None, :]
    inside = c_in[None, :] & (g >= 0)
    tl.store(table, tl.exp(w[None, :] * (g - start_up[None, :])).to(tl.float32), mask=inside)
    tl.store(table + GROUPS * channels, tl.exp(-w[None, :] * (g - start_down[None, :])).to(tl.float32), mask=inside)
    # The last four rows: [BLOCK_C].
    last = factors_ptr + 2 * GROUPS * channels + c
    tl.store(last, tl.exp(-w / PER_GROUP).to(tl.float32), mask=c_in)
    tl.store(last + channels, tl.exp(w + tl.abs(w) * GROUPS).to(tl.float32), mask=c_in)
    tl.store(last + 2 * channels, tl.exp(u).to(tl.float32), mask=c_in)
    tl.store(last + 3 * channels, tl.where(c_in, fast, 0).to(tl.float32), mask=c_in)


# The logarithmic form: for any finite w and u, with many exponentials per element. The largest exponent of a row or sum
# is subtracted first, so no weight exceeds one.


@triton.jit
def log_chunk_sums(
    w, k_ptr, v_ptr, out, plane, remaining, channels, c, c_in, LENGTH: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Write a chunk's sums to `out`: token i is decayed by LENGTH - 1 - i steps to the right, by i steps to the left.

    k_ptr and v_ptr point to the chunk's first token; `remaining` is the number of tokens from there to the end.
    """
    count = tl.minimum(remaining, LENGTH)
    for direction in range(2):
        # The largest exponent of the chunk, [BLOCK_C].
        e = tl.full([BLOCK_C], EMPTY, tl.float32)
        for i in range(count):
            steps = tl.where(direction == 0, LENGTH - 1 - i, i).to(tl.float32)
            k = tl.load(k_ptr + i * channels + c, mask=c_in, other=0.0).to(tl.float32)  # [BLOCK_C]
            e = tl.maximum(e, k - steps * w)
        # The sums relative to it, [BLOCK_C].
        a = tl.zeros([BLOCK_C], tl.float32)
        b = tl.zeros([BLOCK_C], tl.float32)
        for i in range(count):
            steps = tl.where(direction == 0, LENGTH - 1 - i, i).to(tl.float32)
            k = tl.load(k_ptr + i * channels + c, mask=c_in, other=0.0).to(tl.float32)  # [BLOCK_C]
            v = tl.load(v_ptr + i * channels + c, mask=c_in, other=0.0).to(tl.float32)  # [BLOCK_C]
            p = tl.exp(tl.minimum((k - e) - steps * w, 1.0))
            a += p * v
            b += p
        tl.store(out + 3 * direction * plane, a, mask=c_in)
        tl.store(out + (3 * direction + 1) * plane, b, mask=c_in)
        tl.store(out + (3 * direction + 2) * plane, e, mask=c_in)


@triton.jit
def log_row(
    w, u, k_ptr, v_ptr, state, plane, row, remaining, channels, c, c_in, LENGTH: tl.constexpr, BLOCK_C: tl.constexpr
):
    """(numerator, denominator), [rows, BLOCK_C], of the tokens `row` of a chunk: y = numerator / denominator.

    Two passes over the chunk's tokens: the rows' largest exponents, then the sums. `state` points to the chunk's
    entering sums.
    """
    # Load the rows' tokens, and the exponents of the sums that enter from both sides.
    offset = row[:, None] * channels + c[None, :]
    inside = (row < remaining)[:, None] & c_in[None, :]
    k = tl.load(k_ptr + offset, mask=inside, other=0.0).to(tl.float32)  # [rows, BLOCK_C]
    v = tl.load(v_ptr + offset, mask=inside, other=0.0).to(tl.float32)  # [rows, BLOCK_C]
    e_left = tl.load(state + 2 * plane, mask=c_in, other=EMPTY)[None, :]  # [1, BLOCK_C]
    e_right = tl.load(state + 5 * plane, mask=c_in, other=EMPTY)[None, :]  # [1, BLOCK_C]
    decay_left = row[:, None].to(tl.float32) * w[None, :]
    decay_right = (LENGTH - 1 - row)[:, None].to(tl.float32) * w[None, :]
    # The rows' largest exponents: of the token itself, the entering sums, then every token of the chunk.
    e_max = tl.maximum(k + u[None, :], tl.maximum(e_left - decay_left, e_right - decay_right))
    count = tl.minimum(remaining, LENGTH)
    for i in range(count):
        k_i = tl.load(k_ptr + i * channels + c, mask=c_in, other=0.0).to(tl.float32)  # [BLOCK_C]
        gap = tl.abs(row - i)
        reach = k_i[None, :] - (gap - 1)[:, None].to(tl.float32) * w[None, :]
        e_max = tl.maximum(e_max, tl.where((gap > 0)[:, None], reach, EMPTY))
    # The sums relative to them, in the same order.
    den = tl.exp(tl.minimum((k - e_max) + u[None, :], 1.0))
    num = den * v
    scale = tl.exp(tl.minimum((e_left - e_max) - decay_left, 1.0))
    num += scale * tl.load(state, mask=c_in, other=0.0)[None, :]  # [1, BLOCK_C]
    den += scale * tl.load(state + plane, mask=c_in, other=0.0)[None, :]  # [1, BLOCK_C]
    scale = tl.exp(tl.minimum((e_right - e_max) - decay_right, 1.0))
    num += scale * tl.load(state + 3 * plane, mask=c_in, other=0.0)[None, :]  # [1, BLOCK_C]
    den += scale * tl.load(state + 4 * plane, mask=c_in, other=0.0)[None, :]  # [1, BLOCK_C]
    for i in range(count):
        k_i = tl.load(k_ptr + i * channels + c, mask=c_in, other=0.0).to(tl.float32)  # [BLOCK_C]
        v_i = tl.load(v_ptr + i * channels + c, mask=c_in, other=0.0).to(tl.float32)  # [BLOCK_C]
        gap = tl.abs(row - i)
        p = tl.exp(tl.minimum((k_i[None, :] - e_max) - (gap - 1)[:, None].to(tl.float32) * w[None, :], 1.0))
        p = tl.where((gap > 0)[:, None], p, 0.0)
        num += p * v_i[None, :]
        den += p
    return num, den


# Both forms.


@triton.jit
def chunk_position(tokens, channels, chunks, LENGTH: tl.constexpr, BLOCK_C: tl.constexpr):
    """The block of channels and the chunk of a program, in a grid of (B * chunks * blocks of C,), channels first.

    Returns the first channel; all channels [BLOCK_C] and their mask; the program's index of B * chunks; the chunk's
    first token; the offset of the batch item; the number of tokens from the chunk's first one to the end.
    """
    across = tl.cdiv(channels, BLOCK_C)
    first = tl.program_id(0) % across * BLOCK_C
    c = first + tl.arange(0, BLOCK_C)
    program = (tl.program_id(0) // across).to(tl.int64)
    token = program % chunks * LENGTH
    origin = program // chunks * tokens * channels
    return first, c, c < channels, program, token, origin, (tokens - token).to(tl.int32)


@triton.jit
def load_groups(k_ptr, v_ptr, g, remaining, channels, c, c_in):
    """Keys and values of a chunk: masks, keys, values, each [GROUPS, BLOCK_C] for the four tokens of a group."""
    offset = (4 * g)[:, None] * channels + c[None, :]
    in0 = (4 * g < remaining)[:, None] & c_in[None, :]
    in1 = (4 * g + 1 < remaining)[:, None] & c_in[None, :]
    in2 = (4 * g + 2 < remaining)[:, None] & c_in[None, :]
    in3 = (4 * g + 3 < remaining)[:, None] & c_in[None, :]
    k0 = tl.load(k_ptr + offset, mask=in0, other=EMPTY).to(tl.float32)
    k1 = tl.load(k_ptr + offset + channels, mask=in1, other=EMPTY).to(tl.float32)
    k2 = tl.load(k_ptr + offset + 2 * channels, mask=in2, other=EMPTY).to(tl.float32)
    k3 = tl.load(k_ptr + offset + 3 * channels, mask=in3, other=EMPTY).to(tl.float32)
    v0 = tl.load(v_ptr + offset, mask=in0, other=0.0).to(tl.float32)
    v1 = tl.load(v_ptr + offset + channels, mask=in1, other=0.0).to(tl.float32)
    v2 = tl.load(v_ptr + offset + 2 * channels, mask=in2, other=0.0).to(tl.float32)
    v3 = tl.load(v_ptr + offset + 3 * channels, mask=in3, other=0.0).to(tl.float32)
    return in0, in1, in2, in3, k0, k1, k2, k3, v0, v1, v2, v3


@triton.jit(do_not_specialize=SIZES)
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
    FAST_ONLY: tl.constexpr,  # without the logarithmic form, to count instructions
    CENTRED: tl.constexpr,  # sums of p (v - peak), for the backward
):
    """Each chunk's sum, decayed to the first token after it, and to the last token before it.

    The fast form leaves out the factors kappa W(GROUPS) and kappa U(-1), which the scan multiplies in. Grid (B * chunks
    * blocks of C,).
    """
    # The chunk's position.
    LENGTH: tl.constexpr = 4 * GROUPS
    channels = (channels // VEC) * VEC
    first, c, c_in, program, token, origin, remaining = chunk_position(tokens, channels, chunks, LENGTH, BLOCK_C)
    k_ptr += origin + token * channels
    v_ptr += origin + token * channels
    w = tl.load(w_ptr + c, mask=c_in, other=0.0)  # [BLOCK_C]
    out = sums_ptr + program * channels + c
    plane = plane.to(tl.int64)
    if FAST_ONLY or tl.load(factors_ptr + (2 * GROUPS + 3) * channels + first) > 0.5:
        # Load keys and values: one tensor [GROUPS, BLOCK_C] for each of the four tokens of a group.
        g = tl.arange(0, GROUPS)
        _, _, _, _, k0, k1, k2, k3, v0, v1, v2, v3 = load_groups(k_ptr, v_ptr, g, remaining, channels, c, c_in)
        # Load the powers of exp(w).
        table = g[:, None] * channels + c[None, :]
        up = tl.load(factors_ptr + table, mask=c_in[None, :], other=0.0)  # [GROUPS, BLOCK_C]
        down = tl.load(factors_ptr + GROUPS * channels + table, mask=c_in[None, :], other=0.0)  # [GROUPS, BLOCK_C]
        step = tl.load(factors_ptr + 2 * GROUPS * channels + c, mask=c_in, other=0.0)[None, :]  # [1, BLOCK_C]
        # The largest key; values relative to the value at that key.
        e = tl.max(tl.maximum(tl.maximum(k0, k1), tl.maximum(k2, k3)), axis=0)
        if CENTRED:
            z = tl.maximum(tl.where(k0 == e[None, :], v0, EMPTY), tl.where(k1 == e[None, :], v1, EMPTY))
            z = tl.maximum(z, tl.where(k2 == e[None, :], v2, EMPTY))
            z = tl.max(tl.maximum(z, tl.where(k3 == e[None, :], v3, EMPTY)), axis=0)
            tl.store(peaks_ptr + program * channels + c, z, mask=c_in)
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
        tl.store(out + 4 * plane, tl.sum((((p3 * step + p2) * step + p1) * step + p0) * down, axis=0), mask=c_in)
        # Sums of p v.
        p0 *= v0
        p1 *= v1
        p2 *= v2
        p3 *= v3
        tl.store(out, tl.sum((((p0 * step + p1) * step + p2) * step + p3) * up, axis=0), mask=c_in)
        tl.store(out + 3 * plane, tl.sum((((p3 * step + p2) * step + p1) * step + p0) * down, axis=0), mask=c_in)
        tl.store(out + 2 * plane, e, mask=c_in)
        tl.store(out + 5 * plane, e, mask=c_in)
    else:
        # The logarithmic form, with values relative to zero.
        if CENTRED:
            tl.store(peaks_ptr + program * channels + c, tl.zeros([BLOCK_C], tl.float32), mask=c_in)
        log_chunk_sums(w, k_ptr, v_ptr, out, plane, remaining, channels, c, c_in, LENGTH, BLOCK_C)


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
    sums, peaks, plane, chunks, channels, decay, to_right, to_left, c_in, PIECE: tl.constexpr, BLOCK_C: tl.constexpr
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
        at = j.to(tl.int64) * channels
        source = sums + at + tl.where(before, 0, 3 * plane)
        gap = tl.where(before, middle - 1 - j, j - middle).to(tl.float32)
        factor = tl.where(before, to_right, to_left)
        a = tl.load(source, mask=mask, other=0.0)  # [PIECE, BLOCK_C]
        b = tl.load(source + plane, mask=mask, other=0.0)  # [PIECE, BLOCK_C]
        e = tl.load(source + 2 * plane, mask=mask, other=EMPTY) - gap * decay[None, :]  # [PIECE, BLOCK_C]
        a = (a + tl.load(peaks + at, mask=mask, other=0.0) * b) * factor  # [PIECE, BLOCK_C]
        new_max = tl.maximum(e_max, e)
        old_scale, scale = tl.exp(e_max - new_max), tl.exp(e - new_max)
        num = num * old_scale + a * scale
        den = den * old_scale + b * factor * scale
        e_max = new_max
    # Add the rows: [BLOCK_C].
    scale = tl.exp(e_max - tl.max(e_max, axis=0)[None, :])
    num, den = tl.sum(num * scale, axis=0), tl.sum(den * scale, axis=0)
    return tl.where(den > 0.0, num / tl.where(den > 0.0, den, 1.0), 0.0)


@triton.jit(do_not_specialize=[*SIZES[1:], "groups"])
def chunk_scan_kernel(
    w_ptr,  # (C,) float32
    u_ptr,  # (C,) float32
    factors_ptr,  # (2 GROUPS + 4, C) float32
    sums_ptr,  # (6, B, chunks, C) float32
    entering_ptr,  # (6, B, chunks, C) float32, written
    own_ptr,  # (6, B, chunks, C) float32, written if BACKWARD: `entering` with an exponent for each direction
    peaks_ptr,  # (B, chunks, C) float32, read if BACKWARD: v is relative to it in `sums`
    centre_ptr,  # (B, C) float32, written if BACKWARD: v is relative to it in `entering` and `own`
    channels,  # C
    chunks,
    plane,  # B * chunks * C
    groups,  # of 4 tokens in a chunk
    BACKWARD: tl.constexpr,
    PIECE: tl.constexpr,  # chunks at a time
    BLOCK_C: tl.constexpr,
):
    """The sums that enter each chunk from its left and from its right. In float64: float32 decay factors would drift.

    In the fast form both sums are relative to one exponent, such that no weight of the chunk's rows exceeds one, and
    times U(-1) and W(GROUPS), as if they were groups just outside the chunk. Grid (B * blocks of C,).
    """
    length = 4 * groups
    ROW_GROUP: tl.constexpr = 1 if BACKWARD else 4  # tokens per group in the kernel that computes rows
    # Decays and factors of a block of channels, [BLOCK_C].
    across = tl.cdiv(channels, BLOCK_C)
    item = (tl.program_id(0) // across).to(tl.int64)
    c = tl.program_id(0) % across * BLOCK_C + tl.arange(0, BLOCK_C)
    c_in = c < channels
    w32 = tl.load(w_ptr + c, mask=c_in, other=0.0)  # [BLOCK_C]
    fast = tl.load(factors_ptr + (2 * groups + 3) * channels + c, mask=c_in, other=0.0) > 0.5  # [BLOCK_C]
    decay = w32.to(tl.float64) * length
    near = tl.where(fast, w32, 0.0).to(tl.float64)
    growth = tl.maximum(-near, 0.0) * length
    shrink = tl.maximum(near, 0.0) * length
    from_left = tl.exp(-near * 4 - shrink)  # U(-1)
    from_right = tl.exp(-shrink)  # W(GROUPS)
    kappa = tl.exp(near * 4 + tl.abs(near) * length)
    to_right = tl.where(fast, kappa * from_right, 1.0)[None, :]
    to_left = tl.where(fast, kappa * from_left, 1.0)[None, :]
    from_left = tl.exp(-near * ROW_GROUP - shrink)
    headroom = growth + tl.maximum(tl.load(u_ptr + c, mask=c_in, other=0.0), 0.0).to(tl.float64)  # [BLOCK_C]
    # The value that v and y are relative to.
    plane = plane.to(tl.int64)
    base = item * chunks * channels + c[None, :]
    row = tl.arange(0, PIECE)[:, None]
    centre = tl.zeros([BLOCK_C], tl.float32)
    if BACKWARD:
        centre = middle_row(
            sums_ptr + base, peaks_ptr + base, plane, chunks, channels, w32 * length, to_right.to(tl.float32),
            to_left.to(tl.float32), c_in, PIECE, BLOCK_C,
        )  # fmt: skip
        tl.store(centre_ptr + item * channels + c, centre, mask=c_in)

    # From the left: running states of the chunks before each chunk.
    a_carry = tl.zeros([BLOCK_C], tl.float64)
    b_carry = tl.zeros([BLOCK_C], tl.float64)
    e_carry = tl.full([BLOCK_C], EMPTY, tl.float64)
    for start in range(0, chunks, PIECE):
        j = start + row
        mask = (j >= 1) & (j < chunks) & c_in[None, :]
        source = sums_ptr + base + (j - 1).to(tl.int64) * channels
        a = tl.load(source, mask=mask, other=0.0).to(tl.float64) * to_right  # [PIECE, BLOCK_C]
        b = tl.load(source + plane, mask=mask, other=0.0).to(tl.float64) * to_right  # [PIECE, BLOCK_C]
        e = tl.load(source + 2 * plane, mask=mask, other=EMPTY).to(tl.float64)  # [PIECE, BLOCK_C]
        if BACKWARD:
            peak = tl.load(peaks_ptr + base + (j - 1).to(tl.int64) * channels, mask=mask, other=0.0)  # [PIECE, BLOCK_C]
            a += (peak.to(tl.float64) - centre[None, :].to(tl.float64)) * b
        a, b, e, a_carry, b_carry, e_carry = running_states(a, b, e, a_carry, b_carry, e_carry, decay, PIECE, BLOCK_C)
        e32 = e.to(tl.float32)
        scale = tl.exp(e - e32.to(tl.float64))
        target = entering_ptr + base + j.to(tl.int64) * channels
        mask = (j < chunks) & c_in[None, :]
        tl.store(target, (a * scale).to(tl.float32), mask=mask)
        tl.store(target + plane, (b * scale).to(tl.float32), mask=mask)
        tl.store(target + 2 * plane, e32, mask=mask)
        if BACKWARD:
            target = own_ptr + base + j.to(tl.int64) * channels
            tl.store(target, (a * scale).to(tl.float32), mask=mask)
            tl.store(target + plane, (b * scale).to(tl.float32), mask=mask)
            tl.store(target + 2 * plane, e32, mask=mask)
    barrier()  # other threads of this program will read what was written

    # From the right: running states of the chunks after each chunk; then join both directions.
    a_carry = tl.zeros([BLOCK_C], tl.float64)
    b_carry = tl.zeros([BLOCK_C], tl.float64)
    e_carry = tl.full([BLOCK_C], EMPTY, tl.float64)
    for start in range(0, chunks, PIECE):
        j = chunks - 1 - start - row
        mask = (j >= 0) & (j < chunks - 1) & c_in[None, :]
        source = sums_ptr + 3 * plane + base + (j + 1).to(tl.int64) * channels
        a = tl.load(source, mask=mask, other=0.0).to(tl.float64) * to_left  # [PIECE, BLOCK_C]
        b = tl.load(source + plane, mask=mask, other=0.0).to(tl.float64) * to_left  # [PIECE, BLOCK_C]
        e = tl.load(source + 2 * plane, mask=mask, other=EMPTY).to(tl.float64)  # [PIECE, BLOCK_C]
        if BACKWARD:
            peak = tl.load(peaks_ptr + base + (j + 1).to(tl.int64) * channels, mask=mask, other=0.0)  # [PIECE, BLOCK_C]
            a += (peak.to(tl.float64) - centre[None, :].to(tl.float64)) * b
        a, b, e, a_carry, b_carry, e_carry = running_states(a, b, e, a_carry, b_carry, e_carry, decay, PIECE, BLOCK_C)
        mask = (j >= 0) & c_in[None, :]
        at = base + j.to(tl.int64) * channels
        target = entering_ptr + at
        a_left = tl.load(target, mask=mask, other=0.0)  # [PIECE, BLOCK_C]
        b_left = tl.load(target + plane, mask=mask, other=0.0)  # [PIECE, BLOCK_C]
        e_left = tl.load(target + 2 * plane, mask=mask, other=0.0)  # [PIECE, BLOCK_C]
        e_chunk = tl.load(sums_ptr + 2 * plane + at, mask=mask, other=0.0)  # [PIECE, BLOCK_C]
        if BACKWARD:
            e32 = e.to(tl.float32)
            scale = tl.exp(e - e32.to(tl.float64))
            tl.store(own_ptr + at + 3 * plane, (a * scale).to(tl.float32), mask=mask)
            tl.store(own_ptr + at + 4 * plane, (b * scale).to(tl.float32), mask=mask)
            tl.store(own_ptr + at + 5 * plane, e32, mask=mask)
        # In the fast form one exponent for both sides. e_chunk includes the growth already.
        e_max = tl.maximum(tl.maximum(e, e_left.to(tl.float64)) + growth[None, :], e_chunk.to(tl.float64))
        ref = (e_max + (headroom - growth)[None, :]).to(tl.float32)
        e_right = tl.where(fast[None, :], ref, e.to(tl.float32))
        scale = tl.exp(tl.minimum(e - e_right.to(tl.float64), 1.0)) * tl.where(fast, from_right, 1.0)[None, :]
        tl.store(target + 3 * plane, (a * scale).to(tl.float32), mask=mask)
        tl.store(target + 4 * plane, (b * scale).to(tl.float32), mask=mask)
        tl.store(target + 5 * plane, e_right, mask=mask)
        e_new = tl.where(fast[None, :], ref, e_left)
        scale = tl.exp(e_left.to(tl.float64) - e_new.to(tl.float64)) * tl.where(fast, from_left, 1.0)[None, :]
        tl.store(target, (a_left * scale).to(tl.float32), mask=mask)
        tl.store(target + plane, (b_left * scale).to(tl.float32), mask=mask)
        tl.store(target + 2 * plane, e_new, mask=mask)


@triton.jit
def sums_before(a, a_before, b, b_before, next_a, next_a_before, next_b, next_b_before):
    """Two running sums, each with and without the last element: no subtraction, so no cancellation."""
    return a + next_a, a + next_a_before, b + next_b, b + next_b_before


@triton.jit
def row_values(num, den, gate_ptr, mask, GATED: tl.constexpr):
    """num / den, times sigmoid(gate) if GATED, which needs one more exponential but no more division.

    sigmoid(x) = exp(min(x, 0)) / (1 + exp(-|x|)): no exponential has a positive argument, so none overflows.
    """
    if GATED:
        gate = tl.load(gate_ptr, mask=mask, other=0.0).to(tl.float32)  # [rows, BLOCK_C]
        z = tl.exp(-tl.abs(gate))
        num *= tl.where(gate < 0, z, 1.0)
        den *= 1.0 + z
    return num / den


@triton.jit(do_not_specialize=SIZES)
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
    FAST_ONLY: tl.constexpr,  # without the logarithmic form, to count instructions
    GATED: tl.constexpr,  # sigmoid(gate) * y instead of y
):
    """y for one chunk of tokens and a block of channels. Grid (B * chunks * blocks of C,)."""
    # The chunk's position.
    LENGTH: tl.constexpr = 4 * GROUPS
    channels = (channels // VEC) * VEC
    first, c, c_in, program, token, origin, remaining = chunk_position(tokens, channels, chunks, LENGTH, BLOCK_C)
    start = origin + token * channels
    k_ptr += start
    v_ptr += start
    gate_ptr += start
    y_ptr += start
    g = tl.arange(0, GROUPS)
    offset = (4 * g)[:, None] * channels + c[None, :]
    state = entering_ptr + program * channels + c
    plane = plane.to(tl.int64)
    if FAST_ONLY or tl.load(factors_ptr + (2 * GROUPS + 3) * channels + first) > 0.5:
        # Load keys and values: one tensor [GROUPS, BLOCK_C] for each of the four tokens of a group.
        in0, in1, in2, in3, k0, k1, k2, k3, v0, v1, v2, v3 = load_groups(k_ptr, v_ptr, g, remaining, channels, c, c_in)
        # Load the powers of exp(w), and the exponent that all sums are relative to.
        table = g[:, None] * channels + c[None, :]
        up = tl.load(factors_ptr + table, mask=c_in[None, :], other=0.0)  # [GROUPS, BLOCK_C]
        down = tl.load(factors_ptr + GROUPS * channels + table, mask=c_in[None, :], other=1.0)  # [GROUPS, BLOCK_C]
        constants = factors_ptr + 2 * GROUPS * channels + c
        step = tl.load(constants, mask=c_in, other=0.0)[None, :]  # [1, BLOCK_C]
        kappa = tl.load(constants + channels, mask=c_in, other=1.0)[None, :]  # [1, BLOCK_C]
        bonus = tl.load(constants + 2 * channels, mask=c_in, other=0.0)[None, :]  # [1, BLOCK_C]
        ref = tl.load(state + 2 * plane, mask=c_in, other=0.0)[None, :]  # [1, BLOCK_C]
        # Weights p, and weighted values: from here on v is p v.
        p0 = tl.exp(k0 - ref)
        p1 = tl.exp(k1 - ref)
        p2 = tl.exp(k2 - ref)
        p3 = tl.exp(k3 - ref)
        v0 *= p0
        v1 *= p1
        v2 *= p2
        v3 *= p3
        # Sums from the left, at the first token of each group.
        a = (((v0 * step + v1) * step + v2) * step + v3) * up
        b = (((p0 * step + p1) * step + p2) * step + p3) * up
        zeros = tl.zeros([GROUPS, BLOCK_C], tl.float32)
        a, num, b, den = tl.associative_scan((a, zeros, b, zeros), 0, sums_before)
        num = (num + tl.load(state, mask=c_in, other=0.0)[None, :]) * (kappa * down)  # [1, BLOCK_C]
        # state: [1, BLOCK_C]
        den = (den + tl.load(state + plane, mask=c_in, other=1.0)[None, :]) * (kappa * down)
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
        # state: [1, BLOCK_C]
        num = (num + tl.load(state + 3 * plane, mask=c_in, other=0.0)[None, :]) * (kappa * up)
        den = (den + tl.load(state + 4 * plane, mask=c_in, other=0.0)[None, :]) * (kappa * up)
        # The four tokens of each group: add the sums from the right, divide, gate.
        y3 = row_values(num3 + num, den3 + den, gate_ptr + offset + 3 * channels, in3, GATED)
        num = num * step + v3
        den = den * step + p3
        y2 = row_values(num2 + num, den2 + den, gate_ptr + offset + 2 * channels, in2, GATED)
        num = num * step + v2
        den = den * step + p2
        y1 = row_values(num1 + num, den1 + den, gate_ptr + offset + channels, in1, GATED)
        y0 = row_values(num0 + num * step + v1, den0 + den * step + p1, gate_ptr + offset, in0, GATED)
        # Write.
        tl.store(y_ptr + offset, y0.to(y_ptr.dtype.element_ty), mask=in0)
        tl.store(y_ptr + offset + channels, y1.to(y_ptr.dtype.element_ty), mask=in1)
        tl.store(y_ptr + offset + 2 * channels, y2.to(y_ptr.dtype.element_ty), mask=in2)
        tl.store(y_ptr + offset + 3 * channels, y3.to(y_ptr.dtype.element_ty), mask=in3)
    else:
        # The logarithmic form, a quarter of the rows at a time.
        w = tl.load(w_ptr + c, mask=c_in, other=0.0)  # [BLOCK_C]
        u = tl.load(u_ptr + c, mask=c_in, other=0.0)  # [BLOCK_C]
        for i in range(4):
            num, den = log_row(
                w, u, k_ptr, v_ptr, state, plane, 4 * g + i, remaining, channels, c, c_in, LENGTH, BLOCK_C
            )
            mask = (4 * g + i < remaining)[:, None] & c_in[None, :]
            y = row_values(num, den, gate_ptr + offset + i * channels, mask, GATED)
            tl.store(y_ptr + offset + i * channels, y.to(y_ptr.dtype.element_ty), mask=mask)
