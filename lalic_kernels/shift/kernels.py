"""Triton kernel of the token shift, with or without a LayerNorm before it. float32 arithmetic; channels last."""

import triton
import triton.language as tl

from lalic_kernels.triton_math import barrier

# Not specialised: another size needs no compilation, and a size of 1 is no compile-time constant without a type.
SIZES = ["height", "width", "channels", "split", "rows"]


@triton.jit
def tile_origin(height, width, rows, COLUMNS: tl.constexpr):
    """(batch item as int64, first line, first column) of this program's tile; grid axis 0 counts tiles."""
    tile = tl.program_id(0)
    tiles_x = tl.cdiv(width, COLUMNS)
    tiles_y = tl.cdiv(height, rows)
    return (tile // (tiles_x * tiles_y)).to(tl.int64), tile // tiles_x % tiles_y * rows, tile % tiles_x * COLUMNS


@triton.jit
def _statistics(
    x_ptr, scratch, batch, top, left, height, width, channels, rows, eps,
    COLUMNS: tl.constexpr, PIXELS: tl.constexpr, ALL_C: tl.constexpr,
):  # fmt: skip
    """Write mean and 1 / standard deviation of every pixel of the tile and its margin of two to `scratch`."""
    WIDE: tl.constexpr = COLUMNS + 4
    count = (rows + 4) * WIDE
    c = tl.arange(0, ALL_C)
    for start in range(0, count, PIXELS):
        # The addresses of PIXELS pixels; pixels outside the image are zero.
        p = start + tl.arange(0, PIXELS)
        i = top - 2 + p // WIDE
        j = left - 2 + p % WIDE
        inside = (i >= 0) & (i < height) & (j >= 0) & (j < width) & (p < count)
        pixel = ((batch * height + i) * width + j) * channels
        mask = inside[:, None] & (c < channels)[None, :]
        # Mean and deviation over all channels: [PIXELS].
        x = tl.load(x_ptr + pixel[:, None] + c[None, :], mask=mask, other=0.0).to(tl.float32)  # [PIXELS, ALL_C]
        mean = tl.sum(x, axis=1) / channels
        centred = tl.where(mask, x - mean[:, None], 0.0)
        factor = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / channels + eps)
        tl.store(scratch + 2 * p, mean, mask=p < count)
        tl.store(scratch + 2 * p + 1, factor, mask=p < count)


@triton.jit(do_not_specialize=SIZES)
def shift_kernel(
    x_ptr,  # (B, H, W, C)
    norm_weight_ptr,  # (C,) float32, or None without a norm, like norm_bias_ptr and statistics_ptr
    norm_bias_ptr,  # (C,) float32
    taps_ptr,  # (25, C padded to whole blocks of BLOCK_C) float32: the taps in row-major order
    statistics_ptr,  # (programs, (rows + 4) (COLUMNS + 4), 2) float32: scratch of each program
    y_ptr,  # (B, H, W, C), written
    height,  # H
    width,  # W
    channels,  # C
    split,  # blocks of channels per program
    rows,  # lines of a tile
    eps,
    TURNED: tl.constexpr,  # the kernel turned by 180 degrees: the gradient's correlation
    COLUMNS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PIXELS: tl.constexpr,
    ALL_C: tl.constexpr,  # a power of two, at least C
    VEC: tl.constexpr,  # C is a multiple of it
):
    """y for a tile of rows x COLUMNS pixels and `split` blocks of channels. Grid (tiles, blocks of `split`).

    For each block of channels the program goes down the tile's lines. A line is read five times, once for each column
    of the kernel, and is added to the sums of the five output lines that it belongs to, which rotate through registers.
    With a norm the pixels' statistics over all channels come first. Threads share them through the program's scratch
    memory; the barrier makes this safe (on AMD GPUs because all threads of a block share one cache).
    """
    NORM: tl.constexpr = norm_weight_ptr is not None
    WIDE: tl.constexpr = COLUMNS + 4
    STEP: tl.constexpr = -5 if TURNED else 5
    channels = (channels // VEC) * VEC
    # The tile, and the statistics of its pixels and margin: [rows + 4, COLUMNS + 4, 2].
    batch, top, left = tile_origin(height, width, rows, COLUMNS)
    if NORM:
        program = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
        scratch = statistics_ptr + program * (2 * (rows + 4) * WIDE)
        _statistics(x_ptr, scratch, batch, top, left, height, width, channels, rows, eps, COLUMNS, PIXELS, ALL_C)
        barrier()
    column = tl.arange(0, COLUMNS)
    # The taps are padded to whole blocks, because a masked load would need one more instruction for each element.
    taps_row = tl.cdiv(channels, BLOCK_C) * BLOCK_C
    first = tl.program_id(1) * split
    for block in range(first, tl.minimum(first + split, tl.cdiv(channels, BLOCK_C))):
        # A block of channels: [BLOCK_C].
        c = block * BLOCK_C + tl.arange(0, BLOCK_C)
        c_in = c < channels
        scale = tl.full([BLOCK_C], 1.0, tl.float32)
        offset = tl.zeros([BLOCK_C], tl.float32)
        if NORM:
            scale = tl.load(norm_weight_ptr + c, mask=c_in, other=0.0)  # [BLOCK_C]
            offset = tl.load(norm_bias_ptr + c, mask=c_in, other=0.0)  # [BLOCK_C]
        # sum_a is the sum of the output line for which the current line is at row a of the kernel.
        sum_0 = tl.zeros([COLUMNS, BLOCK_C], tl.float32)
        sum_1 = tl.zeros([COLUMNS, BLOCK_C], tl.float32)
        sum_2 = tl.zeros([COLUMNS, BLOCK_C], tl.float32)
        sum_3 = tl.zeros([COLUMNS, BLOCK_C], tl.float32)
        sum_4 = tl.zeros([COLUMNS, BLOCK_C], tl.float32)
        # For each line of the tile and its margin:
        for r in range(0, tl.minimum(rows, height - top) + 4):
            i = top - 2 + r
            # If the line is outside the image, move its columns outside too: one test then covers both.
            columns = tl.where((i >= 0) & (i < height), left + column, -8)
            line = x_ptr + (batch * height + i) * width * channels
            for d in tl.static_range(5):
                j = columns + (d - 2)
                inside = (j >= 0) & (j < width)
                mask = inside[:, None] & c_in[None, :]
                # x: [COLUMNS, BLOCK_C]
                x = tl.load(line + j[:, None] * channels + c[None, :], mask=mask, other=0.0).to(tl.float32)
                if NORM:
                    of_pixel = scratch + 2 * (r * WIDE + d)
                    mean, factor = tl.load(of_pixel + 2 * column), tl.load(of_pixel + 2 * column + 1)  # [COLUMNS]
                    x = (x - mean[:, None]) * (factor[:, None] * scale[None, :]) + offset[None, :]
                    x = tl.where(inside[:, None], x, 0.0)
                # One column of the kernel: add the line to the five output lines it belongs to.
                tap = taps_ptr + (24 - d if TURNED else d) * taps_row + c
                sum_0 += x * tl.load(tap)[None, :]  # tap [1, BLOCK_C]
                sum_1 += x * tl.load(tap + STEP * taps_row)[None, :]  # tap [1, BLOCK_C]
                sum_2 += x * tl.load(tap + 2 * STEP * taps_row)[None, :]  # tap [1, BLOCK_C]
                sum_3 += x * tl.load(tap + 3 * STEP * taps_row)[None, :]  # tap [1, BLOCK_C]
                sum_4 += x * tl.load(tap + 4 * STEP * taps_row)[None, :]  # tap [1, BLOCK_C]
            # Write the output line that is complete, and rotate the sums.
            j = tl.where((i - 2 >= top) & (i - 2 < height), left + column, width)
            to = y_ptr + (batch * height + (i - 2)) * width * channels + j[:, None] * channels + c[None, :]
            tl.store(to, sum_4.to(y_ptr.dtype.element_ty), mask=(j < width)[:, None] & c_in[None, :])
            sum_4 = sum_3
            sum_3 = sum_2
            sum_2 = sum_1
            sum_1 = sum_0
            sum_0 = tl.zeros([COLUMNS, BLOCK_C], tl.float32)
