"""The coder's definition in numpy, one step of a group at a time. cpu.py and gpu.py give the same bytes, faster.

In a step each of a group's first lanes codes one interval, of `freq` slots from `low` on. A lane has a state x:

    decode   slot = x mod 65536 is in [low, low + freq);   x <- freq (x >> 16) + slot - low
             then, lane by lane: if x < 65536:   x <- x 65536 + next word
    encode   the same backwards:  if x >= 65536 freq: write the word x mod 65536, x <- x >> 16
             x <- (x div freq) 65536 + (x mod freq) + low

Near the end the number of working lanes halves several times: lanes that stop return a word, which the others read.
Source: J. Duda, "Asymmetric numeral systems", arXiv:1311.2540; interleaving: F. Giesen, "Interleaved entropy coders",
arXiv:1402.3392; the values of escapes: CompressAI's rans interface.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lalic_kernels.rans.layout import LOWER, MAX_DIGITS, Parts, count_digits, escape_entries
from lalic_kernels.rans.tables import CodingTables

# Returned instead of a result for a damaged stream or a wrong argument.
BAD_INDEX = -1
BAD_COUNT = -2
BAD_DIGIT = -3
TOO_LARGE = -4
BAD_LANE = -5
OUT_OF_WORDS = -6

# Packed intervals to code, and whether all groups share them; otherwise only the first group codes them.
Intervals = tuple[NDArray[np.uint32], bool]


@dataclass
class State:
    """The state of decoding.

    x: (groups, lanes) uint32. at, end: the index of each group's next word, and the end of its words.
    working: lanes of each group that still decode. steps_left: steps until their number halves, -1 for never.
    later_steps: steps with a half of them, a quarter, and so on. section: the next section. ramp: the section in which
    halving begins.
    """

    x: NDArray[np.uint32]
    words: NDArray[np.uint16]
    at: NDArray[np.int64]
    end: NDArray[np.int64]
    working: int
    steps_left: int
    later_steps: list[int]
    section: int
    ramp: int


def start(parts: Parts) -> State:
    """The first state of decoding, after every lane has read its first word."""
    lanes = parts.highs.shape[1]
    at, end = parts.bounds[:-1].copy(), parts.bounds[1:].copy()
    state = State(parts.highs.copy(), parts.words.copy(), at, end, lanes, -1, parts.ramp_steps.copy(), 0, parts.ramp)
    for group in range(len(state.x)):
        _refill(state, group, state.x[group].astype(np.int64))  # unpack has checked that there are enough words
    return state


def ended(state: State) -> bool:
    """Whether all lanes that worked to the end have the state 65536, with which encoding begins."""
    return bool((state.x[:, : state.working] == LOWER).all())


def words_left(state: State) -> int:
    """The number of words that were not read."""
    return int((state.end - state.at).sum())


class OutOfWords(Exception):
    """A lane needs a word, and its group has none."""


def _refill(state: State, group: int, x: NDArray[np.int64]) -> None:
    """Let those of the first lanes whose states x are too small read a word, and store x."""
    low = np.flatnonzero(x < LOWER)
    if len(low) > state.end[group] - state.at[group]:
        raise OutOfWords
    x[low] = x[low] << 16 | state.words[state.at[group] : state.at[group] + len(low)]
    state.at[group] += len(low)
    state.x[group, : len(x)] = x


def _halve(state: State) -> bool:
    """Stop the upper half of the working lanes, and return the low halves of their states to the words.

    Returns False if such a lane is not in a state in which encoding begins.
    """
    half = state.working // 2
    stopping = state.x[:, half : state.working]
    if (stopping >> np.uint32(16) != 1).any():
        return False
    for group, at in enumerate(state.at):  # overwrites words that were read: each lane has read at least one
        state.words[at - half : at] = stopping[group] & np.uint32(0xFFFF)
    state.at -= half
    state.working = half
    state.steps_left = state.later_steps.pop(0) if half > 1 else -1
    return True


# Decoding


def decode_section(state: State, rows: NDArray[np.int32], tables: CodingTables, out: NDArray[np.int32]) -> int:
    """Decode a section of symbols with table rows (n,) into `out` (n,); returns 0 or a fault."""
    if rows.size and not 0 <= int(rows.min()) <= int(rows.max()) < tables.rows:
        return BAD_INDEX
    try:
        position = _positions(state, rows, tables)
        if position is None:
            return BAD_LANE
        state.section += 1
        value = tables.offset[rows].astype(np.int64) + position
        escaped = np.flatnonzero(position == tables.escape[rows])
        if len(escaped):
            raw = raw_escapes(lambda widths: _fields(state, widths), len(escaped))
            if isinstance(raw, int):
                return raw
            value[escaped] = escaped_values(raw, rows[escaped], tables)
    except OutOfWords:
        return OUT_OF_WORDS
    if (value != value.astype(np.int32)).any():
        return TOO_LARGE
    out[:] = value
    return 0


def escaped_values(raw: NDArray[np.int64], rows: NDArray[np.int32], tables: CodingTables) -> NDArray[np.int64]:
    """The symbols (k,) of raw values (k,) with table rows (k,)."""
    first = tables.offset[rows].astype(np.int64)
    return np.where(raw & 1, first - (raw + 1) // 2, first + tables.escape[rows] + raw // 2)


def _positions(state: State, rows: NDArray[np.int32], tables: CodingTables) -> NDArray[np.int64] | None:
    """Decode the positions (n,) of symbols in their table rows (n,), with all groups; None for BAD_LANE."""
    if state.section == state.ramp:
        state.steps_left = state.later_steps.pop(0)
    entry = np.empty(len(rows), np.int64)
    begin = 0
    while True:
        while state.steps_left == 0:
            if not _halve(state):
                return None
        if begin >= len(rows):
            return entry - tables.start[rows]
        for group in range(len(state.x)):
            step_rows = rows[begin : begin + state.working]
            if len(step_rows):
                entry[begin : begin + len(step_rows)] = _step(state, group, step_rows, tables)
                begin += len(step_rows)
        state.steps_left -= state.steps_left > 0


def _step(state: State, group: int, rows: NDArray[np.int32], tables: CodingTables) -> NDArray[np.int64]:
    """Decode one symbol in each of a group's first lanes; returns interval numbers."""
    x = state.x[group, : len(rows)].astype(np.int64)
    slot = x & 0xFFFF
    bins = tables.coarse[rows * 256 + (slot >> 8)].astype(np.int64)
    entry, more = bins & 0xFFFFFF, bins >> 24
    while more.any():  # a binary search between the bin's first interval and its last
        half = (more + 1) >> 1
        below = (tables.packed[entry + half] & np.uint32(0xFFFF)) <= slot
        entry = np.where(below, entry + half, entry)
        more = np.where(below, more - half, np.maximum(half - 1, 0))
    packed = tables.packed[entry].astype(np.int64)
    _refill(state, group, ((packed >> 16) + 1) * (x >> 16) + slot - (packed & 0xFFFF))
    return entry


def raw_escapes(fields: Callable[[NDArray[np.int64]], NDArray[np.int64]], count: int) -> NDArray[np.int64] | int:
    """Decode the raw values of `count` escapes; or return a fault. fields: decodes fields of given widths (n,)."""
    digits = fields(np.full(count, 4))
    if (digits > MAX_DIGITS).any():
        return BAD_COUNT
    raw = np.zeros(count, np.int64)
    for first, bits in ((0, 16), (16, 16), (32, 4)):
        raw |= fields(np.clip(4 * digits - first, 0, bits)) << first
    return BAD_DIGIT if (count_digits(raw) != digits).any() else raw


def _fields(state: State, widths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Decode fields of `widths` (n,) bits, 0 to 16 each, from the first group."""
    values = np.zeros(len(widths), np.int64)
    for begin in range(0, len(widths), state.working):
        width = widths[begin : begin + state.working]
        x = state.x[0, : len(width)].astype(np.int64)
        slot = x & 0xFFFF
        values[begin : begin + len(width)] = slot >> (16 - width)
        _refill(state, 0, (x >> 16 << (16 - width)) + (slot & ((np.int64(1) << (16 - width)) - 1)))
    return values


# Encoding


def look_up(
    symbols: NDArray[np.int32], rows: NDArray[np.int32], tables: CodingTables, entries: NDArray[np.uint32]
) -> tuple[int, int]:
    """Fill `entries` (n,) with each symbol's packed interval; for an escape, the last interval of its row.

    Returns the number of escapes or BAD_INDEX, and the intervals' code length in 2^-24 bit.
    """
    if rows.size and not 0 <= int(rows.min()) <= int(rows.max()) < tables.rows:
        return BAD_INDEX, 0
    last = tables.escape[rows]
    position = symbols.astype(np.int64) - tables.offset[rows]
    outside = (position < 0) | (position >= last)
    priced = tables.priced[tables.start[rows] + np.where(outside, last, position)]
    entries[:] = priced.astype(np.uint32)
    return int(np.count_nonzero(outside)), int((priced >> np.uint64(32)).sum())


def raw_values(
    entries: NDArray[np.uint32], symbols: NDArray[np.int32], rows: NDArray[np.int32], tables: CodingTables
) -> NDArray[np.int64]:
    """The raw values (k,) of the escapes among `symbols` (n,), those with the last interval of their row, in order."""
    # Only a row's last interval ends at 65536.
    at = np.flatnonzero((entries >> np.uint32(16)) + (entries & np.uint32(0xFFFF)) == LOWER - 1)
    position = symbols[at].astype(np.int64) - tables.offset[rows[at]]
    return np.where(position < 0, -2 * position - 1, 2 * (position - tables.escape[rows[at]]))


def section_lists(entries: NDArray[np.uint32], raw: NDArray[np.int64]) -> list[Intervals]:
    """A section in the decoder's order: the intervals of all symbols, then the fields of the escapes' raw values."""
    if not len(raw):
        return [(entries, True)]
    return [(entries, True), *((fields, False) for fields in escape_entries(raw, count_digits(raw)))]


class Encoder:
    """States x (groups, lanes), and the words of each group in the order of writing."""

    def __init__(self, groups: int, lanes: int) -> None:
        self.groups, self.lanes = groups, lanes
        self.x = np.full((groups, lanes), LOWER, np.int64)
        self.out: list[list[int]] = [[] for _ in range(groups)]

    def step(self, group: int, entries: NDArray[np.uint32]) -> None:
        """Encode one interval in each of a group's first lanes."""
        packed = entries.astype(np.int64)
        freq, low = (packed >> 16) + 1, packed & 0xFFFF
        x = self.x[group, : len(packed)]
        full = x >> 16 >= freq
        self.out[group] += (x[full] & 0xFFFF)[::-1].tolist()
        x = np.where(full, x >> 16, x)
        self.x[group, : len(packed)] = (x // freq << 16) + x % freq + low

    def code(self, entries: NDArray[np.uint32], shared: bool, working: int) -> None:
        """Encode a list of intervals from the last to the first, in steps of `working` lanes of each group."""
        groups = self.groups if shared else 1
        for chunk in range(-(-len(entries) // working) - 1, -1, -1):
            self.step(chunk % groups, entries[chunk * working : (chunk + 1) * working])

    def ramp(self, lists: list[Intervals]) -> tuple[int, int, list[int]] | None:
        """Encode the end of the lists while the number of working lanes grows from 1; a new lane starts with a word.

        Returns the number of the list in which all lanes work at last, how many of its symbols are left, and
        `ramp_steps` of `Parts`; None if the lists are too short.
        """
        working, steps = 1, [0]
        for number in range(len(lists) - 1, -1, -1):
            entries, shared = lists[number]
            if not shared:
                self.code(entries, False, working)
                continue
            left = len(entries)
            while left:
                step = working * self.groups
                if left % (2 * step) == 0 and min(map(len, self.out)) >= working:
                    for group, words in enumerate(self.out):
                        self.x[group, working : 2 * working] = LOWER + np.array(words[: -working - 1 : -1])
                        del words[-working:]
                    working *= 2
                    if working == self.lanes:
                        return number, left, [left // (working * self.groups), *steps[:0:-1]]
                    steps.append(0)
                    continue
                begin = (left - 1) // step * step
                self.code(entries[begin:left], True, working)
                steps[-1] += 1
                left = begin
        return None


@dataclass
class FullEncoder:
    """An encoder after its ramp, when all lanes work.

    number: lists that are not begun. left: symbols left of the next list. ramp, ramp_steps: those of `Parts`.
    """

    encoder: Encoder
    number: int
    left: int
    ramp: int
    ramp_steps: list[int]


def begin_push(lists: list[Intervals], groups: int, lanes: int) -> FullEncoder:
    """Encode the end of the lists until all lanes work; nothing if the lists are too short for a ramp."""
    encoder = Encoder(groups, lanes)
    ramp = encoder.ramp(lists) if lanes > 1 else None
    if ramp is None:
        return FullEncoder(Encoder(groups, lanes), len(lists), 0, -1, [])
    number, left, steps = ramp
    return FullEncoder(encoder, number, left, sum(shared for _, shared in lists[:number]), steps)


def push(
    lists: list[Intervals], groups: int, lanes: int
) -> tuple[NDArray[np.uint32], list[NDArray[np.uint16]], int, list[int]]:
    """Encode lists; returns the states' upper halves (groups, lanes), each group's words, `ramp` and `ramp_steps`."""
    full = begin_push(lists, groups, lanes)
    encoder = full.encoder
    if full.left:
        encoder.code(lists[full.number][0][: full.left], True, lanes)
    for entries, shared in lists[: full.number][::-1]:
        encoder.code(entries, shared, lanes)
    words = [np.array([*(x & 0xFFFF), *out[::-1]], np.uint16) for x, out in zip(encoder.x, encoder.out, strict=True)]
    return (encoder.x >> 16).astype(np.uint32), words, full.ramp, full.ramp_steps
