"""The main list of a section in Triton, and the escapes among its symbols; kernels.py says what is around it."""

import triton
import triton.language as tl

from lalic_kernels.rans.grouped.kernels_common import (
    AHEAD,
    AT,
    BAD_COUNT,
    BAD_DIGIT,
    BAD_LANE,
    CONTROL,
    DECODED,
    END,
    ESCAPES,
    FAN,
    FIXED,
    LEFT,
    SECTION,
    SHAPE,
    STAGES,
    TOO_LARGE,
    TOTAL,
    WORKING,
    blame,
    field,
    is_last,
    refill,
)


@triton.jit
def _escapes(
    head_ptr, words_ptr, row_ptr, place_ptr, rows_ptr, offset_ptr, escape_ptr, mode_ptr, numbers_ptr, raw_ptr,
    symbols_ptr, room, table_rows, LANES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The values of escapes. One program."""
    control_ptr = head_ptr + FIXED
    x_ptr = control_ptr + room * CONTROL
    total = tl.load(head_ptr + TOTAL)
    found = 0
    for begin in range(0, total, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        escaped = (tl.load(row_ptr + i, mask=i < total, other=0) < 0).to(tl.int32)
        tl.store(numbers_ptr + found + tl.cumsum(escaped, 0) - 1, i, mask=escaped != 0)
        found += tl.sum(escaped, 0)
    tl.debug_barrier()
    lane = tl.arange(0, LANES)
    x = tl.load(x_ptr + lane).to(tl.uint32, bitcast=True)
    at = tl.load(control_ptr + AT)
    end = tl.load(control_ptr + END)
    working = tl.load(control_ptr + WORKING)
    faults = 0
    # The numbers of digits stand above the values' 36 bits until those are complete.
    for begin in range(0, found, working):
        mask = (lane < working) & (begin + lane < found)
        digits, x, at = field(x, mask, tl.full((LANES,), 4, tl.int32), words_ptr, at, end)
        if tl.max(digits, 0) > 9:
            faults |= BAD_COUNT
        digits = tl.minimum(digits, 9).to(tl.int64)
        tl.store(raw_ptr + begin + lane, digits << 40, mask=mask)
    for part in tl.static_range(3):
        tl.debug_barrier()
        for begin in range(0, found, working):
            mask = (lane < working) & (begin + lane < found)
            raw = tl.load(raw_ptr + begin + lane, mask=mask, other=0)
            digits = (raw >> 40).to(tl.int32)
            width = tl.minimum(tl.maximum(4 * digits - 16 * part, 0), 16 if part < 2 else 4)
            value, x, at = field(x, mask, width, words_ptr, at, end)
            tl.store(raw_ptr + begin + lane, raw | (value.to(tl.int64) << (16 * part)), mask=mask)
    tl.debug_barrier()
    for begin in range(0, found, LANES):
        mask = begin + lane < found
        raw = tl.load(raw_ptr + begin + lane, mask=mask, other=0)
        digits = raw >> 40
        raw = raw & ((1 << 36) - 1)
        leading = raw >> tl.maximum(4 * digits - 4, 0)
        if tl.sum((mask & (digits > 0) & (leading == 0)).to(tl.int32), 0) > 0:
            faults |= BAD_DIGIT
        i = tl.load(numbers_ptr + begin + lane, mask=mask, other=0)
        row = -1 - tl.load(row_ptr + i, mask=mask, other=-1)
        place = tl.load(place_ptr + i, mask=mask, other=0)
        own = tl.load(rows_ptr + place, mask=mask, other=0)
        base = tl.where(row == table_rows, tl.load(mode_ptr + own), 0).to(tl.int64)
        first = base + tl.load(offset_ptr + row)
        above = first + tl.load(escape_ptr + row) + (raw >> 1)
        value = tl.where((raw & 1) != 0, first - ((raw + 1) >> 1), above)
        small = value.to(tl.int32)
        if tl.sum((mask & (small.to(tl.int64) != value)).to(tl.int32), 0) > 0:
            faults |= TOO_LARGE
        tl.store(symbols_ptr + place, small, mask=mask)
    tl.store(x_ptr + lane, x.to(tl.int32, bitcast=True))
    tl.store(control_ptr + AT, at)
    if faults > 0:
        blame(head_ptr, faults)


@triton.jit
def rans_main_kernel(
    heads_ptr,
    words_ptr,
    row_ptr,  # (B, count)
    place_ptr,  # (B, count)
    rows_ptr,  # (B, count)
    coarse_ptr,  # tables, as GroupedTables has them
    packed_ptr,
    bias_ptr,
    offset_ptr,
    escape_ptr,
    mode_ptr,
    numbers_ptr,  # (B, count), scratch
    raw_ptr,  # (B, count) int64, scratch
    symbols_ptr,  # (B, count), written
    count,
    room,
    most,
    table_rows,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A group's share of the main list. Escapes are marked by -1 - row before they are decoded. Grid (room, B)."""
    group = tl.program_id(0)
    stream = tl.program_id(1).to(tl.int64)
    head_ptr = heads_ptr + stream * (FIXED + (CONTROL + LANES) * room)
    groups = tl.load(head_ptr + FIXED + SHAPE) & 0xFFFF
    if group >= groups:
        return
    words_ptr += stream * most
    row_ptr += stream * count
    place_ptr += stream * count
    symbols_ptr += stream * count
    lane = tl.arange(0, LANES)
    control_ptr = head_ptr + FIXED + group * CONTROL
    stages_ptr = head_ptr + STAGES
    x_ptr = head_ptr + FIXED + room * CONTROL + group * LANES
    x = tl.load(x_ptr + lane).to(tl.uint32, bitcast=True)
    at = tl.load(control_ptr + AT)
    end = tl.load(control_ptr + END)
    working = tl.load(control_ptr + WORKING)
    left = tl.load(control_ptr + LEFT)
    ahead = tl.load(control_ptr + AHEAD)
    section = tl.load(control_ptr + SECTION)
    total = tl.load(head_ptr + TOTAL)
    if section == tl.load(control_ptr + FAN):
        left = tl.load(stages_ptr)
        ahead = 1
    escapes = 0
    faults = 0
    begin = 0
    row = tl.load(row_ptr + group * working + lane, mask=(lane < working) & (group * working + lane < total), other=0)
    while (begin < total) | (left == 0):
        halves = left == 0
        while left == 0:  # the upper half of the lanes give their low halves back as words, and rest
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
                left = tl.load(stages_ptr + ahead)
                ahead += 1
        mine = begin + group * working + lane
        mask = (lane < working) & (mine < total)
        if halves:
            row = tl.load(row_ptr + mine, mask=mask, other=0)
        # The next step's, so that waiting for memory overlaps with this one.
        later = mine + groups * working
        following = tl.load(row_ptr + later, mask=(lane < working) & (later < total), other=0)
        place = tl.load(place_ptr + mine, mask=mask, other=0)
        slot = x & 0xFFFF
        bins = tl.load(coarse_ptr + row * 256 + (slot >> 8).to(tl.int32))
        entry = bins & 0xFFFFFF
        more = tl.where(mask, (bins >> 24) & 0xFF, 0)
        while tl.max(more, 0) > 0:  # a binary search between the bin's first entry and its last
            half_way = (more + 1) >> 1
            below = (tl.load(packed_ptr + entry + half_way).to(tl.uint32, bitcast=True) & 0xFFFF) <= slot
            entry = tl.where(below, entry + half_way, entry)
            more = tl.where(below, more - half_way, tl.maximum(half_way - 1, 0))
        interval = tl.load(packed_ptr + entry).to(tl.uint32, bitcast=True)
        low = interval & 0xFFFF
        freq = (interval >> 16) + 1
        x, at = refill(tl.where(mask, freq * (x >> 16) + slot - low, x), mask, words_ptr, at, end)
        value = entry + tl.load(bias_ptr + row)
        relative = mask & (row == table_rows)
        value += tl.load(symbols_ptr + place, mask=relative, other=0)
        tl.store(symbols_ptr + place, value, mask=mask)
        escaped = mask & (low + freq == 65536)
        tl.store(row_ptr + mine, -1 - row, mask=escaped)
        escapes += tl.sum(escaped.to(tl.int32), 0)
        row = following
        left -= ((left > 0) & (begin < total)).to(tl.int32)
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
        blame(head_ptr, faults)
    if is_last(head_ptr, DECODED, groups):  # noqa: SIM102 - the load has to come after the ticket
        if tl.load(head_ptr + ESCAPES) > 0:
            _escapes(
                head_ptr, words_ptr, row_ptr, place_ptr, rows_ptr + stream * count, offset_ptr, escape_ptr, mode_ptr,
                numbers_ptr + stream * count, raw_ptr + stream * count, symbols_ptr, room, table_rows, LANES, BLOCK,
            )  # fmt: skip
