"""Nibbles for symbols outside their row: the same bits as the published coder's bypass, kept in a stream of their own.

raw = -2 v - 1 for a position v < 0, 2 (v - e) for v >= e, where v counts from the row's first symbol and e is the
escape's position. Written are the number of 4-bit digits of raw (in unary digits of base 15: as many 15s as fit, then
the rest) and those digits, low first. Source: CompressAI's rans interface (encode_with_indexes).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lalic_kernels.rans.tables import TOTAL, CodingTables

# |v| < 2^32 for int32 symbols and offsets, so raw < 2^33: nine digits, and the count is always a single nibble.
MAX_DIGITS = 9


def escape_values(
    entries: NDArray[np.uint32], symbols: NDArray[np.int32], indexes: NDArray[np.int32], tables: CodingTables
) -> NDArray[np.int64]:
    """raw values (k,) of those of `symbols` (n,) whose table entries (n,) are their rows' escapes, in order."""
    # only a row's last interval ends at 65536
    at = np.flatnonzero((entries >> np.uint32(16)) + (entries & np.uint32(0xFFFF)) == TOTAL)
    rows = indexes[at]
    position = symbols[at].astype(np.int64) - tables.offset[rows]
    return np.where(position < 0, -2 * position - 1, 2 * (position - tables.escape[rows].astype(np.int64)))


def count_digits(raw: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of 4-bit digits of each raw value (k,); none for 0."""
    return np.searchsorted(16 ** np.arange(MAX_DIGITS + 1, dtype=np.int64), raw, side="right")


def write_nibbles(raw: NDArray[np.int64]) -> NDArray[np.uint8]:
    """All nibbles (0..15) of the raw values (k,), in the order in which the decoder takes them."""
    digits = count_digits(raw)
    begin = np.concatenate([[0], np.cumsum(digits + 1)])
    nibbles = np.zeros(begin[-1], np.uint8)
    nibbles[begin[:-1]] = digits
    for place in range(int(digits.max(initial=0))):
        has = digits > place
        nibbles[begin[:-1][has] + 1 + place] = (raw[has] >> (4 * place)) & 15
    return nibbles


def pack_backwards(nibbles: NDArray[np.uint8]) -> bytes:
    """Bytes for the very end of a stream: nibble 0 in the low half of the last byte, nibble 1 in its high half."""
    padded = np.zeros((len(nibbles) + 1) // 2 * 2, np.uint8)
    padded[: len(nibbles)] = nibbles
    return (padded[0::2] | (padded[1::2] << 4))[::-1].tobytes()
