"""The coder's definition, in numpy, one step of all lanes at a time. cpu.py makes the same bytes faster.

A state x is an integer in [2^16, 2^32). With frequency f and interval start c of a symbol (out of 2^16):

    encode   while x >= f 2^16: put out the low 16 bits, x <- x >> 16;   x <- (x div f) 2^16 + (x mod f) + c
    decode   slot = x mod 2^16 names the symbol;  x <- f (x >> 16) + slot - c;   if x < 2^16: x <- x 2^16 + next word

(at most one word either way). The encoder walks the symbols backwards, so that the decoder walks them forwards and
reads the words forwards. Source: J. Duda, "Asymmetric numeral systems", arXiv:1311.2540; interleaving with a shared
stream: F. Giesen, "Interleaved entropy coders", arXiv:1402.3392.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lalic_kernels.rans.escapes import MAX_DIGITS
from lalic_kernels.rans.tables import TOTAL, CodingTables

LOWER = 1 << 16

# What the functions below return in place of a count when they cannot go on.
BAD_INDEX = -1
OUT_OF_WORDS = -2
OUT_OF_NIBBLES = -3
BAD_COUNT = -4
BAD_DIGIT = -5
TOO_LARGE = -6


def look_up(
    symbols: NDArray[np.int32], indexes: NDArray[np.int32], tables: CodingTables, out: NDArray[np.uint32]
) -> tuple[int, int]:
    """Fills `out` (n,) with each symbol's table entry; returns (escapes or BAD_INDEX, code length in 2^-24 bit)."""
    if indexes.size and not 0 <= int(indexes.min()) <= int(indexes.max()) < tables.rows:
        return BAD_INDEX, 0
    position = symbols.astype(np.int64) - tables.offset[indexes]
    last = tables.escape[indexes].astype(np.int64)
    outside = (position < 0) | (position >= last)
    priced = tables.priced[tables.start[indexes] + np.where(outside, last, position)]
    out[:] = priced.astype(np.uint32)
    return int(np.count_nonzero(outside)), int((priced >> np.uint64(32)).sum())


def push(entries: NDArray[np.uint32], bounds: NDArray[np.int64], states: NDArray[np.uint32]) -> NDArray[np.uint16]:
    """Encodes entries[bounds[s]:bounds[s+1]] of all sections s into `states` (N,), in place; returns the words."""
    lanes = len(states)
    freq = (entries >> np.uint32(16)).astype(np.uint64)
    low = (entries & np.uint32(0xFFFF)).astype(np.uint64)
    x_all = states.astype(np.uint64)
    sixteen = np.uint64(16)
    blocks = []
    for begin, end in zip(bounds[-2::-1].tolist(), bounds[:0:-1].tolist(), strict=True):
        first_of_last_group = begin + (end - begin - 1) // lanes * lanes
        for at in range(first_of_last_group, begin - 1, -lanes):
            stop = min(at + lanes, end)
            x = x_all[: stop - at]
            f = freq[at:stop]
            full = (x >> sixteen) >= f
            blocks.append(x[full].astype(np.uint16))
            x = np.where(full, x >> sixteen, x)
            x_all[: stop - at] = ((x // f) << sixteen) + x % f + low[at:stop]
    states[:] = x_all
    return np.concatenate(blocks[::-1]) if blocks else np.zeros(0, np.uint16)


def pull(
    states: NDArray[np.uint32],
    words: NDArray[np.uint16],
    position: int,
    limit: int,
    indexes: NDArray[np.int32],
    tables: CodingTables,
    out: NDArray[np.int32],
) -> tuple[int, int]:
    """Decodes one section into `out` (n,); returns (escapes or an error, position of the next word).

    words: (at least limit + N,); those from `limit` on are padding. Escapes are left as the row's escape position.
    """
    if indexes.size and not 0 <= int(indexes.min()) <= int(indexes.max()) < tables.rows:
        return BAD_INDEX, position
    lanes = len(states)
    escapes = 0
    key = indexes.astype(np.int64) * TOTAL
    x_all = states.astype(np.int64)
    chosen = np.empty(len(indexes), np.int64)
    for at in range(0, len(indexes), lanes):
        stop = min(at + lanes, len(indexes))
        x = x_all[: stop - at]
        slot = x & 0xFFFF
        entry = np.searchsorted(tables.edges, key[at:stop] + slot, side="right") - 1
        chosen[at:stop] = entry
        packed = tables.entries[entry].astype(np.int64)
        f, c = packed >> 16, packed & 0xFFFF
        x = f * (x >> 16) + slot - c
        low = np.flatnonzero(x < LOWER)
        x[low] = (x[low] << 16) | words[position : position + len(low)]
        position += len(low)
        if position > limit:
            return OUT_OF_WORDS, position
        x_all[: stop - at] = x
        escapes += int(np.count_nonzero(c + f == TOTAL))  # only a row's last interval ends at 65536
    states[:] = x_all
    out[:] = chosen + tables.bias[indexes]
    return escapes, position


def read_escapes(
    tail: NDArray[np.uint8],
    position: int,
    limit: int,
    indexes: NDArray[np.int32],
    tables: CodingTables,
    out: NDArray[np.int32],
) -> tuple[int, int]:
    """Puts the true values of the escapes into `out` (n,); returns (0 or an error, position of the next nibble).

    tail: the whole stream as bytes, whose last byte holds nibble 0; nibbles from `limit` on belong to the words.
    """
    nominal = tables.offset[indexes] + tables.escape[indexes].astype(np.int64)
    for at in np.flatnonzero(out == nominal).tolist():
        if position >= limit:
            return OUT_OF_NIBBLES, position
        digits = _nibble(tail, position)
        position += 1
        if digits > MAX_DIGITS:
            return BAD_COUNT, position
        if position + digits > limit:
            return OUT_OF_NIBBLES, position
        raw = digit = 0
        for place in range(digits):
            digit = _nibble(tail, position + place)
            raw |= digit << (4 * place)
        position += digits
        if digits and digit == 0:
            return BAD_DIGIT, position
        row = int(indexes[at])
        value = int(tables.offset[row]) - (raw + 1) // 2 if raw & 1 else int(nominal[at]) + raw // 2
        if not -(1 << 31) <= value < 1 << 31:
            return TOO_LARGE, position
        out[at] = value
    return 0, position


def _nibble(tail: NDArray[np.uint8], number: int) -> int:
    byte = int(tail[len(tail) - 1 - number // 2])
    return byte >> 4 if number & 1 else byte & 15
