"""The public functions of the grouped coder: arguments, choice of implementation, RansError."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lalic_kernels.rans.grouped import layout, reference
from lalic_kernels.rans.grouped.layout import GROUP, MAX_GROUPS, MAX_LEVEL, Survey, grouped_tables
from lalic_kernels.rans.op import RansError, _check_section, _check_tables, _index_error, integer_array
from lalic_kernels.rans.tables import CodingTables

_BACKENDS = ("numba", "numpy")
FAULTS = {
    reference.OUT_OF_WORDS: "the stream ends before its symbols do",
    reference.BAD_LENGTH: "a list of exceptions is longer than the symbols that it is about",
    reference.BAD_PLACE: "a list of exceptions goes beyond its symbols",
    reference.BAD_COUNT: "an escaped value claims more digits than an int32 has",
    reference.BAD_DIGIT: "an escaped value begins with a zero digit",
    reference.TOO_LARGE: "an escaped value does not fit int32",
    reference.BAD_LANE: "a lane that comes to rest is not where encoding begins",
}


@functools.cache
def _numba_backend() -> ModuleType | None:
    try:
        from lalic_kernels.rans.grouped import cpu
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("numba", "llvmlite"):
            raise
        return None
    return cpu


def _backend(name: str | None) -> Any:
    if name is not None and name not in _BACKENDS:
        raise ValueError(f"backend must be None, 'numba' or 'numpy', but it is {name!r}")
    if name == "numpy":
        return reference
    compiled = _numba_backend()
    if compiled is None and name == "numba":
        raise ValueError("backend is 'numba', but numba is not installed; install it or use backend='numpy'")
    return reference if compiled is None else compiled


def encode(sections: Iterable[tuple[Any, Any]], tables: CodingTables, *, backend: str | None = None) -> bytes:
    """One stream with the symbols of all sections, to be decoded section by section in the same order.

    sections: pairs (symbols, indexes) of int32 arrays or CPU tensors (n,), any n; symbols[i] is coded with row
        indexes[i] of `tables`. Any int32 symbol can be coded; those outside their row cost some bytes each.
    backend: None (the compiled coder where numba is installed, else numpy), "numba" or "numpy". The bytes are equal,
        and equal to those of `gpu_encode.encode` for tensors on a GPU.

    No symbols at all make b"". Raises ValueError, naming the argument, for arguments that do not fit.
    """
    return encode_with(sections, tables, None, backend=backend)


def encode_with(
    sections: Iterable[tuple[Any, Any]],
    tables: CodingTables,
    choice: tuple[int, int, int] | None,
    *,
    backend: str | None = None,
) -> bytes:
    """`encode` with a choice of (groups, lanes of a group, level of quiet rows) that is not its own.

    Any decoder reads the result. Lanes are a power of two up to 32, and 32 where there are several groups (up to 1024);
    the level is 0 (no quiet rows) to 15. Raises ValueError otherwise.
    """
    _check_tables(tables)
    coder = _backend(backend)
    if choice is not None:
        check_choice(choice)
    numbered = [(number, *_check_section(number, section)) for number, section in enumerate(sections)]
    numbered = [one for one in numbered if len(one[1])]  # a section without symbols leaves no trace
    if not numbered:
        return b""
    own = grouped_tables(tables)
    found = Survey.empty(own)
    surveyed = []
    for number, symbols, indexes in numbered:
        surveyed.append(coder.survey(symbols, indexes, own, found))
        if isinstance(surveyed[-1], int):
            raise _index_error(f"indexes of sections[{number}]", indexes, tables)
    groups, lanes, level = choice or choose(found, own, len(numbered))
    quiet = own.quiet[level]
    lists = []
    for (_, symbols, indexes), known in zip(numbered, surveyed, strict=True):
        lists += coder.collect(symbols, indexes, quiet, own, known)
    highs, words, fan, stages = coder.push(lists, groups, lanes)
    bounds = np.concatenate([[0], np.cumsum([len(part) for part in words])]).astype(np.int64)
    return layout.pack(layout.Parts(level, fan, stages, highs, np.concatenate(words), bounds))


def choose(found: Survey, tables: layout.GroupedTables, sections: int) -> tuple[int, int, int]:
    """(groups, lanes of a group, level) of `encode`."""
    return *layout.choose_lanes(found), layout.choose_level(found, tables, sections)


def check_choice(choice: tuple[int, int, int]) -> None:
    """Raises ValueError unless (groups, lanes, level) is one that a stream can have."""
    groups, lanes, level = choice
    sound = 1 <= lanes <= GROUP and not lanes & (lanes - 1) and 1 <= groups <= (MAX_GROUPS if lanes == GROUP else 1)
    if not sound or not 0 <= level <= MAX_LEVEL:
        raise ValueError(
            f"choice must be groups, lanes (a power of two to {GROUP}, and {GROUP} in 2 to {MAX_GROUPS} groups) and a "
            f"level of 0 to {MAX_LEVEL}, but it is {choice}"
        )


class Decoder:
    """Reads a stream of encode(): decode() once for each section, in the encoder's order, then finish().

    data: bytes-like; the stream, nothing before or after it. tables: those of the encoder. backend: as for encode().

    Raises RansError for a stream that cannot be right; after one, the decoder is of no more use and says so. Memory
    taken is a small multiple of len(data) and of the symbols asked for, whatever the stream says.
    """

    def __init__(self, data: bytes, tables: CodingTables, *, backend: str | None = None) -> None:
        _check_tables(tables)
        self._coder = _backend(backend)
        self._tables = grouped_tables(tables)
        self._of = tables
        self._closed = ""
        self._empty = True
        parts = parts_of(data)
        self._state = None if parts is None else self._coder.start(parts)
        self._quiet = self._tables.quiet[0 if parts is None else parts.level]

    def decode(self, indexes: Any) -> NDArray[np.int32]:
        """The next section's symbols, int32 (n,), for its `indexes` (n,), an int32 array or CPU tensor.

        Raises ValueError for indexes outside the tables' rows, RansError if the stream cannot be right.
        """
        self._check_open()
        rows = integer_array(indexes, "indexes")
        out = np.empty(len(rows), np.int32)
        if len(rows) == 0:
            return out
        if self._state is None:
            raise self._fault(f"the stream is empty, but {len(rows)} symbols are asked of it")
        self._empty = False
        found = self._coder.decode_section(self._state, rows, self._quiet, self._tables, out)
        if found == reference.BAD_INDEX:
            self._closed = "decode() was called with indexes outside the tables before"
            raise _index_error("indexes", rows, self._of)
        if found < 0:
            raise self._fault(FAULTS[found])
        return out

    def finish(self) -> None:
        """Raises RansError unless the whole stream has been used and all states are where encoding may begin."""
        self._check_open()
        self._closed = "finish() has been called already"
        if self._state is None:
            return
        if self._empty:
            raise RansError("the stream holds something, but no symbols were asked of it")
        left = self._coder.words_left(self._state)
        if left:
            raise RansError(f"{left} words of the stream are left after its last symbol")
        if not self._coder.ended(self._state):
            raise RansError("the states do not return to their start: the stream is damaged or for other tables")

    def _check_open(self) -> None:
        if self._closed:
            raise RansError(f"this decoder cannot go on: {self._closed}")

    def _fault(self, sentence: str) -> RansError:
        self._closed = sentence
        return RansError(sentence)


def parts_of(data: Any) -> layout.Parts | None:
    """The parts of a stream, None for an empty one. Raises ValueError for what is no bytes, RansError."""
    try:
        stream = np.frombuffer(data, np.uint8)
    except (TypeError, ValueError, BufferError) as error:
        raise ValueError(f"data must be bytes, but it is {type(data).__name__}: {error}") from None
    return layout.unpack(stream) if len(stream) else None
