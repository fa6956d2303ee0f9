"""Triton kernels of BiWKV's forward: sums of chunks, running sums over chunks, rows. Arithmetic is float32.

Tensors are contiguous, tokens major: k, v, y are (B, T, C). A state buffer is float32 (2, 3, B, chunks, C): direction
(0 going right, 1 going left), then numerator a, denominator b, exponent e, meaning (a, b) * exp(e).
"""

import triton
import triton.language as tl

from lalic_kernels._core.triton_helpers import merge_states

# The exponent of "nothing": finite, so that differences stay numbers, and below any key that is not itself absurd.
NOTHING = tl.constexpr(-1.0e38)

# A size of one must stay a number with a type, not become a compile-time constant.
_SIZES = ["tokens", "channels", "chunks", "plane"]


@triton.jit(do_not_specialize=_SIZES)
def chunk_sums_kernel(
    w_ptr,  # (C,) float32
    k_ptr,  # (B, T, C)
    v_ptr,  # (B, T, C)
    state_ptr,  # (2, 3, B, chunks, C) float32, written
    tokens,  # T
    channels,  # C
    chunks,
    plane,  # B * chunks * C
    CHUNK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Each chunk's sum as the chunk to its right sees it, and as the one to its left does.

    Going right a token i of the chunk is CHUNK - 1 - i steps further than the nearest, going left i steps.
    Grid (B * chunks, blocks of C).
    """
    program = tl.program_id(0).to(tl.int64)
    chunk = program % chunks
    item = program // chunks
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_in = c < channels
    w = tl.load(w_ptr + c, mask=c_in, other=0.0)
    row = tl.arange(0, CHUNK)
    token = chunk * CHUNK + row
    inside = (token < tokens)[:, None] & c_in[None, :]
    offset = (item * tokens + token)[:, None] * channels + c[None, :]
    k = tl.load(k_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(v_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    place = program * channels + c
    for direction in tl.static_range(2):
        if direction == 0:
            decay = (CHUNK - 1 - row)[:, None].to(tl.float32) * w[None, :]
        else:
            decay = row[:, None].to(tl.float32) * w[None, :]
        e = tl.max(tl.where(inside, k - decay, NOTHING), axis=0)
        p = tl.where(inside, tl.exp(tl.minimum((k - e[None, :]) - decay, 1.0)), 0.0)
        base = state_ptr + direction * 3 * plane.to(tl.int64) + place
        tl.store(base, tl.sum(p * v, axis=0), mask=c_in)
        tl.store(base + plane, tl.sum(p, axis=0), mask=c_in)
        tl.store(base + 2 * plane.to(tl.int64), e, mask=c_in)


@triton.jit(do_not_specialize=_SIZES[1:])
def chunk_scan_kernel(
    w_ptr,  # (C,) float32
    state_ptr,  # (2, 3, B, chunks, C) float32, read and written in place
    channels,  # C
    chunks,
    plane,  # B * chunks * C
    CHUNK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Replace every chunk's sum by the sum of all chunks before it in its direction. Grid (B, blocks of C, 2)."""
    item = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_in = c < channels
    direction = tl.program_id(2)
    decay = tl.load(w_ptr + c, mask=c_in, other=0.0) * CHUNK
    base = state_ptr + direction * 3 * plane.to(tl.int64) + item * chunks * channels + c
    a = tl.zeros([BLOCK_C], tl.float32)
    b = tl.zeros([BLOCK_C], tl.float32)
    e = tl.full([BLOCK_C], NOTHING, tl.float32)
    for step in range(chunks):
        chunk = tl.where(direction == 0, step, chunks - 1 - step)
        place = base + chunk.to(tl.int64) * channels
        a_here = tl.load(place, mask=c_in, other=0.0)
        b_here = tl.load(place + plane, mask=c_in, other=0.0)
        e_here = tl.load(place + 2 * plane.to(tl.int64), mask=c_in, other=NOTHING)
        tl.store(place, a, mask=c_in)
        tl.store(place + plane, b, mask=c_in)
        tl.store(place + 2 * plane.to(tl.int64), e, mask=c_in)
        a, b, e = merge_states(a, b, e, a_here, b_here, e_here, decay)


@triton.jit(do_not_specialize=_SIZES)
def rows_kernel(
    w_ptr,  # (C,) float32
    u_ptr,  # (C,) float32
    k_ptr,  # (B, T, C)
    v_ptr,  # (B, T, C)
    state_ptr,  # (2, 3, B, chunks, C) float32
    y_ptr,  # (B, T, C), written
    tokens,  # T
    channels,  # C
    chunks,
    plane,  # B * chunks * C
    CHUNK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """y for one chunk of tokens and a block of channels: a row's own token, the chunk's others, what enters the chunk.

    Grid (B * chunks, blocks of C). Two passes over the chunk's tokens: the rows' largest exponents, then the sums.
    """
    program = tl.program_id(0).to(tl.int64)
    chunk = program % chunks
    item = program // chunks
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_in = c < channels
    w = tl.load(w_ptr + c, mask=c_in, other=0.0)
    u = tl.load(u_ptr + c, mask=c_in, other=0.0)
    row = tl.arange(0, CHUNK)
    token = chunk * CHUNK + row
    inside = (token < tokens)[:, None] & c_in[None, :]
    offset = (item * tokens + token)[:, None] * channels + c[None, :]
    k = tl.load(k_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(v_ptr + offset, mask=inside, other=0.0).to(tl.float32)

    from_left = state_ptr + program * channels + c
    from_right = from_left + 3 * plane.to(tl.int64)
    e_left = tl.load(from_left + 2 * plane.to(tl.int64), mask=c_in, other=NOTHING)
    e_right = tl.load(from_right + 2 * plane.to(tl.int64), mask=c_in, other=NOTHING)
    decay_left = row[:, None].to(tl.float32) * w[None, :]
    decay_right = (CHUNK - 1 - row)[:, None].to(tl.float32) * w[None, :]
    top = tl.maximum(k + u[None, :], tl.maximum(e_left[None, :] - decay_left, e_right[None, :] - decay_right))

    first = (item * tokens + chunk * CHUNK) * channels + c
    count = tl.minimum(CHUNK, tokens - chunk * CHUNK).to(tl.int32)
    for i in range(count):
        k_i = tl.load(k_ptr + first + i * channels, mask=c_in, other=0.0).to(tl.float32)
        gap = tl.abs(row - i)
        reach = k_i[None, :] - (gap - 1)[:, None].to(tl.float32) * w[None, :]
        top = tl.maximum(top, tl.where((gap > 0)[:, None], reach, NOTHING))

    own = tl.exp(tl.minimum((k - top) + u[None, :], 1.0))
    num = own * v
    den = own
    scale = tl.exp(tl.minimum((e_left[None, :] - top) - decay_left, 1.0))
    num += scale * tl.load(from_left, mask=c_in, other=0.0)[None, :]
    den += scale * tl.load(from_left + plane, mask=c_in, other=0.0)[None, :]
    scale = tl.exp(tl.minimum((e_right[None, :] - top) - decay_right, 1.0))
    num += scale * tl.load(from_right, mask=c_in, other=0.0)[None, :]
    den += scale * tl.load(from_right + plane, mask=c_in, other=0.0)[None, :]
    for i in range(count):
        k_i = tl.load(k_ptr + first + i * channels, mask=c_in, other=0.0).to(tl.float32)
        v_i = tl.load(v_ptr + first + i * channels, mask=c_in, other=0.0).to(tl.float32)
        gap = tl.abs(row - i)
        p = tl.exp(tl.minimum((k_i[None, :] - top) - (gap - 1)[:, None].to(tl.float32) * w[None, :], 1.0))
        p = tl.where((gap > 0)[:, None], p, 0.0)
        num += p * v_i[None, :]
        den += p
    tl.store(y_ptr + offset, (num / den).to(y_ptr.dtype.element_ty), mask=inside)
