"""Triton kernel of the token shift, with or without a LayerNorm in front. float32 arithmetic; channels last."""

import triton
import triton.language as tl

# A size of one must stay a number with a type, not become a compile-time constant.
SIZES = ["height", "width", "channels", "split"]


@triton.jit
def place_of_tile(height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(batch item as int64, first line, first column) of the tile that grid axis 0 numbers."""
    tile = tl.program_id(0)
    across = tl.cdiv(width, COLUMNS)
    down = tl.cdiv(height, ROWS)
    return (tile // (across * down)).to(tl.int64), tile // across % down * ROWS, tile % across * COLUMNS


@triton.jit
def _statistics(
    x_ptr, own, batch, top, left, height, width, channels, eps,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PIXELS: tl.constexpr, ALL_C: tl.constexpr,
):  # fmt: skip
    """Mean and 1 / standard deviation of every pixel of the tile and its margin of two, PIXELS at a time, to `own`."""
    WIDE: tl.constexpr = COLUMNS + 4
    COUNT: tl.constexpr = (ROWS + 4) * WIDE
    c = tl.arange(0, ALL_C)
    for start in range(0, COUNT, PIXELS):
        # Where the pixels are; those outside the image count as zeros.
        p = start + tl.arange(0, PIXELS)
        i = top - 2 + p // WIDE
        j = left - 2 + p % WIDE
        inside = (i >= 0) & (i < height) & (j >= 0) & (j < width) & (p < COUNT)
        place = ((batch * height + i) * width + j) * channels
        mask = inside[:, None] & (c < channels)[None, :]
        # Mean and deviation over all channels: [PIXELS].
        x = tl.load(x_ptr + place[:, None] + c[None, :], mask=mask, other=0.0).to(tl.float32)  # [PIXELS, ALL_C]
        mean = tl.sum(x, axis=1) / channels
        away = tl.where(mask, x - mean[:, None], 0.0)
        factor = 1.0 / tl.sqrt(tl.sum(away * away, axis=1) / channels + eps)
        tl.store(own + p, mean, mask=p < COUNT)
        tl.store(own + COUNT + p, factor, mask=p < COUNT)


@triton.jit(do_not_specialize=SIZES)
def shift_kernel(
    x_ptr,  # (B, H, W, C)
    norm_weight_ptr,  # (C,) float32; without NORM not read, like the next and statistics_ptr
    norm_bias_ptr,  # (C,) float32
    taps_ptr,  # (25, C up to whole blocks of BLOCK_C) float32: the taps in row-major order
    statistics_ptr,  # (programs, 2, (ROWS + 4) (COLUMNS + 4)) float32: each program's own scratch
    y_ptr,  # (B, H, W, C), written
    height,  # H
    width,  # W
    channels,  # C
    split,  # blocks of channels a program
    eps,
    NORM: tl.constexpr,
    TURNED: tl.constexpr,  # the kernel turned by 180 degrees: the gradient's correlation
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PIXELS: tl.constexpr,
    ALL_C: tl.constexpr,  # a power of two, at least C
    VEC: tl.constexpr,  # C is a multiple of it
):
    """y for a tile of ROWS x COLUMNS pixels and `split` blocks of channels. Grid (tiles, blocks of `split`).

    For each block of channels the program walks down the tile's lines. A line is read five times, once for each column
    of the kernel, and is added to the five lines of output that it belongs to, whose sums rotate through registers.
    With NORM the pixels' statistics come first, over all channels; threads hand them to one another through memory
    that no other program touches, which the barrier makes safe (on AMD's GPUs since a block's threads share one cache).
    """
    WIDE: tl.constexpr = COLUMNS + 4
    COUNT: tl.constexpr = (ROWS + 4) * WIDE
    STEP: tl.constexpr = -5 if TURNED else 5
    channels = (channels // VEC) * VEC
    # The tile, and the statistics of its pixels and margin: [2, ROWS + 4, COLUMNS + 4].
    batch, top, left = place_of_tile(height, width, ROWS, COLUMNS)
    own = statistics_ptr
    if NORM:
        own += (tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * (2 * COUNT)
        _statistics(x_ptr, own, batch, top, left, height, width, channels, eps, ROWS, COLUMNS, PIXELS, ALL_C)
        tl.debug_barrier()
    column = tl.arange(0, COLUMNS)
    # Taps come in whole blocks, because a masked load first sets its registers: one instruction a tap and channel.
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
        # sum_a belongs to the line of output for which this line is row a of the kernel.
        sum_0 = tl.zeros([COLUMNS, BLOCK_C], tl.float32)
        sum_1 = tl.zeros([COLUMNS, BLOCK_C], tl.float32)
        sum_2 = tl.zeros([COLUMNS, BLOCK_C], tl.float32)
        sum_3 = tl.zeros([COLUMNS, BLOCK_C], tl.float32)
        sum_4 = tl.zeros([COLUMNS, BLOCK_C], tl.float32)
        # Down the tile's lines, the margin's included.
        for r in range(0, tl.minimum(ROWS, height - top) + 4):
            i = top - 2 + r
            # Outside the image's lines every column is moved outside too, so that one test covers both.
            j_here = tl.where((i >= 0) & (i < height), left + column, -8)
            line = x_ptr + (batch * height + i) * width * channels
            for d in tl.static_range(5):
                j = j_here + (d - 2)
                inside = (j >= 0) & (j < width)
                mask = inside[:, None] & c_in[None, :]
                # x: [COLUMNS, BLOCK_C]
                x = tl.load(line + j[:, None] * channels + c[None, :], mask=mask, other=0.0).to(tl.float32)
                if NORM:
                    mean = tl.load(own + r * WIDE + column + d)  # [COLUMNS]
                    factor = tl.load(own + COUNT + r * WIDE + column + d)  # [COLUMNS]
                    x = (x - mean[:, None]) * (factor[:, None] * scale[None, :]) + offset[None, :]
                    x = tl.where(inside[:, None], x, 0.0)
                # The line through one column of the kernel, to the five lines of output it belongs to.
                tap = taps_ptr + (24 - d if TURNED else d) * taps_row + c
                sum_0 += x * tl.load(tap)[None, :]  # tap [1, BLOCK_C]
                sum_1 += x * tl.load(tap + STEP * taps_row)[None, :]  # tap [1, BLOCK_C]
                sum_2 += x * tl.load(tap + 2 * STEP * taps_row)[None, :]  # tap [1, BLOCK_C]
                sum_3 += x * tl.load(tap + 3 * STEP * taps_row)[None, :]  # tap [1, BLOCK_C]
                sum_4 += x * tl.load(tap + 4 * STEP * taps_row)[None, :]  # tap [1, BLOCK_C]
            # Write the line of output that is complete, and let the sums rotate.
            j = tl.where((i - 2 >= top) & (i - 2 < height), left + column, width)
            to = y_ptr + (batch * height + (i - 2)) * width * channels + j[:, None] * channels + c[None, :]
            tl.store(to, sum_4.to(y_ptr.dtype.element_ty), mask=(j < width)[:, None] & c_in[None, :])
            sum_4 = sum_3
            sum_3 = sum_2
            sum_2 = sum_1
            sum_1 = sum_0
            sum_0 = tl.zeros([COLUMNS, BLOCK_C], tl.float32)
