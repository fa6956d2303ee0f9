"""Fixed integer distributions in the coder's layout."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

PRECISION = 16
TOTAL = 1 << PRECISION
COARSE_BITS = 8  # a table of 256 entries per row stays in the cache; one of 65536 would not
COST_UNIT = 24  # code lengths are summed in units of 2^-24 bit: integers, so every backend gets the same sum

_INT32 = np.iinfo(np.int32)


def integer_array(value: Any, name: str, ndim: int = 1) -> NDArray[np.int32]:
    """`value` as a C-contiguous, writable, aligned int32 array; a copy only if necessary.

    Accepts numpy arrays, CPU tensors and sequences of integers. For read-only or unaligned arrays numba would compile a
    second version of each function.

    Raises:
        ValueError: the value is something else; the message has `name`.
    """
    device = getattr(value, "device", None)
    if hasattr(value, "detach"):  # a tensor; this module does not import torch
        if getattr(device, "type", "cpu") != "cpu":
            raise ValueError(f"{name} must be a numpy array or a CPU tensor, but it is a tensor on {device}")
        value = value.detach().numpy()
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of integers, but numpy cannot read it: {error}") from None
    if array.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimension(s), but its shape is {array.shape}")
    if array.size == 0:
        return np.zeros(array.shape, np.int32)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} must hold integers, but its dtype is {array.dtype}")
    if array.dtype != np.int32 and (int(array.min()) < _INT32.min or int(array.max()) > _INT32.max):
        raise ValueError(f"{name} must fit int32, but its values range from {array.min()} to {array.max()}")
    if array.dtype == np.int32 and array.flags.carray:  # the most frequent case; require() takes longer
        return array
    return np.require(array, np.int32, ["C", "A", "W"])


class CodingTables:
    """Rows of 16-bit cumulative distributions, checked once, in the layout of every backend.

    Treat an instance as immutable: coders keep references to its arrays.

    Args:
        cdf: integers (R, Lmax), array or CPU tensor. Row r increases strictly from 0 to 65536 in its first lengths[r]
            entries; the entries after them are ignored (the padded layout of CompressAI's `_quantized_cdf`).
        lengths: integers (R,), 3 <= lengths[r] <= Lmax. A row of length L has L - 1 intervals: position p < L - 2 is
            the symbol offsets[r] + p; the last one, p = L - 2, is the escape for all other symbols.
        offsets: integers (R,), the symbol at position 0.

    Raises:
        ValueError: an argument does not fit; the message names it.

    Attributes, for the E intervals of all rows, one after the other:
        packed: (E,) uint32, frequency - 1 in the high half, the interval's start in the low half.
        priced: (E,) uint64, code length in 2^-24 bit in the high half, `packed` in the low half.
        coarse: (256 R,) uint32, for each bin of 256 slots the first interval in the low 24 bits, and the number of
            further intervals in the high 8 bits.
        start, offset, escape, bias: (R,) int32: first interval, symbol at position 0, position of the escape, and
            symbol - interval number.
    """

    def __init__(self, cdf: Any, lengths: Any, offsets: Any) -> None:
        cdf_array = integer_array(cdf, "cdf", ndim=2)
        length_array = integer_array(lengths, "lengths")
        offset_array = integer_array(offsets, "offsets")
        rows, width = cdf_array.shape
        if rows == 0:
            raise ValueError("cdf must have at least one row, but it has none")
        for name, array in (("lengths", length_array), ("offsets", offset_array)):
            if array.shape != (rows,):
                raise ValueError(f"{name} must have one entry for each of the {rows} rows of cdf, not {array.size}")
        bad = np.flatnonzero((length_array < 3) | (length_array > width))
        if bad.size:
            row = int(bad[0])
            raise ValueError(f"lengths must lie in 3..{width}, but lengths[{row}] is {length_array[row]}")
        counts = length_array.astype(np.int64) - 1
        bad = np.flatnonzero(offset_array + counts - 1 > _INT32.max)
        if bad.size:
            raise ValueError(f"offsets must keep symbols within int32, but offsets[{bad[0]}] is {offset_array[bad[0]]}")

        inside = np.arange(width) < length_array[:, None]
        bad = np.flatnonzero((cdf_array[:, 0] != 0) | (cdf_array[np.arange(rows), length_array - 1] != TOTAL))
        if bad.size:
            raise ValueError(f"cdf rows must run from 0 to {TOTAL}, but row {bad[0]} does not")
        # int64, because a difference of two int32 values can overflow
        bad = np.flatnonzero(((np.diff(cdf_array.astype(np.int64), axis=1) <= 0) & inside[:, 1:]).any(axis=1))
        if bad.size:
            raise ValueError(f"cdf rows must increase strictly, but row {bad[0]} does not")

        inner = inside.copy()
        inner[np.arange(rows), length_array - 1] = False
        lower = cdf_array[inner]
        upper = cdf_array[:, 1:][inside[:, 1:]]
        self._fill(lower.astype(np.int64), (upper - lower).astype(np.int64), counts, offset_array)

    def _fill(self, lower: NDArray, freq: NDArray, counts: NDArray, offsets: NDArray) -> None:
        """Build the coders' arrays from valid intervals."""
        rows = len(counts)
        start = np.concatenate([[0], np.cumsum(counts)])[:-1]
        self._lower, self._freq, self._counts = lower, freq, counts  # (E,), (E,), (R,) int64, row after row
        self.packed = ((freq - 1) << 16 | lower).astype(np.uint32)
        edges = np.repeat(np.arange(rows, dtype=np.int64), counts) * TOTAL + lower  # rising over all rows
        bins = np.arange(rows << COARSE_BITS, dtype=np.int64) << (PRECISION - COARSE_BITS)
        first = np.searchsorted(edges, bins, side="right") - 1
        last = np.searchsorted(edges, bins + (1 << (PRECISION - COARSE_BITS)) - 1, side="right") - 1
        self.coarse = (first | (last - first) << 24).astype(np.uint32)
        self.start, self.offset = start.astype(np.int32), np.array(offsets, np.int32)
        self.escape = (counts - 1).astype(np.int32)
        self.bias = self.offset - self.start
        cost = np.rint(-np.log2(freq / TOTAL) * (1 << COST_UNIT)).astype(np.uint64)
        self.priced = (cost << np.uint64(32)) | self.packed

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self._counts)

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Row lengths (R,), both ends included."""
        return (self._counts + 1).astype(np.int32)

    @property
    def offsets(self) -> NDArray[np.int32]:
        """Symbol at position 0 of each row, (R,)."""
        return self.offset.copy()

    def padded(self) -> NDArray[np.int32]:
        """The rows as an int32 matrix (R, Lmax), zeros after each row's end."""
        matrix = np.zeros((self.rows, int(self._counts.max()) + 1), np.int32)
        matrix[np.arange(matrix.shape[1]) < self._counts[:, None]] = self._lower
        matrix[np.arange(self.rows), self._counts] = TOTAL
        return matrix

    def concat(self, other: CodingTables) -> CodingTables:
        """New tables with the rows of `other` after these: index self.rows + i is row i of `other`."""
        if not isinstance(other, CodingTables):
            raise ValueError(f"other must be CodingTables, but it is {type(other).__name__}")
        joined = CodingTables.__new__(CodingTables)
        parts = ((tables._lower, tables._freq, tables._counts, tables.offset) for tables in (self, other))
        joined._fill(*(np.concatenate(pair) for pair in zip(*parts, strict=True)))
        return joined

    def digest(self) -> bytes:
        """SHA-256 (32 bytes) of all numbers that determine the stream: equal digests, equal streams."""
        sha = hashlib.sha256(b"lalic rans tables, 16 bit")
        sha.update(np.array([self.rows], "<u4").tobytes())
        sha.update((self._counts + 1).astype("<u4").tobytes())
        sha.update(self.offset.astype("<i4").tobytes())
        sha.update(self._lower.astype("<u2").tobytes())
        return sha.digest()

    def __repr__(self) -> str:
        return f"CodingTables(rows={self.rows}, entries={len(self.packed)})"
