"""The parts of a stream, and the choices of an encoder, all in integers. Every backend uses this file."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lalic_kernels.rans.tables import COST_UNIT

GROUP = 32  # lanes per group if there are several groups: a warp of a GPU
MAX_GROUPS = 1024
LANE_BYTES = 64  # payload per lane: a lane costs 0.65 bytes, which is 1 % of it
LOWER = 1 << 16  # the smallest state; encoding begins with it
# An escape's value is below 2^33, because symbols and offsets are int32: nine hexadecimal digits.
MAX_DIGITS = 9
# Factors of the checksum's mixing function (checksum.py), as int64, whose products wrap like those of uint64.
MIX_FIRST, MIX_SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


class RansError(ValueError):
    """A damaged stream, or one for other tables or indexes."""


def choose_lanes(cost: int) -> tuple[int, int]:
    """(groups, lanes per group) for symbols of code length `cost` in 2^-24 bit: lanes cost 1 % of the payload."""
    lanes = (cost >> (COST_UNIT + 3)) // LANE_BYTES
    if lanes >= GROUP:
        return min(lanes // GROUP, MAX_GROUPS), GROUP
    return 1, 1 << max(lanes.bit_length() - 1, 0)


def field_entries(values: NDArray[np.int64], widths: NDArray[np.int64] | int) -> NDArray[np.uint32]:
    """Packed intervals of fields: values (n,) of `widths` bits each, 0 to 16."""
    width = np.asarray(widths, np.int64)
    return (((np.int64(1) << (16 - width)) - 1 << 16) | (np.asarray(values, np.int64) << (16 - width))).astype(
        np.uint32
    )


def count_digits(raw: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of hexadecimal digits of each raw value (k,); 0 for 0."""
    return np.searchsorted(16 ** np.arange(MAX_DIGITS + 1, dtype=np.int64), raw, side="right")


def escape_entries(raw: NDArray[np.int64], digits: NDArray[np.int64]) -> list[NDArray[np.uint32]]:
    """The four field lists of escaped values: numbers of digits; then 16, 16 and 4 bits of values, low bits first."""
    lists = [field_entries(digits, 4)]
    for first, bits in ((0, 16), (16, 16), (32, 4)):
        widths = np.clip(4 * digits - first, 0, bits)
        lists.append(field_entries((raw >> first) & ((np.int64(1) << widths) - 1), widths))
    return lists


@dataclass
class Parts:
    """The parts of a stream.

    ramp: the section, counted among those with symbols, in which the number of working lanes begins to halve, or -1.
    ramp_steps: steps in that section's symbols with all lanes, then steps with a half, a quarter, ... two of them.
    highs: (groups, lanes) uint32, 1 to 65535, the upper halves of the lanes' first states.
    words: (W,) uint16 of all groups; group g has words[bounds[g] : bounds[g + 1]].
    """

    ramp: int
    ramp_steps: list[int]
    highs: NDArray[np.uint32]
    words: NDArray[np.uint16]
    bounds: NDArray[np.int64]


def pack(parts: Parts) -> bytes:
    """The stream with these parts."""
    groups, lanes = parts.highs.shape
    out = bytearray([lanes.bit_length() - 1])
    counts = np.diff(parts.bounds)[:-1].tolist() if groups > 1 else []
    for number in [*([groups - 1] if lanes == GROUP else []), parts.ramp + 1, *parts.ramp_steps, *counts]:
        out += _varint(number)
    out += _packed_highs(parts.highs.ravel())
    out += parts.words.astype("<u2").tobytes()
    return bytes(out)


def _packed_highs(highs: NDArray[np.uint32]) -> bytes:
    """For each lane a nibble with the number of bits below the leading one; then these bits of all lanes."""
    if len(highs) <= GROUP:  # calls of numpy would take a third of a small stream's encoding time
        nibbles = field = total = 0
        for lane, high in enumerate(highs.tolist()):
            bits = high.bit_length() - 1
            nibbles |= bits << 4 * lane
            field |= (high ^ 1 << bits) << total
            total += bits
        return nibbles.to_bytes((len(highs) + 1) // 2, "little") + field.to_bytes((total + 7) // 8, "little")
    lengths = np.frexp(highs.astype(np.float64))[1].astype(np.int64) - 1  # exact
    halves = np.zeros((len(highs) + 1) // 2 * 2, np.uint8)
    halves[: len(highs)] = lengths
    bits_of = (highs[:, None] >> np.arange(16)) & 1
    below = np.packbits(bits_of[np.arange(16) < lengths[:, None]].astype(np.uint8), bitorder="little")
    return (halves[0::2] | halves[1::2] << 4).tobytes() + below.tobytes()


def unpack(stream: NDArray[np.uint8]) -> Parts:
    """The strict inverse of `pack`. Memory use is a small multiple of the stream's size.

    Raises:
        RansError: no encoder writes such a stream.
    """
    # Header: lanes, groups, ramp, words of each group.
    log, at = int(stream[0]), 1
    if log > 5:
        raise RansError(f"the stream has groups of 2^{log} lanes, more than 2^5")
    lanes, groups = 1 << log, 1
    if lanes == GROUP:
        more, at = _read_varint(stream, at)
        groups += more
        if groups > MAX_GROUPS:
            raise RansError(f"the stream has {groups} groups, more than {MAX_GROUPS}")
    ramp, at = _read_varint(stream, at)
    numbers = []
    for _ in range((log if ramp else 0) + groups - 1):
        number, at = _read_varint(stream, at)
        numbers.append(number)
    ramp_steps, counts = numbers[: log if ramp else 0], numbers[log if ramp else 0 :]
    if ramp and not log:
        raise RansError("the stream has a single lane, but a section in which lanes halve")
    # The lanes' first states.
    packed = stream[at : at + (groups * lanes + 1) // 2]
    at += (groups * lanes + 1) // 2
    nibbles = np.zeros((groups * lanes + 1) // 2 * 2, np.int64)
    nibbles[0 : 2 * len(packed) : 2], nibbles[1 : 2 * len(packed) : 2] = packed & 15, packed >> 4
    bits = nibbles[: groups * lanes]
    ends = bits.cumsum()
    total = int(ends[-1])
    size = (total + 7) // 8
    if at + size > len(stream):
        raise RansError(f"the stream has {len(stream)} bytes, too few for the states of its {groups * lanes} lanes")
    field = np.zeros(size + 3, np.int64)
    field[:size] = stream[at : at + size]
    at += size
    if (groups * lanes % 2 and nibbles[-1]) or (total % 8 and field[size - 1] >> (total % 8)):
        raise RansError("the padding after the stream's states is not zero")
    begins = ends - bits
    byte, ones = begins >> 3, np.int64(1) << bits
    window = field[byte] | field[byte + 1] << 8 | field[byte + 2] << 16
    highs = (window >> (begins & 7)) & (ones - 1) | ones
    # Words.
    left = len(stream) - at
    if left % 2:
        raise RansError("the stream ends within a word")
    counts.append(left // 2 - sum(counts))
    if min(counts) < lanes:  # the last count is negative if the others are too large
        raise RansError(f"a group of the stream has {max(min(counts), 0)} words, fewer than its {lanes} lanes need")
    words = stream[at:].view("<u2").astype(np.uint16)
    bounds = np.array([0, *itertools.accumulate(counts)], np.int64)
    return Parts(ramp - 1, ramp_steps, highs.reshape(groups, lanes).astype(np.uint32), words, bounds)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(stream: NDArray[np.uint8], at: int) -> tuple[int, int]:
    value = 0
    for digit in range(4):
        if at >= len(stream):
            raise RansError("the stream ends within its header")
        byte = int(stream[at])
        at += 1
        value |= (byte & 0x7F) << (7 * digit)
        if byte < 0x80:
            if byte == 0 and digit:
                raise RansError("a number in the stream's header is not in its shortest form")
            return value, at
    raise RansError("a number in the stream's header has more than four bytes")
