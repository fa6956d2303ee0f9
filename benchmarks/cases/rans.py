"""Cases of the entropy coder, on one core.

Gaussian symbols of mixed scales, 0.8 bit each on average, under the frozen table; a stream of almost only zeros; and a
hundred symbols, whose time is a call's fixed cost. Times are of whole calls, from tensors and to tensors: argument
checks, byte strings and all. Beside it CompressAI's and constriction's coders, where they are installed.

`python -m benchmarks.cases.rans` prints sizes by payload.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.measure import Call, Case, Setting, WrongResult
from benchmarks.peers.rans import baselines
from lalic.coder.tables import gaussian_tables
from lalic_kernels import rans, scale_table
from lalic_kernels.rans import layout

Section = tuple[NDArray[np.int32], NDArray[np.int32]]
Metrics = Callable[[float], dict[str, float]]

# (name, median scale, spread of its logarithm)
STREAMS = (("0.8 bit", 0.32, 0.75), ("almost zeros", 0.06, 0.8))
PAYLOADS = (500, 2_000, 10_000, 50_000, 150_000, 500_000, 2_000_000)  # symbols, at 0.13 bit


def cases(setting: Setting) -> Iterator[Case]:
    """Encoding and decoding, beside what else is installed."""
    count = 2_000 if setting.quick else 500_000
    for name, median, spread in STREAMS:
        yield _case(f"{count} symbols, {name}", gaussian_section(count, median, spread), True)
    # Without others in turn: one that copies its tables in every call would leave cold caches to the rest.
    yield _case("100 symbols, fixed cost", gaussian_section(100, 0.32, 0.75))


def _case(name: str, section: Section, beside_others: bool = False) -> Case:
    tables = gaussian_tables()
    symbols, indexes = (torch.from_numpy(part) for part in section)
    data = rans.encode([(symbols, indexes)], tables)
    ideal = rans.ideal_bits(*section, tables) / 8

    def decode(stream: bytes = data) -> Tensor:
        decoder = rans.Decoder(stream, tables)
        decoded = torch.from_numpy(decoder.decode(indexes))
        decoder.finish()
        return decoded

    def check(decoded: Tensor) -> None:
        if not torch.equal(decoded, symbols):
            raise WrongResult("rans: the decoded symbols are not those that were encoded")

    def metrics_of(size: int) -> Metrics:
        return lambda seconds: {"Msymbols/s": 1e-6 * len(symbols) / seconds, "size over ideal": size / ideal}

    metrics = metrics_of(len(data))
    encode = Call("encode", lambda: rans.encode([(symbols, indexes)], tables), lambda s: check(decode(s)), metrics)
    calls = [encode, Call("decode", decode, check, metrics)]
    for other in baselines(section, tables) if beside_others else ():
        calls.append(Call(f"{other.name} encode", other.encode, None, metrics_of(other.size)))
        calls.append(Call(f"{other.name} decode", other.decode, None, metrics_of(other.size)))
    return Case(name, tuple(calls))


def gaussian_section(count: int, median_scale: float, spread: float, seed: int = 0) -> Section:
    """Symbols (n,) and table indexes (n,): log-normal scales, each symbol from a Gaussian of its scale, rounded."""
    rng = np.random.default_rng(seed)
    scales = np.exp(rng.normal(np.log(median_scale), spread, count))
    table = scale_table().numpy()
    indexes = np.clip(np.searchsorted(table, scales), 0, len(table) - 1).astype(np.int32)
    return np.round(rng.normal(0, 1, count) * np.maximum(scales, table[0])).astype(np.int32), indexes


def overhead(section: Section, tables: rans.CodingTables) -> str:
    """One line: what lanes cost, at low rates."""
    data = rans.encode([section], tables)
    single = rans.encode([section], tables, lanes=(1, 1))
    ideal = rans.ideal_bits(*section, tables) / 8
    lanes = layout.unpack(np.frombuffer(data, np.uint8)).highs.size
    over = f"{len(data) / ideal - 1:12.4%}{(len(data) - len(single)) / ideal:15.4%}"
    return f"{ideal:9.0f}{lanes:7}{over}"


if __name__ == "__main__":
    print(f"{'payload':>9}{'lanes':>7}{'over ideal':>12}{'over one lane':>15}")
    for count in PAYLOADS:
        print(overhead(gaussian_section(count, 0.13, 0.75), gaussian_tables()))
