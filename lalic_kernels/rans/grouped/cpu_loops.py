"""Compiled loops (numba) of the grouped coder; cpu.py calls them.

Lanes take their symbols one after the other here, each its word at once: the order of words is the same. Every array
access is bounded by a check written here, as numba itself makes none: rows by the index check, table entries by
CodingTables' own validation, words by `end` once for each step of a group (a group's words have padding behind them),
halving by the words that each group's start has taken.

Unsigned integers address arrays, which spares numba's test for negative subscripts; mixed with signed 64-bit ones they
would turn into float64, hence the typed constants. `control` is (working, left, place in stages, section, fan).
"""

from __future__ import annotations

import numpy as np

from lalic_kernels.rans.cpu import _compiled
from lalic_kernels.rans.grouped import reference as ref

_U = np.uint64
_ZERO, _ONE, _SIXTEEN, _LOW16, _LOWER = _U(0), _U(1), _U(16), _U(0xFFFF), _U(1 << 16)
_BAD_INDEX, _BAD_LENGTH, _BAD_PLACE, _BAD_LANE = ref.BAD_INDEX, ref.BAD_LENGTH, ref.BAD_PLACE, ref.BAD_LANE
_OUT_OF_WORDS, _TOO_LARGE = ref.OUT_OF_WORDS, ref.TOO_LARGE
_ENTRY = np.uint32(0xFFFFFF)  # of what the coarse table holds
LOUD = 1 << 40
WORKING, _LEFT, _AHEAD, _SECTION, _FAN = 0, 1, 2, 3, 4


@_compiled
def _field(x, lane, width, words, at, end):  # type: ignore[no-untyped-def]
    """A field of `width` bits from a lane of the first group, or OUT_OF_WORDS."""
    state = _U(x[0, lane])
    slot = state & _LOW16
    rest = _SIXTEEN - _U(width)
    value = slot >> rest
    state = ((state >> _SIXTEEN) << rest) + (slot & ((_ONE << rest) - _ONE))
    if state < _LOWER:
        if at[0] >= end[0]:
            return _OUT_OF_WORDS
        state = (state << _SIXTEEN) | _U(words[at[0]])
        at[0] += 1
    x[0, lane] = np.uint32(state)
    return np.int64(value)


@_compiled
def _exceptions(x, words, at, end, working, count, places):  # type: ignore[no-untyped-def]
    """Fills `places` with the numbers of exceptions among `count` quiet symbols; returns how many, or what is wrong."""
    length = _field(x, 0, 5, words, at, end)
    if length <= 0:
        return length
    if count >> (length - 1) == 0:
        return _BAD_LENGTH
    low = min(length - 1, 16)
    first = _field(x, 0, low, words, at, end)
    rest = _field(x, 1 % working, length - 1 - low, words, at, end)
    bits = _field(x, 2 % working, 4, words, at, end) + 1
    if first < 0 or rest < 0 or bits <= 0:
        return _OUT_OF_WORDS
    fields = (np.int64(1) << (length - 1)) + (rest << low) + first
    if fields > count:
        return _BAD_LENGTH
    ones = (1 << bits) - 1
    place = 0
    found = 0
    for number in range(fields):
        skipped = _field(x, number % working, bits, words, at, end)
        if skipped < 0:
            return _OUT_OF_WORDS
        place += skipped
        if skipped != ones:
            if place >= count:
                return _BAD_PLACE
            places[found] = place
            found += 1
            place += 1
    return found if place <= count else _BAD_PLACE


@_compiled
def _halve(x, words, at, control, stages):  # type: ignore[no-untyped-def]
    half = control[WORKING] >> 1
    for group in range(len(x)):
        for lane in range(half, 2 * half):
            if x[group, lane] >> 16 != 1:
                return _BAD_LANE
    for group in range(len(x)):
        at[group] -= half
        for lane in range(half):
            words[at[group] + lane] = np.uint16(x[group, half + lane])
    control[WORKING] = half
    control[_LEFT] = -1
    if half > 1:
        control[_LEFT] = stages[control[_AHEAD]]
        control[_AHEAD] += 1
    return 0


@_compiled
def _spread(rows, quiet, mode, others, numbers, row, place, out):  # type: ignore[no-untyped-def]
    """The main list's rows and places, and the commonest symbols into `out`; `numbers` of the `others` exceptions among
    quiet symbols become their numbers in the main list, whose length is returned."""
    exception_row = np.int32(len(mode) - 1)
    total = _ZERO
    number = 0
    taken = 0
    wanted = np.int64(numbers[0]) if others else np.int64(-1)
    for i in range(len(rows)):
        own = rows[i]
        row[total] = own
        place[total] = i
        out[i] = mode[own]
        is_quiet = np.int64(quiet[own])
        if is_quiet & np.int64(number == wanted):
            row[total] = exception_row
            numbers[taken] = total
            taken += 1
            wanted = np.int64(numbers[taken]) if taken < others else np.int64(-1)
            total += _ONE
        number += is_quiet
        total += _U(1 - is_quiet)
    return np.int64(total)


@_compiled
def _main(x, words, at, end, control, stages, row, count, packed, coarse, bias, out):  # type: ignore[no-untyped-def]
    """Symbols of the main list as they stand in their rows, escapes at their positions; returns how many escapes."""
    if control[_SECTION] == control[_FAN]:
        control[_LEFT] = stages[0]
        control[_AHEAD] = 1
    control[_SECTION] += 1
    lanes = _U(x.shape[1])
    flat = x.reshape(x.size)
    escapes = _ZERO
    begin = _ZERO
    total = _U(count)
    while True:
        while control[_LEFT] == 0:
            if _halve(x, words, at, control, stages) < 0:
                return _BAD_LANE
        if begin >= total:
            return np.int64(escapes)
        working = _U(control[WORKING])
        if control[_LEFT] > 0:
            control[_LEFT] -= 1
        for group in range(len(at)):
            if begin >= total:
                break
            own_lanes = _U(group) * lanes
            word_at = _U(at[group])
            active = min(working, total - begin)
            for lane in range(active):
                own = _U(np.uint32(row[begin + lane]))
                state = _U(flat[own_lanes + lane])
                slot = state & _LOW16
                entry = _U(coarse[(own << _U(8)) + (slot >> _U(8))] & _ENTRY)
                interval = _U(packed[entry])
                low = interval & _LOW16
                less = interval >> _SIXTEEN  # frequency - 1
                while slot - low > less:  # ends within the row: its last interval reaches 65536
                    entry += _ONE
                    interval = _U(packed[entry])
                    low = interval & _LOW16
                    less = interval >> _SIXTEEN
                escapes += (low + less + _ONE) >> _SIXTEEN
                out[begin + lane] = np.int32(np.int64(entry) + bias[own])
                state = (less + _ONE) * (state >> _SIXTEEN) + (slot - low)
                word = _U(words[word_at])
                if state < _LOWER:
                    state = (state << _SIXTEEN) | word
                    word_at += _ONE
                flat[own_lanes + lane] = np.uint32(state)
            at[group] = np.int64(word_at)
            if at[group] > end[group]:
                return _OUT_OF_WORDS
            begin += active


@_compiled
def decode(  # type: ignore[no-untyped-def]
    x, words, at, end, control, stages, rows, quiet, mode, packed, coarse, bias, row, place, found, out
):
    """decode_section but for escapes: returns how many there are, and how long the main list is. Without quiet rows
    `out` is what `found` is otherwise."""
    limit = np.uint32(len(bias) - 1)
    hidden = 0
    for i in range(len(rows)):
        if np.uint32(rows[i]) >= limit:
            return _BAD_INDEX, 0
        hidden += np.int64(quiet[rows[i]])
    if hidden == 0:
        return _main(x, words, at, end, control, stages, rows, len(rows), packed, coarse, bias, out), len(rows)
    numbers = np.empty(hidden, np.int64)
    others = _exceptions(x, words, at, end, control[WORKING], hidden, numbers)
    if others < 0:
        return others, 0
    total = _spread(rows, quiet, mode, others, numbers, row, place, out)
    escapes = _main(x, words, at, end, control, stages, row, total, packed, coarse, bias, found)
    if escapes < 0:
        return escapes, 0
    for number in range(others):  # their values are relative
        i = numbers[number]
        value = np.int64(found[i]) + np.int64(out[place[i]])
        found[i] = np.int32(value)
        if value != np.int64(found[i]):
            return _TOO_LARGE, 0
    for i in range(total):
        out[place[i]] = found[i]
    return escapes, total


@_compiled
def fields(x, words, at, end, working, widths, values):  # type: ignore[no-untyped-def]
    for number in range(len(widths)):
        values[number] = _field(x, number % working, widths[number], words, at, end)
        if values[number] < 0:
            return _OUT_OF_WORDS
    return 0


@_compiled
def survey(symbols, rows, mode, start, offset, escape, priced, tally, costs, entries):  # type: ignore[no-untyped-def]
    """Fills `entries` with each symbol's interval; returns the number of escapes, or BAD_INDEX."""
    limit = np.uint32(len(start) - 1)
    escapes = 0
    for i in range(len(symbols)):
        index = np.uint32(rows[i])
        if index >= limit:
            return _BAD_INDEX
        row = _U(index)
        symbol = symbols[i]
        position = _U(np.int64(symbol) - np.int64(offset[row]))
        last = _U(np.uint32(escape[row]))
        if position >= last:
            position = last
            escapes += 1
        entry = priced[_U(np.uint32(start[row])) + position]
        entries[i] = np.uint32(entry)
        costs[row] += np.int64(entry >> _U(32))
        tally[row] += np.int64(1) + (np.int64(symbol != mode[row]) << 32)
    return escapes


@_compiled
def collect(symbols, rows, keys, exceptions, entries, numbers):  # type: ignore[no-untyped-def]
    """The main list in place of all symbols' intervals `entries`, and its length, the number of quiet symbols, and that
    of exceptions; -1 for an exception that is an escape.

    keys: each row's commonest symbol, or LOUD if it is not quiet, which no symbol is.
    """
    total = _ZERO
    hidden, others = 0, 0
    for i in range(len(symbols)):
        key = keys[rows[i]]
        symbol = np.int64(symbols[i])
        entries[total] = entries[i]
        active = np.int64(symbol != key)
        is_quiet = np.int64(key != LOUD)
        if active & is_quiet:
            position = symbol - key + 2
            if position < 0 or position > 4:
                return np.int64(-1), 0, 0
            entries[total] = exceptions[position]
            numbers[others] = hidden
            others += 1
        hidden += is_quiet
        total += _U(active)
    return np.int64(total), hidden, others


@_compiled
def _push_step(entries, begin, end, x, group, words, free):  # type: ignore[no-untyped-def]
    at = _U(free[group])
    first = _U(begin)
    lane = _U(end - begin)
    own = _U(group) * _U(x.shape[1])
    flat = x.reshape(x.size)
    while lane > _ZERO:
        lane -= _ONE
        interval = _U(entries[first + lane])
        freq = (interval >> _SIXTEEN) + _ONE
        state = _U(flat[own + lane])
        words[at - _ONE] = np.uint16(state)  # always written, kept only if the state is full
        if (state >> _SIXTEEN) >= freq:
            at -= _ONE
            state >>= _SIXTEEN
        quotient = _U(np.uint32(state) // np.uint32(freq))
        flat[own + lane] = np.uint32((quotient << _SIXTEEN) + (state - quotient * freq) + (interval & _LOW16))
    free[group] = np.int64(at)


@_compiled
def _push_list(entries, begin, end, shared, working, x, words, free):  # type: ignore[no-untyped-def]
    groups = len(x) if shared else 1
    chunk = (end - begin + working - 1) // working - 1
    while chunk >= 0:
        first = begin + chunk * working
        _push_step(entries, first, min(first + working, end), x, chunk % groups, words, free)
        chunk -= 1


@_compiled
def _push_fan(entries, bounds, shared, x, words, free, tops, stages):  # type: ignore[no-untyped-def]
    """As reference._Encoder.fan; stages from two working lanes up. Returns (-1, 0) if the lists do not suffice."""
    groups = len(x)
    working = 1
    level = 0
    for number in range(len(shared) - 1, -1, -1):
        begin = bounds[number]
        if not shared[number]:
            _push_list(entries, begin, bounds[number + 1], False, working, x, words, free)
            continue
        left = bounds[number + 1] - begin
        while left > 0:
            across = working * groups
            if left % (2 * across) == 0:
                enough = True
                for group in range(groups):
                    if tops[group] - free[group] < working:
                        enough = False
                if enough:
                    for group in range(groups):
                        for lane in range(working):
                            x[group, working + lane] = np.uint32(65536) + np.uint32(words[free[group] + lane])
                        free[group] += working
                    working *= 2
                    if working == x.shape[1]:
                        stages[level] = left // (working * groups)
                        return number, left
                    level += 1
                    continue
            rest = (left - 1) // across * across
            _push_list(entries, begin + rest, begin + left, True, working, x, words, free)
            if level > 0:
                stages[level - 1] += 1
            left = rest
    return -1, 0


@_compiled
def push(entries, bounds, shared, x, words, free, tops, stages):  # type: ignore[no-untyped-def]
    """Encodes all lists; returns the number of the list in which lanes begin to halve, or -1."""
    number, left = -1, 0
    if x.shape[1] > 1:
        number, left = _push_fan(entries, bounds, shared, x, words, free, tops, stages)
    rest = number
    if number < 0:
        x[:] = 65536
        free[:] = tops
        rest = len(shared)
    else:
        _push_list(entries, bounds[number], bounds[number] + left, True, x.shape[1], x, words, free)
    while rest > 0:
        rest -= 1
        _push_list(entries, bounds[rest], bounds[rest + 1], shared[rest], x.shape[1], x, words, free)
    for group in range(len(x)):
        free[group] -= x.shape[1]
        for lane in range(x.shape[1]):
            words[free[group] + lane] = np.uint16(x[group, lane])
    return number
