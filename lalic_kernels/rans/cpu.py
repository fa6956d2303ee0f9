"""The reference's functions as compiled loops (numba): the same bytes, ten to a hundred times as fast.

Every array access is bounded by a check written here, as numba itself makes none: table rows by the index check, table
entries by CodingTables' own validation, words by `limit` once for each step of all lanes (the array carries N words of
padding, and a step takes at most N), nibbles by `limit` one by one.

Integers are kept unsigned where they address an array, which spares numba's test for negative subscripts; a mixture of
signed and unsigned 64-bit integers would turn into float64, hence the typed constants.

Compiled when first called, and kept on disk (numba uses the package's __pycache__, or NUMBA_CACHE_DIR, or the user's
cache folder, whichever can be written).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from lalic_kernels.rans import reference as ref
from lalic_kernels.rans.escapes import MAX_DIGITS
from lalic_kernels.rans.tables import CodingTables

_U = np.uint64
_ONE, _SIXTEEN, _LOW16, _LOWER = _U(1), _U(16), _U(0xFFFF), _U(ref.LOWER)
_COARSE_UP, _COARSE_DOWN, _COST_AT = _U(8), _U(8), _U(32)
_BAD_INDEX, _OUT_OF_WORDS, _OUT_OF_NIBBLES = ref.BAD_INDEX, ref.OUT_OF_WORDS, ref.OUT_OF_NIBBLES
_BAD_COUNT, _BAD_DIGIT, _TOO_LARGE = ref.BAD_COUNT, ref.BAD_DIGIT, ref.TOO_LARGE


def _compiled(function: Callable[..., Any]) -> Any:
    # numpy's error model has no test for a zero divisor; a frequency is never zero
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:
        # numba found no folder it may write to: the function is then compiled anew in each process
        return numba.njit(nogil=True, error_model="numpy")(function)


@_compiled
def _look_up(symbols, indexes, start, offset, escape, priced, out):  # type: ignore[no-untyped-def]
    cost = _U(0)
    escapes = 0
    rows = _U(len(start))
    for i in range(len(symbols)):
        row = _U(np.uint32(indexes[i]))  # a negative index becomes a large one
        if row >= rows:
            return _BAD_INDEX, cost
        position = _U(symbols[i] - offset[row])
        last = escape[row]
        if position >= last:
            position = last
            escapes += 1
        entry = priced[_U(start[row]) + position]
        cost += entry >> _COST_AT
        out[i] = np.uint32(entry)
    return escapes, cost


@_compiled
def _push(entries, bounds, states, words):  # type: ignore[no-untyped-def]
    lane_mask = _U(len(states) - 1)
    free = _U(len(words))
    for section in range(len(bounds) - 1, 0, -1):
        begin = _U(bounds[section - 1])
        left = _U(bounds[section]) - begin
        while left > _U(0):
            left -= _ONE
            lane = left & lane_mask
            entry = _U(entries[begin + left])
            freq = entry >> _SIXTEEN
            x = _U(states[lane])
            words[free - _ONE] = np.uint16(x)  # always written, kept only if the state is full
            if (x >> _SIXTEEN) >= freq:
                free -= _ONE
                x >>= _SIXTEEN
            quotient = _U(np.uint32(x) // np.uint32(freq))
            states[lane] = np.uint32((quotient << _SIXTEEN) + (x - quotient * freq) + (entry & _LOW16))
    return free


@_compiled
def _pull(states, words, position, limit, indexes, coarse, entries, bias, out):  # type: ignore[no-untyped-def]
    lanes = _U(len(states))
    count = _U(len(indexes))
    rows = _U(len(bias))
    word_at = _U(position)
    word_end = _U(limit)
    escapes = _U(0)
    begin = _U(0)
    while begin < count:
        active = min(lanes, count - begin)
        for lane in range(active):
            row = _U(np.uint32(indexes[begin + lane]))
            if row >= rows:
                return _BAD_INDEX, np.int64(word_at)
            x = _U(states[lane])
            slot = x & _LOW16
            at = _U(coarse[(row << _COARSE_UP) + (slot >> _COARSE_DOWN)])
            entry = _U(entries[at])
            low = entry & _LOW16
            freq = entry >> _SIXTEEN
            while slot - low >= freq:  # ends within the row: its last interval reaches 65536
                at += _ONE
                entry = _U(entries[at])
                low = entry & _LOW16
                freq = entry >> _SIXTEEN
            escapes += (low + freq) >> _SIXTEEN
            out[begin + lane] = np.int32(np.int64(at) + bias[row])
            x = freq * (x >> _SIXTEEN) + (slot - low)
            word = _U(words[word_at])
            if x < _LOWER:
                x = (x << _SIXTEEN) | word
                word_at += _ONE
            states[lane] = np.uint32(x)
        if word_at > word_end:
            return _OUT_OF_WORDS, np.int64(word_at)
        begin += active
    return np.int64(escapes), np.int64(word_at)


@_compiled
def _read_escapes(tail, position, limit, indexes, offset, escape, out):  # type: ignore[no-untyped-def]
    final = len(tail) - 1
    for i in range(len(out)):
        row = indexes[i]
        nominal = offset[row] + np.int64(escape[row])
        if out[i] != nominal:
            continue
        if position >= limit:
            return _OUT_OF_NIBBLES, position
        digits = np.int64((tail[final - (position >> 1)] >> (4 * (position & 1))) & 15)
        position += 1
        if digits > MAX_DIGITS:
            return _BAD_COUNT, position
        if position + digits > limit:
            return _OUT_OF_NIBBLES, position
        raw = np.int64(0)
        digit = np.int64(1)
        for place in range(digits):
            digit = np.int64((tail[final - (position >> 1)] >> (4 * (position & 1))) & 15)
            raw |= digit << (4 * place)
            position += 1
        if digit == 0:
            return _BAD_DIGIT, position
        value = offset[row] - ((raw + 1) >> 1) if raw & 1 else nominal + (raw >> 1)
        if value < -(1 << 31) or value >= 1 << 31:
            return _TOO_LARGE, position
        out[i] = np.int32(value)
    return 0, position


def look_up(
    symbols: NDArray[np.int32], indexes: NDArray[np.int32], tables: CodingTables, out: NDArray[np.uint32]
) -> tuple[int, int]:
    """As reference.look_up."""
    escapes, cost = _look_up(symbols, indexes, tables.start, tables.offset, tables.escape, tables.priced, out)
    return int(escapes), int(cost)


def push(entries: NDArray[np.uint32], bounds: NDArray[np.int64], states: NDArray[np.uint32]) -> NDArray[np.uint16]:
    """As reference.push."""
    words = np.empty(len(entries) + 1, np.uint16)  # a symbol puts out one word at most
    return words[int(_push(entries, bounds, states, words)) :]


def pull(
    states: NDArray[np.uint32],
    words: NDArray[np.uint16],
    position: int,
    limit: int,
    indexes: NDArray[np.int32],
    tables: CodingTables,
    out: NDArray[np.int32],
) -> tuple[int, int]:
    """As reference.pull."""
    return _pull(states, words, position, limit, indexes, tables.coarse, tables.entries, tables.bias, out)


def read_escapes(
    tail: NDArray[np.uint8],
    position: int,
    limit: int,
    indexes: NDArray[np.int32],
    tables: CodingTables,
    out: NDArray[np.int32],
) -> tuple[int, int]:
    """As reference.read_escapes."""
    return _read_escapes(tail, position, limit, indexes, tables.offset, tables.escape, out)
