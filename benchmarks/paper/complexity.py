"""The costs in the paper's Table 1, of our models: `python -m benchmarks.paper.complexity`.

Parameters; operations of a forward pass (`benchmarks.counting`); seconds of encoding and of decoding one picture of
768x512, from a tensor to streams and back, entropy coding, checksums and, on a GPU, waiting for it included; memory
that either takes at its peak. Nothing is timed before the decoded picture was found the encoder's own, bit for bit.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from benchmarks import records
from benchmarks.codec import Subject
from benchmarks.counting import memory, operations
from benchmarks.counting.memory import CONFIGS
from benchmarks.measure import Call, Case, Setting, WrongResult, in_fresh_process, measure, memory_to_read
from benchmarks.peers import checkouts
from lalic.model import LALIC

SIZE = (512, 768)  # height, width
QUICK = (64, 128)
Row = dict[str, Any]


def counts(name: str, size: tuple[int, int] = SIZE) -> Row:
    """What does not depend on the machine."""
    config = CONFIGS[name]
    with torch.device("meta"):
        model = LALIC.from_config(config).eval()
    row: Row = {
        "model": f"LALIC {name}",
        "height": size[0],
        "width": size[1],
        "parameters": operations.parameters(model),
    }
    row["operations"] = next(operations.operations(model, model, [size]))
    row["bytes"] = next(memory.held(config, [size]))
    return row


def _subject(name: str, setting: Setting) -> Subject:
    return Subject(name, *(QUICK if setting.quick else SIZE), 1, setting.device).start()


def times(name: str, setting: Setting) -> Row:
    """Seconds of both directions. Raises ``WrongResult`` before anything is timed."""
    subject = _subject(name, setting)
    subject.check(subject.decode())
    row: Row = {"weights": "shipped" if name == "slim" else "random", "bits per pixel": subject.bits_per_pixel()}
    for call in (
        Call("encode", subject.encode, subject.check_streams),
        Call("decode", subject.decode, subject.check),
    ):
        (found,) = measure("complexity", Case(call.name, (call,), wall_clock=True), setting)
        row[call.name] = {key: found[key] for key in ("seconds", "quartiles", "repeats")}
    return row


def peaks(name: str, setting: Setting) -> Row:
    """Bytes that either direction adds at its peak to the weights and the picture."""
    subject = _subject(name, setting)
    both = {"encode": subject.encode, "decode": subject.decode}
    return {direction: {"peak bytes": memory.peak_bytes(call, setting.device)} for direction, call in both.items()}


def measured(name: str, setting: Setting) -> Row:
    """Both, each in a process of its own, the one that reads memory with an allocator that gives it back at once."""
    found = in_fresh_process(times, name, setting)
    held = in_fresh_process(peaks, name, setting, memory=memory_to_read(setting.device))
    return found | {direction: found[direction] | held[direction] for direction in held}


def peers(options: argparse.Namespace, setting: Setting) -> list[Row]:
    """A row for each peer that `--peers` names: counts, times, or why it is "skipped"."""
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
    parts = [f"{row['model']}, {row['width']}x{row['height']}"]
    if "parameters" in row:
        parts.append(f"{row['parameters'] / 1e6:.2f} M parameters")
    if "operations" in row:
        flops = row["operations"]
        parts.append(f"{flops['complete'] / 1e9:.2f} GFLOP, {flops['layers'] / 1e9:.2f} GMAC of layers")
    if "bytes" in row:
        parts.append(f"{row['bytes']['peak'] / 2**20:.0f} MiB in all on a GPU")
    if "skipped" in row:
        parts.append(f"not run: {row['skipped']}")
    first, *rest = parts
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
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper.complexity", description="Table 1's costs.")
    records.add_where(parser)
    parser.add_argument("--quick", action="store_true", help="a tiny picture, two rounds: to see that all runs")
    records.add_saving(parser)
    checkouts.add_options(parser)
    options = parser.parse_args(argv)
    device = records.check(parser, options)
    record = records.environment(device) | {"quick": options.quick, "complexity": []}
    print(records.header(record), flush=True)
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
        records.keep(record, options.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
