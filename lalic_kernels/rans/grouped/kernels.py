"""The grouped coder in Triton: a program is a group of lanes and has one warp; reference.py says what is computed.

LANES is 32 for all streams: in one with fewer lanes the rest never work.

Between sections everything stays on the device. A group's row of `control` is (next word, end of its words, working
lanes, steps until they halve or -1, place in the stages, section, section of the fan, groups + 65536 level), so
launches are the same for all streams, but for as many programs as there may be groups. `info` is (exceptions, length
of the main list, escapes, faults as bits) of the section at hand; faults are kept. States are uint32, held as int32.
"""

import triton
import triton.language as tl

AT = tl.constexpr(0)
END = tl.constexpr(1)
WORKING = tl.constexpr(2)
LEFT = tl.constexpr(3)
AHEAD = tl.constexpr(4)
SECTION = tl.constexpr(5)
FAN = tl.constexpr(6)
SHAPE = tl.constexpr(7)
CONTROL = tl.constexpr(8)  # numbers a row
EXCEPTIONS = tl.constexpr(0)
TOTAL = tl.constexpr(1)
ESCAPES = tl.constexpr(2)
FAULTS = tl.constexpr(3)
# Bits of faults, 1 << -code of what reference.py returns.
BAD_INDEX = tl.constexpr(1 << 1)
BAD_LENGTH = tl.constexpr(1 << 2)
BAD_PLACE = tl.constexpr(1 << 3)
BAD_COUNT = tl.constexpr(1 << 4)
BAD_DIGIT = tl.constexpr(1 << 5)
TOO_LARGE = tl.constexpr(1 << 6)
BAD_LANE = tl.constexpr(1 << 7)


@triton.jit
def _refill(x, mask, words_ptr, at, end):
    """x and the next word's place after lanes in `mask` whose states are small have taken words, lane by lane."""
    need = (mask & (x < 65536)).to(tl.int32)
    place = at + tl.cumsum(need, 0) - need
    word = tl.load(words_ptr + place, mask=(need != 0) & (place < end), other=0).to(tl.uint32) & 0xFFFF
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
def _is_quiet(quiet_ptr, control_ptr, row, table_rows):
    """1 or 0; quiet (16, R + 1) has a row for each level."""
    level = tl.load(control_ptr + SHAPE) >> 16
    return tl.load(quiet_ptr + level * (table_rows + 1) + row).to(tl.int32)


@triton.jit
def rans_count_kernel(rows_ptr, quiet_ptr, counts_ptr, control_ptr, count, table_rows, BLOCK: tl.constexpr):
    """counts (blocks,): quiet symbols in each block of rows (count,)."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(rows_ptr + i, mask=i < count, other=0)
    row = tl.minimum(tl.maximum(row, 0), table_rows - 1)
    quiet = _is_quiet(quiet_ptr, control_ptr, row, table_rows)
    tl.store(counts_ptr + tl.program_id(0), tl.sum(tl.where(i < count, quiet, 0), 0))


@triton.jit
def rans_exceptions_kernel(
    counts_ptr, numbers_ptr, x_ptr, words_ptr, control_ptr, info_ptr, count, blocks,
    LANES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program. Turns counts into their sums before each block, and decodes the list of exceptions to `numbers`."""
    hidden = 0
    for begin in range(0, blocks, BLOCK):
        b = begin + tl.arange(0, BLOCK)
        here = tl.load(counts_ptr + b, mask=b < blocks, other=0)
        tl.store(counts_ptr + b, hidden + tl.cumsum(here, 0) - here, mask=b < blocks)
        hidden += tl.sum(here, 0)
    found = 0
    faults = 0
    if hidden > 0:
        lane = tl.arange(0, LANES)
        x = tl.load(x_ptr + lane).to(tl.uint32, bitcast=True)
        at = tl.load(control_ptr + AT)
        end = tl.load(control_ptr + END)
        working = tl.load(control_ptr + WORKING)
        value, x, at = _field(x, lane == 0, tl.full((LANES,), 5, tl.int32), words_ptr, at, end)
        length = tl.sum(value, 0)
        if length > 0:
            fields = 0
            bits = 0
            low = tl.minimum(length - 1, 16)
            for begin in range(0, 3, working):
                number = begin + lane
                width = tl.where(number == 0, low, tl.where(number == 1, length - 1 - low, 4))
                mask = (lane < working) & (number < 3)
                value, x, at = _field(x, mask, tl.minimum(width, 16), words_ptr, at, end)
                fields += tl.sum(tl.where(number == 0, value, tl.where(number == 1, value << low, 0)), 0)
                bits += tl.sum(tl.where(number == 2, value, 0), 0)
            fields += 1 << tl.minimum(length - 1, 30)
            bits += 1
            if (length > 30) | (fields > hidden):
                faults = BAD_LENGTH
                fields = 0
            ones = (1 << bits) - 1
            place = 0
            for begin in range(0, fields, working):
                mask = (lane < working) & (begin + lane < fields)
                value, x, at = _field(x, mask, tl.full((LANES,), 0, tl.int32) + bits, words_ptr, at, end)
                is_exception = (mask & (value != ones)).to(tl.int32)
                passed = place + tl.cumsum(value + is_exception, 0)
                where = found + tl.cumsum(is_exception, 0) - 1
                tl.store(numbers_ptr + where, passed - 1, mask=is_exception != 0)
                found += tl.sum(is_exception, 0)
                place = tl.minimum(place + tl.sum(value + is_exception, 0), hidden + 1)
            if place > hidden:
                faults = BAD_PLACE
                found = 0
        tl.store(x_ptr + lane, x.to(tl.int32, bitcast=True))
        tl.store(control_ptr + AT, at)
    tl.store(info_ptr + EXCEPTIONS, found)
    tl.store(info_ptr + TOTAL, count - hidden + found)
    tl.store(info_ptr + ESCAPES, 0)
    tl.store(info_ptr + FAULTS, tl.load(info_ptr + FAULTS) | faults)


@triton.jit
def rans_spread_kernel(
    rows_ptr, quiet_ptr, mode_ptr, counts_ptr, numbers_ptr, control_ptr, info_ptr, row_ptr, place_ptr, out_ptr, count,
    table_rows, BLOCK: tl.constexpr,
):  # fmt: skip
    """The main list's rows and places, and the commonest symbols to `out`."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    given = tl.load(rows_ptr + i, mask=inside, other=0)
    row = tl.minimum(tl.maximum(given, 0), table_rows - 1)
    if tl.sum((row != given).to(tl.int32), 0) > 0:
        tl.atomic_or(info_ptr + FAULTS, BAD_INDEX)
    quiet = tl.where(inside, _is_quiet(quiet_ptr, control_ptr, row, table_rows), 0)
    tl.store(out_ptr + i, tl.load(mode_ptr + row), mask=inside)
    number = tl.load(counts_ptr + tl.program_id(0)) + tl.cumsum(quiet, 0) - quiet  # quiet symbols before this one
    others = tl.load(info_ptr + EXCEPTIONS)
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
    where = i - number + low
    tl.store(row_ptr + where, tl.where(quiet != 0, table_rows, row), mask=active)
    tl.store(place_ptr + where, i, mask=active)


@triton.jit
def rans_main_kernel(
    x_ptr, words_ptr, control_ptr, stages_ptr, info_ptr, row_ptr, place_ptr, coarse_ptr, packed_ptr, bias_ptr, out_ptr,
    table_rows, LANES: tl.constexpr,
):  # fmt: skip
    """A group's share of the main list. Symbols go to their places in `out`; escapes are marked by -1 - row."""
    group = tl.program_id(0)
    groups = tl.load(control_ptr + SHAPE) & 0xFFFF
    if group >= groups:
        return
    lane = tl.arange(0, LANES)
    control_ptr += group * CONTROL
    x = tl.load(x_ptr + group * LANES + lane).to(tl.uint32, bitcast=True)
    at = tl.load(control_ptr + AT)
    end = tl.load(control_ptr + END)
    working = tl.load(control_ptr + WORKING)
    left = tl.load(control_ptr + LEFT)
    ahead = tl.load(control_ptr + AHEAD)
    section = tl.load(control_ptr + SECTION)
    total = tl.load(info_ptr + TOTAL)
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
        x, at = _refill(tl.where(mask, freq * (x >> 16) + slot - low, x), mask, words_ptr, at, end)
        value = entry + tl.load(bias_ptr + row)
        relative = mask & (row == table_rows)
        value += tl.load(out_ptr + place, mask=relative, other=0)
        tl.store(out_ptr + place, value, mask=mask)
        escaped = mask & (low + freq == 65536)
        tl.store(row_ptr + mine, -1 - row, mask=escaped)
        escapes += tl.sum(escaped.to(tl.int32), 0)
        row = following
        left -= ((left > 0) & (begin < total)).to(tl.int32)
        begin += groups * working
    tl.store(x_ptr + group * LANES + lane, x.to(tl.int32, bitcast=True))
    tl.store(control_ptr + AT, at)
    tl.store(control_ptr + WORKING, working)
    tl.store(control_ptr + LEFT, left)
    tl.store(control_ptr + AHEAD, ahead)
    tl.store(control_ptr + SECTION, section + 1)
    if escapes > 0:
        tl.atomic_add(info_ptr + ESCAPES, escapes)
    if faults > 0:
        tl.atomic_or(info_ptr + FAULTS, faults)


@triton.jit
def rans_escapes_kernel(
    x_ptr, words_ptr, control_ptr, info_ptr, row_ptr, place_ptr, numbers_ptr, raw_ptr, offset_ptr, escape_ptr, mode_ptr,
    rows_ptr, out_ptr, table_rows, LANES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program. The values of escapes; `numbers` and `raw` are scratch as long as the section."""
    if tl.load(info_ptr + ESCAPES) > 0:
        total = tl.load(info_ptr + TOTAL)
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
            digits, x, at = _field(x, mask, tl.full((LANES,), 4, tl.int32), words_ptr, at, end)
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
                value, x, at = _field(x, mask, width, words_ptr, at, end)
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
            # A row out of range has been made one within before.
            own = tl.minimum(tl.maximum(tl.load(rows_ptr + place, mask=mask, other=0), 0), table_rows - 1)
            base = tl.where(row == table_rows, tl.load(mode_ptr + own), 0).to(tl.int64)
            first = base + tl.load(offset_ptr + row)
            above = first + tl.load(escape_ptr + row) + (raw >> 1)
            value = tl.where((raw & 1) != 0, first - ((raw + 1) >> 1), above)
            small = value.to(tl.int32)
            if tl.sum((mask & (small.to(tl.int64) != value)).to(tl.int32), 0) > 0:
                faults |= TOO_LARGE
            tl.store(out_ptr + place, small, mask=mask)
        tl.store(x_ptr + lane, x.to(tl.int32, bitcast=True))
        tl.store(control_ptr + AT, at)
        if faults > 0:
            tl.atomic_or(info_ptr + FAULTS, faults)


@triton.jit
def rans_push_kernel(
    entries_ptr, bounds_ptr, shared_ptr, x_ptr, words_ptr, free_ptr, lists, groups, lanes, LANES: tl.constexpr
):  # fmt: skip
    """Encodes the first `lists` lists with `lanes` lanes a group, from the last to the first; words go below `free`."""
    group = tl.program_id(0)
    lane = tl.arange(0, LANES)
    x = tl.load(x_ptr + group * LANES + lane).to(tl.uint32, bitcast=True)
    free = tl.load(free_ptr + group)
    for back in range(0, lists):
        number = lists - 1 - back
        begin = tl.load(bounds_ptr + number)
        end = tl.load(bounds_ptr + number + 1)
        shared = tl.load(shared_ptr + number)
        # The first group has a list that is not shared alone; to the others it is empty.
        end = tl.where((shared == 0) & (group > 0), begin, end)
        stride = tl.where(shared != 0, groups * lanes, lanes)
        first = begin + tl.where(shared != 0, group * lanes, 0)
        steps = tl.maximum((end - first + stride - 1) // stride, 0)
        for step in range(0, steps):
            i = first + (steps - 1 - step) * stride + lane
            mask = (i < end) & (lane < lanes)
            interval = tl.load(entries_ptr + i, mask=mask, other=0).to(tl.uint32, bitcast=True)
            freq = (interval >> 16) + 1
            full = mask & ((x >> 16) >= freq)
            put = full.to(tl.int32)
            count = tl.sum(put, 0)
            # The decoder takes words in the order of lanes, so the first lane's is on top.
            place = free - count + tl.cumsum(put, 0) - put
            tl.store(words_ptr + place, (x & 0xFFFF).to(tl.int16), mask=full)
            free -= count
            x = tl.where(full, x >> 16, x)
            after = ((x // freq) << 16) + x % freq + (interval & 0xFFFF)
            x = tl.where(mask, after, x)
    tl.store(words_ptr + free - lanes + lane, (x & 0xFFFF).to(tl.int16), mask=lane < lanes)
    tl.store(x_ptr + group * LANES + lane, (x >> 16).to(tl.int32, bitcast=True))
    tl.store(free_ptr + group, free - lanes)
