"""The grouped coder's definition in numpy, a step of a group at a time. cpu.py and gpu.py make the same bytes faster.

A step lets some of a group's first lanes take one interval each, of `freq` slots from `low`; lanes hold states x:

    decode   slot = x mod 65536 lies in [low, low + freq);   x <- freq (x >> 16) + slot - low
             then, lane by lane: if x < 65536:   x <- x 65536 + next word
    encode   the same backwards:  if x >= 65536 freq: put out x mod 65536, x <- x >> 16
             x <- (x div freq) 65536 + (x mod freq) + low

Near the end the lanes that work halve again and again: those that rest give words back, which the others take.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lalic_kernels.rans.escapes import MAX_DIGITS, count_digits
from lalic_kernels.rans.grouped.layout import LOWER, GroupedTables, Parts, Survey, escape_entries, field_entries
from lalic_kernels.rans.grouped.layout import head_fields as _head_fields

BAD_INDEX = -1
BAD_LENGTH = -2  # of a list of exceptions
BAD_PLACE = -3
BAD_COUNT = -4
BAD_DIGIT = -5
TOO_LARGE = -6
BAD_LANE = -7
OUT_OF_WORDS = -8

_WIDTHS = np.arange(1, 17)  # that fields of a list of exceptions may have

# A list of intervals to code, packed, and whether all groups share it; else the first has it alone.
List = tuple[NDArray[np.uint32], bool]


@dataclass
class State:
    """Where decoding stands: x (groups, lanes) uint32, and for each group the next word and the last one's end.

    working: lanes of each group that still take symbols. left: steps until they halve, -1 for no such end. ahead: steps
    with half of them, and so on. section: number of the next section, fan: of the one in which halving begins.
    """

    x: NDArray[np.uint32]
    words: NDArray[np.uint16]
    at: NDArray[np.int64]
    end: NDArray[np.int64]
    working: int
    left: int
    ahead: list[int]
    section: int
    fan: int


def start(parts: Parts) -> State:
    """The state with which decoding begins: every lane's first word taken."""
    lanes = parts.highs.shape[1]
    bounds = parts.bounds
    at, end = bounds[:-1].copy(), bounds[1:].copy()
    state = State(parts.highs.copy(), parts.words.copy(), at, end, lanes, -1, parts.stages.copy(), 0, parts.fan)
    for group in range(len(state.x)):
        _refill(state, group, state.x[group].astype(np.int64))  # unpack has seen to it that there are enough words
    return state


def ended(state: State) -> bool:
    """Whether every lane is where encoding begins: those that worked to the end at 65536."""
    return bool((state.x[:, : state.working] == LOWER).all())


def words_left(state: State) -> int:
    """How many words no lane has taken."""
    return int((state.end - state.at).sum())


class _OutOfWords(Exception):
    """A lane needs a word, and its group has none."""


def _refill(state: State, group: int, x: NDArray[np.int64]) -> None:
    """Gives words to those of the first lanes whose states x became small, and stores all of x."""
    low = np.flatnonzero(x < LOWER)
    if len(low) > state.end[group] - state.at[group]:
        raise _OutOfWords
    x[low] = x[low] << 16 | state.words[state.at[group] : state.at[group] + len(low)]
    state.at[group] += len(low)
    state.x[group, : len(x)] = x


def _halve(state: State) -> bool:
    """The upper half of the working lanes give their low halves back as words, and rest; False if they cannot."""
    half = state.working // 2
    resting = state.x[:, half : state.working]
    if (resting >> np.uint32(16) != 1).any():
        return False
    for group, at in enumerate(state.at):  # over words that were taken: at the start a group's lanes took one each
        state.words[at - half : at] = resting[group] & np.uint32(0xFFFF)
    state.at -= half
    state.working = half
    state.left = state.ahead.pop(0) if half > 1 else -1
    return True


# Decoding


def decode_section(
    state: State, rows: NDArray[np.int32], quiet: NDArray[np.bool_], tables: GroupedTables, out: NDArray[np.int32]
) -> int:
    """Decodes a section of symbols with table rows (n,) into `out` (n,); returns 0 or what is wrong."""
    try:
        return _decode_section(state, rows, quiet, tables, out)
    except _OutOfWords:
        return OUT_OF_WORDS


def _decode_section(
    state: State, rows: NDArray[np.int32], quiet: NDArray[np.bool_], tables: GroupedTables, out: NDArray[np.int32]
) -> int:
    if rows.size and not 0 <= int(rows.min()) <= int(rows.max()) < tables.rows:
        return BAD_INDEX
    is_quiet = quiet[rows]
    out[:] = tables.mode[rows]
    places = np.flatnonzero(is_quiet)
    exceptions = np.zeros(0, np.int64)
    if len(places):
        listed = _exceptions(state, len(places))
        if isinstance(listed, int):
            return listed
        exceptions = listed
    active = ~is_quiet
    active[places[exceptions]] = True
    (at,) = np.nonzero(active)
    row = np.where(is_quiet[at], tables.rows, rows[at])
    base = np.where(is_quiet[at], tables.mode[rows[at]], 0).astype(np.int64)
    found = _main(state, row, tables)
    state.section += 1
    if isinstance(found, int):
        return found
    position = found
    value = base + tables.offset[row] + position
    escaped = np.flatnonzero(position == tables.escape[row])
    if len(escaped):
        raw = _escapes(state, len(escaped))
        if isinstance(raw, int):
            return raw
        value[escaped] = escaped_values(raw, row[escaped], base[escaped], tables)
    if (value != value.astype(np.int32)).any():
        return TOO_LARGE
    out[at] = value
    return 0


def escaped_values(
    raw: NDArray[np.int64], row: NDArray[np.int32], base: NDArray[np.int64], tables: GroupedTables
) -> NDArray[np.int64]:
    """The symbols that raw values (k,) of table rows (k,) stand for, `base` added."""
    first = tables.offset[row] + base
    return np.where(raw & 1, first - (raw + 1) // 2, first + tables.escape[row] + raw // 2)


def _exceptions(state: State, count: int) -> NDArray[np.int64] | int:
    """Which of `count` quiet symbols are exceptions, in order."""
    (length,) = _fields(state, np.array([5])).tolist()
    if length == 0:
        return np.zeros(0, np.int64)
    if length > count.bit_length():
        return BAD_LENGTH
    low = min(length - 1, 16)
    first, rest, bits = _fields(state, np.array([low, length - 1 - low, 4])).tolist()
    fields = (1 << (length - 1)) + (rest << low | first)
    if fields > count:
        return BAD_LENGTH
    skipped = _fields(state, np.full(fields, bits + 1))
    ones = (1 << (bits + 1)) - 1
    is_exception = skipped != ones
    end = np.cumsum(skipped + is_exception)  # a field passes over so many, and then an exception stands
    if end[-1] > count:
        return BAD_PLACE
    return end[is_exception] - 1


def _fields(state: State, widths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Values of fields of `widths` (n,) bits, 0 to 16 each, which the first group has."""
    values = np.zeros(len(widths), np.int64)
    for begin in range(0, len(widths), state.working):
        width = widths[begin : begin + state.working]
        x = state.x[0, : len(width)].astype(np.int64)
        slot = x & 0xFFFF
        values[begin : begin + len(width)] = slot >> (16 - width)
        _refill(state, 0, (x >> 16 << (16 - width)) + (slot & ((np.int64(1) << (16 - width)) - 1)))
    return values


def _main(state: State, row: NDArray[np.int32], tables: GroupedTables) -> NDArray[np.int64] | int:
    """Positions in their rows of the symbols with table rows (n,), which all groups share."""
    if state.section == state.fan:
        state.left = state.ahead.pop(0)
    entry = np.empty(len(row), np.int64)
    begin = 0
    while True:
        while state.left == 0:
            if not _halve(state):
                return BAD_LANE
        if begin >= len(row):
            return entry - tables.start[row]
        for group in range(len(state.x)):
            here = row[begin : begin + state.working]
            if len(here):
                entry[begin : begin + len(here)] = _step(state, group, here, tables)
                begin += len(here)
        state.left -= state.left > 0


def _step(state: State, group: int, row: NDArray[np.int32], tables: GroupedTables) -> NDArray[np.int64]:
    """One symbol for each of a group's first lanes, as table entries."""
    x = state.x[group, : len(row)].astype(np.int64)
    slot = x & 0xFFFF
    bins = tables.coarse[row * 256 + (slot >> 8)].astype(np.int64)
    entry, more = bins & 0xFFFFFF, bins >> 24
    while more.any():  # a binary search between the bin's first entry and its last
        half = (more + 1) >> 1
        below = (tables.packed[entry + half] & np.uint32(0xFFFF)) <= slot
        entry = np.where(below, entry + half, entry)
        more = np.where(below, more - half, np.maximum(half - 1, 0))
    packed = tables.packed[entry].astype(np.int64)
    _refill(state, group, ((packed >> 16) + 1) * (x >> 16) + slot - (packed & 0xFFFF))
    return entry


def _escapes(state: State, count: int) -> NDArray[np.int64] | int:
    """The raw values of `count` escapes."""
    digits = _fields(state, np.full(count, 4))
    if (digits > MAX_DIGITS).any():
        return BAD_COUNT
    raw = np.zeros(count, np.int64)
    for first, most in ((0, 16), (16, 16), (32, 4)):
        raw |= _fields(state, np.clip(4 * digits - first, 0, most)) << first
    if (count_digits(raw) != digits).any():
        return BAD_DIGIT
    return raw


# Encoding


def survey(symbols: NDArray[np.int32], rows: NDArray[np.int32], tables: GroupedTables, into: Survey) -> int | None:
    """Adds symbols (n,) with table rows (n,) to what is known; returns BAD_INDEX, or what `collect` takes."""
    if rows.size and not 0 <= int(rows.min()) <= int(rows.max()) < tables.rows:
        return BAD_INDEX
    size = tables.rows + 1
    into.counts += np.bincount(rows, minlength=size)
    into.others += np.bincount(rows[symbols != tables.mode[rows]], minlength=size)
    place = tables.start[rows] + _positions(symbols.astype(np.int64), rows, tables)
    np.add.at(into.costs, rows, (tables.priced[place] >> np.uint64(32)).astype(np.int64))
    return None


def _positions(values: NDArray[np.int64], rows: NDArray[np.int32], tables: GroupedTables) -> NDArray[np.int64]:
    """Positions in their rows, escapes for what is outside."""
    position = values - tables.offset[rows]
    inside = (position >= 0) & (position < tables.escape[rows])
    return np.where(inside, position, tables.escape[rows])


def collect(
    symbols: NDArray[np.int32],
    rows: NDArray[np.int32],
    quiet: NDArray[np.bool_],
    tables: GroupedTables,
    surveyed: None,
) -> list[List]:
    """The lists that code a section, in the decoder's order; one of them, the main list, is shared."""
    is_quiet = quiet[rows]
    exception = is_quiet & (symbols != tables.mode[rows])
    lists: list[List] = []
    if is_quiet.any():
        lists += [(entries, False) for entries in exception_lists(np.cumsum(is_quiet)[exception] - 1)]
    (at,) = np.nonzero(~is_quiet | exception)
    row = np.where(is_quiet[at], tables.rows, rows[at])
    value = symbols[at].astype(np.int64) - np.where(is_quiet[at], tables.mode[rows[at]], 0)
    position = _positions(value, row, tables)
    lists.append((tables.packed[tables.start[row] + position], True))
    (escaped,) = np.nonzero(position == tables.escape[row])
    if len(escaped):
        lists += escape_lists(value[escaped], row[escaped], tables)
    return lists


def exception_lists(places: NDArray[np.int64]) -> list[NDArray[np.uint32]]:
    """The lists that say which quiet symbols are exceptions: those with the numbers `places`, rising."""
    if len(places) == 0:
        return [field_entries(np.array([0]), 5)]
    gaps = places.copy()
    gaps[1:] -= places[:-1] + 1
    sizes = _WIDTHS * (len(gaps) + (gaps // ((1 << _WIDTHS[:, None]) - 1)).sum(axis=1))
    bits = int(sizes.argmin()) + 1
    ones = (1 << bits) - 1
    ends = (gaps // ones + 1).cumsum()
    count = int(ends[-1])
    fields, widths = np.full(4 + count, ones), np.full(4 + count, bits)
    fields[0], widths[0] = count.bit_length(), 5
    fields[1:4], widths[1:4] = _head_fields(count, bits)
    fields[ends + 3] = gaps % ones
    entries = field_entries(fields, widths)
    return [entries[:1], entries[1:4], entries[4:]]


def escape_lists(values: NDArray[np.int64], rows: NDArray[np.int32], tables: GroupedTables) -> list[List]:
    """The lists of escaped values (k,) of table rows (k,)."""
    position = values - tables.offset[rows]
    raw = np.where(position < 0, -2 * position - 1, 2 * (position - tables.escape[rows]))
    return [(entries, False) for entries in escape_entries(raw, count_digits(raw))]


class _Encoder:
    """States x (groups, lanes), and the words put out so far, for each group the last one last."""

    def __init__(self, groups: int, lanes: int) -> None:
        self.groups, self.lanes = groups, lanes
        self.x = np.full((groups, lanes), LOWER, np.int64)
        self.out: list[list[int]] = [[] for _ in range(groups)]

    def step(self, group: int, entries: NDArray[np.uint32]) -> None:
        packed = entries.astype(np.int64)
        freq, low = (packed >> 16) + 1, packed & 0xFFFF
        x = self.x[group, : len(packed)]
        full = x >> 16 >= freq
        self.out[group] += (x[full] & 0xFFFF)[::-1].tolist()
        x = np.where(full, x >> 16, x)
        self.x[group, : len(packed)] = (x // freq << 16) + x % freq + low

    def code(self, entries: NDArray[np.uint32], shared: bool, working: int) -> None:
        """A list, or the rest of one, in steps of `working` lanes of each group, from the last to the first."""
        groups = self.groups if shared else 1
        for chunk in range(-(-len(entries) // working) - 1, -1, -1):
            self.step(chunk % groups, entries[chunk * working : (chunk + 1) * working])

    def fan(self, lists: list[List]) -> tuple[int, int, list[int]] | None:
        """Codes the end with ever more lanes, each new one starting with a word of those before.

        Returns the number of the list in which all lanes have come to work, how many of its symbols are left, and the
        stages as in `Parts`; None if the lists do not suffice.
        """
        working, steps = 1, [0]
        for number in range(len(lists) - 1, -1, -1):
            entries, shared = lists[number]
            if not shared:
                self.code(entries, False, working)
                continue
            left = len(entries)
            while left:
                across = working * self.groups
                if left % (2 * across) == 0 and min(map(len, self.out)) >= working:
                    for group, words in enumerate(self.out):
                        self.x[group, working : 2 * working] = LOWER + np.array(words[: -working - 1 : -1])
                        del words[-working:]
                    working *= 2
                    if working == self.lanes:
                        return number, left, [left // (working * self.groups), *steps[:0:-1]]
                    steps.append(0)
                    continue
                begin = (left - 1) // across * across
                self.code(entries[begin:left], True, working)
                steps[-1] += 1
                left = begin
        return None


@dataclass
class Begun:
    """An encoder whose lanes all work: x (groups, lanes), words put out so far, how many lists are still whole, and how
    many symbols of the next are left; `fan` and `stages` as in `Parts`."""

    x: NDArray[np.int64]
    out: list[list[int]]
    number: int
    left: int
    fan: int
    stages: list[int]


def begin_push(lists: list[List], groups: int, lanes: int) -> Begun:
    """Codes the end of the lists, up to where all lanes work; nothing, if they do so from the start."""
    encoder = _Encoder(groups, lanes)
    found = encoder.fan(lists) if lanes > 1 else None
    if found is None:
        encoder = _Encoder(groups, lanes)
        return Begun(encoder.x, encoder.out, len(lists), 0, -1, [])
    number, left, stages = found
    return Begun(encoder.x, encoder.out, number, left, sum(shared for _, shared in lists[:number]), stages)


def push(
    lists: list[List], groups: int, lanes: int
) -> tuple[NDArray[np.uint32], list[NDArray[np.uint16]], int, list[int]]:
    """Encodes lists; returns the states' upper halves (groups, lanes), each group's words, `fan` and `stages`."""
    begun = begin_push(lists, groups, lanes)
    encoder = _Encoder(groups, lanes)
    encoder.x, encoder.out = begun.x, begun.out
    if begun.left:
        encoder.code(lists[begun.number][0][: begun.left], True, lanes)
    for entries, shared in lists[: begun.number][::-1]:
        encoder.code(entries, shared, lanes)
    words = [np.array([*(x & 0xFFFF), *out[::-1]], np.uint16) for x, out in zip(encoder.x, encoder.out, strict=True)]
    return (encoder.x >> 16).astype(np.uint32), words, begun.fan, begun.stages
