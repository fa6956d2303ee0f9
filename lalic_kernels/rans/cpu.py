"""The functions of reference.py in compiled loops: the same bytes, 10 to 100 times faster."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

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


def begin_push(lists: list[ref.Intervals], groups: int, lanes: int) -> ref.FullEncoder:
    """Encode the end of the lists until all lanes work; nothing if the lists are too short for a ramp."""
    full = ref.FullEncoder(ref.Encoder(groups, lanes), len(lists), 0, -1, [])
    if lanes == 1:
        return full
    m = _memory(lists, groups, lanes)
    number, left = loops.begin_push(m.entries, m.bounds, m.shared, m.x, m.words, m.free, m.ends, m.steps)
    if number < 0:
        return full
    full.encoder.x[:] = m.x
    full.encoder.out = [part[::-1].tolist() for part in m.parts()]
    full.number, full.left = int(number), int(left)
    full.ramp, full.ramp_steps = int(m.shared[:number].sum()), m.ramp_steps()
    return full


def push(
    lists: list[ref.Intervals], groups: int, lanes: int
) -> tuple[NDArray[np.uint32], list[NDArray[np.uint16]], int, list[int]]:
    """Encode lists; returns the states' upper halves (groups, lanes), each group's words, `ramp` and `ramp_steps`."""
    m = _memory(lists, groups, lanes)
    number = int(loops.push(m.entries, m.bounds, m.shared, m.x, m.words, m.free, m.ends, m.steps))
    ramp = int(m.shared[:number].sum()) if number >= 0 else -1
    return m.x >> np.uint32(16), m.parts(), ramp, m.ramp_steps() if number >= 0 else []


class _Memory(NamedTuple):
    """What the encoding loops read and write: all lists in one, states, and words, each group's from its end down."""

    entries: NDArray[np.uint32]
    bounds: NDArray[np.int64]  # of the lists
    shared: NDArray[np.bool_]
    x: NDArray[np.uint32]
    words: NDArray[np.uint16]
    free: NDArray[np.int64]  # each group's first word
    ends: NDArray[np.int64]  # and the end of its words
    steps: NDArray[np.int64]

    def parts(self) -> list[NDArray[np.uint16]]:
        """The words of each group."""
        return [self.words[begin:end] for begin, end in zip(self.free.tolist(), self.ends.tolist(), strict=True)]

    def ramp_steps(self) -> list[int]:
        """`ramp_steps` of the stream, if there is a ramp."""
        return self.steps[: self.x.shape[1].bit_length() - 1][::-1].tolist()


def _memory(lists: list[ref.Intervals], groups: int, lanes: int) -> _Memory:
    entries = np.concatenate([part for part, _ in lists]) if len(lists) > 1 else lists[0][0]
    shared = np.array([whole for _, whole in lists])
    bounds = np.array([0, *itertools.accumulate(len(part) for part, _ in lists)])
    # A symbol writes one word at most, a lane one more at the end. A word is stored first, then kept only if needed.
    capacity = 4 * lanes + sum(-(-len(part) // (groups * lanes)) * lanes + 4 * lanes for part, whole in lists if whole)
    ends = sum(len(part) for part, whole in lists if not whole) + capacity * np.arange(1, groups + 1)
    words = np.empty(int(ends[-1]), np.uint16)
    x = np.full((groups, lanes), LOWER, np.uint32)
    return _Memory(entries, bounds, shared, x, words, ends.copy(), ends, np.zeros(8, np.int64))
