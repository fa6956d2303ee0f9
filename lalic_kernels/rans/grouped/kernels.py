"""Decoding a section in Triton, of a batch of streams: four launches. reference.py says what is computed.

    count    rows of the tables, quiet ones counted; its last program decodes the list of exceptions
    spread   which symbols the main list has
    main     decodes it, a group of lanes a program, which is a warp; its last program decodes escapes (kernels_main.py)
    values   symbols plus means, in the order in which they are wanted; the checksum's sums

The second dimension of every grid is the stream. LANES is 32 for all streams: in one with fewer lanes the rest never
work. Between sections everything stays on the device, so launches are the same for all streams: the grid of main has as
many programs as there may be groups, `room`. `most` is the length of a stream's row of `words`.
"""

import triton
import triton.language as tl

from lalic_kernels.exact.kernels_common import INFINITY, magnitude, threshold_index
from lalic_kernels.rans.grouped.kernels_common import (
    AT,
    BAD_INDEX,
    BAD_LENGTH,
    BAD_PLACE,
    CONTROL,
    COUNTED,
    END,
    ESCAPES,
    EXCEPTIONS,
    FIXED,
    NOT_FINITE,
    SHAPE,
    TOTAL,
    WORKING,
    blame,
    field,
    is_last,
)
from lalic_kernels.rans.kernels_checksum import mixed


@triton.jit
def _is_quiet(quiet_ptr, control_ptr, row, table_rows):
    """1 or 0; quiet (16, R + 1) has a row for each level."""
    level = tl.load(control_ptr + SHAPE) >> 16
    return tl.load(quiet_ptr + level * (table_rows + 1) + row).to(tl.int32)


@triton.jit
def _exceptions(
    counts_ptr, numbers_ptr, head_ptr, words_ptr, count, blocks, room, LANES: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Turns counts into their sums before each block, and decodes the list of exceptions to `numbers`. One program."""
    control_ptr = head_ptr + FIXED
    x_ptr = control_ptr + room * CONTROL
    hidden = 0
    for begin in range(0, blocks, BLOCK):
        b = begin + tl.arange(0, BLOCK)
        here = tl.load(counts_ptr + b, mask=b < blocks, other=0)
        tl.store(counts_ptr + b, hidden + tl.cumsum(here, 0) - here, mask=b < blocks)
        hidden += tl.sum(here, 0)
    found = 0
    if hidden > 0:
        lane = tl.arange(0, LANES)
        x = tl.load(x_ptr + lane).to(tl.uint32, bitcast=True)
        at = tl.load(control_ptr + AT)
        end = tl.load(control_ptr + END)
        working = tl.load(control_ptr + WORKING)
        value, x, at = field(x, lane == 0, tl.full((LANES,), 5, tl.int32), words_ptr, at, end)
        length = tl.sum(value, 0)
        if length > 0:
            fields = 0
            bits = 0
            low = tl.minimum(length - 1, 16)
            for begin in range(0, 3, working):
                number = begin + lane
                width = tl.where(number == 0, low, tl.where(number == 1, length - 1 - low, 4))
                mask = (lane < working) & (number < 3)
                value, x, at = field(x, mask, tl.minimum(width, 16), words_ptr, at, end)
                fields += tl.sum(tl.where(number == 0, value, tl.where(number == 1, value << low, 0)), 0)
                bits += tl.sum(tl.where(number == 2, value, 0), 0)
            fields += 1 << tl.minimum(length - 1, 30)
            bits += 1
            if (length > 30) | (fields > hidden):
                blame(head_ptr, BAD_LENGTH)
                fields = 0
            ones = (1 << bits) - 1
            place = 0
            for begin in range(0, fields, working):
                mask = (lane < working) & (begin + lane < fields)
                value, x, at = field(x, mask, tl.full((LANES,), 0, tl.int32) + bits, words_ptr, at, end)
                is_exception = (mask & (value != ones)).to(tl.int32)
                passed = place + tl.cumsum(value + is_exception, 0)
                where = found + tl.cumsum(is_exception, 0) - 1
                tl.store(numbers_ptr + where, passed - 1, mask=is_exception != 0)
                found += tl.sum(is_exception, 0)
                place = tl.minimum(place + tl.sum(value + is_exception, 0), hidden + 1)
            if place > hidden:
                blame(head_ptr, BAD_PLACE)
                found = 0
        tl.store(x_ptr + lane, x.to(tl.int32, bitcast=True))
        tl.store(control_ptr + AT, at)
    tl.store(head_ptr + EXCEPTIONS, found)
    tl.store(head_ptr + TOTAL, count - hidden + found)
    tl.store(head_ptr + ESCAPES, 0)


@triton.jit
def rans_count_kernel(
    source_ptr,  # indexes int32, or with PARAMETERS float32 (B, positions, 2 g): scales, and then means
    thresholds_ptr,  # (63,) float32
    quiet_ptr,  # (16, R + 1)
    rows_ptr,  # (B, count), written
    counts_ptr,  # (B, blocks), written: quiet symbols before each block
    numbers_ptr,  # (B, count), written: which quiet symbols are exceptions
    heads_ptr,
    words_ptr,
    count,
    positions,
    stride,  # of a stream's indexes or parameters
    room,
    most,
    table_rows,
    PARAMETERS: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Table rows of symbols in coding order: channel by channel, each at all positions. Grid (blocks of count, B)."""
    stream = tl.program_id(1).to(tl.int64)
    blocks = tl.num_programs(0)
    source_ptr += stream * stride
    rows_ptr += stream * count
    counts_ptr += stream * blocks
    numbers_ptr += stream * count
    words_ptr += stream * most
    head_ptr = heads_ptr + stream * (FIXED + (CONTROL + LANES) * room)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    if PARAMETERS:
        channel = i // positions
        place = (i - channel * positions) * (2 * (count // positions)) + channel
        scale = tl.load(source_ptr + place, mask=inside, other=0.0)
        if tl.max(magnitude(scale), 0) >= INFINITY:
            blame(head_ptr, NOT_FINITE)
        row = threshold_index(thresholds_ptr, scale)
    else:
        given = tl.load(source_ptr + i, mask=inside, other=0)
        row = tl.minimum(tl.maximum(given, 0), table_rows - 1)
        if tl.sum((row != given).to(tl.int32), 0) > 0:
            blame(head_ptr, BAD_INDEX)
    tl.store(rows_ptr + i, row, mask=inside)
    quiet = _is_quiet(quiet_ptr, head_ptr + FIXED, row, table_rows)
    tl.store(counts_ptr + tl.program_id(0), tl.sum(tl.where(inside, quiet, 0), 0))
    if is_last(head_ptr, COUNTED, blocks):
        _exceptions(counts_ptr, numbers_ptr, head_ptr, words_ptr, count, blocks, room, LANES, BLOCK)


@triton.jit
def rans_spread_kernel(
    rows_ptr,  # (B, count)
    quiet_ptr,
    mode_ptr,  # (R + 1,)
    counts_ptr,  # (B, blocks)
    numbers_ptr,  # (B, count)
    heads_ptr,
    row_ptr,  # (B, count), written: the main list's rows
    place_ptr,  # (B, count), written: and places
    symbols_ptr,  # (B, count), written: the commonest ones
    count,
    room,
    table_rows,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (blocks of count, B), the blocks being those of the counts."""
    stream = tl.program_id(1).to(tl.int64)
    head_ptr = heads_ptr + stream * (FIXED + (CONTROL + LANES) * room)
    numbers_ptr += stream * count
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    row = tl.load(rows_ptr + stream * count + i, mask=inside, other=0)
    quiet = tl.where(inside, _is_quiet(quiet_ptr, head_ptr + FIXED, row, table_rows), 0)
    tl.store(symbols_ptr + stream * count + i, tl.load(mode_ptr + row), mask=inside)
    before = tl.load(counts_ptr + stream * tl.num_programs(0) + tl.program_id(0))
    number = before + tl.cumsum(quiet, 0) - quiet  # quiet symbols before this one
    others = tl.load(head_ptr + EXCEPTIONS)
    low = tl.zeros((BLOCK,), tl.int32)  # exceptions before it: a binary search
    high = tl.zeros((BLOCK,), tl.int32) + others
    while tl.max(high - low, 0) > 0:
        middle = (low + high) >> 1
        below = (tl.load(numbers_ptr + middle, mask=middle < high, other=0) < number) & (middle < high)
        low = tl.where(below, middle + 1, low)
        high = tl.where(below, high, tl.minimum(high, middle))
    is_exception = (quiet != 0) & (low < others)
    is_exception &= tl.load(numbers_ptr + low, mask=is_exception, other=-1) == number
    active = inside & ((quiet == 0) | is_exception)
    where = stream * count + i - number + low
    tl.store(row_ptr + where, tl.where(quiet != 0, table_rows, row), mask=active)
    tl.store(place_ptr + where, i, mask=active)


@triton.jit
def rans_values_kernel(
    symbols_ptr,  # (B, count)
    parameters_ptr,  # "means": (B, positions, 2 g), scales and then means; "medians": (g,)
    values_ptr,  # with OFFSETS, written: symbols + means or medians, positions value_stride apart
    most_ptr,  # (B,) int32, with MOST: raised to the magnitude bits of each picture's values
    sums_ptr,  # (B, 2) int64: the checksum of the first section, and of all
    heads_ptr,
    count,
    positions,
    first,  # symbols before this section
    room,
    area,  # positions from one picture's values to the next's
    value_stride,
    half,  # of the width of the image that values are of, where positions are those of a colour; else 0
    colour,
    OFFSETS: tl.constexpr,  # "means", "medians", or "" for symbols alone
    MOST: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What follows decoding: values to their places, checksums. Grid (blocks of count, B)."""
    stream = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    symbols_ptr += stream * count
    place = i
    if OFFSETS != "":
        width = count // positions
        position = i // width
        channel = i - position * width
        place = channel * positions + position
    symbol = tl.load(symbols_ptr + place, mask=inside, other=0)
    if OFFSETS != "":
        if OFFSETS == "means":
            offset = tl.load(parameters_ptr + stream * count * 2 + i + (position + 1) * width, mask=inside, other=0.0)
            if tl.max(magnitude(offset), 0) >= INFINITY:
                blame(heads_ptr + stream * (FIXED + (CONTROL + LANES) * room), NOT_FINITE)
        else:
            offset = tl.load(parameters_ptr + channel, mask=inside, other=0.0)
        value = symbol.to(tl.float32) + offset
        if half > 0:
            line = position // half
            position = 2 * position + ((line + colour) & 1)
        target = (stream * area + position) * value_stride + channel
        tl.store(values_ptr + target, value, mask=inside)
        if MOST:
            bits = tl.max(tl.where(inside, magnitude(value), 0), 0)
            tl.atomic_max(most_ptr + stream, bits, sem="relaxed")
    total = tl.sum(tl.where(inside, mixed(place + first, symbol), 0), 0)
    tl.atomic_add(sums_ptr + 2 * stream + 1, total, sem="relaxed")
    if first == 0:
        tl.atomic_add(sums_ptr + 2 * stream, total, sem="relaxed")
