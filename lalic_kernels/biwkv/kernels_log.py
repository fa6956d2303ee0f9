"""Triton kernels of BiWKV for channels outside of the range of kernels.py: any finite w and u, many exponentials.

The largest exponent of a row or sum is subtracted first, so no weight exceeds one. Each kernel is launched after those
of kernels.py and kernels_backward.py, looks up in `factors` which of its channels are outside, and returns at once
where none is. Otherwise it writes what those kernels wrote for these channels again. A launch has few programs, each
takes one piece of tokens after another.
"""

import triton
import triton.language as tl

from lalic_kernels.biwkv.kernels import EMPTY, FAST, constant, row_values
from lalic_kernels.triton_math import sigmoid_stable

# Not specialised: another size needs no compilation, and a size of 1 is no compile-time constant without a type.
SIZES = ["tokens", "channels", "items", "length"]


@triton.jit
def outside_channels(factors_ptr, channels, length, BLOCK_C: tl.constexpr):
    """A program's block of channels, [BLOCK_C]; which of them exist and are outside of the range; whether any is."""
    c = tl.program_id(0) % tl.cdiv(channels, BLOCK_C) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_in = c < channels
    outside = c_in & (constant(factors_ptr, length, FAST, channels, c, c_in) < 0.5)
    return c, outside, tl.max(outside.to(tl.int32), axis=0) > 0


@triton.jit
def weight(x):
    """exp(x) of an x that is at most a rounding error above zero. NaN stays NaN, which `tl.minimum` would drop."""
    return tl.exp(tl.where(x > 1.0, 1.0, x))


@triton.jit
def load_grad(grad_ptr, gate_ptr, offset, inside, GATED: tl.constexpr):
    """The gradient of y, float32: the result's, times sigmoid(gate) if GATED."""
    grad = tl.load(grad_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    if GATED:
        grad *= sigmoid_stable(tl.load(gate_ptr + offset, mask=inside, other=0.0).to(tl.float32))
    return grad


@triton.jit
def state_of(k_ptr, v_ptr, w, begin, end, edge, channels, c, c_in, PIECE: tl.constexpr, BLOCK_C: tl.constexpr):
    """The sum of the tokens from `begin` to before `end`, decayed to token `edge` outside of them: a, b, e [BLOCK_C].

    Two passes: the largest exponent, in float64 because distances may be long; then the sums relative to it.
    """
    w = w.to(tl.float64)[None, :]
    piece = tl.arange(0, PIECE)
    e = tl.full([PIECE, BLOCK_C], EMPTY, tl.float64)
    for start in range(begin, end, PIECE):
        i = start + piece
        inside = (i < end)[:, None] & c_in[None, :]
        at = i.to(tl.int64)[:, None] * channels + c[None, :]
        k = tl.load(k_ptr + at, mask=inside, other=EMPTY).to(tl.float64)  # [PIECE, BLOCK_C]
        reach = k - (tl.abs(i - edge) - 1).to(tl.float64)[:, None] * w
        e = tl.maximum(e, tl.where(inside, reach, EMPTY))
    e = tl.max(e, axis=0).to(tl.float32)
    a = tl.zeros([PIECE, BLOCK_C], tl.float32)
    b = tl.zeros([PIECE, BLOCK_C], tl.float32)
    for start in range(begin, end, PIECE):
        i = start + piece
        inside = (i < end)[:, None] & c_in[None, :]
        at = i.to(tl.int64)[:, None] * channels + c[None, :]
        k = tl.load(k_ptr + at, mask=inside, other=EMPTY).to(tl.float64)  # [PIECE, BLOCK_C]
        v = tl.load(v_ptr + at, mask=inside, other=0.0).to(tl.float32)  # [PIECE, BLOCK_C]
        reach = k - (tl.abs(i - edge) - 1).to(tl.float64)[:, None] * w
        p = weight((reach - e.to(tl.float64)[None, :]).to(tl.float32))
        p = tl.where(inside, p, 0.0)
        a += p * v
        b += p
    return tl.sum(a, axis=0), tl.sum(b, axis=0), e


@triton.jit
def row_sums(
    k_ptr, v_ptr, w, u_ptr, row, first, tokens, channels, c, c_in, LENGTH: tl.constexpr, BLOCK_C: tl.constexpr
):
    """(numerator, denominator), [LENGTH, BLOCK_C], of the tokens `row` from `first` on: y = numerator / denominator.

    Two passes over the piece's tokens: the rows' largest exponents, then the sums. The tokens before and after the
    piece are summed once for all rows.
    """
    behind = first + LENGTH
    a_left, b_left, e_left = state_of(k_ptr, v_ptr, w, 0, first, first, channels, c, c_in, LENGTH, BLOCK_C)
    a_right, b_right, e_right = state_of(
        k_ptr, v_ptr, w, behind, tokens, behind - 1, channels, c, c_in, LENGTH, BLOCK_C
    )
    # Load the rows' tokens, and u: loaded earlier, it would take registers from the sums above.
    u = tl.load(u_ptr + c, mask=c_in, other=0.0)  # [BLOCK_C]
    offset = row.to(tl.int64)[:, None] * channels + c[None, :]
    inside = (row < tokens)[:, None] & c_in[None, :]
    k = tl.load(k_ptr + offset, mask=inside, other=0.0).to(tl.float32)  # [LENGTH, BLOCK_C]
    v = tl.load(v_ptr + offset, mask=inside, other=0.0).to(tl.float32)  # [LENGTH, BLOCK_C]
    decay_left = (row - first)[:, None].to(tl.float32) * w[None, :]
    decay_right = (behind - 1 - row)[:, None].to(tl.float32) * w[None, :]
    # The rows' largest exponents: of the token itself, the entering sums, then every token of the piece.
    e_left, e_right = e_left[None, :], e_right[None, :]
    e_max = tl.maximum(k + u[None, :], tl.maximum(e_left - decay_left, e_right - decay_right))
    end = tl.minimum(tokens, behind)
    for i in range(first, end):
        token = tl.cast(i, tl.int64) * channels
        k_i = tl.load(k_ptr + token + c, mask=c_in, other=0.0).to(tl.float32)[None, :]  # [1, BLOCK_C]
        gap = tl.abs(row - i)[:, None]
        reach = k_i - (gap - 1).to(tl.float32) * w[None, :]
        e_max = tl.maximum(e_max, tl.where(gap > 0, reach, EMPTY))
    # The sums relative to them, in the same order.
    den = weight((k - e_max) + u[None, :])
    num = den * v
    scale = weight((e_left - e_max) - decay_left)
    num += scale * a_left[None, :]
    den += scale * b_left[None, :]
    scale = weight((e_right - e_max) - decay_right)
    num += scale * a_right[None, :]
    den += scale * b_right[None, :]
    for i in range(first, end):
        token = tl.cast(i, tl.int64) * channels
        k_i = tl.load(k_ptr + token + c, mask=c_in, other=0.0).to(tl.float32)[None, :]  # [1, BLOCK_C]
        v_i = tl.load(v_ptr + token + c, mask=c_in, other=0.0).to(tl.float32)[None, :]  # [1, BLOCK_C]
        gap = tl.abs(row - i)[:, None]
        p = weight((k_i - e_max) - (gap - 1).to(tl.float32) * w[None, :])
        p = tl.where(gap > 0, p, 0.0)
        num += p * v_i
        den += p
    return num, den


@triton.jit(do_not_specialize=SIZES)
def log_rows_kernel(
    w_ptr,  # (C,) float32
    u_ptr,  # (C,) float32
    k_ptr,  # (B, T, C)
    v_ptr,  # (B, T, C)
    gate_ptr,  # (B, T, C), or None
    factors_ptr,  # (2 L + 10, C) float32
    y_ptr,  # (B, T, C), written
    tokens,  # T
    channels,  # C
    items,  # B * pieces
    length,  # L
    LENGTH: tl.constexpr,  # tokens of a piece
    BLOCK_C: tl.constexpr,
    GATED: tl.constexpr,
):
    """y. Grid (blocks of C * programs for each,)."""
    c, c_in, any_outside = outside_channels(factors_ptr, channels, length, BLOCK_C)
    if any_outside:
        w = tl.load(w_ptr + c, mask=c_in, other=0.0)  # [BLOCK_C]
        pieces = tl.cdiv(tokens, LENGTH)
        across = tl.cdiv(channels, BLOCK_C)
        for item in range(tl.program_id(0) // across, items, tl.num_programs(0) // across):
            origin = tl.cast(item // pieces, tl.int64) * tokens * channels
            first = item % pieces * LENGTH
            row = first + tl.arange(0, LENGTH)
            num, den = row_sums(
                k_ptr + origin, v_ptr + origin, w, u_ptr, row, first, tokens, channels, c, c_in, LENGTH, BLOCK_C
            )
            offset = origin + row.to(tl.int64)[:, None] * channels + c[None, :]
            mask = (row < tokens)[:, None] & c_in[None, :]
            y = row_values(num, den, gate_ptr, offset, mask, GATED)
            tl.store(y_ptr + offset, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def whole_rows(k_ptr, v_ptr, w, u, centre, row, tokens, channels, c, c_in, LENGTH: tl.constexpr, BLOCK_C: tl.constexpr):
    """(log denominator, y - centre), [LENGTH, BLOCK_C], of the tokens `row`, from all T tokens of a batch item.

    Exponents are rounded as in `grad_sums`, so that a row's weights add up to one in the gradient too.
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
        p = weight(reach - e_max)
        num += p * (v - centre[None, :])
        den += p
        offset += channels
    return e_max + tl.log(den), num / den


@triton.jit(do_not_specialize=SIZES)
def log_denominators_kernel(
    w_ptr,  # (C,) float32
    u_ptr,  # (C,) float32
    k_ptr,  # (B, T, C)
    v_ptr,  # (B, T, C)
    factors_ptr,  # (2 L + 10, C) float32
    centre_ptr,  # (B, C) float32, written: y at the middle of the sequence
    log_den_ptr,  # (B, T, C) float32, written
    y_ptr,  # (B, T, C) float32, written: y - centre
    tokens,  # T
    channels,  # C
    items,  # B * pieces
    length,  # L
    LENGTH: tl.constexpr,  # tokens of a piece
    BLOCK_C: tl.constexpr,
):
    """What `log_grads_kernel` needs of each row. Grid (blocks of C * programs for each,)."""
    c, c_in, any_outside = outside_channels(factors_ptr, channels, length, BLOCK_C)
    if any_outside:
        w = tl.load(w_ptr + c, mask=c_in, other=0.0)  # [BLOCK_C]
        u = tl.load(u_ptr + c, mask=c_in, other=0.0)  # [BLOCK_C]
        pieces = tl.cdiv(tokens, LENGTH)
        across = tl.cdiv(channels, BLOCK_C)
        middle = tokens // 2
        for item in range(tl.program_id(0) // across, items, tl.num_programs(0) // across):
            origin = tl.cast(item // pieces, tl.int64) * tokens * channels
            k, v = k_ptr + origin, v_ptr + origin
            # v and y are relative to one value of the batch item: kernels.middle_row says why.
            a, b, e = state_of(k, v, w, 0, middle, middle, channels, c, c_in, LENGTH, BLOCK_C)
            a_right, b_right, e_right = state_of(
                k, v, w, middle, tokens, middle - 1, channels, c, c_in, LENGTH, BLOCK_C
            )
            e_max = tl.maximum(e, e_right)
            scale, scale_right = tl.exp(e - e_max), tl.exp(e_right - e_max)
            den = b * scale + b_right * scale_right
            centre = tl.where(c_in, (a * scale + a_right * scale_right) / tl.where(den > 0.0, den, 1.0), 0.0)
            tl.store(centre_ptr + item // pieces * channels + c, centre, mask=c_in)
            row = item % pieces * LENGTH + tl.arange(0, LENGTH)
            log_den, y = whole_rows(k, v, w, u, centre, row, tokens, channels, c, c_in, LENGTH, BLOCK_C)
            offset = origin + row.to(tl.int64)[:, None] * channels + c[None, :]
            mask = (row < tokens)[:, None] & c_in[None, :]
            tl.store(log_den_ptr + offset, log_den, mask=mask)
            tl.store(y_ptr + offset, y, mask=mask)


@triton.jit
def grad_sums(
    k, v, gate_ptr, grad_ptr, log_den_ptr, y_ptr, w, u, row, tokens, channels, c, c_in,
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
        p = weight(tl.where(same, k + u[None, :], k - steps * w[None, :]) - log_den)
        part = p * g
        part_k = part * (v - y)
        grad_v += part
        grad_k += part_k
        grad_u += tl.where(same, part_k, 0.0)
        grad_w -= tl.where(same, 0.0, steps * part_k)
        offset += channels
    return grad_k, grad_v, grad_w, grad_u


@triton.jit
def gate_gradient(gate_ptr, grad_ptr, grad_gate_ptr, y, offset, inside):
    """Write the gradient of the gate. Both inputs are read again, to save registers."""
    gate = tl.load(gate_ptr + offset, mask=inside, other=0.0).to(tl.float32)  # [LENGTH, BLOCK_C]
    grad = tl.load(grad_ptr + offset, mask=inside, other=0.0).to(tl.float32)  # [LENGTH, BLOCK_C]
    slope = sigmoid_stable(gate) * sigmoid_stable(-gate)
    tl.store(grad_gate_ptr + offset, (grad * y * slope).to(grad_gate_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def log_grads_kernel(
    w_ptr,  # (C,) float32
    u_ptr,  # (C,) float32
    k_ptr,  # (B, T, C)
    v_ptr,  # (B, T, C)
    gate_ptr,  # (B, T, C), or None
    grad_ptr,  # (B, T, C), gradient of y, or of sigmoid(gate) * y
    factors_ptr,  # (2 L + 10, C) float32
    centre_ptr,  # (B, C) float32
    log_den_ptr,  # (B, T, C) float32
    y_ptr,  # (B, T, C) float32
    grad_k_ptr,  # (B, T, C), written
    grad_v_ptr,  # (B, T, C), written
    grad_gate_ptr,  # (B, T, C), written, or None
    parts_ptr,  # (2, B, pieces, C) float32, written: parts of the gradients of w and u
    tokens,  # T
    channels,  # C
    items,  # B * pieces
    length,  # L
    LENGTH: tl.constexpr,  # tokens of a piece
    BLOCK_C: tl.constexpr,
    GATED: tl.constexpr,
):
    """Gradients. Grid (blocks of C * programs for each,)."""
    c, c_in, any_outside = outside_channels(factors_ptr, channels, length, BLOCK_C)
    if any_outside:
        w = tl.load(w_ptr + c, mask=c_in, other=0.0)  # [BLOCK_C]
        u = tl.load(u_ptr + c, mask=c_in, other=0.0)  # [BLOCK_C]
        pieces = tl.cdiv(tokens, LENGTH)
        across = tl.cdiv(channels, BLOCK_C)
        for item in range(tl.program_id(0) // across, items, tl.num_programs(0) // across):
            origin = tl.cast(item // pieces, tl.int64) * tokens * channels
            row = item % pieces * LENGTH + tl.arange(0, LENGTH)
            offset = origin + row.to(tl.int64)[:, None] * channels + c[None, :]
            mask = (row < tokens)[:, None] & c_in[None, :]
            centre = tl.load(centre_ptr + item // pieces * channels + c, mask=c_in, other=0.0)[None, :]  # [1, BLOCK_C]
            k = tl.load(k_ptr + offset, mask=mask, other=0.0).to(tl.float32)  # [LENGTH, BLOCK_C]
            v = tl.load(v_ptr + offset, mask=mask, other=0.0).to(tl.float32) - centre  # [LENGTH, BLOCK_C]
            gate = gate_ptr + origin if GATED else gate_ptr
            grad_k, grad_v, grad_w, grad_u = grad_sums(
                k, v, gate, grad_ptr + origin, log_den_ptr + origin, y_ptr + origin, w, u,
                row, tokens, channels, c, c_in, LENGTH, BLOCK_C, GATED,
            )  # fmt: skip
            tl.store(grad_v_ptr + offset, grad_v.to(grad_v_ptr.dtype.element_ty), mask=mask)
            tl.store(grad_k_ptr + offset, grad_k.to(grad_k_ptr.dtype.element_ty), mask=mask)
            parts = parts_ptr + tl.cast(item, tl.int64) * channels + c
            plane = tl.cast(items, tl.int64) * channels
            tl.store(parts, tl.sum(tl.where(mask, grad_w, 0.0), axis=0), mask=c_in)
            tl.store(parts + plane, tl.sum(tl.where(mask, grad_u, 0.0), axis=0), mask=c_in)
            if GATED:
                y = tl.load(y_ptr + offset, mask=mask, other=0.0) + centre  # [LENGTH, BLOCK_C]
                gate_gradient(gate_ptr, grad_ptr, grad_gate_ptr, y, offset, mask)
