"""The reference's functions by compiled loops: the same bytes, ten to a hundred times as fast."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lalic_kernels.rans.escapes import MAX_DIGITS, count_digits
from lalic_kernels.rans.grouped import cpu_loops as loops
from lalic_kernels.rans.grouped import reference as ref
from lalic_kernels.rans.grouped.layout import GroupedTables, Parts, Survey


@dataclass
class State:
    """As reference.State, in arrays; control is (working, left, place in stages, section, fan) as int64."""

    x: NDArray[np.uint32]
    words: NDArray[np.uint16]
    at: NDArray[np.int64]
    end: NDArray[np.int64]
    control: NDArray[np.int64]
    stages: NDArray[np.int64]


def start(parts: Parts) -> State:
    """As reference.start."""
    groups, lanes = parts.highs.shape
    sizes = np.diff(parts.bounds)
    shift = np.arange(groups) * lanes  # behind each group's words there are some of padding, see _main
    words = np.zeros(len(parts.words) + groups * lanes, np.uint16)
    for group, (begin, end) in enumerate(zip(parts.bounds.tolist(), parts.bounds[1:].tolist(), strict=False)):
        words[begin + shift[group] : end + shift[group]] = parts.words[begin:end]
    at = parts.bounds[:-1] + shift
    first = words[at[:, None] + np.arange(lanes)]  # unpack has seen to it that there are so many
    state = parts.highs << np.uint32(16) | first
    control = np.array([lanes, -1, 0, 0, parts.fan], np.int64)
    return State(state, words, at + lanes, at + sizes, control, np.array(parts.stages, np.int64))


def ended(state: State) -> bool:
    """As reference.ended."""
    return bool((state.x[:, : state.control[loops.WORKING]] == 1 << 16).all())


words_left = ref.words_left


def decode_section(
    state: State, rows: NDArray[np.int32], quiet: NDArray[np.bool_], tables: GroupedTables, out: NDArray[np.int32]
) -> int:
    """As reference.decode_section."""
    row, place, found = np.empty((3, len(rows) + 1), np.int32)
    escapes, total = loops.decode(
        state.x, state.words, state.at, state.end, state.control, state.stages, rows, quiet, tables.mode,
        tables.packed, tables.coarse, tables.bias, row, place, found, out,
    )  # fmt: skip
    if escapes <= 0:
        return int(escapes)
    if not quiet[rows].any():
        row, place = rows, np.arange(total, dtype=np.int32)
    row, place = row[:total], place[:total]
    base = np.where(row == tables.rows, tables.mode[rows[place]], 0).astype(np.int64)
    escaped = np.flatnonzero(out[place] - base == tables.offset[row] + tables.escape[row].astype(np.int64))

    def fields(widths: NDArray[np.int64]) -> NDArray[np.int64] | None:
        values = np.empty(len(escaped), np.int64)
        short = loops.fields(state.x, state.words, state.at, state.end, state.control[loops.WORKING], widths, values)
        return None if short else values

    digits = fields(np.full(len(escaped), 4))
    if digits is None:
        return ref.OUT_OF_WORDS
    if (digits > MAX_DIGITS).any():
        return ref.BAD_COUNT
    raw = np.zeros(len(escaped), np.int64)
    for first, most in ((0, 16), (16, 16), (32, 4)):
        part = fields(np.clip(4 * digits - first, 0, most))
        if part is None:
            return ref.OUT_OF_WORDS
        raw |= part << first
    if (count_digits(raw) != digits).any():
        return ref.BAD_DIGIT
    value = ref.escaped_values(raw, row[escaped], base[escaped], tables)
    if (value != value.astype(np.int32)).any():
        return ref.TOO_LARGE
    out[place[escaped]] = value
    return 0


def survey(
    symbols: NDArray[np.int32], rows: NDArray[np.int32], tables: GroupedTables, into: Survey
) -> tuple[NDArray[np.uint32], int] | int:
    """As reference.survey; returns each symbol's interval, and how many are escapes."""
    tally = np.zeros(tables.rows + 1, np.int64)
    entries = np.empty(len(rows), np.uint32)
    found = loops.survey(
        symbols,
        rows,
        tables.mode,
        tables.start,
        tables.offset,
        tables.escape,
        tables.priced,
        tally,
        into.costs,
        entries,
    )
    if found < 0:
        return int(found)
    into.counts += tally & 0xFFFFFFFF
    into.others += tally >> 32
    return entries, int(found)


def collect(
    symbols: NDArray[np.int32],
    rows: NDArray[np.int32],
    quiet: NDArray[np.bool_],
    tables: GroupedTables,
    surveyed: tuple[NDArray[np.uint32], int],
) -> list[ref.List]:
    """As reference.collect, which has the sections with escapes. Overwrites what was surveyed."""
    entries, escapes = surveyed
    if escapes:
        return ref.collect(symbols, rows, quiet, tables, None)
    if not quiet.any():
        return [(entries, True)]
    numbers = np.empty(len(rows), np.int64)
    exceptions = tables.packed[tables.start[tables.rows] :]
    keys = np.where(quiet, tables.mode.astype(np.int64), loops.LOUD)
    total, hidden, others = loops.collect(symbols, rows, keys, exceptions, entries, numbers)
    if total < 0:
        return ref.collect(symbols, rows, quiet, tables, None)
    lists: list[ref.List] = []
    if hidden:
        lists += [(part, False) for part in ref.exception_lists(numbers[:others])]
    return [*lists, (entries[:total], True)]


def push(
    lists: list[ref.List], groups: int, lanes: int
) -> tuple[NDArray[np.uint32], list[NDArray[np.uint16]], int, list[int]]:
    """As reference.push."""
    entries = np.concatenate([part for part, _ in lists]) if len(lists) > 1 else lists[0][0]
    shared = np.array([whole for _, whole in lists])
    bounds = np.array([0, *itertools.accumulate(len(part) for part, _ in lists)])
    # A symbol puts out a word at most, a lane one more at the end; one is written before it is known to be wanted.
    room = 4 * lanes + sum(-(-len(part) // (groups * lanes)) * lanes + 4 * lanes for part, whole in lists if whole)
    tops = sum(len(part) for part, whole in lists if not whole) + room * np.arange(1, groups + 1)
    words = np.empty(int(tops[-1]), np.uint16)
    x = np.full((groups, lanes), 65536, np.uint32)
    free = tops.copy()
    stages = np.zeros(8, np.int64)
    number = int(loops.push(entries, bounds, shared, x, words, free, tops, stages))
    fan = int(shared[:number].sum()) if number >= 0 else -1
    parts = [words[begin:end] for begin, end in zip(free.tolist(), tops.tolist(), strict=True)]
    log = lanes.bit_length() - 1
    return x >> np.uint32(16), parts, fan, stages[:log][::-1].tolist() if number >= 0 else []
