"""Triton kernels of BiWKV's backward, float32 arithmetic: gradient sums of chunks, their running sums, gradient rows.

The transposed sums have the rows' gradients as values: with den_t the denominator of row t relative to exp(ref), and
low the smallest of the chunk, they sum q_t = gy_t low / den_t and q_t y_t, relative to exp(-ref) / low. Denominators
and y are computed again when needed. v and y are relative to `centre`, from `kernels.middle_row`. `factors` has groups
of one token (kernels.py). `constants` is (18, B, chunks, C) float32, in the order in which `grad_join_kernel` stores
them. README.md has the equations.

In the logarithmic form, each row's log denominator and y are written, and `grad_rows_kernel` loops over all T rows.
"""

import triton
import triton.language as tl

from lalic_kernels.biwkv.kernels import EMPTY, SIZES, chunk_position, running_states, sums_before
from lalic_kernels.triton_math import sigmoid_stable


@triton.jit
def load_grad(grad_ptr, gate_ptr, offset, inside, GATED: tl.constexpr):
    """The gradient of y, float32: the result's, times sigmoid(gate) if GATED."""
    grad = tl.load(grad_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    if GATED:
        grad *= sigmoid_stable(tl.load(gate_ptr + offset, mask=inside, other=0.0).to(tl.float32))
    return grad


@triton.jit
def log_whole_row(
    w, u, k_ptr, v_ptr, centre, row, tokens, channels, c, c_in, LENGTH: tl.constexpr, BLOCK_C: tl.constexpr
):
    """(log denominator, y - centre), [LENGTH, BLOCK_C], of the tokens `row`, from all T tokens of a batch item.

    Exponents are rounded as in `log_grad_row`, so that a row's weights add up to one in the gradient too.
    """
    # The rows' largest exponents, over all tokens.
    e_max = tl.full([LENGTH, BLOCK_C], EMPTY, tl.float32)
    offset = c.to(tl.int64)
    for i in range(tokens):
        k = tl.load(k_ptr + offset, mask=c_in, other=0.0).to(tl.float32)[None, :]  # [1, BLOCK_C]
        gap = tl.abs(row - i)[:, None]
        e_max = tl.maximum(e_max, tl.where(gap == 0, k + u[None, :], k - (gap - 1).to(tl.float32) * w[None, :]))
        offset += channels
    # The sums relative to them.
    num = tl.zeros([LENGTH, BLOCK_C], tl.float32)
    den = tl.zeros([LENGTH, BLOCK_C], tl.float32)
    offset = c.to(tl.int64)
    for i in range(tokens):
        k = tl.load(k_ptr + offset, mask=c_in, other=0.0).to(tl.float32)[None, :]  # [1, BLOCK_C]
        v = tl.load(v_ptr + offset, mask=c_in, other=0.0).to(tl.float32)[None, :]  # [1, BLOCK_C]
        gap = tl.abs(row - i)[:, None]
        reach = tl.where(gap == 0, k + u[None, :], k - (gap - 1).to(tl.float32) * w[None, :])
        p = tl.exp(tl.minimum(reach - e_max, 1.0))
        num += p * (v - centre[None, :])
        den += p
        offset += channels
    return e_max + tl.log(den), num / den


@triton.jit(do_not_specialize=SIZES)
def grad_sums_kernel(
    w_ptr,  # (C,) float32
    u_ptr,  # (C,) float32
    k_ptr,  # (B, T, C)
    v_ptr,  # (B, T, C)
    gate_ptr,  # (B, T, C), read if GATED
    grad_ptr,  # (B, T, C), gradient of y, or of sigmoid(gate) * y
    centre_ptr,  # (B, C) float32
    factors_ptr,  # (2 LENGTH + 4, C) float32
    entering_ptr,  # (6, B, chunks, C) float32
    sums_ptr,  # (6, B, chunks, C) float32, written: sums of q and q y to the right, low; to the left, ref
    log_den_ptr,  # (B, T, C) float32, written in the logarithmic form
    y_ptr,  # (B, T, C) float32, written in the logarithmic form
    tokens,  # T
    channels,  # C
    chunks,
    plane,  # B * chunks * C
    LENGTH: tl.constexpr,
    BLOCK_C: tl.constexpr,
    VEC: tl.constexpr,
    FAST_ONLY: tl.constexpr,
    GATED: tl.constexpr,
):
    """Each chunk's transposed sums, decayed to its two neighbours. Grid (B * chunks * blocks of C,)."""
    # The chunk's position.
    channels = (channels // VEC) * VEC
    first, c, c_in, program, token, origin, remaining = chunk_position(tokens, channels, chunks, LENGTH, BLOCK_C)
    start = origin + token * channels
    row = tl.arange(0, LENGTH)
    offset = row[:, None] * channels + c[None, :]
    inside = (row < remaining)[:, None] & c_in[None, :]
    plane = plane.to(tl.int64)
    state = entering_ptr + program * channels + c
    centre = tl.load(centre_ptr + program // chunks * channels + c, mask=c_in, other=0.0)  # [BLOCK_C]
    if FAST_ONLY or tl.load(factors_ptr + (2 * LENGTH + 3) * channels + first) > 0.5:
        # Load the chunk, one row per token, and the powers of exp(w).
        k = tl.load(k_ptr + start + offset, mask=inside, other=EMPTY).to(tl.float32)  # [LENGTH, BLOCK_C]
        # v: [LENGTH, BLOCK_C]
        v = tl.load(v_ptr + start + offset, mask=inside, other=0.0).to(tl.float32) - centre[None, :]
        grad = load_grad(grad_ptr, gate_ptr, start + offset, inside, GATED)  # [LENGTH, BLOCK_C]
        up = tl.load(factors_ptr + offset, mask=c_in[None, :], other=1.0)  # [LENGTH, BLOCK_C]
        down = tl.load(factors_ptr + LENGTH * channels + offset, mask=c_in[None, :], other=1.0)  # [LENGTH, BLOCK_C]
        shared = factors_ptr + 2 * LENGTH * channels + c
        kappa = tl.load(shared + channels, mask=c_in, other=1.0)[None, :]  # [1, BLOCK_C]
        bonus = tl.load(shared + 2 * channels, mask=c_in, other=0.0)[None, :]  # [1, BLOCK_C]
        ref = tl.load(state + 2 * plane, mask=c_in, other=0.0)  # [BLOCK_C]
        # Compute the rows again: y - centre and denominators, from the left, the token itself, and the right.
        p = tl.exp(k - ref[None, :])
        pv = p * v
        zeros = tl.zeros([LENGTH, BLOCK_C], tl.float32)
        _, num, _, den = tl.associative_scan((pv * up, zeros, p * up, zeros), 0, sums_before)
        # state: [1, BLOCK_C]
        y = bonus * pv + (num + tl.load(state, mask=c_in, other=0.0)[None, :]) * (kappa * down)
        weight = bonus * p + (den + tl.load(state + plane, mask=c_in, other=1.0)[None, :]) * (kappa * down)
        _, num, _, den = tl.associative_scan((pv * down, zeros, p * down, zeros), 0, sums_before, reverse=True)
        # state: [1, BLOCK_C]
        y += (num + tl.load(state + 3 * plane, mask=c_in, other=0.0)[None, :]) * (kappa * up)
        weight += (den + tl.load(state + 4 * plane, mask=c_in, other=0.0)[None, :]) * (kappa * up)
        y = y / weight
        # q and q y, relative to the chunk's smallest denominator.
        low = tl.min(tl.where(inside, weight, 1.0e38), axis=0)
        low = tl.where(c_in, low, 1.0)
        q = tl.where(inside, grad * (low[None, :] / weight), 0.0)
        qy = tl.where(inside, q * y, 0.0)
        # Their sums, to the right and to the left: [BLOCK_C].
        out = sums_ptr + program * channels + c
        tl.store(out, tl.sum(q * up, axis=0), mask=c_in)
        tl.store(out + plane, tl.sum(qy * up, axis=0), mask=c_in)
        tl.store(out + 2 * plane, low, mask=c_in)
        tl.store(out + 3 * plane, tl.sum(q * down, axis=0), mask=c_in)
        tl.store(out + 4 * plane, tl.sum(qy * down, axis=0), mask=c_in)
        tl.store(out + 5 * plane, ref, mask=c_in)
    else:
        # The logarithmic form, over all T tokens.
        w = tl.load(w_ptr + c, mask=c_in, other=0.0)  # [BLOCK_C]
        u = tl.load(u_ptr + c, mask=c_in, other=0.0)  # [BLOCK_C]
        log_den, y = log_whole_row(
            w, u, k_ptr + origin, v_ptr + origin, centre,
            token.to(tl.int32) + row, tokens, channels, c, c_in, LENGTH, BLOCK_C,
        )  # fmt: skip
        tl.store(log_den_ptr + start + offset, log_den, mask=inside)
        tl.store(y_ptr + start + offset, y, mask=inside)


@triton.jit(do_not_specialize=SIZES[1:])
def grad_scan_kernel(
    w_ptr,  # (C,) float32
    factors_ptr,  # (2 LENGTH + 4, C) float32
    sums_ptr,  # (6, B, chunks, C) float32, of grad_sums_kernel
    running_ptr,  # (6, B, chunks, C) float32, written: the transposed sums that enter from the left and from the right
    channels,  # C
    chunks,
    plane,  # B * chunks * C
    LENGTH: tl.constexpr,
    PIECE: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Running transposed sums, in float64. Grid (B * blocks of C, 2): from the left, from the right."""
    # Decays of a block of channels, [BLOCK_C].
    across = tl.cdiv(channels, BLOCK_C)
    item = (tl.program_id(0) // across).to(tl.int64)
    c = tl.program_id(0) % across * BLOCK_C + tl.arange(0, BLOCK_C)
    leftward = tl.program_id(1)
    c_in = c < channels
    # The logarithmic form does not need these sums.
    c_in = c_in & (tl.load(factors_ptr + (2 * LENGTH + 3) * channels + c, mask=c_in, other=0.0) > 0.5)  # [BLOCK_C]
    w = tl.load(w_ptr + c, mask=c_in, other=0.0).to(tl.float64)  # [BLOCK_C]
    decay = w * LENGTH
    # The factor that grad_sums_kernel leaves out: kappa W(LENGTH), or kappa U(-1).
    growth = tl.maximum(-decay, 0.0)
    factor = tl.exp(growth + tl.where(leftward == 0, w, 0.0))[None, :]
    # The addresses of this direction's sums.
    plane = plane.to(tl.int64)
    base = item * chunks * channels + c[None, :]
    sums = sums_ptr + base + leftward * 3 * plane
    low_ptr = sums_ptr + base + 2 * plane
    running = running_ptr + base + leftward * 3 * plane
    row = tl.arange(0, PIECE)[:, None]
    # Running states, PIECE chunks at a time.
    a_carry = tl.zeros([BLOCK_C], tl.float64)
    b_carry = tl.zeros([BLOCK_C], tl.float64)
    e_carry = tl.full([BLOCK_C], EMPTY, tl.float64)
    for start in range(0, chunks, PIECE):
        j = start + row
        mask = (j >= 1) & (j < chunks) & c_in[None, :]
        source = (tl.where(leftward == 0, j - 1, chunks - j) * channels).to(tl.int64)
        a = tl.load(sums + source, mask=mask, other=0.0).to(tl.float64) * factor  # [PIECE, BLOCK_C]
        b = tl.load(sums + source + plane, mask=mask, other=0.0).to(tl.float64) * factor  # [PIECE, BLOCK_C]
        e = -tl.log(tl.load(low_ptr + source, mask=mask, other=1.0).to(tl.float64))  # [PIECE, BLOCK_C]
        e -= tl.load(low_ptr + source + 3 * plane, mask=mask, other=-EMPTY).to(tl.float64)  # [PIECE, BLOCK_C]
        a, b, e, a_carry, b_carry, e_carry = running_states(a, b, e, a_carry, b_carry, e_carry, decay, PIECE, BLOCK_C)
        e32 = e.to(tl.float32)
        scale = tl.exp(e - e32.to(tl.float64))
        target = (tl.where(leftward == 0, j, chunks - 1 - j) * channels).to(tl.int64)
        mask = (j < chunks) & c_in[None, :]
        tl.store(running + target, (a * scale).to(tl.float32), mask=mask)
        tl.store(running + target + plane, (b * scale).to(tl.float32), mask=mask)
        tl.store(running + target + 2 * plane, e32, mask=mask)


@triton.jit(do_not_specialize=["channels", "plane"])
def grad_join_kernel(
    w_ptr,  # (C,) float32
    x_sums_ptr,  # (6, B, chunks, C) float32, of k and v
    x_own_ptr,  # (6, B, chunks, C) float32, the entering sums, with an exponent for each direction
    sums_ptr,  # (6, B, chunks, C) float32, of grad_sums_kernel
    running_ptr,  # (6, B, chunks, C) float32, of grad_scan_kernel
    constants_ptr,  # (18, B, chunks, C) float32, written
    channels,  # C
    plane,  # B * chunks * C
    LENGTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What `grad_rows_kernel` needs from the other chunks, for one side. Grid (blocks of B * chunks * C, 2).

    Sums of p and p v from one side (unit exp(x)) are multiplied with transposed sums from the other side (unit
    exp(-x)). Such products are sums of true weights, so zeros overflows, although each factor's unit may be far out
    of range. In the logarithmic form the results are meaningless and not read.
    """
    # A block of (batch item, chunk, channel), [BLOCK], of one side.
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < plane
    side = tl.program_id(1)  # 0: x from the left, 1: x from the right
    plane = plane.to(tl.int64)
    w = tl.load(w_ptr + at % channels, mask=mask, other=0.0).to(tl.float64)  # [BLOCK]
    decay = w * LENGTH
    shrink = tl.maximum(decay, 0.0)
    from_left = -w - shrink  # log U(-1)
    from_right = -shrink  # log W(LENGTH)
    # Load the exponents of the chunk, of the entering sums and of the transposed sums.
    e_max = tl.load(x_sums_ptr + 2 * plane + at, mask=mask, other=0.0).to(tl.float64)  # [BLOCK]
    low = tl.load(sums_ptr + 2 * plane + at, mask=mask, other=1.0).to(tl.float64)  # [BLOCK]
    ref = tl.load(sums_ptr + 5 * plane + at, mask=mask, other=0.0).to(tl.float64)  # [BLOCK]
    x = x_own_ptr + side * 3 * plane + at
    g = running_ptr + (1 - side) * 3 * plane + at
    e_x = tl.load(x + 2 * plane, mask=mask, other=0.0).to(tl.float64)  # [BLOCK]
    e_g = tl.load(g + 2 * plane, mask=mask, other=0.0).to(tl.float64)  # [BLOCK]
    # The side's common unit, and both kinds of sums in it.
    unit = tl.maximum(e_max, e_x + tl.maximum(-decay, 0.0))
    out = constants_ptr + side * 6 * plane + at
    tl.store(out, tl.exp(e_max - unit).to(tl.float32), mask=mask)
    scale = tl.exp(tl.where(side == 0, from_left, from_right) + (e_x - unit)).to(tl.float32)
    tl.store(out + plane, tl.load(x, mask=mask, other=0.0) * scale, mask=mask)
    tl.store(out + 2 * plane, tl.load(x + plane, mask=mask, other=0.0) * scale, mask=mask)
    tl.store(out + 3 * plane, (tl.exp(unit - ref) / low).to(tl.float32), mask=mask)
    scale = tl.exp(tl.minimum(tl.where(side == 0, from_right, from_left) + (unit + e_g), 80.0)).to(tl.float32)
    tl.store(out + 4 * plane, tl.load(g, mask=mask, other=0.0) * scale, mask=mask)
    tl.store(out + 5 * plane, tl.load(g + plane, mask=mask, other=0.0) * scale, mask=mask)
    # The units, and the constants of both sides, each written by one of the two.
    shared = constants_ptr + 12 * plane + at
    tl.store(shared + (1 + side) * plane, tl.exp(unit - ref).to(tl.float32), mask=mask)
    chunk_unit = tl.exp(e_max - ref)
    sides = tl.zeros([BLOCK], tl.int32) + side
    tl.store(shared, (chunk_unit / low).to(tl.float32), mask=mask & (sides == 0))
    tl.store(shared + 3 * plane, chunk_unit.to(tl.float32), mask=mask & (sides == 0))
    tl.store(shared + 4 * plane, low.to(tl.float32), mask=mask & (sides == 1))
    tl.store(shared + 5 * plane, e_max.to(tl.float32), mask=mask & (sides == 1))


@triton.jit
def gate_gradient(gate_ptr, grad_ptr, grad_gate_ptr, y, offset, inside):
    """Write the gradient of the gate. Both inputs are read again, to save registers."""
    gate = tl.load(gate_ptr + offset, mask=inside, other=0.0).to(tl.float32)  # [LENGTH, BLOCK_C]
    grad = tl.load(grad_ptr + offset, mask=inside, other=0.0).to(tl.float32)  # [LENGTH, BLOCK_C]
    slope = sigmoid_stable(gate) * sigmoid_stable(-gate)
    tl.store(grad_gate_ptr + offset, (grad * y * slope).to(grad_gate_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _constant(ptr, plane, index: tl.constexpr, c_in):
    """Entry `index` of `constants`, [1, BLOCK_C]."""
    return tl.load(ptr + index * plane, mask=c_in, other=1.0)[None, :]


@triton.jit
def log_grad_row(
    w, u, k, v, gate_ptr, grad_ptr, log_den_ptr, y_ptr, row, tokens, channels, c, c_in,
    LENGTH: tl.constexpr, BLOCK_C: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and values at tokens `row`, and each token's part of those of w and u; a loop over all T rows.

    v and y are relative to the same value. The pointers point to the batch item. A weight is
    exp(k - steps w - log_den), at most one except for rounding.
    """
    # Sums over every row t: [LENGTH, BLOCK_C].
    grad_k = tl.zeros([LENGTH, BLOCK_C], tl.float32)
    grad_v = tl.zeros([LENGTH, BLOCK_C], tl.float32)
    grad_w = tl.zeros([LENGTH, BLOCK_C], tl.float32)
    grad_u = tl.zeros([LENGTH, BLOCK_C], tl.float32)
    offset = c.to(tl.int64)
    for t in range(tokens):
        g = load_grad(grad_ptr, gate_ptr, offset, c_in, GATED)[None, :]  # [1, BLOCK_C]
        log_den = tl.load(log_den_ptr + offset, mask=c_in, other=0.0)[None, :]  # [1, BLOCK_C]
        y = tl.load(y_ptr + offset, mask=c_in, other=0.0)[None, :]  # [1, BLOCK_C]
        gap = tl.abs(row - t)[:, None]
        steps = (gap - 1).to(tl.float32)
        same = gap == 0
        p = tl.exp(tl.minimum(tl.where(same, k + u[None, :], k - steps * w[None, :]) - log_den, 1.0))
        part = p * g
        part_k = part * (v - y)
        grad_v += part
        grad_k += part_k
        grad_u += tl.where(same, part_k, 0.0)
        grad_w -= tl.where(same, 0.0, steps * part_k)
        offset += channels
    return grad_k, grad_v, grad_w, grad_u


@triton.jit(do_not_specialize=SIZES)
def grad_rows_kernel(
    w_ptr,  # (C,) float32
    u_ptr,  # (C,) float32
    k_ptr,  # (B, T, C)
    v_ptr,  # (B, T, C)
    gate_ptr,  # (B, T, C), read if GATED
    grad_ptr,  # (B, T, C), gradient of y, or of sigmoid(gate) * y
    centre_ptr,  # (B, C) float32
    factors_ptr,  # (2 LENGTH + 4, C) float32
    constants_ptr,  # (18, B, chunks, C) float32
    log_den_ptr,  # (B, T, C) float32, read in the logarithmic form
    y_ptr,  # (B, T, C) float32, read in the logarithmic form
    grad_k_ptr,  # (B, T, C), written
    grad_v_ptr,  # (B, T, C), written
    grad_gate_ptr,  # (B, T, C), written if GATED
    parts_ptr,  # (2, B, chunks, C) float32, written: the chunk's parts of the gradients of w and u
    tokens,  # T
    channels,  # C
    chunks,
    plane,  # B * chunks * C
    LENGTH: tl.constexpr,
    BLOCK_C: tl.constexpr,
    VEC: tl.constexpr,
    FAST_ONLY: tl.constexpr,
    GATED: tl.constexpr,
):
    """Gradients of a chunk's keys and values, and its parts of those of w and u. Grid (B * chunks * blocks of C,).

    (|s - i| - 1) counts the positions strictly between i and s. So the gradient of w is a sum over positions: at each,
    the sums of p from one side times the transposed sums from the other.
    """
    # The chunk's position.
    channels = (channels // VEC) * VEC
    first, c, c_in, program, token, origin, remaining = chunk_position(tokens, channels, chunks, LENGTH, BLOCK_C)
    start = origin + token * channels
    row = tl.arange(0, LENGTH)
    offset = row[:, None] * channels + c[None, :]
    inside = (row < remaining)[:, None] & c_in[None, :]
    plane = plane.to(tl.int64)
    parts = parts_ptr + program * channels + c
    dtype = grad_k_ptr.dtype.element_ty
    centre = tl.load(centre_ptr + program // chunks * channels + c, mask=c_in, other=0.0)  # [BLOCK_C]
    if FAST_ONLY or tl.load(factors_ptr + (2 * LENGTH + 3) * channels + first) > 0.5:
        # Load the chunk, one row per token, the powers of exp(w), and the first constants.
        k = tl.load(k_ptr + start + offset, mask=inside, other=EMPTY).to(tl.float32)  # [LENGTH, BLOCK_C]
        # v: [LENGTH, BLOCK_C]
        v = tl.load(v_ptr + start + offset, mask=inside, other=0.0).to(tl.float32) - centre[None, :]
        grad = load_grad(grad_ptr, gate_ptr, start + offset, inside, GATED)  # [LENGTH, BLOCK_C]
        up = tl.load(factors_ptr + offset, mask=c_in[None, :], other=1.0)  # [LENGTH, BLOCK_C]
        down = tl.load(factors_ptr + LENGTH * channels + offset, mask=c_in[None, :], other=1.0)  # [LENGTH, BLOCK_C]
        shared = factors_ptr + 2 * LENGTH * channels + c
        step = tl.load(shared, mask=c_in, other=0.0)  # [BLOCK_C]
        kappa = tl.load(shared + channels, mask=c_in, other=1.0)[None, :]  # [1, BLOCK_C]
        bonus = tl.load(shared + 2 * channels, mask=c_in, other=1.0)[None, :]  # [1, BLOCK_C]
        at = constants_ptr + program * channels + c
        in_left = _constant(at, plane, 0, c_in)
        in_right = _constant(at, plane, 6, c_in)
        zeros = tl.zeros([LENGTH, BLOCK_C], tl.float32)
        p = tl.exp(k - _constant(at, plane, 17, c_in))
        pv = p * v
        # Sums of p v and p: x from the left, z from the right, without the token itself.
        _, x1, _, x2 = tl.associative_scan((pv * up, zeros, p * up, zeros), 0, sums_before)
        x1 = (x1 * in_left + _constant(at, plane, 1, c_in)) * (kappa * down)
        x2 = (x2 * in_left + _constant(at, plane, 2, c_in)) * (kappa * down)
        _, z1, _, z2 = tl.associative_scan((pv * down, zeros, p * down, zeros), 0, sums_before, reverse=True)
        z1 = (z1 * in_right + _constant(at, plane, 7, c_in)) * (kappa * up)
        z2 = (z2 * in_right + _constant(at, plane, 8, c_in)) * (kappa * up)
        # Compute the rows again: denominators, y - centre and q.
        unit_x = _constant(at, plane, 13, c_in)
        unit_z = _constant(at, plane, 14, c_in)
        self_weight = _constant(at, plane, 15, c_in) * bonus
        den = unit_x * x2 + unit_z * z2 + self_weight * p
        y = (unit_x * x1 + unit_z * z1 + self_weight * pv) / den
        q = tl.where(inside, grad * (_constant(at, plane, 16, c_in) / den), 0.0)
        y = tl.where(inside, y, 0.0)
        if GATED:
            gate_gradient(gate_ptr, grad_ptr, grad_gate_ptr, y + centre[None, :], start + offset, inside)
        qy = q * y
        # Transposed sums from the right, in the unit of x.
        _, g1, _, g2 = tl.associative_scan((q * down, zeros, qy * down, zeros), 0, sums_before, reverse=True)
        scale = _constant(at, plane, 3, c_in)
        g1 = (g1 * scale + _constant(at, plane, 4, c_in)) * (kappa * up)
        g2 = (g2 * scale + _constant(at, plane, 5, c_in)) * (kappa * up)
        between = x1 * g1 - x2 * g2
        s1 = in_left * g1
        s2 = in_left * g2
        # Transposed sums from the left, in the unit of z.
        _, g1, _, g2 = tl.associative_scan((q * up, zeros, qy * up, zeros), 0, sums_before)
        scale = _constant(at, plane, 9, c_in)
        g1 = (g1 * scale + _constant(at, plane, 10, c_in)) * (kappa * down)
        g2 = (g2 * scale + _constant(at, plane, 11, c_in)) * (kappa * down)
        between += z1 * g1 - z2 * g2
        s1 += in_right * g1
        s2 += in_right * g2
        # Write the gradients of k and v, and the chunk's parts of those of w and u.
        self_v = _constant(at, plane, 12, c_in) * bonus * p * q
        self_k = self_v * (v - y)
        tl.store(grad_v_ptr + start + offset, (p * s1 + self_v).to(dtype), mask=inside)
        tl.store(grad_k_ptr + start + offset, (p * (v * s1 - s2) + self_k).to(dtype), mask=inside)
        tl.store(parts, -step * tl.sum(tl.where(inside, between, 0.0), axis=0), mask=c_in)
        tl.store(parts + plane, tl.sum(tl.where(inside, self_k, 0.0), axis=0), mask=c_in)
    else:
        # The logarithmic form, over all T tokens.
        w = tl.load(w_ptr + c, mask=c_in, other=0.0)  # [BLOCK_C]
        u = tl.load(u_ptr + c, mask=c_in, other=0.0)  # [BLOCK_C]
        k = tl.load(k_ptr + start + offset, mask=inside, other=0.0).to(tl.float32)  # [LENGTH, BLOCK_C]
        # v: [LENGTH, BLOCK_C]
        v = tl.load(v_ptr + start + offset, mask=inside, other=0.0).to(tl.float32) - centre[None, :]
        grad_k, grad_v, grad_w, grad_u = log_grad_row(
            w, u, k, v, gate_ptr + origin, grad_ptr + origin, log_den_ptr + origin, y_ptr + origin,
            token.to(tl.int32) + row, tokens, channels, c, c_in, LENGTH, BLOCK_C, GATED,
        )  # fmt: skip
        tl.store(grad_v_ptr + start + offset, grad_v.to(dtype), mask=inside)
        tl.store(grad_k_ptr + start + offset, grad_k.to(dtype), mask=inside)
        tl.store(parts, tl.sum(tl.where(inside, grad_w, 0.0), axis=0), mask=c_in)
        tl.store(parts + plane, tl.sum(tl.where(inside, grad_u, 0.0), axis=0), mask=c_in)
        if GATED:
            y = tl.load(y_ptr + start + offset, mask=inside, other=0.0) + centre[None, :]  # [LENGTH, BLOCK_C]
            gate_gradient(gate_ptr, grad_ptr, grad_gate_ptr, y, start + offset, inside)
