"""Triton kernel of the token shift's forward. Arithmetic is float32; tensors are contiguous, channels last."""

import triton
import triton.language as tl


@triton.jit
def token_shift_kernel(
    x_ptr,  # (B, H, W, C)
    weight_ptr,  # (25, C) float32: the taps in row-major order
    y_ptr,  # (B, H, W, C), written
    height,  # H
    width,  # W
    channels,  # C
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """y for a run of pixels of one image row and a block of channels. Grid (B * H, blocks of W, blocks of C)."""
    line = tl.program_id(0).to(tl.int64)
    i = (line % height).to(tl.int32)
    j = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_in = c < channels
    acc = tl.zeros([BLOCK_W, BLOCK_C], tl.float32)
    for a in tl.static_range(5):
        i_from = i + (a - 2)
        # Outside the image's lines every column is moved outside too, so that one test covers both.
        column = tl.where((i_from >= 0) & (i_from < height), j, -8)
        source = x_ptr + (line + (a - 2)) * width * channels
        for d in tl.static_range(5):
            j_from = column + (d - 2)
            inside = ((j_from >= 0) & (j_from < width))[:, None] & c_in[None, :]
            x = tl.load(source + j_from[:, None] * channels + c[None, :], mask=inside, other=0.0)
            weight = tl.load(weight_ptr + (a * 5 + d) * channels + c, mask=c_in, other=0.0)
            acc += x.to(tl.float32) * weight[None, :]
    offset = (line * width + j[:, None]) * channels + c[None, :]
    tl.store(y_ptr + offset, acc.to(y_ptr.dtype.element_ty), mask=(j < width)[:, None] & c_in[None, :])
