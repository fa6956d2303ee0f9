"""Table 5 measured: `python -m benchmarks.mechanisms [NAME ...] [--device cuda] [--save]`.

For each mechanism, width and length: the operations that the paper gives, those really executed, time and peak memory.
Each mechanism and width has a process of its own and, with --save, a record of its own: an interrupted run continues
where it stopped when the same command is given at the same commit. Memory is never filled: a point whose estimate is
above 0.7 of what is free is left out and says so, and so is one that would take longer than --longest seconds a call.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import report
from benchmarks.measure import Row, WrongResult
from benchmarks.mechanisms import sweep
from benchmarks.mechanisms.modules import MECHANISMS


def lines(found: Sequence[Row]) -> str:
    """Rows of one mechanism and width as text."""
    first = found[0]
    text = [f"{first['mechanism']}, D = {first['width']} ({first['runs']})"]
    for row in found:
        executed = row["operations"]["an element"]
        given = row["theoretical an element"]
        line = f"  L = {row['length']:8d}  given {given:4.0f} L D, executed {executed:6.1f} L D"
        if "skipped" in row:
            text.append(f"{line}  not run: {row['skipped']}")
            continue
        peak = row["peak bytes"]
        memory = "memory not known" if peak is None else f"+{peak / 2**20:.1f} MiB"
        low, high = row["quartiles"]
        spread = f"{1e3 * row['seconds']:10.2f} ms ({1e3 * low:.2f} .. {1e3 * high:.2f})"
        text.append(f"{line}  {spread}  {1e9 * row['seconds an element']:.2f} ns an element  {memory}")
    return "\n".join(text)


def recorded(path: Path, environment: dict[str, Any], lengths: Sequence[int]) -> set[tuple[str, int]]:
    """(mechanism, width) that this device's file holds already, of this commit, versions, threads and lengths."""
    keys = ("commit", "dirty", "device", "threads", "python", *report.PACKAGES)
    if not path.is_file():
        return set()
    records = map(json.loads, filter(str.strip, path.read_text(encoding="utf-8").splitlines()))
    return {
        (r["mechanism"], r["width"])
        for r in records
        if "mechanisms" in r
        and all(r.get(key) == environment[key] for key in keys)
        and {row["length"] for row in r["mechanisms"]} >= set(lengths)
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print the rows. Returns 0, or 1 if a result was wrong; usage errors and a busy machine exit with 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mechanisms", description="Table 5, measured.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(MECHANISMS)} (default: all)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where (default %(default)s)")
    parser.add_argument(
        "--lengths", nargs="+", type=int, metavar="L", default=sweep.LENGTHS, help="default 2^10 .. 2^20"
    )
    parser.add_argument("--widths", nargs="+", type=int, metavar="D", default=sweep.WIDTHS, help="default 96 192 320")
    parser.add_argument("--longest", type=float, default=60.0, metavar="S", help="seconds a call (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="two rounds a point: to see that all runs, not to measure")
    parser.add_argument("--save", action="store_true", help="append a record for each mechanism and width")
    parser.add_argument("--results", type=Path, metavar="DIR", help="where --save writes (default benchmarks/results)")
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.names if name not in MECHANISMS]
    if unknown:
        parser.error(f"there is no mechanism {unknown[0]!r}, expected some of {', '.join(MECHANISMS)}")
    if bad := [n for n in arguments.lengths if n < 64 or n % 64]:
        parser.error(f"--lengths: {bad[0]} is no positive multiple of 64, which windows of 8 x 8 need")
    if bad := [n for n in arguments.widths if n < 32 or n % 32]:
        parser.error(f"--widths: {bad[0]} is no positive multiple of 32, a head of the window attention")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this machine has no CUDA device that torch can use")
    if arguments.save and arguments.quick:
        parser.error("--quick is for seeing that everything runs; its figures are not kept: leave out --save")
    if arguments.save:
        report.refuse_if_busy(parser)
    device = torch.device(arguments.device)
    folder = arguments.results or report.RESULTS
    environment = report.environment(device)
    print(report.header(environment), flush=True)
    done = recorded(folder / f"{report.slug(environment['device'])}.jsonl", environment, arguments.lengths)
    memory = "fresh" if arguments.device == "cpu" and platform.libc_ver()[0] == "glibc" else "default"
    setting = sweep.Sweep(device, arguments.quick, memory, arguments.longest)
    failed = False
    for name in arguments.names or MECHANISMS:
        for width in arguments.widths:
            if arguments.save and (name, width) in done:
                print(f"{name}, D = {width}: is recorded", flush=True)
                continue
            try:
                found = sweep.in_fresh_process(name, width, arguments.lengths, setting)
            except WrongResult as error:
                failed = True
                print(f"{name}, D = {width}: not timed, {error}", file=sys.stderr)
                continue
            print(lines(found), flush=True)
            if arguments.save:
                record = report.environment(device) | {"quick": False, "mechanism": name, "width": width}
                report.append(record | {"mechanisms": found}, folder)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
