"""Triton kernels of BiWKV's backward, float32 arithmetic: gradient sums of chunks, their running sums, gradient rows.

The transposed sums have the rows' gradients as values: with den_t the denominator of row t relative to exp(ref - h),
they sum q_t = gy_t / den_t and q_t y_t relative to exp(h - ref). ref is the chunk's exponent in `entering`, h its
headroom. Denominators and y are computed again when needed. v and y are relative to `centre`, from
`kernels.middle_row`. README.md has the equations.

A product of a sum and a transposed sum is a sum of true weights, and in a chunk's unit neither overflows: one token
gave ref its size, and each row's denominator has it too, at most exp(40) smaller. So weights are at most exp(40), as
are the gradients' factors.
"""

import triton
import triton.language as tl

from lalic_kernels.biwkv.kernels import (
    BONUS,
    DECAY,
    EMPTY,
    HEAD,
    HEADROOM,
    RISE,
    SIZES,
    SPAN,
    STEP,
    chunk_position,
    constant,
    running_states,
)
from lalic_kernels.biwkv.kernels_log import gate_gradient, load_grad


@triton.jit
def sum_before(a, a_before, next_a, next_a_before):
    """A running sum with and without the last element."""
    return a + next_a, a + next_a_before


@triton.jit
def chunk_rows(
    k_ptr, v_ptr, centre, factors_ptr, state, plane, row, inside, offset, channels, c, c_in,
    LENGTH: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A chunk, one row per token, computed again. All but the constants are [LENGTH, BLOCK_C].

    Returns U and W with exp(w), weights p and values v; the sums of p v and p from the left, and from the right; the
    denominator and y; the constants exp(|w| L), exp(|w| L + w) and exp(u), [1, BLOCK_C].
    """
    k = tl.load(k_ptr + offset, mask=inside, other=-float("inf")).to(tl.float32)
    v = tl.load(v_ptr + offset, mask=inside, other=0.0).to(tl.float32) - centre
    table = factors_ptr + row[:, None] * channels + c[None, :]
    up = tl.load(table, mask=c_in[None, :], other=1.0)
    down = tl.load(table + LENGTH * channels, mask=c_in[None, :], other=1.0)
    span = constant(factors_ptr, LENGTH, SPAN, channels, c, c_in)[None, :]
    rise = constant(factors_ptr, LENGTH, RISE, channels, c, c_in)[None, :]
    bonus = constant(factors_ptr, LENGTH, BONUS, channels, c, c_in)[None, :]
    headroom = constant(factors_ptr, LENGTH, HEADROOM, channels, c, c_in)[None, :]
    head = constant(factors_ptr, LENGTH, HEAD, channels, c, c_in)[None, :]
    ref = tl.load(state + 2 * plane, mask=c_in, other=0.0)[None, :]
    p = tl.exp((k - ref) + headroom)
    pv = p * v
    zeros = tl.zeros([LENGTH, BLOCK_C], tl.float32)
    _, a_left = tl.associative_scan((pv * up, zeros), 0, sum_before)
    _, b_left = tl.associative_scan((p * up, zeros), 0, sum_before)
    a_left = (a_left * (span * rise) + head * tl.load(state, mask=c_in, other=0.0)[None, :]) * down
    b_left = (b_left * (span * rise) + head * tl.load(state + plane, mask=c_in, other=0.0)[None, :]) * down
    _, a_right = tl.associative_scan((pv * down, zeros), 0, sum_before, reverse=True)
    _, b_right = tl.associative_scan((p * down, zeros), 0, sum_before, reverse=True)
    a_right = (a_right * span + head * tl.load(state + 3 * plane, mask=c_in, other=0.0)[None, :]) * (rise * up)
    b_right = (b_right * span + head * tl.load(state + 4 * plane, mask=c_in, other=0.0)[None, :]) * (rise * up)
    den = b_left + b_right + bonus * p
    y = tl.where(inside, (a_left + a_right + bonus * pv) / den, 0.0)
    return up, down, p, v, a_left, b_left, a_right, b_right, den, y, span, rise, bonus


@triton.jit(do_not_specialize=SIZES)
def grad_sums_kernel(
    k_ptr,  # (B, T, C)
    v_ptr,  # (B, T, C)
    gate_ptr,  # (B, T, C), or None
    grad_ptr,  # (B, T, C), gradient of y, or of sigmoid(gate) * y
    centre_ptr,  # (B, C) float32
    factors_ptr,  # (2 L + 10, C) float32
    entering_ptr,  # (5, B, chunks, C) float32
    sums_ptr,  # (4, B, chunks, C) float32, written: sums of q and q y to the right, then to the left
    tokens,  # T
    channels,  # C
    chunks,
    plane,  # B * chunks * C
    LENGTH: tl.constexpr,
    BLOCK_C: tl.constexpr,
    VEC: tl.constexpr,
    GATED: tl.constexpr,
):
    """Each chunk's transposed sums, decayed to its two neighbours. Grid (B * chunks * blocks of C,)."""
    # The chunk's position.
    channels = (channels // VEC) * VEC
    c, c_in, program, start, remaining = chunk_position(tokens, channels, chunks, LENGTH, BLOCK_C)
    row = tl.arange(0, LENGTH)
    offset = row[:, None] * channels + c[None, :]
    inside = (row < remaining)[:, None] & c_in[None, :]
    plane = plane.to(tl.int64)
    centre = tl.load(centre_ptr + program // chunks * channels + c, mask=c_in, other=0.0)[None, :]  # [1, BLOCK_C]
    up, down, _, _, _, _, _, _, den, y, _, _, _ = chunk_rows(
        k_ptr + start, v_ptr + start, centre, factors_ptr, entering_ptr + program * channels + c, plane,
        row, inside, offset, channels, c, c_in, LENGTH, BLOCK_C,
    )  # fmt: skip
    grad = load_grad(grad_ptr, gate_ptr, start + offset, inside, GATED)  # [LENGTH, BLOCK_C]
    q = tl.where(inside, grad / den, 0.0)
    # Sums of q and q y, to the right and to the left: [BLOCK_C].
    out = sums_ptr + program * channels + c
    tl.store(out, tl.sum(q * up, axis=0), mask=c_in)
    tl.store(out + 2 * plane, tl.sum(q * down, axis=0), mask=c_in)
    q *= y
    tl.store(out + plane, tl.sum(q * up, axis=0), mask=c_in)
    tl.store(out + 3 * plane, tl.sum(q * down, axis=0), mask=c_in)


@triton.jit(do_not_specialize=[*SIZES[1:], "length"])
def grad_scan_kernel(
    factors_ptr,  # (2 L + 10, C) float32
    entering_ptr,  # (5, B, chunks, C) float32
    sums_ptr,  # (4, B, chunks, C) float32, of grad_sums_kernel
    running_ptr,  # (4, B, chunks, C) float32, written: the transposed sums that enter from the left and from the right
    channels,  # C
    chunks,
    plane,  # B * chunks * C
    length,  # L
    PIECE: tl.constexpr,  # chunks at a time
    BLOCK_C: tl.constexpr,
):
    """Running transposed sums, in float64. Grid (B * blocks of C, 2): from the left, from the right."""
    # Decays of a block of channels, [BLOCK_C].
    across = tl.cdiv(channels, BLOCK_C)
    item = (tl.program_id(0) // across).to(tl.int64)
    c = tl.program_id(0) % across * BLOCK_C + tl.arange(0, BLOCK_C)
    leftward = tl.program_id(1)
    c_in = c < channels
    w = constant(factors_ptr, length, DECAY, channels, c, c_in).to(tl.float64)
    decay = w * length
    growth = tl.maximum(-decay, 0.0)
    # The factor that grad_sums_kernel leaves out, and that of `entering`.
    left_out = (2 * growth + tl.where(leftward == 0, w, 0.0))[None, :]
    # The addresses of this direction's sums.
    plane = plane.to(tl.int64)
    base = item * chunks * channels + c[None, :]
    sums = sums_ptr + leftward * 2 * plane
    running = running_ptr + leftward * 2 * plane
    ref_ptr = entering_ptr + 2 * plane
    row = tl.arange(0, PIECE)[:, None]
    # Running states, PIECE chunks at a time.
    a_carry = tl.zeros([BLOCK_C], tl.float64)
    b_carry = tl.zeros([BLOCK_C], tl.float64)
    e_carry = tl.full([BLOCK_C], EMPTY, tl.float64)
    for start in range(0, chunks, PIECE):
        j = start + row
        mask = (j >= 1) & (j < chunks) & c_in[None, :]
        source = tl.where(leftward == 0, j - 1, chunks - j).to(tl.int64) * channels + base
        a = tl.load(sums + source, mask=mask, other=0.0).to(tl.float64)  # [PIECE, BLOCK_C]
        b = tl.load(sums + plane + source, mask=mask, other=0.0).to(tl.float64)  # [PIECE, BLOCK_C]
        e = -tl.load(ref_ptr + source, mask=mask, other=-EMPTY).to(tl.float64)  # [PIECE, BLOCK_C]
        a, b, e, a_carry, b_carry, e_carry = running_states(a, b, e, a_carry, b_carry, e_carry, decay, PIECE, BLOCK_C)
        target = tl.where(leftward == 0, j, chunks - 1 - j).to(tl.int64) * channels + base
        mask = (j < chunks) & c_in[None, :]
        ref = tl.load(ref_ptr + target, mask=mask, other=0.0).to(tl.float64)  # [PIECE, BLOCK_C]
        scale = tl.exp(tl.minimum(e + ref + left_out, 80.0))
        tl.store(running + target, (a * scale).to(tl.float32), mask=mask)
        tl.store(running + plane + target, (b * scale).to(tl.float32), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def grad_rows_kernel(
    k_ptr,  # (B, T, C)
    v_ptr,  # (B, T, C)
    gate_ptr,  # (B, T, C), or None
    grad_ptr,  # (B, T, C), gradient of y, or of sigmoid(gate) * y
    centre_ptr,  # (B, C) float32
    factors_ptr,  # (2 L + 10, C) float32
    entering_ptr,  # (5, B, chunks, C) float32
    running_ptr,  # (4, B, chunks, C) float32
    grad_k_ptr,  # (B, T, C), written
    grad_v_ptr,  # (B, T, C), written
    grad_gate_ptr,  # (B, T, C), written, or None
    parts_ptr,  # (2, B, chunks, C) float32, written: the chunk's parts of the gradients of w and u
    tokens,  # T
    channels,  # C
    chunks,
    plane,  # B * chunks * C
    LENGTH: tl.constexpr,
    BLOCK_C: tl.constexpr,
    VEC: tl.constexpr,
    GATED: tl.constexpr,
):
    """Gradients of a chunk's keys and values, and its parts of those of w and u. Grid (B * chunks * blocks of C,).

    (|s - i| - 1) counts the positions strictly between i and s. So the gradient of w is a sum over positions: at each,
    the sums of p from one side times the transposed sums from the other.
    """
    # The chunk's position.
    channels = (channels // VEC) * VEC
    c, c_in, program, start, remaining = chunk_position(tokens, channels, chunks, LENGTH, BLOCK_C)
    row = tl.arange(0, LENGTH)
    offset = row[:, None] * channels + c[None, :]
    inside = (row < remaining)[:, None] & c_in[None, :]
    plane = plane.to(tl.int64)
    centre = tl.load(centre_ptr + program // chunks * channels + c, mask=c_in, other=0.0)[None, :]  # [1, BLOCK_C]
    # Sums from the left and from the right without the token itself, denominators, y - centre, and q.
    up, down, p, v, a_left, b_left, a_right, b_right, den, y, span, rise, bonus = chunk_rows(
        k_ptr + start, v_ptr + start, centre, factors_ptr, entering_ptr + program * channels + c, plane,
        row, inside, offset, channels, c, c_in, LENGTH, BLOCK_C,
    )  # fmt: skip
    grad = load_grad(grad_ptr, gate_ptr, start + offset, inside, GATED)  # [LENGTH, BLOCK_C]
    q = tl.where(inside, grad / den, 0.0)
    if GATED:
        gate_gradient(gate_ptr, grad_ptr, grad_gate_ptr, y + centre, start + offset, inside)
    zeros = tl.zeros([LENGTH, BLOCK_C], tl.float32)
    state = running_ptr + program * channels + c
    # Transposed sums from the right.
    _, s = tl.associative_scan((q * down, zeros), 0, sum_before, reverse=True)
    _, sy = tl.associative_scan((q * y * down, zeros), 0, sum_before, reverse=True)
    s = (s * span + tl.load(state + 2 * plane, mask=c_in, other=0.0)[None, :]) * (rise * up)
    sy = (sy * span + tl.load(state + 3 * plane, mask=c_in, other=0.0)[None, :]) * (rise * up)
    between = a_left * s - b_left * sy
    # Transposed sums from the left.
    _, t = tl.associative_scan((q * up, zeros), 0, sum_before)
    _, ty = tl.associative_scan((q * y * up, zeros), 0, sum_before)
    t = (t * (span * rise) + tl.load(state, mask=c_in, other=0.0)[None, :]) * down
    ty = (ty * (span * rise) + tl.load(state + plane, mask=c_in, other=0.0)[None, :]) * down
    between += a_right * t - b_right * ty
    s += t
    sy += ty
    # Write the gradients of k and v, and the chunk's parts of those of w and u.
    dtype = grad_k_ptr.dtype.element_ty
    own_v = bonus * p * q
    own_k = own_v * (v - y)
    tl.store(grad_v_ptr + start + offset, (p * s + own_v).to(dtype), mask=inside)
    tl.store(grad_k_ptr + start + offset, (p * (v * s - sy) + own_k).to(dtype), mask=inside)
    parts = parts_ptr + program * channels + c
    step = constant(factors_ptr, LENGTH, STEP, channels, c, c_in)  # [BLOCK_C]
    tl.store(parts, -step * tl.sum(tl.where(inside, between, 0.0), axis=0), mask=c_in)
    tl.store(parts + plane, tl.sum(tl.where(inside, own_k, 0.0), axis=0), mask=c_in)
