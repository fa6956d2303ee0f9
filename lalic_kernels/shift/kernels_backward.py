"""Triton kernels of the gradients of the token shift and of its LayerNorm. float32 arithmetic; channels last.

The gradient of the shift's input is computed by the forward's kernel with the taps turned. Each program writes its
partial sum of a parameter's gradient; the caller adds them in a fixed order. No atomics, so the bits never change.
"""

import triton
import triton.language as tl

from lalic_kernels.shift.kernels import tile_origin


@triton.jit(do_not_specialize=["pixels", "channels"])
def grad_norm_kernel(
    x_ptr,  # (pixels, C)
    norm_weight_ptr,  # (C,) float32
    grad_ptr,  # (pixels, C): gradient of the normalised image; overwritten with that of x
    statistics_ptr,  # (2, pixels) float32, written: mean, 1 / standard deviation
    parts_ptr,  # (programs, 2, C) float32, written: partial sums of the gradients of norm_weight and norm_bias
    pixels,  # B * H * W, int64
    channels,  # C
    eps,
    STEPS: tl.constexpr,  # blocks of PIXELS pixels per program
    PIXELS: tl.constexpr,
    ALL_C: tl.constexpr,  # a power of two, at least C
    VEC: tl.constexpr,
):
    """LayerNorm backward: with h = (x - mean) f and q = grad norm_weight, grad_x = f (q - mean(q) - h mean(q h))."""
    channels = (channels // VEC) * VEC
    c = tl.arange(0, ALL_C)
    c_in = c < channels
    scale = tl.load(norm_weight_ptr + c, mask=c_in, other=0.0)  # [ALL_C]
    grad_scale = tl.zeros([ALL_C], tl.float32)
    grad_offset = tl.zeros([ALL_C], tl.float32)
    program = tl.program_id(0).to(tl.int64)
    for step in range(STEPS):
        # Load PIXELS pixels, all channels.
        p = (program * STEPS + step) * PIXELS + tl.arange(0, PIXELS)
        mask = (p < pixels)[:, None] & c_in[None, :]
        at = p[:, None] * channels + c[None, :]
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)  # [PIXELS, ALL_C]
        grad = tl.load(grad_ptr + at, mask=mask, other=0.0).to(tl.float32)  # [PIXELS, ALL_C]
        # Compute the statistics again: [PIXELS].
        mean = tl.sum(x, axis=1) / channels
        centred = tl.where(mask, x - mean[:, None], 0.0)
        factor = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / channels + eps)
        h = centred * factor[:, None]
        # Partial sums of the gradients of norm_weight and norm_bias: [ALL_C].
        grad_scale += tl.sum(grad * h, axis=0)
        grad_offset += tl.sum(grad, axis=0)
        # The gradient of x.
        q = grad * scale[None, :]
        mean_q = tl.sum(q, axis=1) / channels
        mean_qh = tl.sum(q * h, axis=1) / channels
        grad_x = factor[:, None] * (q - mean_q[:, None] - h * mean_qh[:, None])
        tl.store(grad_ptr + at, grad_x.to(grad_ptr.dtype.element_ty), mask=mask)
        tl.store(statistics_ptr + p, mean, mask=p < pixels)
        tl.store(statistics_ptr + pixels + p, factor, mask=p < pixels)
    # Write the program's partial sums.
    part = parts_ptr + program * 2 * channels + c
    tl.store(part, grad_scale, mask=c_in)
    tl.store(part + channels, grad_offset, mask=c_in)


@triton.jit(do_not_specialize=["height", "width", "channels", "pixels"])
def grad_taps_kernel(
    x_ptr,  # (B, H, W, C)
    norm_weight_ptr,  # (C,) float32, or None without a norm, like norm_bias_ptr and statistics_ptr
    norm_bias_ptr,  # (C,) float32
    statistics_ptr,  # (2, B, H, W) float32: mean, 1 / standard deviation
    grad_ptr,  # (B, H, W, C): gradient of the shift's result
    parts_ptr,  # (tiles, 25, C) float32, written
    height,  # H
    width,  # W
    channels,  # C
    pixels,  # B * H * W
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    VEC: tl.constexpr,
):
    """A tile's partial sum of the gradient of one column of the kernel. Grid (tiles, blocks of C, 5 columns).

    The program goes down the lines of the (normalised) image. The five lines of the gradient that belong to a line
    rotate through registers, so that each line of both images is read once.
    """
    NORM: tl.constexpr = norm_weight_ptr is not None
    channels = (channels // VEC) * VEC
    # The tile, a block of channels, and the column of the kernel.
    batch, top, left = tile_origin(height, width, ROWS, COLUMNS)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_in = c < channels
    j = left + tl.arange(0, COLUMNS)
    column = j + (tl.program_id(2) - 2)
    scale = tl.full([BLOCK_C], 1.0, tl.float32)
    offset = tl.zeros([BLOCK_C], tl.float32)
    if NORM:
        scale = tl.load(norm_weight_ptr + c, mask=c_in, other=0.0)  # [BLOCK_C]
        offset = tl.load(norm_bias_ptr + c, mask=c_in, other=0.0)  # [BLOCK_C]
    zero = tl.zeros([COLUMNS, BLOCK_C], tl.float32)
    sum_0, sum_1, sum_2, sum_3, sum_4 = zero, zero, zero, zero, zero
    grad_1, grad_2, grad_3, grad_4 = zero, zero, zero, zero
    # For each line of the tile and its margin:
    for r in range(0, tl.minimum(ROWS, height - top) + 4):
        i = top - 2 + r
        line = (batch * height + i) * width
        # If the line is outside the image, move its columns outside too: one test then covers both.
        j_x = tl.where((i >= 0) & (i < height), column, -8)
        x_in = (j_x >= 0) & (j_x < width)
        mask = x_in[:, None] & c_in[None, :]
        # x: [COLUMNS, BLOCK_C]
        x = tl.load(x_ptr + line * channels + j_x[:, None] * channels + c[None, :], mask=mask, other=0.0)
        x = x.to(tl.float32)
        if NORM:
            mean = tl.load(statistics_ptr + line + j_x, mask=x_in, other=0.0)  # [COLUMNS]
            factor = tl.load(statistics_ptr + pixels + line + j_x, mask=x_in, other=0.0)  # [COLUMNS]
            x = (x - mean[:, None]) * (factor[:, None] * scale[None, :]) + offset[None, :]
            x = tl.where(x_in[:, None], x, 0.0)
        # Line i + 2 of the gradient, if it is in this tile.
        j_grad = tl.where((i + 2 < top + ROWS) & (i + 2 < height), j, width)
        line_in = j_grad < width
        upstream = grad_ptr + (line + 2 * width) * channels + j_grad[:, None] * channels + c[None, :]
        # grad_0: [COLUMNS, BLOCK_C]
        grad_0 = tl.load(upstream, mask=line_in[:, None] & c_in[None, :], other=0.0).to(tl.float32)
        # Products of the line with each of the five lines of the gradient; then rotate these.
        sum_0 += x * grad_0
        sum_1 += x * grad_1
        sum_2 += x * grad_2
        sum_3 += x * grad_3
        sum_4 += x * grad_4
        grad_4 = grad_3
        grad_3 = grad_2
        grad_2 = grad_1
        grad_1 = grad_0
    # Write the tile's partial sums: [BLOCK_C] for each row of the kernel.
    part = parts_ptr + (tl.program_id(0).to(tl.int64) * 25 + tl.program_id(2)) * channels + c
    tl.store(part, tl.sum(sum_0, axis=0), mask=c_in)
    tl.store(part + 5 * channels, tl.sum(sum_1, axis=0), mask=c_in)
    tl.store(part + 10 * channels, tl.sum(sum_2, axis=0), mask=c_in)
    tl.store(part + 15 * channels, tl.sum(sum_3, axis=0), mask=c_in)
    tl.store(part + 20 * channels, tl.sum(sum_4, axis=0), mask=c_in)
