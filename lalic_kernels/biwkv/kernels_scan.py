"""Triton kernel that combines BiWKV's chunks: what enters each of them from the left and from the right, in float64."""

import triton
import triton.language as tl

# The exponent of "nothing": finite, so that differences stay numbers, and below any key that is not itself absurd.
NOTHING = tl.constexpr(-1.0e38)


@triton.jit
def _max_before(inclusive, before, inclusive_here, before_here):
    """Running maximum, with and without the last element."""
    return tl.maximum(inclusive, inclusive_here), tl.maximum(inclusive, before_here)


@triton.jit
def _recurrence(f, a, b, f_here, a_here, b_here):
    """s -> f s + (a, b), twice."""
    return f * f_here, a * f_here + a_here, b * f_here + b_here


@triton.jit
def running_states(a, b, e, a_carry, b_carry, e_carry, decay, PIECE: tl.constexpr, BLOCK_C: tl.constexpr):
    """Inclusive running sums of states along axis 0, [PIECE, BLOCK_C] float64, after a carried one; and the new carry.

    Each place costs a decay of `decay` [BLOCK_C]. With x_j = e_j + j decay and X its running maximum, the sum at j is
    sum_i (a_i, b_i) exp(x_i - X_j) times exp(X_j - j decay): a recurrence of factors exp(X_{j-1} - X_j) <= 1.
    """
    j = tl.arange(0, PIECE)[:, None].to(tl.float64)
    x = e + j * decay[None, :]
    before = tl.full([PIECE, BLOCK_C], NOTHING, tl.float64)
    top, top_before = tl.associative_scan((x, before), 0, _max_before)
    carried = (e_carry - decay)[None, :]
    top = tl.maximum(top, carried)
    top_before = tl.maximum(top_before, carried)
    here = tl.exp(x - top)
    f, a, b = tl.associative_scan((tl.exp(top_before - top), a * here, b * here), 0, _recurrence)
    a += f * a_carry[None, :]
    b += f * b_carry[None, :]
    e = top - j * decay[None, :]
    last = j == PIECE - 1
    a_carry = tl.sum(tl.where(last, a, 0.0), axis=0)
    b_carry = tl.sum(tl.where(last, b, 0.0), axis=0)
    e_carry = tl.sum(tl.where(last, e, 0.0), axis=0)
    return a, b, e, a_carry, b_carry, e_carry


@triton.jit
def middle_row(
    sums, peaks, plane, chunks, channels, decay, to_right, to_left, c_in, PIECE: tl.constexpr, BLOCK_C: tl.constexpr
):
    """y as seen from between the two middle chunks, [BLOCK_C] float32: what the backward measures v and y from.

    The gradients of w and k are differences, sums of p q (v - y). Where keys are sharp all but one weight are tiny and
    v - y nearly cancels; measured from a value that most rows are close to, it keeps its digits. How good this value
    is decides about digits alone, so float32 does.
    """
    row = tl.arange(0, PIECE)[:, None]
    num = tl.zeros([PIECE, BLOCK_C], tl.float32)
    den = tl.zeros([PIECE, BLOCK_C], tl.float32)
    top = tl.full([PIECE, BLOCK_C], NOTHING, tl.float32)
    middle = chunks // 2
    for start in range(0, chunks, PIECE):
        j = start + row
        mask = (j < chunks) & c_in[None, :]
        before = j < middle
        place = j.to(tl.int64) * channels
        source = sums + place + tl.where(before, 0, 3 * plane)
        gap = tl.where(before, middle - 1 - j, j - middle).to(tl.float32)
        factor = tl.where(before, to_right, to_left)
        a = tl.load(source, mask=mask, other=0.0)
        b = tl.load(source + plane, mask=mask, other=0.0)
        e = tl.load(source + 2 * plane, mask=mask, other=NOTHING) - gap * decay[None, :]
        a = (a + tl.load(peaks + place, mask=mask, other=0.0) * b) * factor
        new = tl.maximum(top, e)
        old, here = tl.exp(top - new), tl.exp(e - new)
        num = num * old + a * here
        den = den * old + b * factor * here
        top = new
    here = tl.exp(top - tl.max(top, axis=0)[None, :])
    num, den = tl.sum(num * here, axis=0), tl.sum(den * here, axis=0)
    return tl.where(den > 0.0, num / tl.where(den > 0.0, den, 1.0), 0.0)


@triton.jit(do_not_specialize=["channels", "chunks"])
def chunk_scan_kernel(
    w_ptr,  # (C,) float32
    u_ptr,  # (C,) float32
    factors_ptr,  # (2 GROUPS + 4, C) float32
    sums_ptr,  # (6, B, chunks, C) float32
    entering_ptr,  # (6, B, chunks, C) float32, written
    own_ptr,  # (6, B, chunks, C) float32, written if BACKWARD: an exponent for each direction
    peaks_ptr,  # (B, chunks, C) float32, read if BACKWARD: what the sums' v is measured from
    centre_ptr,  # (B, C) float32, written if BACKWARD: what `entering` and `own` have it measured from
    channels,  # C
    chunks,
    plane,  # B * chunks * C
    GROUPS: tl.constexpr,
    PER_GROUP: tl.constexpr,  # tokens a group of the sums
    FOLDED: tl.constexpr,  # tokens a group of the rows
    BACKWARD: tl.constexpr,
    PIECE: tl.constexpr,  # chunks at a time
    BLOCK_C: tl.constexpr,
):
    """What enters each chunk from its left and from its right. float64: a float32 factor a chunk would drift.

    For blocks of the fast form both come relative to one exponent, which bounds every weight of the chunk's rows by
    one, and times U(-1) and W(GROUPS), as if they were groups just outside the chunk. Grid (B, blocks of C).
    """
    LENGTH: tl.constexpr = PER_GROUP * GROUPS
    item = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_in = c < channels
    w32 = tl.load(w_ptr + c, mask=c_in, other=0.0)
    fast = tl.load(factors_ptr + (2 * GROUPS + 3) * channels + c, mask=c_in, other=0.0) > 0.5
    decay = w32.to(tl.float64) * LENGTH
    near = tl.where(fast, w32, 0.0).to(tl.float64)
    growth = tl.maximum(-near, 0.0) * LENGTH
    shrink = tl.maximum(near, 0.0) * LENGTH
    from_left = tl.exp(-near * PER_GROUP - shrink)  # U(-1)
    from_right = tl.exp(-shrink)  # W(GROUPS)
    kappa = tl.exp(near * PER_GROUP + tl.abs(near) * LENGTH)
    to_right = tl.where(fast, kappa * from_right, 1.0)[None, :]
    to_left = tl.where(fast, kappa * from_left, 1.0)[None, :]
    from_left = tl.exp(-near * FOLDED - shrink)
    room = growth + tl.maximum(tl.load(u_ptr + c, mask=c_in, other=0.0), 0.0).to(tl.float64)
    plane = plane.to(tl.int64)
    base = item * chunks * channels + c[None, :]
    row = tl.arange(0, PIECE)[:, None]
    centre = tl.zeros([BLOCK_C], tl.float32)
    if BACKWARD:
        centre = middle_row(
            sums_ptr + base, peaks_ptr + base, plane, chunks, channels, w32 * LENGTH, to_right.to(tl.float32),
            to_left.to(tl.float32), c_in, PIECE, BLOCK_C,
        )  # fmt: skip
        tl.store(centre_ptr + item * channels + c, centre, mask=c_in)

    a_carry = tl.zeros([BLOCK_C], tl.float64)
    b_carry = tl.zeros([BLOCK_C], tl.float64)
    e_carry = tl.full([BLOCK_C], NOTHING, tl.float64)
    for start in range(0, chunks, PIECE):
        j = start + row
        mask = (j >= 1) & (j < chunks) & c_in[None, :]
        source = sums_ptr + base + (j - 1).to(tl.int64) * channels
        a = tl.load(source, mask=mask, other=0.0).to(tl.float64) * to_right
        b = tl.load(source + plane, mask=mask, other=0.0).to(tl.float64) * to_right
        e = tl.load(source + 2 * plane, mask=mask, other=NOTHING).to(tl.float64)
        if BACKWARD:
            peak = tl.load(peaks_ptr + base + (j - 1).to(tl.int64) * channels, mask=mask, other=0.0)
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
    tl.debug_barrier()  # other threads of this program read what was just written

    a_carry = tl.zeros([BLOCK_C], tl.float64)
    b_carry = tl.zeros([BLOCK_C], tl.float64)
    e_carry = tl.full([BLOCK_C], NOTHING, tl.float64)
    for start in range(0, chunks, PIECE):
        j = chunks - 1 - start - row
        mask = (j >= 0) & (j < chunks - 1) & c_in[None, :]
        source = sums_ptr + 3 * plane + base + (j + 1).to(tl.int64) * channels
        a = tl.load(source, mask=mask, other=0.0).to(tl.float64) * to_left
        b = tl.load(source + plane, mask=mask, other=0.0).to(tl.float64) * to_left
        e = tl.load(source + 2 * plane, mask=mask, other=NOTHING).to(tl.float64)
        if BACKWARD:
            peak = tl.load(peaks_ptr + base + (j + 1).to(tl.int64) * channels, mask=mask, other=0.0)
            a += (peak.to(tl.float64) - centre[None, :].to(tl.float64)) * b
        a, b, e, a_carry, b_carry, e_carry = running_states(a, b, e, a_carry, b_carry, e_carry, decay, PIECE, BLOCK_C)
        mask = (j >= 0) & c_in[None, :]
        here = base + j.to(tl.int64) * channels
        target = entering_ptr + here
        a_left = tl.load(target, mask=mask, other=0.0)
        b_left = tl.load(target + plane, mask=mask, other=0.0)
        e_left = tl.load(target + 2 * plane, mask=mask, other=0.0)
        own = tl.load(sums_ptr + 2 * plane + here, mask=mask, other=0.0)
        if BACKWARD:
            e32 = e.to(tl.float32)
            scale = tl.exp(e - e32.to(tl.float64))
            tl.store(own_ptr + here + 3 * plane, (a * scale).to(tl.float32), mask=mask)
            tl.store(own_ptr + here + 4 * plane, (b * scale).to(tl.float32), mask=mask)
            tl.store(own_ptr + here + 5 * plane, e32, mask=mask)
        # `own` holds the growth already.
        wide = tl.maximum(tl.maximum(e, e_left.to(tl.float64)) + growth[None, :], own.to(tl.float64))
        ref = (wide + (room - growth)[None, :]).to(tl.float32)
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
