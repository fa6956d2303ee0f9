"""The functions of reference.py in compiled loops: the same bytes, 10 to 100 times faster."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lalic_kernels.rans import cpu_loops as loops
from lalic_kernels.rans import reference as ref
from lalic_kernels.rans.layout import LOWER, Parts
from lalic_kernels.rans.tables import CodingTables


@dataclass
class State:
    """The state of decoding. x, at, end: those of the reference. words: those of the reference, padded for each group.

    control: (working, steps_left, index in steps, section, ramp) int64. steps: `ramp_steps` of the stream.
    """

    x: NDArray[np.uint32]
    words: NDArray[np.uint16]
    at: NDArray[np.int64]
    end: NDArray[np.int64]
    control: NDArray[np.int64]
    steps: NDArray[np.int64]


def start(parts: Parts) -> State:
    """The first state of decoding, after every lane has read its first word."""
    groups, lanes = parts.highs.shape
    sizes = np.diff(parts.bounds)
    shift = np.arange(groups) * lanes  # padding: a step loads a word for each lane, needed or not
    words = np.zeros(len(parts.words) + groups * lanes, np.uint16)
    for group, (begin, end) in enumerate(zip(parts.bounds.tolist(), parts.bounds[1:].tolist(), strict=False)):
        words[begin + shift[group] : end + shift[group]] = parts.words[begin:end]
    at = parts.bounds[:-1] + shift
    first = words[at[:, None] + np.arange(lanes)]  # unpack has checked that there are enough
    x = parts.highs << np.uint32(16) | first
    control = np.array([lanes, -1, 0, 0, parts.ramp], np.int64)
    return State(x, words, at + lanes, at + sizes, control, np.array(parts.ramp_steps, np.int64))


def ended(state: State) -> bool:
    """Whether all lanes that worked to the end have the state 65536, with which encoding begins."""
    return bool((state.x[:, : state.control[loops.WORKING]] == LOWER).all())


def decode_section(state: State, rows: NDArray[np.int32], tables: CodingTables, out: NDArray[np.int32]) -> int:
    """Decode a section of symbols with table rows (n,) into `out` (n,); returns 0 or a fault."""
    escapes = loops.decode(
        state.x, state.words, state.at, state.end, state.control, state.steps, rows,
        tables.packed, tables.coarse, tables.bias, out,
    )  # fmt: skip
    if escapes <= 0:
        return int(escapes)
    escaped = np.flatnonzero(out - tables.offset[rows].astype(np.int64) == tables.escape[rows])

    def fields(widths: NDArray[np.int64]) -> NDArray[np.int64]:
        values = np.empty(len(widths), np.int64)
        if loops.fields(state.x, state.words, state.at, state.end, state.control[loops.WORKING], widths, values):
            raise ref.OutOfWords
        return values

    try:
        raw = ref.raw_escapes(fields, len(escaped))
    except ref.OutOfWords:
        return ref.OUT_OF_WORDS
    if isinstance(raw, int):
        return raw
    value = ref.escaped_values(raw, rows[escaped], tables)
    if (value != value.astype(np.int32)).any():
        return ref.TOO_LARGE
    out[escaped] = value
    return 0


def look_up(
    symbols: NDArray[np.int32], rows: NDArray[np.int32], tables: CodingTables, entries: NDArray[np.uint32]
) -> tuple[int, int]:
    """Fill `entries` (n,) with each symbol's interval; returns the number of escapes or BAD_INDEX, and the cost."""
    escapes, cost = loops.look_up(symbols, rows, tables.start, tables.offset, tables.escape, tables.priced, entries)
    return int(escapes), int(cost)


def push(
    lists: list[ref.Intervals], groups: int, lanes: int
) -> tuple[NDArray[np.uint32], list[NDArray[np.uint16]], int, list[int]]:
    """Encode lists; returns the states' upper halves (groups, lanes), each group's words, `ramp` and `ramp_steps`."""
    entries = np.concatenate([part for part, _ in lists]) if len(lists) > 1 else lists[0][0]
    shared = np.array([whole for _, whole in lists])
    bounds = np.array([0, *itertools.accumulate(len(part) for part, _ in lists)])
    # A symbol writes one word at most, a lane one more at the end. A word is stored first, then kept only if needed.
    capacity = 4 * lanes + sum(-(-len(part) // (groups * lanes)) * lanes + 4 * lanes for part, whole in lists if whole)
    ends = sum(len(part) for part, whole in lists if not whole) + capacity * np.arange(1, groups + 1)
    words = np.empty(int(ends[-1]), np.uint16)
    x = np.full((groups, lanes), LOWER, np.uint32)
    free = ends.copy()
    steps = np.zeros(8, np.int64)
    number = int(loops.push(entries, bounds, shared, x, words, free, ends, steps))
    ramp = int(shared[:number].sum()) if number >= 0 else -1
    parts = [words[begin:end] for begin, end in zip(free.tolist(), ends.tolist(), strict=True)]
    log = lanes.bit_length() - 1
    return x >> np.uint32(16), parts, ramp, steps[:log][::-1].tolist() if number >= 0 else []
