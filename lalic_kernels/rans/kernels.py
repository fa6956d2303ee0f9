"""The coder and the checksum in Triton. reference.py says what a stream means, gpu.py what is launched.

Decoding a section of a batch of streams is three launches; the second dimension of every grid is the stream:

    rows     table rows of all symbols, from indexes or from scales
    symbols  a group of lanes a program, which is a warp; its last program decodes escapes
    values   symbols plus means, in the order in which they are wanted; the checksum's sums

LANES is 32 for all streams: in one with fewer lanes the rest never work. Between sections everything stays on the
device, so launches are the same for all streams: the grid of `symbols` has as many programs as there may be groups.

A stream's state is a row of `heads`, int32: FIXED numbers (faults as bits, programs of `symbols` that have ended,
escapes of the section, unused, 8 steps of the ramp, unused); CONTROL numbers for each group (next word, end of its
words, working lanes, steps until they halve or -1, place in the ramp, section, section of the ramp, groups); 32 states
for each group, uint32 held as int32. Faults are kept from section to section.
"""

import triton
import triton.language as tl

from lalic_kernels.exact.kernels_common import INFINITY, magnitude, threshold_index
from lalic_kernels.rans.layout import MIX_FIRST, MIX_SECOND

FAULTS = tl.constexpr(0)
DECODED = tl.constexpr(1)
ESCAPES = tl.constexpr(2)
RAMP_STEPS = tl.constexpr(4)
FIXED = tl.constexpr(16)  # numbers in front of the groups'
AT = tl.constexpr(0)
END = tl.constexpr(1)
WORKING = tl.constexpr(2)
LEFT = tl.constexpr(3)
AHEAD = tl.constexpr(4)
SECTION = tl.constexpr(5)
RAMP = tl.constexpr(6)
GROUPS = tl.constexpr(7)
CONTROL = tl.constexpr(8)
# Bits of faults, 1 << -code of what reference.py returns; gpu.py has more.
BAD_INDEX = tl.constexpr(1 << 1)
BAD_COUNT = tl.constexpr(1 << 2)
BAD_DIGIT = tl.constexpr(1 << 3)
TOO_LARGE = tl.constexpr(1 << 4)
BAD_LANE = tl.constexpr(1 << 5)
NOT_FINITE = tl.constexpr(1 << 16)
_FIRST, _SECOND = tl.constexpr(MIX_FIRST), tl.constexpr(MIX_SECOND)


# What several kernels do


@triton.jit
def _blame(head_ptr, fault):
    """Marks a fault of the stream."""
    tl.atomic_or(head_ptr + FAULTS, fault, sem="relaxed")


@triton.jit
def _is_last(head_ptr, counter, programs):
    """Whether all other programs have come by here; then what they stored is seen, and the counter is set back.

    All threads' stores come before the barrier, then one takes the ticket, as release and acquire for the whole device
    (in PTX bar.warp.sync or bar.sync, then atom.global.acq_rel.gpu), and the others learn of it behind a barrier.
    """
    tl.debug_barrier()
    last = tl.atomic_add(head_ptr + counter, 1, sem="acq_rel", scope="gpu") == programs - 1
    if last:
        tl.store(head_ptr + counter, 0)
    return last


@triton.jit
def _refill(x, mask, words_ptr, at, end):
    """x and the next word's place after lanes in `mask` whose states are small have taken words, lane by lane."""
    need = (mask & (x < 65536)).to(tl.int32)
    place = at + tl.cumsum(need, 0) - need
    word = tl.load(words_ptr + place, mask=(need != 0) & (place < end), other=0).to(tl.uint32) & 0xFFFF  # [LANES]
    return tl.where(need != 0, (x << 16) | word, x), at + tl.sum(need, 0)


@triton.jit
def _field(x, mask, width, words_ptr, at, end):
    """A field of `width` bits from each lane in `mask`; x and the next word's place after it."""
    rest = (16 - width).to(tl.uint32)
    slot = x & 0xFFFF
    value = tl.where(mask, (slot >> rest).to(tl.int32), 0)
    after = ((x >> 16) << rest) + (slot & ((tl.full(rest.shape, 1, tl.uint32) << rest) - 1))
    x, at = _refill(tl.where(mask, after, x), mask, words_ptr, at, end)
    return value, x, at


@triton.jit
def _mixed(places, symbols):
    """The terms of the checksum, int64: places and symbols int32."""
    x = (places.to(tl.int64) << 32) + (symbols.to(tl.int64) & 0xFFFFFFFF)
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _FIRST
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _SECOND
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


# Decoding


@triton.jit
def rans_rows_kernel(
    source_ptr,  # indexes int32, or with PARAMETERS float32 (B, positions, 2 g): scales, and then means
    thresholds_ptr,  # (63,) float32
    rows_ptr,  # (B, count), written
    heads_ptr,
    count,
    positions,
    stride,  # of a stream's indexes or parameters
    groups_capacity,
    table_rows,
    PARAMETERS: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Table rows of symbols in coding order: channel by channel, each at all positions. Grid (blocks of count, B)."""
    stream = tl.program_id(1).to(tl.int64)
    source_ptr += stream * stride
    head_ptr = heads_ptr + stream * (FIXED + (CONTROL + LANES) * groups_capacity)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    if PARAMETERS:
        # the row of a scale, by a binary search among thresholds
        channel = i // positions
        place = (i - channel * positions) * (2 * (count // positions)) + channel
        scale = tl.load(source_ptr + place, mask=inside, other=0.0)  # [BLOCK]
        if tl.max(magnitude(scale), 0) >= INFINITY:
            _blame(head_ptr, NOT_FINITE)
        row = threshold_index(thresholds_ptr, scale)
    else:
        # rows as they are given, if they are rows
        given = tl.load(source_ptr + i, mask=inside, other=0)  # [BLOCK]
        row = tl.minimum(tl.maximum(given, 0), table_rows - 1)
        if tl.sum((row != given).to(tl.int32), 0) > 0:
            _blame(head_ptr, BAD_INDEX)
    tl.store(rows_ptr + stream * count + i, row, mask=inside)


@triton.jit
def _escapes(
    head_ptr, words_ptr, rows_ptr, offset_ptr, escape_ptr, numbers_ptr, raw_ptr, symbols_ptr,
    count, groups_capacity, LANES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The values of escapes, whose rows stand as -1 - row. One program."""
    control_ptr = head_ptr + FIXED
    x_ptr = control_ptr + groups_capacity * CONTROL
    # which symbols they are
    found = 0
    for begin in range(0, count, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        escaped = (tl.load(rows_ptr + i, mask=i < count, other=0) < 0).to(tl.int32)  # [BLOCK]
        tl.store(numbers_ptr + found + tl.cumsum(escaped, 0) - 1, i, mask=escaped != 0)
        found += tl.sum(escaped, 0)
    tl.debug_barrier()
    lane = tl.arange(0, LANES)
    x = tl.load(x_ptr + lane).to(tl.uint32, bitcast=True)  # [LANES]
    at = tl.load(control_ptr + AT)
    end = tl.load(control_ptr + END)
    working = tl.load(control_ptr + WORKING)
    faults = 0
    # numbers of digits, which stand above the values' 36 bits until those are complete
    for begin in range(0, found, working):
        mask = (lane < working) & (begin + lane < found)
        digits, x, at = _field(x, mask, tl.full((LANES,), 4, tl.int32), words_ptr, at, end)
        if tl.max(digits, 0) > 9:
            faults |= BAD_COUNT
        digits = tl.minimum(digits, 9).to(tl.int64)
        tl.store(raw_ptr + begin + lane, digits << 40, mask=mask)
    # 16, 16 and 4 bits of the values, low ones first
    for part in tl.static_range(3):
        tl.debug_barrier()
        for begin in range(0, found, working):
            mask = (lane < working) & (begin + lane < found)
            raw = tl.load(raw_ptr + begin + lane, mask=mask, other=0)  # [LANES]
            digits = (raw >> 40).to(tl.int32)
            width = tl.minimum(tl.maximum(4 * digits - 16 * part, 0), 16 if part < 2 else 4)
            value, x, at = _field(x, mask, width, words_ptr, at, end)
            tl.store(raw_ptr + begin + lane, raw | (value.to(tl.int64) << (16 * part)), mask=mask)
    tl.debug_barrier()
    # symbols
    for begin in range(0, found, LANES):
        mask = begin + lane < found
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
        _blame(head_ptr, faults)


@triton.jit
def rans_symbols_kernel(
    heads_ptr,
    words_ptr,
    rows_ptr,  # (B, count); of escapes -1 - row is written
    coarse_ptr,  # tables, as CodingTables has them
    packed_ptr,
    bias_ptr,
    offset_ptr,
    escape_ptr,
    numbers_ptr,  # (B, count), scratch
    raw_ptr,  # (B, count) int64, scratch
    symbols_ptr,  # (B, count), written
    count,
    groups_capacity,
    words_capacity,  # of a stream's row of words
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A group's share of a section's symbols. Grid (groups_capacity, B)."""
    group = tl.program_id(0)
    stream = tl.program_id(1).to(tl.int64)
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
    left = tl.load(control_ptr + LEFT)
    ahead = tl.load(control_ptr + AHEAD)
    section = tl.load(control_ptr + SECTION)
    if section == tl.load(control_ptr + RAMP):
        left = tl.load(head_ptr + RAMP_STEPS)
        ahead = 1
    escapes = 0
    faults = 0
    begin = 0
    mine = group * working + lane
    row = tl.load(rows_ptr + mine, mask=(lane < working) & (mine < count), other=0)  # [LANES]
    while (begin < count) | (left == 0):
        # the upper half of the lanes give their low halves back as words, and rest
        halves = left == 0
        while left == 0:
            half = working >> 1
            rests = (lane >= half) & (lane < working)
            if tl.sum((rests & ((x >> 16) != 1)).to(tl.int32), 0) > 0:
                faults |= BAD_LANE
            at -= half
            tl.store(words_ptr + at + lane - half, (x & 0xFFFF).to(tl.int16), mask=rests & (at + lane - half < end))
            tl.debug_barrier()  # other threads read them
            working = half
            left = -1
            if half > 1:
                left = tl.load(head_ptr + RAMP_STEPS + ahead)
                ahead += 1
        # rows of this step, and of the next, so that waiting for memory overlaps with this one
        mine = begin + group * working + lane
        mask = (lane < working) & (mine < count)
        if halves:
            row = tl.load(rows_ptr + mine, mask=mask, other=0)  # [LANES]
        later = mine + groups * working
        following = tl.load(rows_ptr + later, mask=(lane < working) & (later < count), other=0)  # [LANES]
        # the interval that a state's slot lies in: a binary search between its bin's first interval and its last
        slot = x & 0xFFFF
        bins = tl.load(coarse_ptr + row * 256 + (slot >> 8).to(tl.int32))  # [LANES]
        entry = bins & 0xFFFFFF
        more = tl.where(mask, (bins >> 24) & 0xFF, 0)
        while tl.max(more, 0) > 0:
            half_way = (more + 1) >> 1
            below = (tl.load(packed_ptr + entry + half_way).to(tl.uint32, bitcast=True) & 0xFFFF) <= slot
            entry = tl.where(below, entry + half_way, entry)
            more = tl.where(below, more - half_way, tl.maximum(half_way - 1, 0))
        interval = tl.load(packed_ptr + entry).to(tl.uint32, bitcast=True)  # [LANES]
        # the state after it, and the symbol
        low = interval & 0xFFFF
        freq = (interval >> 16) + 1
        x, at = _refill(tl.where(mask, freq * (x >> 16) + slot - low, x), mask, words_ptr, at, end)
        tl.store(symbols_ptr + mine, entry + tl.load(bias_ptr + row), mask=mask)
        escaped = mask & (low + freq == 65536)
        tl.store(rows_ptr + mine, -1 - row, mask=escaped)
        escapes += tl.sum(escaped.to(tl.int32), 0)
        row = following
        left -= ((left > 0) & (begin < count)).to(tl.int32)
        begin += groups * working
    tl.store(x_ptr + lane, x.to(tl.int32, bitcast=True))
    tl.store(control_ptr + AT, at)
    tl.store(control_ptr + WORKING, working)
    tl.store(control_ptr + LEFT, left)
    tl.store(control_ptr + AHEAD, ahead)
    tl.store(control_ptr + SECTION, section + 1)
    if escapes > 0:
        tl.atomic_add(head_ptr + ESCAPES, escapes, sem="relaxed")
    if faults > 0:
        _blame(head_ptr, faults)
    if _is_last(head_ptr, DECODED, groups):  # noqa: SIM102 - the load has to come after the ticket
        if tl.load(head_ptr + ESCAPES) > 0:
            tl.store(head_ptr + ESCAPES, 0)
            _escapes(
                head_ptr, words_ptr, rows_ptr, offset_ptr, escape_ptr, numbers_ptr + stream * count,
                raw_ptr + stream * count, symbols_ptr, count, groups_capacity, LANES, BLOCK,
            )  # fmt: skip


@triton.jit
def rans_values_kernel(
    symbols_ptr,  # (B, count)
    parameters_ptr,  # "means": (B, positions, 2 g), scales and then means; "medians": (g,)
    values_ptr,  # with OFFSETS, written: symbols + means or medians, positions value_stride apart
    absmax_ptr,  # (B,) int32, with ABSMAX: raised to the bits of each picture's largest absolute value
    sums_ptr,  # (B, 2) int64: the checksum of the first section, and of all
    heads_ptr,
    count,
    positions,
    first,  # symbols before this section
    groups_capacity,
    area,  # positions from one picture's values to the next's
    value_stride,
    half,  # of the width of the image that values are of, where positions are those of a colour; else 0
    colour,
    OFFSETS: tl.constexpr,  # "means", "medians", or "" for symbols alone
    ABSMAX: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What follows decoding: values to their places, checksums. Grid (blocks of count, B)."""
    stream = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    symbols_ptr += stream * count
    # symbols come channel by channel, values go position by position
    place = i
    if OFFSETS != "":
        width = count // positions
        position = i // width
        channel = i - position * width
        place = channel * positions + position
    symbol = tl.load(symbols_ptr + place, mask=inside, other=0)  # [BLOCK]
    if OFFSETS != "":
        # values
        if OFFSETS == "means":
            means_ptr = parameters_ptr + stream * count * 2 + i + (position + 1) * width
            offset = tl.load(means_ptr, mask=inside, other=0.0)  # [BLOCK]
            if tl.max(magnitude(offset), 0) >= INFINITY:
                _blame(heads_ptr + stream * (FIXED + (CONTROL + LANES) * groups_capacity), NOT_FINITE)
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
    # checksum
    total = tl.sum(tl.where(inside, _mixed(place + first, symbol), 0), 0)
    tl.atomic_add(sums_ptr + 2 * stream + 1, total, sem="relaxed")
    if first == 0:
        tl.atomic_add(sums_ptr + 2 * stream, total, sem="relaxed")


# Encoding


@triton.jit
def rans_push_kernel(
    entries_ptr,  # (n,) packed intervals of all lists
    bounds_ptr,  # (lists + 1,) where each list begins
    shared_ptr,  # (lists + 1,) whether all groups share it; else the first has it alone
    x_ptr,  # (groups, LANES), the states; their upper halves are written
    words_ptr,
    free_ptr,  # (groups,) end of what is free of each group's words; written
    lists,
    groups,
    lanes,
    LANES: tl.constexpr,
):
    """Encodes the first `lists` lists with `lanes` lanes a group, from the last to the first; words go below `free`.

    A program is a group of lanes, and one warp. Grid (groups,).
    """
    group = tl.program_id(0)
    lane = tl.arange(0, LANES)
    x = tl.load(x_ptr + group * LANES + lane).to(tl.uint32, bitcast=True)  # [LANES]
    free = tl.load(free_ptr + group)
    for back in range(0, lists):
        # a group's share of a list
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
            # full states put out a word; the decoder takes words in the order of lanes, so the first lane's is on top
            freq = (interval >> 16) + 1
            full = mask & ((x >> 16) >= freq)
            put = full.to(tl.int32)
            count = tl.sum(put, 0)
            place = free - count + tl.cumsum(put, 0) - put
            tl.store(words_ptr + place, (x & 0xFFFF).to(tl.int16), mask=full)
            free -= count
            x = tl.where(full, x >> 16, x)
            # the states after it
            after = ((x // freq) << 16) + x % freq + (interval & 0xFFFF)
            x = tl.where(mask, after, x)
    tl.store(words_ptr + free - lanes + lane, (x & 0xFFFF).to(tl.int16), mask=lane < lanes)
    tl.store(x_ptr + group * LANES + lane, (x >> 16).to(tl.int32, bitcast=True))
    tl.store(free_ptr + group, free - lanes)


# The checksum of symbols by itself


@triton.jit
def checksum_kernel(
    symbols_ptr,  # (B, count) int32
    totals_ptr,  # (B,) int64, added to
    count,
    first,
    BLOCK: tl.constexpr,
):
    """One program adds up a block of one row: integers, so the order of the atomics is of no consequence.

    Grid (blocks of count, B).
    """
    row = tl.program_id(1)
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = places < count
    symbols = tl.load(symbols_ptr + row.to(tl.int64) * count + places, mask=inside, other=0)  # [BLOCK]
    tl.atomic_add(totals_ptr + row, tl.sum(tl.where(inside, _mixed(places + first, symbols), 0), 0))
