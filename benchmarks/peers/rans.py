"""Other entropy coders on the same symbols, where they are installed: CompressAI's rANS and constriction's ANS.

Each is called as its users call it, from arrays to bytes and back; what it decodes is compared before it is timed.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import WrongResult
from lalic_kernels import rans, scale_table

Section = tuple[NDArray[np.int32], NDArray[np.int32]]


class Baseline(NamedTuple):
    """A coder ready for one section: what makes its bytes and reads them, and how many they are."""

    name: str
    encode: Callable[[], Any]
    decode: Callable[[], Any]
    size: int


def baselines(section: Section, tables: rans.CodingTables) -> list[Baseline]:
    """Those that are installed, each verified. Raises WrongResult for one that does not decode what it encoded."""
    found = []
    if importlib.util.find_spec("compressai"):
        found.append(_compressai(section, tables))
    if importlib.util.find_spec("constriction"):
        found.append(_constriction(section))
    for baseline in found:
        if not np.array_equal(baseline.decode(), section[0]):
            raise WrongResult(f"{baseline.name}: the decoded symbols are not those that were encoded")
    return found


def _compressai(section: Section, tables: rans.CodingTables) -> Baseline:
    """Its tables are ours; they become lists once, symbols and indexes in every call, as in CompressAI's own models."""
    ans = importlib.import_module("compressai.ans")
    symbols, indexes = section
    rows = [tables.padded().tolist(), tables.lengths.tolist(), tables.offsets.tolist()]

    def encode() -> Any:
        return ans.RansEncoder().encode_with_indexes(symbols.tolist(), indexes.tolist(), *rows)

    data = encode()

    def decode() -> NDArray[np.int32]:
        return np.array(ans.RansDecoder().decode_with_indexes(data, indexes.tolist(), *rows), np.int32)

    return Baseline("CompressAI", encode, decode, len(data))


def _constriction(section: Section) -> Baseline:
    """Its own quantised Gaussian, one scale a symbol."""
    stream = importlib.import_module("constriction").stream
    symbols, indexes = section
    reach = int(np.abs(symbols).max(initial=1))
    model = stream.model.QuantizedGaussian(-reach, reach)
    scales = scale_table().numpy().astype(np.float64)[indexes]
    means = np.zeros(len(symbols))

    def encode() -> NDArray[np.uint32]:
        coder = stream.stack.AnsCoder()
        coder.encode_reverse(symbols, model, means, scales)
        return coder.get_compressed()

    data = encode()

    def decode() -> NDArray[np.int32]:
        return stream.stack.AnsCoder(data).decode(model, means, scales)

    return Baseline("constriction", encode, decode, 4 * len(data))
