"""Speed and size of the entropy coders on one core.

Gaussian symbols of mixed scales, 0.8 bit each on average, under the frozen table; a stream of almost only zeros; and a
hundred symbols, whose time is a call's fixed cost. Each stream is decoded and compared before anything is timed. Times
are medians of whole calls, from tensors and to tensors: argument checks, byte strings and all.

`python -m benchmarks.run rans` measures what files are written with, the older coder, and CompressAI's and
constriction's coders where they are installed. `python -m benchmarks.rans [--symbols 500000] [--repeats 9]` prints
every implementation with several choices, then the size by payload.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.measure import Call, Case, Setting, WrongResult
from benchmarks.peers.rans import baselines
from lalic.coder.tables import gaussian_tables
from lalic_kernels import rans, scale_table
from lalic_kernels.rans import grouped

Section = tuple[NDArray[np.int32], NDArray[np.int32]]
Metrics = Callable[[float], dict[str, float]]

# (name, median scale, spread of its logarithm)
STREAMS = (("0.8 bit", 0.32, 0.75), ("almost zeros", 0.06, 0.8))
# (groups, lanes of a group, level of quiet rows); None is what encode() chooses.
CHOICES = (None, (1, 1, 0), (1, 32, 0), (16, 32, 0), (16, 32, 9))


def cases(setting: Setting) -> Iterator[Case]:
    """Encoding and decoding by both coders with their own choices, beside what else is installed."""
    count = 2_000 if setting.quick else 500_000
    for name, median, spread in STREAMS:
        section = gaussian_section(count, median, spread)
        yield _case(f"{count} symbols, {name}", section, "grouped", True)
        yield _case(f"{count} symbols, {name}, older coder", section, "older")
    # Without others in turn: one that copies its tables in every call would leave cold caches to the rest.
    yield _case("100 symbols, fixed cost", gaussian_section(100, 0.32, 0.75), "grouped")


def _encode(coder: str, section: tuple[Tensor, Tensor], tables: rans.CodingTables) -> bytes:
    return grouped.encode([section], tables) if coder == "grouped" else rans.encode([section], tables)


def _case(name: str, section: Section, coder: str, beside_others: bool = False) -> Case:
    tables = gaussian_tables()
    symbols, indexes = (torch.from_numpy(part) for part in section)
    data = _encode(coder, (symbols, indexes), tables)
    ideal = rans.ideal_bits(*section, tables) / 8

    def decode(stream: bytes = data) -> Tensor:
        decoder = grouped.Decoder(stream, tables) if coder == "grouped" else rans.Decoder(stream, tables)
        decoded = torch.from_numpy(decoder.decode(indexes))
        decoder.finish()
        return decoded

    def check(decoded: Tensor) -> None:
        if not torch.equal(decoded, symbols):
            raise WrongResult("rans: the decoded symbols are not those that were encoded")

    def metrics_of(size: int) -> Metrics:
        return lambda seconds: {"Msymbols/s": 1e-6 * len(symbols) / seconds, "size over ideal": size / ideal}

    metrics = metrics_of(len(data))
    calls = [
        Call(
            "encode", lambda: _encode(coder, (symbols, indexes), tables), lambda stream: check(decode(stream)), metrics
        ),
        Call("decode", decode, check, metrics),
    ]
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


def median_time(call: Callable[[], object], repeats: int) -> float:
    """Median of `repeats` calls, in seconds."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def main() -> None:
    """Prints two tables."""
    parser = argparse.ArgumentParser(description="Speed and size of the entropy coders.")
    parser.add_argument("--symbols", type=int, default=500_000)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    tables = gaussian_tables()
    print(f"{'stream':14}{'coder':22}{'bytes':>9}{'/ ideal':>9}{'encode':>9}{'decode':>9}  Msymbols/s")
    for name, median, spread in STREAMS:
        section = gaussian_section(arguments.symbols, median, spread)
        for backend in ("numba", "numpy") if "numba" in rans.available_backends() else ("numpy",):
            for choice in CHOICES:
                measure(name, section, tables, backend, choice, arguments.repeats)
    print(f"\n{'payload':>9}{'lanes':>7}{'level':>7}{'over ideal':>12}{'over one lane':>15}")
    for symbols in (500, 2_000, 10_000, 50_000, 150_000, 500_000, 2_000_000):
        print(overhead(gaussian_section(symbols, 0.13, 0.75), tables))


def overhead(section: Section, tables: rans.CodingTables) -> str:
    """One line: what lanes and lists of exceptions cost, at low rates."""
    data = grouped.encode([section], tables)
    single = grouped.encode_with([section], tables, (1, 1, 0))
    ideal = rans.ideal_bits(*section, tables) / 8
    log, level = data[0] >> 4, data[0] & 15
    lanes = (data[1] + 1 if data[1] < 128 else (data[1] & 127 | data[2] << 7) + 1) << log if log == 5 else 1 << log
    over = f"{len(data) / ideal - 1:12.4%}{(len(data) - len(single)) / ideal:15.4%}"
    return f"{ideal:9.0f}{lanes:7}{level:7}{over}"


def measure(
    name: str,
    section: Section,
    tables: rans.CodingTables,
    backend: str,
    choice: tuple[int, int, int] | None,
    repeats: int,
) -> None:
    """Verifies, then times and prints one line."""
    symbols, indexes = section
    data = grouped.encode_with([section], tables, choice, backend=backend)
    ideal = rans.ideal_bits(symbols, indexes, tables) / 8

    def decode() -> NDArray[np.int32]:
        decoder = grouped.Decoder(data, tables, backend=backend)
        decoded = decoder.decode(indexes)
        decoder.finish()
        return decoded

    if not np.array_equal(decode(), symbols):
        raise SystemExit(f"{backend} with {choice} does not decode what it encoded; nothing is timed")
    if backend == "numpy":
        repeats = min(repeats, 2)
    encoding = median_time(lambda: grouped.encode_with([section], tables, choice, backend=backend), repeats)
    decoding = median_time(decode, repeats)
    million = len(symbols) / 1e6
    print(
        f"{name:14}{backend + ' ' + str(choice or 'auto'):22}{len(data):9}{len(data) / ideal:9.4f}"
        f"{million / encoding:9.1f}{million / decoding:9.1f}"
    )


if __name__ == "__main__":
    main()
