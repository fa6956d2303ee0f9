"""Triton functions of BiWKV's logarithmic form: any finite w and u, many exponentials an element.

Every exponent has its row's or its sum's largest taken out first, so no weight exceeds one.
"""

import triton
import triton.language as tl

from lalic_kernels._core.triton_helpers import sigmoid_stable

NOTHING = tl.constexpr(-1.0e38)


@triton.jit
def log_chunk_sums(w, k_ptr, v_ptr, out, plane, left, channels, c, c_in, LENGTH: tl.constexpr, BLOCK_C: tl.constexpr):
    """Write a chunk's sums to `out`: going right, token i is LENGTH - 1 - i steps further than the nearest; left, i.

    k_ptr and v_ptr point to the chunk's first token, `left` is the number of tokens from there on.
    """
    count = tl.minimum(left, LENGTH)
    for direction in range(2):
        e = tl.full([BLOCK_C], NOTHING, tl.float32)
        for i in range(count):
            steps = tl.where(direction == 0, LENGTH - 1 - i, i).to(tl.float32)
            k = tl.load(k_ptr + i * channels + c, mask=c_in, other=0.0).to(tl.float32)
            e = tl.maximum(e, k - steps * w)
        a = tl.zeros([BLOCK_C], tl.float32)
        b = tl.zeros([BLOCK_C], tl.float32)
        for i in range(count):
            steps = tl.where(direction == 0, LENGTH - 1 - i, i).to(tl.float32)
            k = tl.load(k_ptr + i * channels + c, mask=c_in, other=0.0).to(tl.float32)
            v = tl.load(v_ptr + i * channels + c, mask=c_in, other=0.0).to(tl.float32)
            p = tl.exp(tl.minimum((k - e) - steps * w, 1.0))
            a += p * v
            b += p
        tl.store(out + 3 * direction * plane, a, mask=c_in)
        tl.store(out + (3 * direction + 1) * plane, b, mask=c_in)
        tl.store(out + (3 * direction + 2) * plane, e, mask=c_in)


@triton.jit
def log_row(
    w, u, k_ptr, v_ptr, state, plane, row, left, channels, c, c_in, LENGTH: tl.constexpr, BLOCK_C: tl.constexpr
):
    """(numerator, denominator), [rows, BLOCK_C], of the tokens `row` of a chunk: y = numerator / denominator.

    Two passes over the chunk's tokens: the rows' largest exponents, then the sums. `state` points to what enters.
    """
    offset = row[:, None] * channels + c[None, :]
    inside = (row < left)[:, None] & c_in[None, :]
    k = tl.load(k_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(v_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    e_left = tl.load(state + 2 * plane, mask=c_in, other=NOTHING)[None, :]
    e_right = tl.load(state + 5 * plane, mask=c_in, other=NOTHING)[None, :]
    decay_left = row[:, None].to(tl.float32) * w[None, :]
    decay_right = (LENGTH - 1 - row)[:, None].to(tl.float32) * w[None, :]
    top = tl.maximum(k + u[None, :], tl.maximum(e_left - decay_left, e_right - decay_right))
    count = tl.minimum(left, LENGTH)
    for i in range(count):
        k_i = tl.load(k_ptr + i * channels + c, mask=c_in, other=0.0).to(tl.float32)
        gap = tl.abs(row - i)
        reach = k_i[None, :] - (gap - 1)[:, None].to(tl.float32) * w[None, :]
        top = tl.maximum(top, tl.where((gap > 0)[:, None], reach, NOTHING))
    den = tl.exp(tl.minimum((k - top) + u[None, :], 1.0))
    num = den * v
    scale = tl.exp(tl.minimum((e_left - top) - decay_left, 1.0))
    num += scale * tl.load(state, mask=c_in, other=0.0)[None, :]
    den += scale * tl.load(state + plane, mask=c_in, other=0.0)[None, :]
    scale = tl.exp(tl.minimum((e_right - top) - decay_right, 1.0))
    num += scale * tl.load(state + 3 * plane, mask=c_in, other=0.0)[None, :]
    den += scale * tl.load(state + 4 * plane, mask=c_in, other=0.0)[None, :]
    for i in range(count):
        k_i = tl.load(k_ptr + i * channels + c, mask=c_in, other=0.0).to(tl.float32)
        v_i = tl.load(v_ptr + i * channels + c, mask=c_in, other=0.0).to(tl.float32)
        gap = tl.abs(row - i)
        p = tl.exp(tl.minimum((k_i[None, :] - top) - (gap - 1)[:, None].to(tl.float32) * w[None, :], 1.0))
        p = tl.where((gap > 0)[:, None], p, 0.0)
        num += p * v_i[None, :]
        den += p
    return num, den


@triton.jit
def log_whole_row(
    w, u, k_ptr, v_ptr, centre, row, tokens, channels, c, c_in, LENGTH: tl.constexpr, BLOCK_C: tl.constexpr
):
    """(log denominator, y - centre), [LENGTH, BLOCK_C], of the tokens `row`, from all T tokens of a batch item.

    Exponents are rounded as `log_grad_row` rounds them, so that a row's weights add up to one in the gradient too.
    """
    top = tl.full([LENGTH, BLOCK_C], NOTHING, tl.float32)
    offset = c.to(tl.int64)
    for i in range(tokens):
        k = tl.load(k_ptr + offset, mask=c_in, other=0.0).to(tl.float32)[None, :]
        gap = tl.abs(row - i)[:, None]
        top = tl.maximum(top, tl.where(gap == 0, k + u[None, :], k - (gap - 1).to(tl.float32) * w[None, :]))
        offset += channels
    num = tl.zeros([LENGTH, BLOCK_C], tl.float32)
    den = tl.zeros([LENGTH, BLOCK_C], tl.float32)
    offset = c.to(tl.int64)
    for i in range(tokens):
        k = tl.load(k_ptr + offset, mask=c_in, other=0.0).to(tl.float32)[None, :]
        v = tl.load(v_ptr + offset, mask=c_in, other=0.0).to(tl.float32)[None, :]
        gap = tl.abs(row - i)[:, None]
        reach = tl.where(gap == 0, k + u[None, :], k - (gap - 1).to(tl.float32) * w[None, :])
        p = tl.exp(tl.minimum(reach - top, 1.0))
        num += p * (v - centre[None, :])
        den += p
        offset += channels
    return top + tl.log(den), num / den


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
    grad_k = tl.zeros([LENGTH, BLOCK_C], tl.float32)
    grad_v = tl.zeros([LENGTH, BLOCK_C], tl.float32)
    grad_w = tl.zeros([LENGTH, BLOCK_C], tl.float32)
    grad_u = tl.zeros([LENGTH, BLOCK_C], tl.float32)
    offset = c.to(tl.int64)
    for t in range(tokens):
        g = tl.load(grad_ptr + offset, mask=c_in, other=0.0).to(tl.float32)[None, :]
        if GATED:
            g *= sigmoid_stable(tl.load(gate_ptr + offset, mask=c_in, other=0.0).to(tl.float32))[None, :]
        top = tl.load(log_den_ptr + offset, mask=c_in, other=0.0)[None, :]
        y = tl.load(y_ptr + offset, mask=c_in, other=0.0)[None, :]
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
