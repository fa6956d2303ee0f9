"""The rANS coder's public functions: argument checks, choice of backend, errors. README.md defines the stream."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lalic_kernels import installed
from lalic_kernels.rans import layout, reference
from lalic_kernels.rans.layout import GROUP, MAX_GROUPS, RansError
from lalic_kernels.rans.tables import COST_UNIT, CodingTables, integer_array

_BACKENDS = ("numba", "numpy")
FAULTS = {
    reference.OUT_OF_WORDS: "the stream ends before its symbols do",
    reference.BAD_COUNT: "an escaped value has more digits than an int32",
    reference.BAD_DIGIT: "an escaped value begins with a zero digit",
    reference.TOO_LARGE: "an escaped value does not fit int32",
    reference.BAD_LANE: "a lane does not end in the state in which encoding begins",
}


def _numba_backend() -> ModuleType | None:
    if not installed.NUMBA:
        return None
    from lalic_kernels.rans import cpu

    return cpu


def available_backends() -> tuple[str, ...]:
    """The values of `backend=` that work on this machine; the first one is the default."""
    return _BACKENDS if _numba_backend() is not None else _BACKENDS[1:]


def backend_of(name: str | None) -> Any:
    """The file that codes: cpu.py or reference.py; None for compiled loops if numba is installed."""
    if name is not None and name not in _BACKENDS:
        raise ValueError(f"backend must be None, 'numba' or 'numpy', but it is {name!r}")
    if name == "numpy":
        return reference
    compiled = _numba_backend()
    if compiled is None and name == "numba":
        raise ValueError(f"backend is 'numba', but {installed.WHY_NO_NUMBA}; use backend='numpy'")
    return reference if compiled is None else compiled


def check_tables(tables: Any) -> None:
    """Raise ValueError if `tables` is not CodingTables."""
    if not isinstance(tables, CodingTables):
        raise ValueError(f"tables must be CodingTables, but it is {type(tables).__name__}")


def _check_section(number: int, section: Any) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    try:
        symbols, indexes = section
    except (TypeError, ValueError):
        raise ValueError(f"sections[{number}] must be a pair (symbols, indexes)") from None
    symbols = integer_array(symbols, f"symbols of sections[{number}]")
    indexes = integer_array(indexes, f"indexes of sections[{number}]")
    if symbols.shape != indexes.shape:
        raise ValueError(
            f"sections[{number}] must have an index for each symbol, but it has {symbols.size} symbols and "
            f"{indexes.size} indexes"
        )
    return symbols, indexes


def check_lanes(lanes: tuple[int, int]) -> None:
    """Raise ValueError if a stream cannot have these (groups, lanes per group)."""
    groups, per_group = lanes
    max_groups = MAX_GROUPS if per_group == GROUP else 1
    if not (1 <= per_group <= GROUP and not per_group & (per_group - 1) and 1 <= groups <= max_groups):
        raise ValueError(
            f"lanes must be (1, a power of two up to {GROUP}) or (up to {MAX_GROUPS} groups, {GROUP}), but is {lanes}"
        )


def _index_error(name: str, indexes: NDArray[np.int32], tables: CodingTables) -> ValueError:
    return ValueError(f"{name} must lie in 0..{tables.rows - 1}, but range from {indexes.min()} to {indexes.max()}")


def encode(
    sections: Iterable[tuple[Any, Any]],
    tables: CodingTables,
    *,
    lanes: tuple[int, int] | None = None,
    backend: str | None = None,
) -> bytes:
    """Encode all sections into one stream, to be decoded section by section in the same order.

    Args:
        sections: pairs (symbols, indexes) of int32 arrays or CPU tensors (n,), any n; symbols[i] is coded with row
            indexes[i] of `tables`. Any int32 symbol can be coded; one outside of its row costs a few bytes.
        tables: the distributions.
        lanes: (groups, lanes per group) that decode in parallel: one group of 1, 2, 4, 8, 16 or 32 lanes, or up to 1024
            groups of 32. None: as many as cost 1 % of the payload.
        backend: None ("numba" if it is installed, else "numpy"), "numba" or "numpy". All give the same bytes, and so
            does `gpu.encode` for tensors on a GPU.

    Returns:
        The stream; b"" if there are no symbols.

    Raises:
        ValueError: an argument does not fit; the message names it.
    """
    check_tables(tables)
    coder = backend_of(backend)
    if lanes is not None:
        check_lanes(lanes)
    lists: list[reference.Intervals] = []
    total = 0
    for number, section in enumerate(sections):
        symbols, indexes = _check_section(number, section)
        if not len(symbols):  # a section without symbols adds nothing to the stream
            continue
        entries = np.empty(len(symbols), np.uint32)
        escapes, cost = coder.look_up(symbols, indexes, tables, entries)
        if escapes == reference.BAD_INDEX:
            raise _index_error(f"indexes of sections[{number}]", indexes, tables)
        raw = reference.raw_values(entries, symbols, indexes, tables) if escapes else np.zeros(0, np.int64)
        lists += reference.section_lists(entries, raw)
        total += cost
    if not lists:
        return b""
    highs, words, ramp, steps = coder.push(lists, *(lanes or layout.choose_lanes(total)))
    bounds = np.concatenate([[0], np.cumsum([len(part) for part in words])]).astype(np.int64)
    return layout.pack(layout.Parts(ramp, steps, highs, np.concatenate(words), bounds))


class Decoder:
    """Decoder of a stream of encode(): call decode() once for each section, in the encoder's order, then finish().

    Memory use is a small multiple of len(data) and of the number of requested symbols, for any content of the stream.

    Args:
        data: bytes-like; the stream, with nothing before or after it.
        tables: those of the encoder.
        backend: None ("numba" if it is installed, else "numpy"), "numba" or "numpy".

    Raises:
        RansError: the stream is damaged. Every later call raises RansError too.
        ValueError: an argument does not fit.
    """

    def __init__(self, data: bytes, tables: CodingTables, *, backend: str | None = None) -> None:
        check_tables(tables)
        self._coder = backend_of(backend)
        self._tables = tables
        self._closed = ""
        self._empty = True
        parts = parts_of(data)
        self._state = None if parts is None else self._coder.start(parts)

    def decode(self, indexes: Any) -> NDArray[np.int32]:
        """The next section's symbols, int32 (n,), for its `indexes` (n,), an int32 array or CPU tensor.

        Raises:
            ValueError: an index is not a row of the tables.
            RansError: the stream is damaged.
        """
        self._check_open()
        rows = integer_array(indexes, "indexes")
        out = np.empty(len(rows), np.int32)
        if len(rows) == 0:
            return out
        if self._state is None:
            raise self._fault(f"the stream is empty, but {len(rows)} symbols are requested")
        self._empty = False
        fault = self._coder.decode_section(self._state, rows, self._tables, out)
        if fault == reference.BAD_INDEX:
            self._closed = "decode() was called with indexes outside the tables before"
            raise _index_error("indexes", rows, self._tables)
        if fault < 0:
            raise self._fault(FAULTS[fault])
        return out

    def finish(self) -> None:
        """Raise RansError if words of the stream are left, or a final state is not the one where encoding begins."""
        self._check_open()
        self._closed = "finish() has been called already"
        if self._state is None:
            return
        if self._empty:
            raise RansError("the stream is not empty, but no symbols were requested")
        left = reference.words_left(self._state)
        if left:
            raise RansError(f"{left} words of the stream are left after its last symbol")
        if not self._coder.ended(self._state):
            raise RansError("the states do not return to their start: the stream is damaged or for other tables")

    def _check_open(self) -> None:
        if self._closed:
            raise RansError(f"this decoder cannot go on: {self._closed}")

    def _fault(self, message: str) -> RansError:
        self._closed = message
        return RansError(message)


def parts_of(data: Any) -> layout.Parts | None:
    """The parts of a stream; None for an empty one.

    Raises:
        ValueError: data is not bytes-like.
        RansError: the stream is damaged.
    """
    try:
        stream = np.frombuffer(data, np.uint8)
    except (TypeError, ValueError, BufferError) as error:
        raise ValueError(f"data must be bytes, but it is {type(data).__name__}: {error}") from None
    return layout.unpack(stream) if len(stream) else None


def ideal_bits(symbols: Any, indexes: Any, tables: CodingTables) -> float:
    """Code length in bits of symbols (n,) with table rows indexes (n,): -log2 of the probabilities, plus escapes.

    Raises:
        ValueError: an argument does not fit; the message names it.
    """
    check_tables(tables)
    symbols, indexes = _check_section(0, (symbols, indexes))
    entries = np.empty(len(symbols), np.uint32)
    escapes, cost = reference.look_up(symbols, indexes, tables, entries)
    if escapes == reference.BAD_INDEX:
        raise _index_error("indexes", indexes, tables)
    digits = layout.count_digits(reference.raw_values(entries, symbols, indexes, tables))
    return cost / (1 << COST_UNIT) + 4.0 * (len(digits) + int(digits.sum()))
