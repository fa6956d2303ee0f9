"""The costs in the paper's Table 1, of our models: `python -m benchmarks.complexity [--device cuda] [--save]`.

Parameters; operations of a forward pass (`benchmarks.counted`); seconds of encoding and of decoding one picture of
768x512, from a tensor to streams and back, entropy coding, checksums and, on a GPU, waiting for it included; memory
that either takes at its peak. Nothing is timed before the decoded picture was found the encoder's own, bit for bit.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import lalic
from benchmarks import checkouts, codec, context, counted, quiet, report
from benchmarks.measure import MEMORY, Call, Case, Setting, WrongResult, measure
from benchmarks.memory import CONFIGS
from lalic.model import LALIC

SIZE = (512, 768)  # height, width
QUICK = (64, 128)
Row = dict[str, Any]


def counts(name: str, size: tuple[int, int] = SIZE) -> Row:
    """What does not depend on the machine."""
    config = CONFIGS[name]
    with torch.device("meta"):
        model = LALIC.from_config(config).eval()
    row: Row = {"model": f"LALIC {name}", "height": size[0], "width": size[1], "parameters": context.parameters(model)}
    row["operations"] = next(counted.operations(model, model, [size]))
    row["bytes"] = next(counted.held(config, [size]))
    return row


def _subject(name: str, setting: Setting) -> tuple[codec._Subject, str]:
    """A model with its picture, and whose weights it has."""
    torch.manual_seed(0)
    x = codec.picture(*(QUICK if setting.quick else SIZE)).to(setting.device)
    if name == "slim":
        return codec._Subject(lalic.slim(pretrained=True).to(setting.device), x), "shipped"
    model = LALIC.from_config(CONFIGS[name]).eval()
    model.update()
    return codec._Subject(model.to(setting.device), x), "random"


def times(name: str, setting: Setting, threads: int) -> Row:
    """Seconds of both directions. Raises ``WrongResult`` before anything is timed."""
    torch.set_num_threads(threads)
    subject, weights = _subject(name, setting)
    calls = (
        ("encode", Call("encode", subject.encode, subject.check_streams, subject.size)),
        ("decode", Call("decode", subject.decode, subject.check_picture, subject.size)),
    )
    row: Row = {"weights": weights}
    for direction, call in calls:
        (found,) = measure("complexity", Case(direction, (call,), wall_clock=True), setting)
        row[direction] = {key: found[key] for key in ("seconds", "quartiles", "repeats")}
        row["bits per pixel"] = found["metrics"]["bits per pixel"]
    return row


def peaks(name: str, setting: Setting, threads: int) -> Row:
    """Bytes that either direction adds at its peak to the weights and the picture."""
    torch.set_num_threads(threads)
    subject, _ = _subject(name, setting)
    both: dict[str, Callable[[], Any]] = {"encode": subject.encode, "decode": subject.decode}
    return {direction: {"peak bytes": quiet.peak_bytes(call, setting.device)} for direction, call in both.items()}


def measured(name: str, setting: Setting) -> Row:
    """Both, each in a process of its own, the one that reads memory with an allocator that gives it back at once."""
    threads = torch.get_num_threads()
    found = _in_fresh_process(times, name, setting, threads, "default")
    can_tell = setting.device.type == "cpu" and platform.libc_ver()[0] == "glibc"
    memory = _in_fresh_process(peaks, name, setting, threads, "fresh" if can_tell else "default")
    return found | {direction: found[direction] | memory[direction] for direction in memory}


def _in_fresh_process(call: Callable[..., Row], name: str, setting: Setting, threads: int, memory: str) -> Row:
    with (
        mock.patch.dict(os.environ, MEMORY[memory]),  # the new process inherits it
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        return pool.submit(call, name, setting, threads).result()


def peers(options: argparse.Namespace, setting: Setting) -> list[Row]:
    """A row for each peer that `--peers` names (`benchmarks.checkouts`): counts, times, or why it is "skipped"."""
    height, width = QUICK if setting.quick else SIZE
    rows: dict[str, Row] = {}
    for peer in options.peers:
        for found in checkouts.measured(peer, options.peer_python, (height, width), 1, setting):
            row = rows.setdefault(found["side"], {"model": found["side"], "height": height, "width": width})
            if "skipped" in found:
                row["skipped"] = found["skipped"]
                continue
            row |= {"weights": "random", "parameters": found["parameters"], "bits per pixel": found["bits per pixel"]}
            times = {key: found[key] for key in ("seconds", "quartiles", "repeats")}
            row[found["direction"]] = times | {"peak bytes": None}
        for found in checkouts.counted(peer, options.peer_python, [(height, width)]):
            if "operations" in found:
                row = rows.setdefault(found["side"], {"model": found["side"], "height": height, "width": width})
                row |= {"parameters": found["parameters"], "operations": found["operations"]}
    return list(rows.values())


def line(row: Row) -> str:
    """A row as text."""
    words = [f"{row['model']}, {row['width']}x{row['height']}"]
    if "parameters" in row:
        words.append(f"{row['parameters'] / 1e6:.2f} M parameters")
    if "operations" in row:
        flops = row["operations"]
        words.append(f"{flops['complete'] / 1e9:.2f} GFLOP, {flops['layers'] / 1e9:.2f} GMAC of layers")
    if "bytes" in row:
        words.append(f"{row['bytes']['peak'] / 2**20:.0f} MiB in all on a GPU")
    if "skipped" in row:
        words.append(f"not run: {row['skipped']}")
    first, *rest = words
    return "\n".join([f"{first}: {', '.join(rest)}", *_directions(row)])


def _directions(row: Row) -> Iterator[str]:
    for direction in ("encode", "decode"):
        if direction not in row:
            continue
        found = row[direction]
        peak = found["peak bytes"]
        memory = "" if peak is None else f", +{peak / 2**20:.0f} MiB"
        low, high = found["quartiles"]
        yield f"  {direction} {found['seconds']:.3f} s ({low:.3f} .. {high:.3f}){memory}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row a model. Returns 0, or 1 if a result was wrong; usage errors and a busy machine exit with 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.complexity", description="Table 1's costs, our models.")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a tiny picture, two rounds: to see that all runs")
    parser.add_argument("--save", action="store_true", help="append a record to the results")
    parser.add_argument("--results", type=Path, metavar="DIR", help="where --save writes (default benchmarks/results)")
    checkouts.add_options(parser)
    options = parser.parse_args(argv)
    if options.save and options.quick:
        parser.error("--quick is for seeing that everything runs; its figures are not kept: leave out --save")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this machine has no CUDA device that torch can use")
    if options.save:
        report.refuse_if_busy(parser)
    device = torch.device(options.device)
    record = report.environment(device) | {"quick": options.quick, "complexity": []}
    print(report.header(record), flush=True)
    for name in CONFIGS:
        row = counts(name, QUICK if options.quick else SIZE)
        try:
            row |= measured(name, Setting(device, options.quick))
        except WrongResult as error:
            print(f"LALIC {name}: not timed, {error}; nothing is saved", file=sys.stderr)
            return 1
        print(line(row), flush=True)
        record["complexity"].append(row)
    for row in peers(options, Setting(device, options.quick)):
        print(line(row), flush=True)
        record["complexity"].append(row)
    if options.save:
        print(f"appended to {report.append(record, options.results or report.RESULTS)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
