"""Measure: `python -m benchmarks.run [NAME ...] [--device cpu|cuda] [--threads N] [--quick] [--save]`.

Every result is verified before it is timed; an entry with a wrong result is not timed at all, and the exit code is 1.
Each entry runs in a fresh process, because what the memory allocator has seen before changes what a fresh output costs;
on a CPU the operations are measured in two states of the allocator (`benchmarks.measure.MEMORY`).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from benchmarks import report
from benchmarks.measure import MEMORY, Row, Setting, WrongResult
from benchmarks.registry import ENTRIES, measure_entry


def main(argv: Sequence[str] | None = None) -> int:
    """Run the entries named and print a table. Returns 0, or 1 if a result was wrong; usage errors exit with 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description="Verify, then time.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(ENTRIES)} (default: all)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where (default %(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: as torch chooses)")
    parser.add_argument("--memory", choices=MEMORY, help="state of the CPU's allocator (default: as each entry says)")
    parser.add_argument("--quick", action="store_true", help="tiny inputs: to see that all runs, not to measure")
    parser.add_argument("--save", action="store_true", help="append a record to the results")
    parser.add_argument("--results", type=Path, metavar="DIR", help="where --save writes (default benchmarks/results)")
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.names if name not in ENTRIES]
    if unknown:
        parser.error(f"there is no entry {unknown[0]!r}, expected some of {', '.join(ENTRIES)}")
    if arguments.threads is not None and arguments.threads < 1:
        parser.error(f"--threads is {arguments.threads}, expected at least 1")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this machine has no CUDA device that torch can use")
    if arguments.memory not in (None, "default") and not _can_set_memory(arguments.device):
        parser.error(f"--memory {arguments.memory}: only glibc's allocator can be told so, and only for the CPU")
    if arguments.save and arguments.quick and arguments.results is None:
        parser.error(
            "--quick --save: figures of tiny inputs do not belong into the results, name a folder by --results"
        )
    names = arguments.names or [name for name, entry in ENTRIES.items() if arguments.device in entry.devices]
    for name in names:
        if arguments.device not in ENTRIES[name].devices:
            parser.error(f"{name} does not run on {arguments.device}")

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    record = report.environment(device) | {"quick": arguments.quick, "rows": []}
    print(report.header(record), flush=True)
    failed = False
    for name in dict.fromkeys(names):
        for memory in _states(name, arguments.memory, arguments.device):
            setting = Setting(device, arguments.quick, memory)
            try:
                rows = _in_fresh_process(name, setting, torch.get_num_threads())
            except WrongResult as error:
                failed = True
                print(f"{name}: not timed, {error}", file=sys.stderr)
                break
            print(report.table(name, rows), flush=True)
            record["rows"] += rows
    if arguments.save and failed:
        print("nothing is saved, because a result was wrong", file=sys.stderr)
    elif arguments.save:
        print(f"appended to {report.append(record, arguments.results or report.RESULTS)}")
    return int(failed)


def _can_set_memory(device: str) -> bool:
    return device == "cpu" and platform.libc_ver()[0] == "glibc"


def _states(name: str, chosen: str | None, device: str) -> Iterator[str]:
    """States of the allocator to measure an entry in; the default one where it cannot be told."""
    if chosen is not None:
        yield chosen
    elif not _can_set_memory(device):
        yield "default"
    else:
        yield from ENTRIES[name].memory


def _in_fresh_process(name: str, setting: Setting, threads: int) -> list[Row]:
    before = dict(os.environ)
    os.environ.update(MEMORY[setting.memory])  # the new process inherits it
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(_measure, name, setting, threads).result()
    finally:
        os.environ.clear()
        os.environ.update(before)


def _measure(name: str, setting: Setting, threads: int) -> list[Row]:
    torch.set_num_threads(threads)
    return measure_entry(name, setting)


if __name__ == "__main__":
    sys.exit(main())
