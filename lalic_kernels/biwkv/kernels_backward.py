"""Triton kernels of BiWKV's backward, float32 arithmetic: gradient sums of chunks, their running sums, gradient rows.

The transposed sums have the rows' gradients as values: with den_t the denominator of row t relative to exp(ref) and low
the smallest of the chunk, q_t = gy_t low / den_t and q_t y_t, relative to exp(-ref) / low. Denominators and y are
recomputed wherever they are needed. `factors` has groups of one token (kernels.py). `constants` is (18, B, chunks, C)
float32, in the order in which `grad_join_kernel` stores them. README.md has the equations.

v and y are measured from `centre`, see `kernels.middle_row`.

In the logarithmic form, each row's log denominator and y are written, and `grad_rows_kernel` goes over all T rows.
"""

import triton
import triton.language as tl

from lalic_kernels.biwkv.kernels import NOTHING, SIZES, running_states, sums_before
from lalic_kernels.triton_math import sigmoid_stable


@triton.jit
def log_whole_row(
    w, u, k_ptr, v_ptr, centre, row, tokens, channels, c, c_in, LENGTH: tl.constexpr, BLOCK_C: tl.constexpr
):
    """(log denominator, y - centre), [LENGTH, BLOCK_C], of the tokens `row`, from all T tokens of a batch item.

    Exponents are rounded as `log_grad_row` rounds them, so that a row's weights add up to one in the gradient too.
    """
    # The rows' largest exponents, over all tokens.
    top = tl.full([LENGTH, BLOCK_C], NOTHING, tl.float32)
    offset = c.to(tl.int64)
    for i in range(tokens):
        k = tl.load(k_ptr + offset, mask=c_in, other=0.0).to(tl.float32)[None, :]  # [1, BLOCK_C]
        gap = tl.abs(row - i)[:, None]
        top = tl.maximum(top, tl.where(gap == 0, k + u[None, :], k - (gap - 1).to(tl.float32) * w[None, :]))
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
        p = tl.exp(tl.minimum(reach - top, 1.0))
        num += p * (v - centre[None, :])
        den += p
        offset += channels
    return top + tl.log(den), num / den


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
    sums_ptr,  # (6, B, chunks, C) float32, written: sums of q and q y going right, low; going left, ref
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
    """Each chunk's transposed sums, as its neighbours see them. Grid (blocks of C, B * chunks)."""
    # Where the chunk is.
    channels = (channels // VEC) * VEC
    first = tl.program_id(0) * BLOCK_C
    c = first + tl.arange(0, BLOCK_C)
    c_in = c < channels
    program = tl.program_id(1).to(tl.int64)
    chunk = program % chunks
    origin = program // chunks * tokens * channels
    start = origin + chunk * LENGTH * channels
    left = (tokens - chunk * LENGTH).to(tl.int32)
    row = tl.arange(0, LENGTH)
    offset = row[:, None] * channels + c[None, :]
    inside = (row < left)[:, None] & c_in[None, :]
    plane = plane.to(tl.int64)
    state = entering_ptr + program * channels + c
    centre = tl.load(centre_ptr + program // chunks * channels + c, mask=c_in, other=0.0)  # [BLOCK_C]
    if FAST_ONLY or tl.load(factors_ptr + (2 * LENGTH + 3) * channels + first) > 0.5:
        # Load the chunk, one row a token, and the powers of exp(w).
        k = tl.load(k_ptr + start + offset, mask=inside, other=NOTHING).to(tl.float32)  # [LENGTH, BLOCK_C]
        # v: [LENGTH, BLOCK_C]
        v = tl.load(v_ptr + start + offset, mask=inside, other=0.0).to(tl.float32) - centre[None, :]
        grad = tl.load(grad_ptr + start + offset, mask=inside, other=0.0).to(tl.float32)  # [LENGTH, BLOCK_C]
        if GATED:
            # grad: [LENGTH, BLOCK_C]
            grad *= sigmoid_stable(tl.load(gate_ptr + start + offset, mask=inside, other=0.0).to(tl.float32))
        up = tl.load(factors_ptr + offset, mask=c_in[None, :], other=1.0)  # [LENGTH, BLOCK_C]
        down = tl.load(factors_ptr + LENGTH * channels + offset, mask=c_in[None, :], other=1.0)  # [LENGTH, BLOCK_C]
        shared = factors_ptr + 2 * LENGTH * channels + c
        kappa = tl.load(shared + channels, mask=c_in, other=1.0)[None, :]  # [1, BLOCK_C]
        bonus = tl.load(shared + 2 * channels, mask=c_in, other=0.0)[None, :]  # [1, BLOCK_C]
        ref = tl.load(state + 2 * plane, mask=c_in, other=0.0)  # [BLOCK_C]
        # The rows again: y - centre and denominators, from the left, itself, and from the right.
        p = tl.exp(k - ref[None, :])
        pv = p * v
        nothing = tl.zeros([LENGTH, BLOCK_C], tl.float32)
        _, num, _, den = tl.associative_scan((pv * up, nothing, p * up, nothing), 0, sums_before)
        # what enters: [1, BLOCK_C]
        y = bonus * pv + (num + tl.load(state, mask=c_in, other=0.0)[None, :]) * (kappa * down)
        weight = bonus * p + (den + tl.load(state + plane, mask=c_in, other=1.0)[None, :]) * (kappa * down)
        _, num, _, den = tl.associative_scan((pv * down, nothing, p * down, nothing), 0, sums_before, reverse=True)
        # what enters: [1, BLOCK_C]
        y += (num + tl.load(state + 3 * plane, mask=c_in, other=0.0)[None, :]) * (kappa * up)
        weight += (den + tl.load(state + 4 * plane, mask=c_in, other=0.0)[None, :]) * (kappa * up)
        y = y / weight
        # q and q y, relative to the chunk's smallest denominator.
        low = tl.min(tl.where(inside, weight, 1.0e38), axis=0)
        low = tl.where(c_in, low, 1.0)
        q = tl.where(inside, grad * (low[None, :] / weight), 0.0)
        qy = tl.where(inside, q * y, 0.0)
        # Their sums, going right and going left: [BLOCK_C].
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
            (chunk * LENGTH).to(tl.int32) + row, tokens, channels, c, c_in, LENGTH, BLOCK_C,
        )  # fmt: skip
        tl.store(log_den_ptr + start + offset, log_den, mask=inside)
        tl.store(y_ptr + start + offset, y, mask=inside)


@triton.jit(do_not_specialize=SIZES[1:])
def grad_scan_kernel(
    w_ptr,  # (C,) float32
    factors_ptr,  # (2 LENGTH + 4, C) float32
    sums_ptr,  # (6, B, chunks, C) float32, of grad_sums_kernel
    running_ptr,  # (6, B, chunks, C) float32, written: transposed sums that enter from the left, and from the right
    channels,  # C
    chunks,
    plane,  # B * chunks * C
    LENGTH: tl.constexpr,
    PIECE: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Running transposed sums, in float64. Grid (B, blocks of C, 2): from the left, from the right."""
    # Decays of a block of channels, [BLOCK_C].
    item = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    leftward = tl.program_id(2)
    c_in = c < channels
    # The logarithmic form has no use for this.
    c_in = c_in & (tl.load(factors_ptr + (2 * LENGTH + 3) * channels + c, mask=c_in, other=0.0) > 0.5)  # [BLOCK_C]
    w = tl.load(w_ptr + c, mask=c_in, other=0.0).to(tl.float64)  # [BLOCK_C]
    decay = w * LENGTH
    # kappa W(LENGTH), or kappa U(-1): what grad_sums_kernel left out.
    growth = tl.maximum(-decay, 0.0)
    factor = tl.exp(growth + tl.where(leftward == 0, w, 0.0))[None, :]
    # Where this direction's sums are.
    plane = plane.to(tl.int64)
    base = item * chunks * channels + c[None, :]
    sums = sums_ptr + base + leftward * 3 * plane
    low_ptr = sums_ptr + base + 2 * plane
    running = running_ptr + base + leftward * 3 * plane
    row = tl.arange(0, PIECE)[:, None]
    # Running states, PIECE chunks at a time.
    a_carry = tl.zeros([BLOCK_C], tl.float64)
    b_carry = tl.zeros([BLOCK_C], tl.float64)
    e_carry = tl.full([BLOCK_C], NOTHING, tl.float64)
    for start in range(0, chunks, PIECE):
        place = start + row
        mask = (place >= 1) & (place < chunks) & c_in[None, :]
        source = (tl.where(leftward == 0, place - 1, chunks - place) * channels).to(tl.int64)
        a = tl.load(sums + source, mask=mask, other=0.0).to(tl.float64) * factor  # [PIECE, BLOCK_C]
        b = tl.load(sums + source + plane, mask=mask, other=0.0).to(tl.float64) * factor  # [PIECE, BLOCK_C]
        e = -tl.log(tl.load(low_ptr + source, mask=mask, other=1.0).to(tl.float64))  # [PIECE, BLOCK_C]
        e -= tl.load(low_ptr + source + 3 * plane, mask=mask, other=-NOTHING).to(tl.float64)  # [PIECE, BLOCK_C]
        a, b, e, a_carry, b_carry, e_carry = running_states(a, b, e, a_carry, b_carry, e_carry, decay, PIECE, BLOCK_C)
        e32 = e.to(tl.float32)
        scale = tl.exp(e - e32.to(tl.float64))
        target = (tl.where(leftward == 0, place, chunks - 1 - place) * channels).to(tl.int64)
        mask = (place < chunks) & c_in[None, :]
        tl.store(running + target, (a * scale).to(tl.float32), mask=mask)
        tl.store(running + target + plane, (b * scale).to(tl.float32), mask=mask)
        tl.store(running + target + 2 * plane, e32, mask=mask)


@triton.jit(do_not_specialize=["channels"])
def grad_join_kernel(
    w_ptr,  # (C,) float32
    x_sums_ptr,  # (6, B, chunks, C) float32, of k and v
    x_own_ptr,  # (6, B, chunks, C) float32, what enters, an exponent for each direction
    sums_ptr,  # (6, B, chunks, C) float32, of grad_sums_kernel
    running_ptr,  # (6, B, chunks, C) float32, of grad_scan_kernel
    constants_ptr,  # (18, B, chunks, C) float32, written
    channels,  # C
    plane,  # B * chunks * C
    LENGTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All that `grad_rows_kernel` needs of a chunk's surroundings, for one side. Grid (blocks of B * chunks * C, 2).

    The sums of p, p v from one side (unit exp(x)) meet the transposed sums from the other (unit exp(-x)): such products
    are sums of true weights, so nothing overflows though either factor's natural unit may be far out of range.
    Where the logarithmic form is taken the results are meaningless, and not read.
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
    # The exponents that meet here.
    top = tl.load(x_sums_ptr + 2 * plane + at, mask=mask, other=0.0).to(tl.float64)  # [BLOCK]
    low = tl.load(sums_ptr + 2 * plane + at, mask=mask, other=1.0).to(tl.float64)  # [BLOCK]
    ref = tl.load(sums_ptr + 5 * plane + at, mask=mask, other=0.0).to(tl.float64)  # [BLOCK]
    x = x_own_ptr + side * 3 * plane + at
    g = running_ptr + (1 - side) * 3 * plane + at
    e_x = tl.load(x + 2 * plane, mask=mask, other=0.0).to(tl.float64)  # [BLOCK]
    e_g = tl.load(g + 2 * plane, mask=mask, other=0.0).to(tl.float64)  # [BLOCK]
    # The side's common unit; both kinds of sums in it.
    unit = tl.maximum(top, e_x + tl.maximum(-decay, 0.0))
    out = constants_ptr + side * 6 * plane + at
    tl.store(out, tl.exp(top - unit).to(tl.float32), mask=mask)
    scale = tl.exp(tl.where(side == 0, from_left, from_right) + (e_x - unit)).to(tl.float32)
    tl.store(out + plane, tl.load(x, mask=mask, other=0.0) * scale, mask=mask)
    tl.store(out + 2 * plane, tl.load(x + plane, mask=mask, other=0.0) * scale, mask=mask)
    tl.store(out + 3 * plane, (tl.exp(unit - ref) / low).to(tl.float32), mask=mask)
    scale = tl.exp(tl.minimum(tl.where(side == 0, from_right, from_left) + (unit + e_g), 80.0)).to(tl.float32)
    tl.store(out + 4 * plane, tl.load(g, mask=mask, other=0.0) * scale, mask=mask)
    tl.store(out + 5 * plane, tl.load(g + plane, mask=mask, other=0.0) * scale, mask=mask)
    # The units themselves, and what both sides share.
    rest = constants_ptr + 12 * plane + at
    tl.store(rest + (1 + side) * plane, tl.exp(unit - ref).to(tl.float32), mask=mask)
    own = tl.exp(top - ref)
    sides = tl.zeros([BLOCK], tl.int32) + side  # what both sides share is written once
    tl.store(rest, (own / low).to(tl.float32), mask=mask & (sides == 0))
    tl.store(rest + 3 * plane, own.to(tl.float32), mask=mask & (sides == 0))
    tl.store(rest + 4 * plane, low.to(tl.float32), mask=mask & (sides == 1))
    tl.store(rest + 5 * plane, top.to(tl.float32), mask=mask & (sides == 1))


@triton.jit
def gate_gradient(gate_ptr, grad_ptr, grad_gate_ptr, y, offset, inside):
    """Write the gradient of the gate; both inputs are read again, which is cheaper than keeping them in registers."""
    gate = tl.load(gate_ptr + offset, mask=inside, other=0.0).to(tl.float32)  # [LENGTH, BLOCK_C]
    grad = tl.load(grad_ptr + offset, mask=inside, other=0.0).to(tl.float32)  # [LENGTH, BLOCK_C]
    slope = sigmoid_stable(gate) * sigmoid_stable(-gate)
    tl.store(grad_gate_ptr + offset, (grad * y * slope).to(grad_gate_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _constant(ptr, plane, place: tl.constexpr, c_in):
    return tl.load(ptr + place * plane, mask=c_in, other=1.0)[None, :]


@triton.jit
def log_grad_row(
    w,
    u,
    k,
    v,
    gate_ptr,
    grad_ptr,
    log_den_ptr,
    y_ptr,
    row,
    tokens,
    channels,
    c,
    c_in,
    LENGTH: tl.constexpr,
    BLOCK_C: tl.constexpr,
    GATED: tl.constexpr,
):
    """Gradients of the keys and values at tokens `row`, and each token's share of those of w and u; over all T rows.

    v and y are measured from one value. The pointers point to the batch item. A weight
    is exp(k - steps w - log_den), at most one but for rounding.
    """
    # Shares of every row t, added up: [LENGTH, BLOCK_C].
    grad_k = tl.zeros([LENGTH, BLOCK_C], tl.float32)
    grad_v = tl.zeros([LENGTH, BLOCK_C], tl.float32)
    grad_w = tl.zeros([LENGTH, BLOCK_C], tl.float32)
    grad_u = tl.zeros([LENGTH, BLOCK_C], tl.float32)
    offset = c.to(tl.int64)
    for t in range(tokens):
        g = tl.load(grad_ptr + offset, mask=c_in, other=0.0).to(tl.float32)[None, :]  # [1, BLOCK_C]
        if GATED:
            # g: [1, BLOCK_C]
            g *= sigmoid_stable(tl.load(gate_ptr + offset, mask=c_in, other=0.0).to(tl.float32))[None, :]
        top = tl.load(log_den_ptr + offset, mask=c_in, other=0.0)[None, :]  # [1, BLOCK_C]
        y = tl.load(y_ptr + offset, mask=c_in, other=0.0)[None, :]  # [1, BLOCK_C]
        gap = tl.abs(row - t)[:, None]
        steps = (gap - 1).to(tl.float32)
        same = gap == 0
        p = tl.exp(tl.minimum(tl.where(same, k + u[None, :], k - steps * w[None, :]) - top, 1.0))
        part = p * g
        change = part * (v - y)
        grad_v += part
        grad_k += change
        grad_u += tl.where(same, change, 0.0)
        grad_w -= tl.where(same, 0.0, steps * change)
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
    parts_ptr,  # (2, B, chunks, C) float32, written: the chunk's share of the gradients of w and u
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
    """Gradients of a chunk's keys and values, and its shares of those of w and u. Grid (blocks of C, B * chunks).

    (|s - i| - 1) counts the positions strictly between i and s: at each, the sums of p from one side meet the
    transposed ones from the other; that is the gradient of w.
    """
    # Where the chunk is.
    channels = (channels // VEC) * VEC
    first = tl.program_id(0) * BLOCK_C
    c = first + tl.arange(0, BLOCK_C)
    c_in = c < channels
    program = tl.program_id(1).to(tl.int64)
    chunk = program % chunks
    origin = program // chunks * tokens * channels
    start = origin + chunk * LENGTH * channels
    left = (tokens - chunk * LENGTH).to(tl.int32)
    row = tl.arange(0, LENGTH)
    offset = row[:, None] * channels + c[None, :]
    inside = (row < left)[:, None] & c_in[None, :]
    plane = plane.to(tl.int64)
    parts = parts_ptr + program * channels + c
    kind = grad_k_ptr.dtype.element_ty
    centre = tl.load(centre_ptr + program // chunks * channels + c, mask=c_in, other=0.0)  # [BLOCK_C]
    if FAST_ONLY or tl.load(factors_ptr + (2 * LENGTH + 3) * channels + first) > 0.5:
        # Load the chunk, one row a token, the powers of exp(w), and the chunk's surroundings.
        k = tl.load(k_ptr + start + offset, mask=inside, other=NOTHING).to(tl.float32)  # [LENGTH, BLOCK_C]
        # v: [LENGTH, BLOCK_C]
        v = tl.load(v_ptr + start + offset, mask=inside, other=0.0).to(tl.float32) - centre[None, :]
        grad = tl.load(grad_ptr + start + offset, mask=inside, other=0.0).to(tl.float32)  # [LENGTH, BLOCK_C]
        if GATED:
            # grad: [LENGTH, BLOCK_C]
            grad *= sigmoid_stable(tl.load(gate_ptr + start + offset, mask=inside, other=0.0).to(tl.float32))
        up = tl.load(factors_ptr + offset, mask=c_in[None, :], other=1.0)  # [LENGTH, BLOCK_C]
        down = tl.load(factors_ptr + LENGTH * channels + offset, mask=c_in[None, :], other=1.0)  # [LENGTH, BLOCK_C]
        shared = factors_ptr + 2 * LENGTH * channels + c
        step = tl.load(shared, mask=c_in, other=0.0)  # [BLOCK_C]
        kappa = tl.load(shared + channels, mask=c_in, other=1.0)[None, :]  # [1, BLOCK_C]
        bonus = tl.load(shared + 2 * channels, mask=c_in, other=1.0)[None, :]  # [1, BLOCK_C]
        at = constants_ptr + program * channels + c
        in_left = _constant(at, plane, 0, c_in)
        in_right = _constant(at, plane, 6, c_in)
        nothing = tl.zeros([LENGTH, BLOCK_C], tl.float32)
        p = tl.exp(k - _constant(at, plane, 17, c_in))
        pv = p * v
        # Sums of p v and p: x from the left, z from the right, without the token itself.
        _, x1, _, x2 = tl.associative_scan((pv * up, nothing, p * up, nothing), 0, sums_before)
        x1 = (x1 * in_left + _constant(at, plane, 1, c_in)) * (kappa * down)
        x2 = (x2 * in_left + _constant(at, plane, 2, c_in)) * (kappa * down)
        _, z1, _, z2 = tl.associative_scan((pv * down, nothing, p * down, nothing), 0, sums_before, reverse=True)
        z1 = (z1 * in_right + _constant(at, plane, 7, c_in)) * (kappa * up)
        z2 = (z2 * in_right + _constant(at, plane, 8, c_in)) * (kappa * up)
        # The rows again: denominators, y - centre and q.
        unit_x = _constant(at, plane, 13, c_in)
        unit_z = _constant(at, plane, 14, c_in)
        own = _constant(at, plane, 15, c_in) * bonus
        den = unit_x * x2 + unit_z * z2 + own * p
        y = (unit_x * x1 + unit_z * z1 + own * pv) / den
        q = tl.where(inside, grad * (_constant(at, plane, 16, c_in) / den), 0.0)
        y = tl.where(inside, y, 0.0)
        if GATED:
            gate_gradient(gate_ptr, grad_ptr, grad_gate_ptr, y + centre[None, :], start + offset, inside)
        qy = q * y
        # Transposed sums from the right, in the unit of x.
        _, g1, _, g2 = tl.associative_scan((q * down, nothing, qy * down, nothing), 0, sums_before, reverse=True)
        scale = _constant(at, plane, 3, c_in)
        g1 = (g1 * scale + _constant(at, plane, 4, c_in)) * (kappa * up)
        g2 = (g2 * scale + _constant(at, plane, 5, c_in)) * (kappa * up)
        between = x1 * g1 - x2 * g2
        s1 = in_left * g1
        s2 = in_left * g2
        # From the left, in the unit of z.
        _, g1, _, g2 = tl.associative_scan((q * up, nothing, qy * up, nothing), 0, sums_before)
        scale = _constant(at, plane, 9, c_in)
        g1 = (g1 * scale + _constant(at, plane, 10, c_in)) * (kappa * down)
        g2 = (g2 * scale + _constant(at, plane, 11, c_in)) * (kappa * down)
        between += z1 * g1 - z2 * g2
        s1 += in_right * g1
        s2 += in_right * g2
        # Write the gradients, and the chunk's shares of those of w and u.
        own = _constant(at, plane, 12, c_in) * bonus * p * q
        own_k = own * (v - y)
        tl.store(grad_v_ptr + start + offset, (p * s1 + own).to(kind), mask=inside)
        tl.store(grad_k_ptr + start + offset, (p * (v * s1 - s2) + own_k).to(kind), mask=inside)
        tl.store(parts, -step * tl.sum(tl.where(inside, between, 0.0), axis=0), mask=c_in)
        tl.store(parts + plane, tl.sum(tl.where(inside, own_k, 0.0), axis=0), mask=c_in)
    else:
        # The logarithmic form, over all T tokens.
        w = tl.load(w_ptr + c, mask=c_in, other=0.0)  # [BLOCK_C]
        u = tl.load(u_ptr + c, mask=c_in, other=0.0)  # [BLOCK_C]
        k = tl.load(k_ptr + start + offset, mask=inside, other=0.0).to(tl.float32)  # [LENGTH, BLOCK_C]
        # v: [LENGTH, BLOCK_C]
        v = tl.load(v_ptr + start + offset, mask=inside, other=0.0).to(tl.float32) - centre[None, :]
        grad_k, grad_v, grad_w, grad_u = log_grad_row(
            w, u, k, v, gate_ptr + origin, grad_ptr + origin, log_den_ptr + origin, y_ptr + origin,
            (chunk * LENGTH).to(tl.int32) + row, tokens, channels, c, c_in, LENGTH, BLOCK_C, GATED,
        )  # fmt: skip
        tl.store(grad_v_ptr + start + offset, grad_v.to(kind), mask=inside)
        tl.store(grad_k_ptr + start + offset, grad_k.to(kind), mask=inside)
        tl.store(parts, tl.sum(tl.where(inside, grad_w, 0.0), axis=0), mask=c_in)
        tl.store(parts + plane, tl.sum(tl.where(inside, grad_u, 0.0), axis=0), mask=c_in)
        if GATED:
            y = tl.load(y_ptr + start + offset, mask=inside, other=0.0) + centre[None, :]  # [LENGTH, BLOCK_C]
            gate_gradient(gate_ptr, grad_ptr, grad_gate_ptr, y, start + offset, inside)
