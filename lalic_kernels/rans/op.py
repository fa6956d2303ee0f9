"""The public functions: arguments are checked here, the stream is put together and taken apart here (see README.md)."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lalic_kernels.rans import reference
from lalic_kernels.rans.escapes import count_digits, escape_values, pack_backwards, write_nibbles
from lalic_kernels.rans.tables import COST_UNIT, CodingTables, integer_array

MAX_LANES = 1 << 15
MAX_CHOSEN_LANES = 1024  # a CPU gains nothing from more
STATE_BYTES = 4  # on average 3 of them are overhead, for a final state carries 0 to 16 bits of the message
HEADER_BYTES = 4  # none with one lane
LANE_SHARE = 0.003  # of the payload; with rANS's own 0.2 % the whole stays under 0.5 % of the ideal

_BACKENDS = ("numba", "numpy")
_FAULTS = {
    reference.OUT_OF_WORDS: "the stream ends before its symbols do",
    reference.OUT_OF_NIBBLES: "the stream ends before its escaped values do",
    reference.BAD_COUNT: "an escaped value claims more digits than an int32 has",
    reference.BAD_DIGIT: "an escaped value begins with a zero digit",
    reference.TOO_LARGE: "an escaped value does not fit int32",
}


class RansError(ValueError):
    """A stream that no encoder wrote, or not for these tables and indexes. The message is one sentence."""


@functools.cache
def _numba_backend() -> ModuleType | None:
    try:
        from lalic_kernels.rans import cpu
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("numba", "llvmlite"):
            raise
        return None
    return cpu


def available_backends() -> tuple[str, ...]:
    """Names that `backend=` takes here, the one which `backend=None` stands for first."""
    return _BACKENDS if _numba_backend() is not None else _BACKENDS[1:]


def _backend(name: str | None) -> Any:
    """The module for `name`; None stands for numba, or for numpy where numba is not installed (the bytes are equal)."""
    if name is not None and name not in _BACKENDS:
        raise ValueError(f"backend must be None, 'numba' or 'numpy', but it is {name!r}")
    if name == "numpy":
        return reference
    compiled = _numba_backend()
    if compiled is None and name == "numba":
        raise ValueError("backend is 'numba', but numba is not installed; install it or use backend='numpy'")
    return reference if compiled is None else compiled


def _check_tables(tables: Any) -> None:
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


def _index_error(name: str, indexes: NDArray[np.int32], tables: CodingTables) -> ValueError:
    return ValueError(f"{name} must lie in 0..{tables.rows - 1}, but run from {indexes.min()} to {indexes.max()}")


def choose_lanes(payload_bytes: float) -> int:
    """The largest power of two whose states cost at most 0.3 % of the payload, at least 1, at most 1024."""
    lanes = 1
    while lanes < MAX_CHOSEN_LANES and HEADER_BYTES + 2 * lanes * STATE_BYTES <= LANE_SHARE * payload_bytes:
        lanes *= 2
    return lanes


def encode(
    sections: Iterable[tuple[Any, Any]], tables: CodingTables, *, lanes: int | None = None, backend: str | None = None
) -> bytes:
    """One stream with the symbols of all sections, to be decoded section by section in the same order.

    sections: pairs (symbols, indexes) of int32 arrays or CPU tensors (n,), any n; symbols[i] is coded with row
        indexes[i] of `tables`. Any int32 symbol can be coded; those outside their row cost some bytes each.
    lanes: number of interleaved states, a power of two up to 32768; None chooses by payload (see choose_lanes).
    backend: None (the compiled coder where numba is installed, else numpy), "numba" or "numpy". The bytes are equal.

    No symbols at all make b"". Raises ValueError, naming the argument, for arguments that do not fit.
    """
    _check_tables(tables)
    coder = _backend(backend)
    if lanes is not None and (
        isinstance(lanes, bool) or not isinstance(lanes, int) or not 1 <= lanes <= MAX_LANES or lanes & (lanes - 1)
    ):
        raise ValueError(f"lanes must be None or a power of two in 1..{MAX_LANES}, but it is {lanes!r}")
    pairs = [_check_section(number, section) for number, section in enumerate(sections)]
    bounds = np.concatenate([[0], np.cumsum([len(symbols) for symbols, _ in pairs], dtype=np.int64)]).astype(np.int64)
    if bounds[-1] == 0:
        return b""

    entries = np.empty(int(bounds[-1]), np.uint32)  # one table entry a symbol: frequency and start of its interval
    cost = 0
    raw = [np.zeros(0, np.int64)]
    for number, (symbols, indexes) in enumerate(pairs):
        part = entries[bounds[number] : bounds[number + 1]]
        found, price = coder.look_up(symbols, indexes, tables, part)
        if found == reference.BAD_INDEX:
            raise _index_error(f"indexes of sections[{number}]", indexes, tables)
        if found:
            raw.append(escape_values(part, symbols, indexes, tables))
        cost += price
    nibbles = write_nibbles(np.concatenate(raw))
    if lanes is None:
        lanes = choose_lanes(cost / (8 << COST_UNIT) + len(nibbles) / 2)
    states = np.full(lanes, reference.LOWER, np.uint32)
    words = coder.push(entries, bounds, states)
    header = b"" if lanes == 1 else (lanes.bit_length() - 1).to_bytes(HEADER_BYTES, "little")
    return b"".join([header, states.astype("<u4").tobytes(), words.astype("<u2").tobytes(), pack_backwards(nibbles)])


class Decoder:
    """Reads a stream of encode(): decode() once for each section, in the encoder's order, then finish().

    data: bytes-like; the stream, nothing before or after it. tables: those of the encoder.
    backend: as for encode().

    Raises RansError for a stream that cannot be right; after one, the decoder is of no more use and says so. Memory
    taken is a small multiple of len(data), whatever the stream says.
    """

    def __init__(self, data: bytes, tables: CodingTables, *, backend: str | None = None) -> None:
        _check_tables(tables)
        self._coder = _backend(backend)
        self._tables = tables
        self._closed = ""
        self._empty = True
        try:
            stream = np.frombuffer(data, np.uint8)
        except (TypeError, ValueError, BufferError) as error:
            raise ValueError(f"data must be bytes, but it is {type(data).__name__}: {error}") from None
        self._tail = stream.copy()  # a writable array: numba would compile another version for a read-only one
        self._next_word = self._next_nibble = 0
        if len(stream) == 0:
            self._states = np.zeros(0, np.uint32)
            self._body = 0
            self._words = np.zeros(0, np.uint16)
            return
        if len(stream) < HEADER_BYTES:
            raise RansError(f"the stream has {len(stream)} bytes, too few for a state")
        header = int.from_bytes(stream[:HEADER_BYTES].tobytes(), "little")
        begin, lanes = 0, 1
        if header < reference.LOWER:  # no state, which would be the only lane's
            if not 1 <= header < MAX_LANES.bit_length():
                raise RansError(
                    f"the stream's header is {header}, where only 1 to 15 (log2 of the lanes) has a meaning"
                )
            begin, lanes = HEADER_BYTES, 1 << header
        first = begin + STATE_BYTES * lanes
        if len(stream) < first:
            raise RansError(f"the stream has {len(stream)} bytes, too few for the states of its {lanes} lanes")
        self._states = stream[begin:first].view("<u4").astype(np.uint32)
        if int(self._states.min()) < reference.LOWER:
            raise RansError("a state at the stream's beginning is below 65536, which no encoder leaves")
        self._body = len(stream) - first  # bytes of words and nibbles
        count = self._body // 2
        self._words = np.zeros(count + lanes, np.uint16)  # the padding: see cpu.py
        self._words[:count] = stream[first : first + 2 * count].view("<u2")

    def decode(self, indexes: Any) -> NDArray[np.int32]:
        """The next section's symbols, int32 (n,), for its `indexes` (n,), an int32 array or CPU tensor.

        Raises ValueError for indexes outside the tables' rows, RansError if the stream cannot be right.
        """
        self._check_open()
        rows = integer_array(indexes, "indexes")
        out = np.empty(len(rows), np.int32)
        if len(rows) == 0:
            return out
        if len(self._states) == 0:
            raise self._fault(f"the stream is empty, but {len(rows)} symbols are asked of it")
        self._empty = False
        word_limit = (self._body - (self._next_nibble + 1) // 2) // 2
        found, self._next_word = self._coder.pull(
            self._states, self._words, self._next_word, word_limit, rows, self._tables, out
        )
        if found == reference.BAD_INDEX:
            self._closed = "decode() was called with indexes outside the tables before"
            raise _index_error("indexes", rows, self._tables)
        if found > 0:
            nibble_limit = 2 * (self._body - 2 * self._next_word)
            found, self._next_nibble = self._coder.read_escapes(
                self._tail, self._next_nibble, nibble_limit, rows, self._tables, out
            )
        if found < 0:
            raise self._fault(_FAULTS[found])
        return out

    def finish(self) -> None:
        """Raises RansError unless the whole stream has been used and all states are back where encoding began."""
        self._check_open()
        self._closed = "finish() has been called already"
        if len(self._states) == 0:
            return
        if self._empty:
            raise RansError("the stream holds something, but no symbols were asked of it")
        if (self._states != reference.LOWER).any():
            raise RansError("the states do not return to their start: the stream is damaged or for other tables")
        left = self._body - 2 * self._next_word - (self._next_nibble + 1) // 2
        if left != 0:
            raise RansError(f"the stream's words and escaped values do not meet: {left} bytes lie between them")
        if self._next_nibble % 2 and int(self._tail[len(self._tail) - 1 - self._next_nibble // 2]) >> 4:
            raise RansError("the stream's padding is not zero")

    def _check_open(self) -> None:
        if self._closed:
            raise RansError(f"this decoder cannot go on: {self._closed}")

    def _fault(self, sentence: str) -> RansError:
        self._closed = sentence
        return RansError(sentence)


def ideal_bits(symbols: Any, indexes: Any, tables: CodingTables) -> float:
    """Code length in bits of symbols (n,) with rows indexes (n,): -log2 of the integer probabilities, plus escapes."""
    _check_tables(tables)
    symbols, indexes = _check_section(0, (symbols, indexes))
    entries = np.empty(len(symbols), np.uint32)
    found, _ = reference.look_up(symbols, indexes, tables, entries)
    if found == reference.BAD_INDEX:
        raise _index_error("indexes", indexes, tables)
    freq = entries >> np.uint32(16)
    raw = escape_values(entries, symbols, indexes, tables)
    nibbles = len(raw) + int(count_digits(raw).sum())
    return float((16.0 - np.log2(freq.astype(np.float64))).sum()) + 4.0 * nibbles
