"""Compiled loops (numba) of the coder.

The lanes of a step run one after the other, each with its word: the order of words is that of the reference. numba
checks no array bounds, so this file does: rows by the index check, table entries by CodingTables' validation, words by
`end` once per step of a group (the words are padded), halving by the words that each lane has read at the start.

Array indices are unsigned, which saves numba's test for negative ones. Unsigned mixed with signed 64-bit integers would
become float64, hence the typed constants. `control` is (working, steps_left, index in ramp_steps, section, ramp).

Functions are compiled at their first call and kept on disk (`lalic_kernels.code_cache`).
"""

from __future__ import annotations

import numpy as np

from lalic_kernels.numba_math import EXACT, EXACT_CALLEE, njit
from lalic_kernels.rans import reference as ref

_U = np.uint64
_ZERO, _ONE, _SIXTEEN, _LOW16, _LOWER = _U(0), _U(1), _U(16), _U(0xFFFF), _U(1 << 16)
_BAD_INDEX, _BAD_LANE, _OUT_OF_WORDS = ref.BAD_INDEX, ref.BAD_LANE, ref.OUT_OF_WORDS
_ENTRY = np.uint32(0xFFFFFF)  # mask of the interval number in the coarse table
WORKING, _STEPS_LEFT, _STEP, _SECTION, _RAMP = 0, 1, 2, 3, 4


@njit(**EXACT_CALLEE)
def _field(x, lane, width, words, at, end):  # type: ignore[no-untyped-def]
    """Decode a field of `width` bits from a lane of the first group; returns it or OUT_OF_WORDS."""
    state = _U(x[0, lane])
    slot = state & _LOW16
    shift = _SIXTEEN - _U(width)
    value = slot >> shift
    state = ((state >> _SIXTEEN) << shift) + (slot & ((_ONE << shift) - _ONE))
    if state < _LOWER:
        if at[0] >= end[0]:
            return _OUT_OF_WORDS
        state = (state << _SIXTEEN) | _U(words[at[0]])
        at[0] += 1
    x[0, lane] = np.uint32(state)
    return np.int64(value)


@njit(**EXACT_CALLEE)
def _halve(x, words, at, control, steps):  # type: ignore[no-untyped-def]
    """Stop the upper half of the working lanes, as in reference.py; returns 0 or BAD_LANE."""
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
    control[_STEPS_LEFT] = -1
    if half > 1:
        control[_STEPS_LEFT] = steps[control[_STEP]]
        control[_STEP] += 1
    return 0


@njit(**EXACT)
def decode(x, words, at, end, control, steps, rows, packed, coarse, bias, out):  # type: ignore[no-untyped-def]
    """Decode symbols with table rows (n,); returns the number of escapes or a fault.

    An escape is decoded as the last position of its row.
    """
    limit = np.uint32(len(bias))
    for row in rows:
        if np.uint32(row) >= limit:
            return _BAD_INDEX
    if control[_SECTION] == control[_RAMP]:
        control[_STEPS_LEFT] = steps[0]
        control[_STEP] = 1
    control[_SECTION] += 1
    escapes = _ZERO
    begin = _ZERO
    total = _U(len(rows))
    while True:
        while control[_STEPS_LEFT] == 0:
            if _halve(x, words, at, control, steps) < 0:
                return _BAD_LANE
        if begin >= total:
            return np.int64(escapes)
        working = _U(control[WORKING])
        if control[_STEPS_LEFT] > 0:
            control[_STEPS_LEFT] -= 1
        for group in range(len(at)):
            if begin >= total:
                break
            states = x[group]
            word_at = _U(at[group])
            active = min(working, total - begin)
            for lane in range(active):
                row = _U(np.uint32(rows[begin + lane]))
                state = _U(states[lane])
                # The interval of the state's slot.
                slot = state & _LOW16
                entry = _U(coarse[(row << _U(8)) + (slot >> _U(8))] & _ENTRY)
                interval = _U(packed[entry])
                low = interval & _LOW16
                less = interval >> _SIXTEEN  # frequency - 1
                while slot - low > less:  # ends in this row, whose last interval ends at 65536
                    entry += _ONE
                    interval = _U(packed[entry])
                    low = interval & _LOW16
                    less = interval >> _SIXTEEN
                escapes += (low + less + _ONE) >> _SIXTEEN
                out[begin + lane] = np.int32(np.int64(entry) + bias[row])
                # The next state, with a word if it is too small.
                state = (less + _ONE) * (state >> _SIXTEEN) + (slot - low)
                word = _U(words[word_at])
                if state < _LOWER:
                    state = (state << _SIXTEEN) | word
                    word_at += _ONE
                states[lane] = np.uint32(state)
            at[group] = np.int64(word_at)
            if at[group] > end[group]:
                return _OUT_OF_WORDS
            begin += active


@njit(**EXACT)
def fields(x, words, at, end, working, widths, values):  # type: ignore[no-untyped-def]
    """Decode fields of `widths` (n,) bits into values (n,); returns 0 or OUT_OF_WORDS."""
    for number in range(len(widths)):
        values[number] = _field(x, number % working, widths[number], words, at, end)
        if values[number] < 0:
            return _OUT_OF_WORDS
    return 0


@njit(**EXACT)
def look_up(symbols, rows, start, offset, escape, priced, entries):  # type: ignore[no-untyped-def]
    """Fill `entries` with each symbol's interval; returns the number of escapes or BAD_INDEX, and the code length."""
    limit = np.uint32(len(start))
    escapes = 0
    cost = _ZERO
    for i in range(len(symbols)):
        index = np.uint32(rows[i])  # a negative index becomes a large one
        if index >= limit:
            return _BAD_INDEX, cost
        row = _U(index)
        position = _U(np.int64(symbols[i]) - np.int64(offset[row]))
        last = _U(np.uint32(escape[row]))
        if position >= last:
            position = last
            escapes += 1
        entry = priced[_U(np.uint32(start[row])) + position]
        entries[i] = np.uint32(entry)
        cost += entry >> _U(32)
    return escapes, cost


@njit(inline="always")
def _push_step(entries, begin, end, x, group, words, free):  # type: ignore[no-untyped-def]
    """Encode one interval in each of a group's first lanes."""
    at = _U(free[group])
    first = _U(begin)
    lane = _U(end - begin)
    states = x[group]
    while lane > _ZERO:
        lane -= _ONE
        interval = _U(entries[first + lane])
        freq = (interval >> _SIXTEEN) + _ONE
        state = _U(states[lane])
        words[at - _ONE] = np.uint16(state)  # kept only if the state is too large
        if (state >> _SIXTEEN) >= freq:
            at -= _ONE
            state >>= _SIXTEEN
        quotient = _U(np.uint32(state) // np.uint32(freq))
        states[lane] = np.uint32((quotient << _SIXTEEN) + (state - quotient * freq) + (interval & _LOW16))
    free[group] = np.int64(at)


@njit(**EXACT_CALLEE)
def _push_list(entries, begin, end, shared, working, x, words, free):  # type: ignore[no-untyped-def]
    """Encode entries[begin:end] from the last to the first, in steps of `working` lanes of each group."""
    groups = len(x) if shared else 1
    chunk = (end - begin + working - 1) // working - 1
    while chunk >= 0:
        first = begin + chunk * working
        _push_step(entries, first, min(first + working, end), x, chunk % groups, words, free)
        chunk -= 1


@njit(inline="always")
def _push_ramp(entries, bounds, shared, x, words, free, ends, steps):  # type: ignore[no-untyped-def]
    """`Encoder.ramp` of reference.py; `steps` starts with two working lanes. Returns (-1, 0) if lists are too short."""
    groups = len(x)
    working = np.int64(1)
    level = 0
    for number in range(len(shared) - 1, -1, -1):
        begin = bounds[number]
        if not shared[number]:
            _push_list(entries, begin, bounds[number + 1], shared[number], working, x, words, free)
            continue
        left = bounds[number + 1] - begin
        while left > 0:
            step = working * groups
            if left % (2 * step) == 0:
                enough = True
                for group in range(groups):
                    if ends[group] - free[group] < working:
                        enough = False
                if enough:
                    for group in range(groups):
                        for lane in range(working):
                            x[group, working + lane] = np.uint32(65536) + np.uint32(words[free[group] + lane])
                        free[group] += working
                    working *= 2
                    if working == x.shape[1]:
                        steps[level] = left // (working * groups)
                        return number, left
                    level += 1
                    continue
            remaining = (left - 1) // step * step
            _push_list(entries, begin + remaining, begin + left, shared[number], working, x, words, free)
            if level > 0:
                steps[level - 1] += 1
            left = remaining
    return -1, 0


@njit(**EXACT)
def begin_push(entries, bounds, shared, x, words, free, ends, steps):  # type: ignore[no-untyped-def]
    """Encode the end of the lists until all lanes work; returns the number of the list and its symbols left, or -1."""
    return _push_ramp(entries, bounds, shared, x, words, free, ends, steps)


@njit(**EXACT)
def push(entries, bounds, shared, x, words, free, ends, steps):  # type: ignore[no-untyped-def]
    """Encode all lists; returns the number of the list in which lanes begin to halve, or -1."""
    number, left = -1, 0
    if x.shape[1] > 1:
        number, left = _push_ramp(entries, bounds, shared, x, words, free, ends, steps)
    whole = number  # lists that are still whole
    if number < 0:
        x[:] = 65536
        for group in range(len(x)):
            free[group] = ends[group]
        whole = len(shared)
    else:
        _push_list(entries, bounds[number], bounds[number] + left, shared[number], x.shape[1], x, words, free)
    while whole > 0:
        whole -= 1
        _push_list(entries, bounds[whole], bounds[whole + 1], shared[whole], x.shape[1], x, words, free)
    # The final states' low halves.
    for group in range(len(x)):
        free[group] -= x.shape[1]
        for lane in range(x.shape[1]):
            words[free[group] + lane] = np.uint16(x[group, lane])
    return number


@njit(**EXACT)
def add_up(symbols, first, start, stop):  # type: ignore[no-untyped-def]
    """The checksum's sum over symbols[start:stop] int32, where symbols[i] has index first + i."""
    total = _U(0)
    for i in range(start, stop):
        x = (_U(first + i) << _U(32)) + _U(np.uint32(symbols[i]))
        x = (x ^ (x >> _U(30))) * _U(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> _U(27))) * _U(0x94D049BB133111EB)
        total += x ^ (x >> _U(31))
    return total
