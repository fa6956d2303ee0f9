"""Compiled loops (numba) of the coder; cpu.py calls them.

Lanes take their symbols one after the other here, each its word at once: the order of words is the same. Every array
access is bounded by a check written here, as numba itself makes none: rows by the index check, table entries by
CodingTables' own validation, words by `end` once for each step of a group (a group's words have padding behind them),
halving by the words that each group's start has taken.

Unsigned integers address arrays, which spares numba's test for negative subscripts; mixed with signed 64-bit ones they
would turn into float64, hence the typed constants. `control` is (working, left, place in ramp_steps, section, ramp).

Compiled when first called, and kept on disk (numba uses the package's __pycache__, or NUMBA_CACHE_DIR, or the user's
cache folder, whichever can be written).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from lalic_kernels.rans import reference as ref

_U = np.uint64
_ZERO, _ONE, _SIXTEEN, _LOW16, _LOWER = _U(0), _U(1), _U(16), _U(0xFFFF), _U(1 << 16)
_BAD_INDEX, _BAD_LANE, _OUT_OF_WORDS = ref.BAD_INDEX, ref.BAD_LANE, ref.OUT_OF_WORDS
_ENTRY = np.uint32(0xFFFFFF)  # of what the coarse table holds
WORKING, _LEFT, _AHEAD, _SECTION, _RAMP = 0, 1, 2, 3, 4


def _compiled(function: Callable[..., Any]) -> Any:
    # numpy's error model has no test for a zero divisor; a frequency is never zero
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:
        # numba found no folder it may write to: the function is then compiled anew in each process
        return numba.njit(nogil=True, error_model="numpy")(function)


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
def _halve(x, words, at, control, steps):  # type: ignore[no-untyped-def]
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
        control[_LEFT] = steps[control[_AHEAD]]
        control[_AHEAD] += 1
    return 0


@_compiled
def decode(x, words, at, end, control, steps, rows, packed, coarse, bias, out):  # type: ignore[no-untyped-def]
    """Symbols with table rows (n,), escapes as their rows' last position; returns how many of these, or a fault."""
    limit = np.uint32(len(bias))
    for row in rows:
        if np.uint32(row) >= limit:
            return _BAD_INDEX
    if control[_SECTION] == control[_RAMP]:
        control[_LEFT] = steps[0]
        control[_AHEAD] = 1
    control[_SECTION] += 1
    lanes = _U(x.shape[1])
    flat = x.reshape(x.size)
    escapes = _ZERO
    begin = _ZERO
    total = _U(len(rows))
    while True:
        while control[_LEFT] == 0:
            if _halve(x, words, at, control, steps) < 0:
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
                own = _U(np.uint32(rows[begin + lane]))
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
def fields(x, words, at, end, working, widths, values):  # type: ignore[no-untyped-def]
    for number in range(len(widths)):
        values[number] = _field(x, number % working, widths[number], words, at, end)
        if values[number] < 0:
            return _OUT_OF_WORDS
    return 0


@_compiled
def look_up(symbols, rows, start, offset, escape, priced, entries):  # type: ignore[no-untyped-def]
    """Fills `entries` with each symbol's interval; returns the number of escapes or BAD_INDEX, and the code length."""
    limit = np.uint32(len(start))
    escapes = 0
    cost = _ZERO
    for i in range(len(symbols)):
        index = np.uint32(rows[i])  # a negative one becomes a large one
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
def _push_ramp(entries, bounds, shared, x, words, free, ends, steps):  # type: ignore[no-untyped-def]
    """Encoder.ramp of reference.py; `steps` from two working lanes up. Returns (-1, 0) if the lists do not suffice."""
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
            rest = (left - 1) // across * across
            _push_list(entries, begin + rest, begin + left, True, working, x, words, free)
            if level > 0:
                steps[level - 1] += 1
            left = rest
    return -1, 0


@_compiled
def push(entries, bounds, shared, x, words, free, ends, steps):  # type: ignore[no-untyped-def]
    """Encodes all lists; returns the number of the list in which lanes begin to halve, or -1."""
    number, left = -1, 0
    if x.shape[1] > 1:
        number, left = _push_ramp(entries, bounds, shared, x, words, free, ends, steps)
    rest = number
    if number < 0:
        x[:] = 65536
        free[:] = ends
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


@_compiled
def add_up(symbols, first, start, stop):  # type: ignore[no-untyped-def]
    """The checksum's sum over symbols[start:stop] int32, that of symbols[i] at place first + i."""
    total = _U(0)
    for i in range(start, stop):
        x = (_U(first + i) << _U(32)) + _U(np.uint32(symbols[i]))
        x = (x ^ (x >> _U(30))) * _U(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> _U(27))) * _U(0x94D049BB133111EB)
        total += x ^ (x >> _U(31))
    return total
