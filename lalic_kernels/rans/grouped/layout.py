"""The grouped stream's parts and its encoder's choices, all in integers: every implementation shares this file."""

from __future__ import annotations

import itertools
import weakref
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lalic_kernels.rans.op import RansError
from lalic_kernels.rans.tables import COARSE_BITS, COST_UNIT, TOTAL, CodingTables

GROUP = 32  # lanes of a group when there is more than one: a GPU's warp
MAX_GROUPS = 1024
LANE_BYTES = 80  # payload for each lane: a lane costs 0.65 bytes, which is 0.8 % of it
MAX_LEVEL = 15
LOWER = 1 << 16

# Values of symbols that are not their quiet row's commonest one, less that one: position 2 (zero) never occurs.
EXCEPTIONS = CodingTables([[0, 512, 32512, 32513, 64513, 65025, 65536]], [7], [-2])

_INT32 = np.iinfo(np.int32)


class GroupedTables:
    """`CodingTables` with one row more, that of exceptions, in the layout which the grouped coders read.

    rows: R, the number of rows without it; R is its number. All arrays have R + 1 rows.
    packed: (E,) uint32, frequency - 1 in the high half of each interval, its start in the low.
    priced: (E,) uint64, code length in 2^-24 bit in the high half, `packed` in the low.
    coarse: (256 (R + 1),) uint32, first entry of each bin of 256 slots in the low 24 bits, how many more in the high 8.
    start, offset, escape: int32, each row's first entry, symbol at position 0, position of the escape.
    bias: int32, symbol = entry + bias.
    quiet: (16, R + 1) bool, which rows are quiet at each level: none at level 0, the row of exceptions at none. levels:
        the same as int64, for sums over rows.
    mode: int32, each row's commonest symbol. noise: int32, 65536 less its frequency, 65536 if the escape is.
    """

    def __init__(self, tables: CodingTables) -> None:
        joined = tables.concat(EXCEPTIONS)
        self.rows = tables.rows
        freq = (joined.entries >> np.uint32(16)).astype(np.int64)
        self.packed = joined.entries - np.uint32(LOWER)
        self.priced = (joined.priced & np.uint64(0xFFFFFFFF00000000)) | self.packed
        last_slots = np.arange(joined.rows)[:, None] * TOTAL + np.arange(1, (1 << COARSE_BITS) + 1) * 256 - 1
        last = np.searchsorted(joined.edges, last_slots.ravel(), side="right") - 1
        self.coarse = (joined.coarse | (last - joined.coarse).astype(np.uint32) << np.uint32(24)).astype(np.uint32)
        self.start = joined.start.astype(np.int32)
        self.offset = joined.offset.astype(np.int32)
        self.escape = joined.escape.astype(np.int32)
        self.bias = self.offset - self.start
        self.mode = np.zeros(joined.rows, np.int32)
        self.noise = np.full(joined.rows, TOTAL, np.int32)
        for row in range(tables.rows):
            begin, inside = int(self.start[row]), int(self.escape[row])
            place = int(np.argmax(freq[begin : begin + inside + 1]))
            if place < inside:
                self.mode[row] = self.offset[row] + place
                self.noise[row] = TOTAL - freq[begin + place]

        most = np.array([0, *(1 << level for level in range(1, MAX_LEVEL + 1))])
        self.quiet = self.noise <= most[:, None]
        self.levels = self.quiet.astype(np.int64)


_grouped: weakref.WeakKeyDictionary[CodingTables, GroupedTables] = weakref.WeakKeyDictionary()


def grouped_tables(tables: CodingTables) -> GroupedTables:
    """Of `tables`, made once."""
    found = _grouped.get(tables)
    if found is None:
        found = _grouped[tables] = GroupedTables(tables)
    return found


@dataclass
class Survey:
    """What an encoder must know of all symbols before it chooses: for each row (R + 1,) int64 symbols, symbols that are
    not the commonest, and code length in 2^-24 bit."""

    counts: NDArray[np.int64]
    others: NDArray[np.int64]
    costs: NDArray[np.int64]

    @classmethod
    def empty(cls, tables: GroupedTables) -> Survey:
        """Of no symbols."""
        return cls(*np.zeros((3, tables.rows + 1), np.int64))


def choose_level(survey: Survey, tables: GroupedTables, sections: int) -> int:
    """The highest level at which the list of exceptions is not much longer than coding those symbols one by one."""
    total = int(survey.costs.sum())
    slack = total // 512 + (min(128, int(survey.counts.sum()) // 1024) << COST_UNIT)
    counts, others, costs = (
        tables.levels.dot(known).tolist() for known in (survey.counts, survey.others, survey.costs)
    )
    for level in range(MAX_LEVEL, 0, -1):
        count, other = counts[level], others[level]
        bits = 5 * sections + 9 * min(other, sections) + other * ((count // max(other, 1)).bit_length() + 4)
        if count and (bits << COST_UNIT) <= costs[level] + slack:
            return level
    return 0


def choose_lanes(survey: Survey) -> tuple[int, int]:
    """(groups, lanes of a group) by the payload: lanes take at most 1 % of it where it has 10 kB."""
    lanes = (int(survey.costs.sum()) >> (COST_UNIT + 3)) // LANE_BYTES
    if lanes >= GROUP:
        return min(lanes // GROUP, MAX_GROUPS), GROUP
    return 1, 1 << max(lanes.bit_length() - 1, 0)


def field_entries(values: NDArray[np.int64], widths: NDArray[np.int64] | int) -> NDArray[np.uint32]:
    """Packed intervals of fields: values (n,) of `widths` bits each, 0 to 16."""
    width = np.asarray(widths, np.int64)
    return (((np.int64(1) << (16 - width)) - 1 << 16) | (np.asarray(values, np.int64) << (16 - width))).astype(
        np.uint32
    )


def head_fields(fields: int, bits: int) -> tuple[list[int], list[int]]:
    """(values, widths) that say how many fields a list of exceptions has, and of how many bits; after its length's."""
    length = fields.bit_length()
    low = min(length - 1, 16)
    rest = fields - (1 << (length - 1))
    return [rest & ((1 << low) - 1), rest >> low, bits - 1], [low, length - 1 - low, 4]


def escape_entries(raw: NDArray[np.int64], digits: NDArray[np.int64]) -> list[NDArray[np.uint32]]:
    """The four lists of escaped values: numbers of digits, and 16, 16 and 4 bits of the values, low ones first."""
    lists = [field_entries(digits, 4)]
    for first, most in ((0, 16), (16, 16), (32, 4)):
        widths = np.clip(4 * digits - first, 0, most)
        lists.append(field_entries((raw >> first) & ((np.int64(1) << widths) - 1), widths))
    return lists


@dataclass
class Parts:
    """A stream taken apart, or to be put together.

    level: of quiet rows. fan: the section, among those with symbols, in which the number of working lanes begins to
    halve, or -1. stages: steps in that section's main list with all lanes, then steps with a half, a quarter, ... two.
    highs: (groups, lanes) uint32, 1 to 65535, the upper halves with which lanes start.
    words: (W,) uint16, all groups'; group g has words[bounds[g] : bounds[g + 1]].
    """

    level: int
    fan: int
    stages: list[int]
    highs: NDArray[np.uint32]
    words: NDArray[np.uint16]
    bounds: NDArray[np.int64]


def pack(parts: Parts) -> bytes:
    """The stream."""
    groups, lanes = parts.highs.shape
    out = bytearray([(lanes.bit_length() - 1) << 4 | parts.level])
    counts = np.diff(parts.bounds)[:-1].tolist() if groups > 1 else []
    for number in [*([groups - 1] if lanes == GROUP else []), parts.fan + 1, *parts.stages, *counts]:
        out += _varint(number)
    out += _packed_highs(parts.highs.ravel())
    out += parts.words.astype("<u2").tobytes()
    return bytes(out)


def _packed_highs(highs: NDArray[np.uint32]) -> bytes:
    """For each lane a nibble, how many bits its number has below the leading one; then those bits."""
    if len(highs) <= GROUP:  # numpy's calls would be a third of a small stream's encoding
        nibbles = field = place = 0
        for lane, high in enumerate(highs.tolist()):
            bits = high.bit_length() - 1
            nibbles |= bits << 4 * lane
            field |= (high ^ 1 << bits) << place
            place += bits
        return nibbles.to_bytes((len(highs) + 1) // 2, "little") + field.to_bytes((place + 7) // 8, "little")
    lengths = np.frexp(highs.astype(np.float64))[1].astype(np.int64) - 1  # exact
    halves = np.zeros((len(highs) + 1) // 2 * 2, np.uint8)
    halves[: len(highs)] = lengths
    spread = (highs[:, None] >> np.arange(16)) & 1
    below = np.packbits(spread[np.arange(16) < lengths[:, None]].astype(np.uint8), bitorder="little")
    return (halves[0::2] | halves[1::2] << 4).tobytes() + below.tobytes()


def unpack(stream: NDArray[np.uint8]) -> Parts:
    """Inverse of `pack`, strictly; nothing larger than a few times the stream is made. Raises RansError."""
    first = int(stream[0])
    log, level, at = first >> 4, first & 15, 1
    if log > 5:
        raise RansError(f"the stream says that a group has 2^{log} lanes, and no more than {GROUP} have a meaning")
    lanes, groups = 1 << log, 1
    if lanes == GROUP:
        more, at = _read_varint(stream, at)
        groups += more
        if groups > MAX_GROUPS:
            raise RansError(f"the stream says that it has {groups} groups, more than {MAX_GROUPS}")
    fan, at = _read_varint(stream, at)
    numbers = []
    for _ in range((log if fan else 0) + groups - 1):
        number, at = _read_varint(stream, at)
        numbers.append(number)
    stages, counts = numbers[: log if fan else 0], numbers[log if fan else 0 :]
    if fan and not log:
        raise RansError("the stream has a single lane, and says that lanes halve")
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
    left = len(stream) - at
    if left % 2:
        raise RansError("the stream ends within a word")
    counts.append(left // 2 - sum(counts))
    if min(counts) < lanes:  # the last one's is negative where the others claim too much
        raise RansError(
            f"a group of the stream has {max(min(counts), 0)} words, fewer than its {lanes} lanes start with"
        )
    words = stream[at:].view("<u2").astype(np.uint16)
    bounds = np.array([0, *itertools.accumulate(counts)], np.int64)
    return Parts(level, fan - 1, stages, highs.reshape(groups, lanes).astype(np.uint32), words, bounds)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(stream: NDArray[np.uint8], at: int) -> tuple[int, int]:
    value = 0
    for place in range(4):
        if at >= len(stream):
            raise RansError("the stream ends within its header")
        byte = int(stream[at])
        at += 1
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            if byte == 0 and place:
                raise RansError("a number in the stream's header is not in its shortest form")
            return value, at
    raise RansError("a number in the stream's header has more than four bytes")
