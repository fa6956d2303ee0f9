"""The coder and the checksum in Triton. reference.py defines the stream, gpu.py launches these kernels.

Decoding a section of a batch of streams takes three launches; programs of a stream follow each other in every grid:

    rows     table rows of all symbols, from indexes or from scales
    symbols  one program, a warp, for each group of lanes; the last program to finish decodes the escapes
    values   symbols plus means, in the order of the image; the checksum's sums

LANES is 32 for all streams; a stream with fewer lanes leaves the others idle. All state stays on the device between
sections, so launches are the same for all streams: the grid of `symbols` has one program for each possible group.

A stream's state is a row of `heads`, int32: FIXED numbers (fault bits, programs of `symbols` that have ended, escapes
of the section, unused, 8 steps of the ramp, unused); CONTROL numbers for each group (next word, end of its words,
working lanes, steps until they halve or -1, index in the ramp, section, section of the ramp, groups); 32 states for
each group, uint32 stored as int32. Fault bits are never cleared.
"""

import triton
import triton.language as tl

from lalic_kernels.exact.kernels_common import INFINITY, magnitude, threshold_index
from lalic_kernels.rans.layout import MIX_FIRST, MIX_SECOND
from lalic_kernels.triton_math import Constant, barrier, is_last

FAULTS = Constant(0)
DECODED = Constant(1)
ESCAPES = Constant(2)
RAMP_STEPS = Constant(4)
FIXED = Constant(16)  # numbers before those of the groups
AT = Constant(0)
END = Constant(1)
WORKING = Constant(2)
STEPS_LEFT = Constant(3)
STEP = Constant(4)
SECTION = Constant(5)
RAMP = Constant(6)
GROUPS = Constant(7)
CONTROL = Constant(8)
# Fault bits, 1 << -code for the codes of reference.py.
BAD_INDEX = Constant(1 << 1)
BAD_COUNT = Constant(1 << 2)
BAD_DIGIT = Constant(1 << 3)
TOO_LARGE = Constant(1 << 4)
BAD_LANE = Constant(1 << 5)
NOT_FINITE = Constant(1 << 16)
_FIRST, _SECOND = Constant(MIX_FIRST), Constant(MIX_SECOND)
# Not specialised, in all kernels: another size needs no compilation.
SIZES = ["count", "positions", "groups_capacity"]


# Functions of several kernels


@triton.jit
def _stream_and_block(per_stream):
    """(stream as int64, block) of a program, in a grid of (B * per_stream,)."""
    return (tl.program_id(0) // per_stream).to(tl.int64), tl.program_id(0) % per_stream


@triton.jit
def _set_fault(head_ptr, fault):
    """Set a fault bit of the stream."""
    tl.atomic_or(head_ptr + FAULTS, fault, sem="relaxed")


@triton.jit
def _ones(bits):
    """The number of ones in uint32 bits. LLVM knows this formula, and makes one instruction of it."""
    bits = bits - ((bits >> 1) & 0x55555555)
    bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
    return ((((bits + (bits >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def _refill(x, mask, words_ptr, at, end):
    """Let the lanes in `mask` with too small states read words, lane by lane; returns x and the next word's index."""
    bit = tl.full(x.shape, 1, tl.uint32) << tl.arange(0, x.shape[0]).to(tl.uint32)
    need = mask & (x < 65536)
    voted = tl.sum(tl.where(need, bit, 0), 0)  # a bit a lane: one instruction, where a prefix sum takes a chain of five
    i = at + _ones(voted & (bit - 1))
    word = tl.load(words_ptr + i, mask=need & (i < end), other=0).to(tl.uint32) & 0xFFFF  # [LANES]
    return tl.where(need, (x << 16) | word, x), at + _ones(voted)


@triton.jit
def _field(x, mask, width, words_ptr, at, end):
    """Decode a field of `width` bits in each lane in `mask`; returns it, x and the next word's index."""
    shift = (16 - width).to(tl.uint32)
    slot = x & 0xFFFF
    value = tl.where(mask, (slot >> shift).to(tl.int32), 0)
    after = ((x >> 16) << shift) + (slot & ((tl.full(shift.shape, 1, tl.uint32) << shift) - 1))
    x, at = _refill(tl.where(mask, after, x), mask, words_ptr, at, end)
    return value, x, at


@triton.jit
def _mixed(indices, symbols):
    """The terms of the checksum, int64; indices and symbols int32."""
    x = (indices.to(tl.int64) << 32) + (symbols.to(tl.int64) & 0xFFFFFFFF)
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _FIRST
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _SECOND
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


# Decoding


@triton.jit(do_not_specialize=[*SIZES, "stride", "table_rows"])
def rans_rows_kernel(
    source_ptr,  # indexes int32, or with PARAMETERS float32 (B, positions, 2 g): scales, then means
    thresholds_ptr,  # (63,) float32
    rows_ptr,  # (B, count), written
    heads_ptr,
    count,
    positions,
    stride,  # between the streams' indexes or parameters
    groups_capacity,
    table_rows,
    PARAMETERS: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Table rows of symbols in coding order: channel by channel, each at all positions. Grid (B * blocks of count,)."""
    # A block of a stream's symbols.
    stream, block = _stream_and_block(tl.cdiv(count, BLOCK))
    source_ptr += stream * stride
    head_ptr = heads_ptr + stream * (FIXED + (CONTROL + LANES) * groups_capacity)
    i = block * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    if PARAMETERS:
        # The row of each scale, by binary search in the thresholds.
        channel = i // positions
        offset = (i - channel * positions) * (2 * (count // positions)) + channel
        scale = tl.load(source_ptr + offset, mask=inside, other=0.0)  # [BLOCK]
        if tl.max(magnitude(scale), 0) >= INFINITY:
            _set_fault(head_ptr, NOT_FINITE)
        row = threshold_index(thresholds_ptr, scale)
    else:
        # The given rows, after a check.
        given = tl.load(source_ptr + i, mask=inside, other=0)  # [BLOCK]
        row = tl.minimum(tl.maximum(given, 0), table_rows - 1)
        if tl.sum((row != given).to(tl.int32), 0) > 0:
            _set_fault(head_ptr, BAD_INDEX)
    tl.store(rows_ptr + stream * count + i, row, mask=inside)


@triton.jit
def _escapes(
    head_ptr, words_ptr, rows_ptr, offset_ptr, escape_ptr, numbers_ptr, raw_ptr, symbols_ptr,
    count, groups_capacity, LANES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Decode the values of escapes, whose rows are stored as -1 - row. One program."""
    control_ptr = head_ptr + FIXED
    x_ptr = control_ptr + groups_capacity * CONTROL
    # Find the escapes.
    escape_count = 0
    for begin in range(0, count, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        escaped = (tl.load(rows_ptr + i, mask=i < count, other=0) < 0).to(tl.int32)  # [BLOCK]
        tl.store(numbers_ptr + escape_count + tl.cumsum(escaped, 0) - 1, i, mask=escaped != 0)
        escape_count += tl.sum(escaped, 0)
    barrier()
    lane = tl.arange(0, LANES)
    x = tl.load(x_ptr + lane).to(tl.uint32, bitcast=True)  # [LANES]
    at = tl.load(control_ptr + AT)
    end = tl.load(control_ptr + END)
    working = tl.load(control_ptr + WORKING)
    faults = 0
    # The numbers of digits, stored above the values' 36 bits.
    for begin in range(0, escape_count, working):
        mask = (lane < working) & (begin + lane < escape_count)
        digits, x, at = _field(x, mask, tl.full((LANES,), 4, tl.int32), words_ptr, at, end)
        if tl.max(digits, 0) > 9:
            faults |= BAD_COUNT
        digits = tl.minimum(digits, 9).to(tl.int64)
        tl.store(raw_ptr + begin + lane, digits << 40, mask=mask)
    # 16, 16 and 4 bits of the values, low bits first.
    for part in tl.static_range(3):
        barrier()
        for begin in range(0, escape_count, working):
            mask = (lane < working) & (begin + lane < escape_count)
            raw = tl.load(raw_ptr + begin + lane, mask=mask, other=0)  # [LANES]
            digits = (raw >> 40).to(tl.int32)
            width = tl.minimum(tl.maximum(4 * digits - 16 * part, 0), 16 if part < 2 else 4)
            value, x, at = _field(x, mask, width, words_ptr, at, end)
            tl.store(raw_ptr + begin + lane, raw | (value.to(tl.int64) << (16 * part)), mask=mask)
    barrier()
    # Check the values, and write symbols.
    for begin in range(0, escape_count, LANES):
        mask = begin + lane < escape_count
        raw = tl.load(raw_ptr + begin + lane, mask=mask, other=0)  # [LANES]
        digits = raw >> 40
        raw = raw & ((1 << 36) - 1)
        leading = raw >> tl.maximum(4 * digits - 4, 0)
        if tl.sum((mask & (digits > 0) & (leading == 0)).to(tl.int32), 0) > 0:
            faults |= BAD_DIGIT
        i = tl.load(numbers_ptr + begin + lane, mask=mask, other=0)  # [LANES]
        row = -1 - tl.load(rows_ptr + i, mask=mask, other=-1)  # [LANES]
        first = tl.load(offset_ptr + row).to(tl.int64)  # [LANES]
        above = first + tl.load(escape_ptr + row) + (raw >> 1)
        value = tl.where((raw & 1) != 0, first - ((raw + 1) >> 1), above)
        small = value.to(tl.int32)
        if tl.sum((mask & (small.to(tl.int64) != value)).to(tl.int32), 0) > 0:
            faults |= TOO_LARGE
        tl.store(symbols_ptr + i, small, mask=mask)
    tl.store(x_ptr + lane, x.to(tl.int32, bitcast=True))
    tl.store(control_ptr + AT, at)
    if faults > 0:
        _set_fault(head_ptr, faults)


@triton.jit(do_not_specialize=[*SIZES, "words_capacity"])
def rans_symbols_kernel(
    heads_ptr,
    words_ptr,
    rows_ptr,  # (B, count); those of escapes are overwritten with -1 - row
    coarse_ptr,  # arrays of CodingTables
    packed_ptr,
    bias_ptr,
    offset_ptr,
    escape_ptr,
    numbers_ptr,  # (B, count), scratch
    raw_ptr,  # (B, count) int64, scratch
    symbols_ptr,  # (B, count), written
    count,
    groups_capacity,
    words_capacity,  # words in a stream's row
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A group's symbols of a section. Grid (B * groups_capacity,)."""
    # Load the group's state: [LANES], and numbers.
    stream, group = _stream_and_block(groups_capacity)
    head_ptr = heads_ptr + stream * (FIXED + (CONTROL + LANES) * groups_capacity)
    groups = tl.load(head_ptr + FIXED + GROUPS)
    if group >= groups:
        return
    words_ptr += stream * words_capacity
    rows_ptr += stream * count
    symbols_ptr += stream * count
    lane = tl.arange(0, LANES)
    control_ptr = head_ptr + FIXED + group * CONTROL
    x_ptr = head_ptr + FIXED + groups_capacity * CONTROL + group * LANES
    x = tl.load(x_ptr + lane).to(tl.uint32, bitcast=True)  # [LANES]
    at = tl.load(control_ptr + AT)
    end = tl.load(control_ptr + END)
    working = tl.load(control_ptr + WORKING)
    steps_left = tl.load(control_ptr + STEPS_LEFT)
    step_index = tl.load(control_ptr + STEP)
    section = tl.load(control_ptr + SECTION)
    if section == tl.load(control_ptr + RAMP):
        steps_left = tl.load(head_ptr + RAMP_STEPS)
        step_index = 1
    escapes = tl.zeros([LANES], tl.int32)
    faults = 0
    begin = 0
    current = group * working + lane
    row = tl.load(rows_ptr + current, mask=(lane < working) & (current < count), other=0)  # [LANES]
    while (begin < count) | (steps_left == 0):
        # Stop the upper half of the working lanes, and return the low halves of their states to the words.
        halves = steps_left == 0
        while steps_left == 0:
            half = working >> 1
            stops = (lane >= half) & (lane < working)
            if tl.sum((stops & ((x >> 16) != 1)).to(tl.int32), 0) > 0:
                faults |= BAD_LANE
            at -= half
            tl.store(words_ptr + at + lane - half, (x & 0xFFFF).to(tl.int16), mask=stops & (at + lane - half < end))
            barrier()  # other threads will read them
            working = half
            steps_left = -1
            if half > 1:
                steps_left = tl.load(head_ptr + RAMP_STEPS + step_index)
                step_index += 1
        # Load the rows of the next step, so that the wait for memory overlaps with this step.
        current = begin + group * working + lane
        mask = (lane < working) & (current < count)
        if halves:
            row = tl.load(rows_ptr + current, mask=mask, other=0)  # [LANES]
        next_i = current + groups * working
        next_row = tl.load(rows_ptr + next_i, mask=(lane < working) & (next_i < count), other=0)  # [LANES]
        # The interval of each state's slot: a binary search in the intervals of its bin. Loading the next few at once
        # would spare most loops, but Triton 3.3 and 3.4 crash on such a kernel.
        slot = x & 0xFFFF
        bins = tl.load(coarse_ptr + row * 256 + (slot >> 8).to(tl.int32))  # [LANES]
        entry = bins & 0xFFFFFF
        more = tl.where(mask, (bins >> 24) & 0xFF, 0)
        while tl.max(more, 0) > 0:
            half_way = (more + 1) >> 1
            below = (tl.load(packed_ptr + entry + half_way).to(tl.uint32, bitcast=True) & 0xFFFF) <= slot  # [LANES]
            entry = tl.where(below, entry + half_way, entry)
            more = tl.where(below, more - half_way, tl.maximum(half_way - 1, 0))
        interval = tl.load(packed_ptr + entry).to(tl.uint32, bitcast=True)  # [LANES]
        # The next state, and the symbol.
        low = interval & 0xFFFF
        freq = (interval >> 16) + 1
        x, at = _refill(tl.where(mask, freq * (x >> 16) + slot - low, x), mask, words_ptr, at, end)
        tl.store(symbols_ptr + current, entry + tl.load(bias_ptr + row), mask=mask)
        escaped = mask & (low + freq == 65536)
        tl.store(rows_ptr + current, -1 - row, mask=escaped)
        escapes += escaped.to(tl.int32)
        row = next_row
        steps_left -= ((steps_left > 0) & (begin < count)).to(tl.int32)
        begin += groups * working
    # Write the group's state.
    tl.store(x_ptr + lane, x.to(tl.int32, bitcast=True))
    tl.store(control_ptr + AT, at)
    tl.store(control_ptr + WORKING, working)
    tl.store(control_ptr + STEPS_LEFT, steps_left)
    tl.store(control_ptr + STEP, step_index)
    tl.store(control_ptr + SECTION, section + 1)
    escape_count = tl.sum(escapes, 0)
    if escape_count > 0:
        tl.atomic_add(head_ptr + ESCAPES, escape_count, sem="relaxed")
    if faults > 0:
        _set_fault(head_ptr, faults)
    # The last program of the stream decodes the escapes.
    if is_last(head_ptr + DECODED, groups):  # noqa: SIM102 - the load must come after the counter
        if tl.load(head_ptr + ESCAPES) > 0:
            tl.store(head_ptr + ESCAPES, 0)
            _escapes(
                head_ptr, words_ptr, rows_ptr, offset_ptr, escape_ptr, numbers_ptr + stream * count,
                raw_ptr + stream * count, symbols_ptr, count, groups_capacity, LANES, BLOCK,
            )  # fmt: skip


@triton.jit(do_not_specialize=[*SIZES, "first", "area", "value_stride", "half", "colour"])
def rans_values_kernel(
    symbols_ptr,  # (B, count)
    parameters_ptr,  # "means": (B, positions, 2 g), scales, then means; "medians": (g,)
    values_ptr,  # with OFFSETS, written: symbols + means or medians, positions value_stride apart
    absmax_ptr,  # (B,) int32, with ABSMAX: raised to the bits of each image's largest absolute value
    sums_ptr,  # (B, 2) int64, added to: the checksum of the first section, and of all sections
    heads_ptr,
    count,
    positions,
    first,  # symbols before this section
    groups_capacity,
    area,  # positions of an image
    value_stride,
    half,  # half of the image's width if positions are those of a colour; else 0
    colour,
    OFFSETS: tl.constexpr,  # "means", "medians", or "" for symbols only
    ABSMAX: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """After decoding: write the values, add up the checksums. Grid (B * blocks of count,)."""
    # A block of symbols. They are stored channel by channel; values are written position by position.
    stream, block = _stream_and_block(tl.cdiv(count, BLOCK))
    i = block * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    symbols_ptr += stream * count
    index = i
    if OFFSETS != "":
        width = count // positions
        position = i // width
        channel = i - position * width
        index = channel * positions + position
    symbol = tl.load(symbols_ptr + index, mask=inside, other=0)  # [BLOCK]
    if OFFSETS != "":
        # Values, and their largest magnitude.
        if OFFSETS == "means":
            means_ptr = parameters_ptr + stream * count * 2 + i + (position + 1) * width
            offset = tl.load(means_ptr, mask=inside, other=0.0)  # [BLOCK]
            if tl.max(magnitude(offset), 0) >= INFINITY:
                _set_fault(heads_ptr + stream * (FIXED + (CONTROL + LANES) * groups_capacity), NOT_FINITE)
        else:
            offset = tl.load(parameters_ptr + channel, mask=inside, other=0.0)  # [BLOCK]
        value = symbol.to(tl.float32) + offset
        if half > 0:
            line = position // half
            position = 2 * position + ((line + colour) & 1)
        target = (stream * area + position) * value_stride + channel
        tl.store(values_ptr + target, value, mask=inside)
        if ABSMAX:
            bits = tl.max(tl.where(inside, magnitude(value), 0), 0)
            tl.atomic_max(absmax_ptr + stream, bits, sem="relaxed")
    # Checksum.
    total = tl.sum(tl.where(inside, _mixed(index + first, symbol), 0), 0)
    tl.atomic_add(sums_ptr + 2 * stream + 1, total, sem="relaxed")
    if first == 0:
        tl.atomic_add(sums_ptr + 2 * stream, total, sem="relaxed")


# Encoding


@triton.jit(do_not_specialize=["lists", "groups", "lanes"])
def rans_push_kernel(
    entries_ptr,  # (n,) packed intervals of all lists
    bounds_ptr,  # (lists + 1,) the first interval of each list
    shared_ptr,  # (lists + 1,) whether all groups share a list; otherwise only the first group codes it
    x_ptr,  # (groups, LANES), the states; overwritten with their upper halves
    words_ptr,
    free_ptr,  # (groups,) the end of the free part of each group's words; updated
    lists,
    groups,
    lanes,
    LANES: tl.constexpr,
):
    """Encode the first `lists` lists with `lanes` lanes per group, from the last to the first. Words go below `free`.

    A program is a group of lanes, and one warp. Grid (groups,).
    """
    group = tl.program_id(0)
    lane = tl.arange(0, LANES)
    bit = tl.full([LANES], 1, tl.uint32) << lane.to(tl.uint32)
    x = tl.load(x_ptr + group * LANES + lane).to(tl.uint32, bitcast=True)  # [LANES]
    free = tl.load(free_ptr + group)
    for back in range(0, lists):
        # This group's part of a list.
        number = lists - 1 - back
        begin = tl.load(bounds_ptr + number)
        end = tl.load(bounds_ptr + number + 1)
        shared = tl.load(shared_ptr + number)
        end = tl.where((shared == 0) & (group > 0), begin, end)
        stride = tl.where(shared != 0, groups * lanes, lanes)
        first = begin + tl.where(shared != 0, group * lanes, 0)
        steps = tl.maximum((end - first + stride - 1) // stride, 0)
        for step in range(0, steps):
            i = first + (steps - 1 - step) * stride + lane
            mask = (i < end) & (lane < lanes)
            interval = tl.load(entries_ptr + i, mask=mask, other=0).to(tl.uint32, bitcast=True)  # [LANES]
            # A state that is too large writes a word. The decoder reads lane by lane: lane 0's word comes first.
            freq = (interval >> 16) + 1
            full = mask & ((x >> 16) >= freq)
            voted = tl.sum(tl.where(full, bit, 0), 0)
            count = _ones(voted)
            to = free - count + _ones(voted & (bit - 1))
            tl.store(words_ptr + to, (x & 0xFFFF).to(tl.int16), mask=full)
            free -= count
            x = tl.where(full, x >> 16, x)
            # The next states.
            after = ((x // freq) << 16) + x % freq + (interval & 0xFFFF)
            x = tl.where(mask, after, x)
    # Write the final states.
    tl.store(words_ptr + free - lanes + lane, (x & 0xFFFF).to(tl.int16), mask=lane < lanes)
    tl.store(x_ptr + group * LANES + lane, (x >> 16).to(tl.int32, bitcast=True))
    tl.store(free_ptr + group, free - lanes)


# The checksum alone


@triton.jit(do_not_specialize=["count", "first"])
def checksum_kernel(
    symbols_ptr,  # (B, count) int32
    totals_ptr,  # (B,) int64, added to
    count,
    first,
    BLOCK: tl.constexpr,
):
    """Add a block of a row to its sum. The order of integer atomics does not matter. Grid (B * blocks of count,)."""
    row, block = _stream_and_block(tl.cdiv(count, BLOCK))
    i = block * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    symbols = tl.load(symbols_ptr + row * count + i, mask=inside, other=0)  # [BLOCK]
    tl.atomic_add(totals_ptr + row, tl.sum(tl.where(inside, _mixed(i + first, symbols), 0), 0))
