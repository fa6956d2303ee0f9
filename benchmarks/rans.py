"""Speed and size of the entropy coder on one core.

Gaussian symbols of mixed scales, 0.8 bit each on average, under the frozen table; and a stream of almost only zeros.
Each stream is decoded and compared before anything is timed. Times are medians of whole calls: argument checks, byte
strings and all.

`python -m benchmarks.run rans` measures what is used by default. `python -m benchmarks.rans [--symbols 500000]
[--repeats 9]` prints every implementation at several lane counts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import Call, Case, Setting, WrongResult
from lalic.entropy.tables import gaussian_tables
from lalic_kernels import rans, scale_table

Section = tuple[NDArray[np.int32], NDArray[np.int32]]

# (name, median scale, spread of its logarithm)
STREAMS = (("0.8 bit", 0.32, 0.75), ("almost zeros", 0.06, 0.8))


def cases(setting: Setting) -> Iterator[Case]:
    """Encoding and decoding with the default implementation and lane count."""
    for name, median, spread in STREAMS:
        yield _case(name, gaussian_section(2_000 if setting.quick else 500_000, median, spread))


def _case(name: str, section: Section) -> Case:
    tables = gaussian_tables()
    symbols, indexes = section
    data = rans.encode([section], tables)
    ideal = rans.ideal_bits(symbols, indexes, tables) / 8

    def decode(stream: bytes = data) -> NDArray[np.int32]:
        decoder = rans.Decoder(stream, tables)
        decoded = decoder.decode(indexes)
        decoder.finish()
        return decoded

    def check(decoded: NDArray[np.int32]) -> None:
        if not np.array_equal(decoded, symbols):
            raise WrongResult("rans: the decoded symbols are not those that were encoded")

    def metrics(seconds: float) -> dict[str, float]:
        return {"Msymbols/s": 1e-6 * len(symbols) / seconds, "size over ideal": len(data) / ideal}

    return Case(
        f"{len(symbols)} symbols, {name}",
        (
            Call("encode", lambda: rans.encode([section], tables), lambda stream: check(decode(stream)), metrics),
            Call("decode", decode, check, metrics),
        ),
    )


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
    """Prints a table."""
    parser = argparse.ArgumentParser(description="Speed and size of the entropy coder.")
    parser.add_argument("--symbols", type=int, default=500_000)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    tables = gaussian_tables()
    print(f"{'stream':14}{'backend':9}{'lanes':>6}{'bytes':>9}{'/ ideal':>9}{'encode':>9}{'decode':>9}  Msymbols/s")
    for name, median, spread in STREAMS:
        symbols, indexes = section = gaussian_section(arguments.symbols, median, spread)
        ideal = rans.ideal_bits(symbols, indexes, tables) / 8
        for backend in rans.available_backends():
            for lanes in (None, 1, 32, 256, 1024):
                measure(name, section, tables, backend, lanes, ideal, arguments.repeats)
    small = [gaussian_section(100, 0.32, 0.75)] * 11
    for backend in rans.available_backends():
        streams = [rans.encode([section], tables, backend=backend) for section in small]

        def decode(backend: str = backend, streams: list[bytes] = streams) -> None:
            for data, (_, indexes) in zip(streams, small, strict=True):
                decoder = rans.Decoder(data, tables, backend=backend)
                decoder.decode(indexes)
                decoder.finish()

        seconds = median_time(decode, arguments.repeats) / 11
        print(f"a stream of 100 symbols, {backend}: {1e6 * seconds:.0f} us to open, decode and finish")


def measure(
    name: str, section: Section, tables: rans.CodingTables, backend: str, lanes: int | None, ideal: float, repeats: int
) -> None:
    """Verifies, then times and prints one line."""
    symbols, indexes = section
    data = rans.encode([section], tables, lanes=lanes, backend=backend)

    def decode() -> NDArray[np.int32]:
        decoder = rans.Decoder(data, tables, backend=backend)
        decoded = decoder.decode(indexes)
        decoder.finish()
        return decoded

    if not np.array_equal(decode(), symbols):
        raise SystemExit(f"{backend} with {lanes} lanes does not decode what it encoded; nothing is timed")
    if backend == "numpy":
        repeats = min(repeats, 2)
    encoding = median_time(lambda: rans.encode([section], tables, lanes=lanes, backend=backend), repeats)
    decoding = median_time(decode, repeats)
    million = len(symbols) / 1e6
    print(
        f"{name:14}{backend:9}{lanes or 'auto':>6}{len(data):9}{len(data) / ideal:9.4f}"
        f"{million / encoding:9.1f}{million / decoding:9.1f}"
    )


if __name__ == "__main__":
    main()
