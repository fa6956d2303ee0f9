"""Two baselines for BiWKV on a GPU, in Triton, float32: what the fast kernels are compared with, and nothing else.

* `published`: the shape of the published CUDA algorithm. A program takes 16 channels; each channel's sequence is cut
  into 32 chunks of ceil(T / 32) tokens, a thread each, which walks its tokens one by one: once for the chunk's sums,
  then 32 steps that combine the chunks, then once more for the rows, with a state from the left that grows and one of
  all from here to the right, from which tokens are subtracted as they are passed. Ten exponentials a token.
* `walking`: a program for a block of channels walks all T tokens, to the right and then back.

Both are written from the closed form (lalic_kernels/biwkv/README.md), and that is what they compute: the published
kernel's deviation from it, its epsilon and its reads beyond the end are not reproduced. The subtraction is, because it
belongs to the shape and its cost; it loses digits where a few keys outweigh all that follow them, which the keys that
are measured here do not.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lalic_kernels.triton_math import barrier

NOTHING = tl.constexpr(-1.0e38)
CHUNKS = 32
BLOCK_C = 16


@triton.jit
def _join(a, b, e, a_more, b_more, e_more):
    """The sum of two states (a, b) exp(e): two exponentials."""
    top = tl.maximum(e, e_more)
    old, new = tl.exp(e - top), tl.exp(e_more - top)
    return a * old + a_more * new, b * old + b_more * new, top


@triton.jit
def published_kernel(
    w_ptr,  # (C,)
    u_ptr,  # (C,)
    k_ptr,  # (B, T, C)
    v_ptr,  # (B, T, C)
    sums_ptr,  # (B, 6, CHUNKS, C), work space
    y_ptr,  # (B, T, C), written
    tokens,
    channels,
    length,  # ceil(T / CHUNKS)
    CHUNKS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Grid (blocks of C, B)."""
    item = tl.program_id(1).to(tl.int64)
    chunk = tl.arange(0, CHUNKS)[:, None]
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    c_in = c < channels
    w = tl.load(w_ptr + c, mask=c_in, other=0.0)
    u = tl.load(u_ptr + c, mask=c_in, other=0.0)
    first = chunk * length
    here = item * tokens * channels + first.to(tl.int64) * channels + c
    a = tl.zeros([CHUNKS, BLOCK_C], tl.float32)  # going right, as the first token after the chunk sees it
    b = tl.zeros([CHUNKS, BLOCK_C], tl.float32)
    e = tl.full([CHUNKS, BLOCK_C], NOTHING, tl.float32)
    f = tl.zeros([CHUNKS, BLOCK_C], tl.float32)  # going left, as the last token before the chunk sees it
    g = tl.zeros([CHUNKS, BLOCK_C], tl.float32)
    h = tl.full([CHUNKS, BLOCK_C], NOTHING, tl.float32)
    for j in range(0, length):
        inside = (first + j < tokens) & c_in
        k = tl.load(k_ptr + here + j * channels, mask=inside, other=NOTHING)
        v = tl.load(v_ptr + here + j * channels, mask=inside, other=0.0)
        one = tl.where(inside, 1.0, 0.0)
        a, b, e = _join(a, b, e - w, one * v, one, k)
        f, g, h = _join(f, g, h, one * v, one, k - j * w)
    plane = CHUNKS * channels
    own = sums_ptr + item * 6 * plane + chunk * channels + c
    tl.store(own, a, mask=c_in)
    tl.store(own + plane, b, mask=c_in)
    tl.store(own + 2 * plane, e, mask=c_in)
    tl.store(own + 3 * plane, f, mask=c_in)
    tl.store(own + 4 * plane, g, mask=c_in)
    tl.store(own + 5 * plane, h, mask=c_in)
    barrier()
    a = tl.zeros([CHUNKS, BLOCK_C], tl.float32)  # all that is left of the chunk
    b = tl.zeros([CHUNKS, BLOCK_C], tl.float32)
    e = tl.full([CHUNKS, BLOCK_C], NOTHING, tl.float32)
    f = tl.zeros([CHUNKS, BLOCK_C], tl.float32)  # the chunk and all that is right of it
    g = tl.zeros([CHUNKS, BLOCK_C], tl.float32)
    h = tl.full([CHUNKS, BLOCK_C], NOTHING, tl.float32)
    for i in range(0, CHUNKS):
        other = sums_ptr + item * 6 * plane + i * channels + c
        before = (i < chunk) & c_in
        a_more = tl.load(other, mask=before, other=0.0)
        b_more = tl.load(other + plane, mask=before, other=0.0)
        e_more = tl.load(other + 2 * plane, mask=before, other=NOTHING)
        a, b, e = _join(a, b, tl.where(before, e - length * w, e), a_more, b_more, e_more)
        other = sums_ptr + item * 6 * plane + (CHUNKS - 1 - i) * channels + c
        after = (CHUNKS - 1 - i >= chunk) & c_in
        a_more = tl.load(other + 3 * plane, mask=after, other=0.0)
        b_more = tl.load(other + 4 * plane, mask=after, other=0.0)
        e_more = tl.load(other + 5 * plane, mask=after, other=NOTHING)
        f, g, h = _join(f, g, tl.where(after, h - length * w, h), a_more, b_more, e_more)
    for j in range(0, length):
        inside = (first + j < tokens) & c_in
        k = tl.load(k_ptr + here + j * channels, mask=inside, other=0.0)
        v = tl.load(v_ptr + here + j * channels, mask=inside, other=0.0)
        passed = tl.where(inside, tl.exp(tl.minimum(k - h, 0.0)), 0.0)  # h is a maximum that includes k
        f -= passed * v
        g -= passed
        h += w
        top = tl.maximum(tl.maximum(e, h), u + k)
        left, right, self = tl.exp(e - top), tl.exp(h - top), tl.exp(u + k - top)
        y = (a * left + f * right + self * v) / (b * left + g * right + self)
        tl.store(y_ptr + here + j * channels, y, mask=inside)
        one = tl.where(inside, 1.0, 0.0)
        a, b, e = _join(a, b, e - w, one * v, one, k)


@triton.jit
def walking_kernel(
    w_ptr,  # (C,)
    u_ptr,  # (C,)
    k_ptr,  # (B, T, C)
    v_ptr,  # (B, T, C)
    log_ptr,  # (B, T, C), work space: log of the denominator up to the token
    y_ptr,  # (B, T, C), written
    tokens,
    channels,
    BLOCK_C: tl.constexpr,
):
    """Grid (blocks of C, B)."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_in = c < channels
    w = tl.load(w_ptr + c, mask=c_in, other=0.0)
    u = tl.load(u_ptr + c, mask=c_in, other=0.0)
    at = tl.program_id(1).to(tl.int64) * tokens * channels + c
    one = tl.full([BLOCK_C], 1.0, tl.float32)
    a = tl.zeros([BLOCK_C], tl.float32)
    b = tl.zeros([BLOCK_C], tl.float32)
    e = tl.full([BLOCK_C], NOTHING, tl.float32)
    for _ in range(0, tokens):
        k = tl.load(k_ptr + at, mask=c_in, other=0.0)
        v = tl.load(v_ptr + at, mask=c_in, other=0.0)
        num, den, top = _join(a, b, e, v, one, u + k)
        tl.store(y_ptr + at, num / den, mask=c_in)
        tl.store(log_ptr + at, top + tl.log(den), mask=c_in)
        a, b, e = _join(a, b, e - w, v, one, k)
        at += channels
    barrier()
    a = tl.zeros([BLOCK_C], tl.float32)
    b = tl.zeros([BLOCK_C], tl.float32)
    e = tl.full([BLOCK_C], NOTHING, tl.float32)
    for _ in range(0, tokens):
        at -= channels
        k = tl.load(k_ptr + at, mask=c_in, other=0.0)
        v = tl.load(v_ptr + at, mask=c_in, other=0.0)
        y = tl.load(y_ptr + at, mask=c_in, other=0.0)
        log_den = tl.load(log_ptr + at, mask=c_in, other=0.0)
        num, den, _top = _join(a, b, e, y, one, log_den)
        tl.store(y_ptr + at, num / den, mask=c_in)
        a, b, e = _join(a, b, e - w, v, one, k)


def published(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """BiWKV in the shape of the published algorithm. float32, contiguous: w, u (C,), k, v (B, T, C), T at least 1."""
    batch, tokens, channels = k.shape
    sums = torch.empty((batch, 6, CHUNKS, channels), dtype=torch.float32, device=k.device)
    y = torch.empty_like(k)
    # A thread for each chunk and channel, as in the published kernel.
    published_kernel[(triton.cdiv(channels, BLOCK_C), batch)](
        w, u, k, v, sums, y, tokens, channels, triton.cdiv(tokens, CHUNKS), CHUNKS=CHUNKS, BLOCK_C=BLOCK_C,
        num_warps=CHUNKS * BLOCK_C // 32,
    )  # fmt: skip
    return y


def walking(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """BiWKV by a walk over the tokens and back. float32, contiguous: w, u (C,), k, v (B, T, C)."""
    batch, tokens, channels = k.shape
    log, y = torch.empty_like(k), torch.empty_like(k)
    walking_kernel[(triton.cdiv(channels, 32), batch)](w, u, k, v, log, y, tokens, channels, BLOCK_C=32, num_warps=1)
    return y
