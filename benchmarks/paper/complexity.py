"""The costs in the paper's Table 1, of our models: `python -m benchmarks.paper.complexity`.

Parameters; operations of a forward pass (`benchmarks.counting`); seconds of encoding and of decoding one picture of
768x512, from a tensor to streams and back, entropy coding, checksums and, on a GPU, waiting for it included; memory
that either takes at its peak. Nothing is timed before the decoded picture was found the encoder's own, bit for bit.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks import codec, records, report
from benchmarks.counting import memory, operations
from benchmarks.counting.memory import CONFIGS
from benchmarks.measure import Call, Case, Setting, WrongResult, in_fresh_process, measure, memory_to_read
from benchmarks.peers import checkouts
from lalic.model import LALIC

SIZE = (512, 768)  # height, width
QUICK = (64, 128)
Row = dict[str, Any]


def counts(name: str, size: tuple[int, int]) -> Row:
    """What does not depend on the machine."""
    config = CONFIGS[name]
    with torch.device("meta"):
        model = LALIC.from_config(config).eval()
    where = {"model": f"LALIC {name}", "height": size[0], "width": size[1]}
    found = {
        "operations": next(operations.operations(model, model, [size])),
        "bytes": next(memory.held(config, [size])),
    }
    return where | {"parameters": operations.parameters(model)} | found


def times(name: str, size: tuple[int, int], setting: Setting) -> Row:
    """Seconds of both directions. Raises ``WrongResult`` before anything is timed."""
    subject = codec.Subject(name, *size, 1, setting.device).start()
    subject.check(subject.decode())
    row: Row = {"weights": "shipped" if name == "slim" else "random", "bits per pixel": subject.bits_per_pixel()}
    for call in (
        Call("encode", subject.encode, subject.check_streams),
        Call("decode", subject.decode, subject.check),
    ):
        (found,) = measure("complexity", Case(call.name, (call,), wall_clock=True), setting)
        row[call.name] = {key: found[key] for key in ("seconds", "quartiles", "repeats")}
    return row


def measured(name: str, size: tuple[int, int], setting: Setting) -> Row:
    """Times and memory, each in a process of its own; memory with an allocator that gives it back at once."""
    found = in_fresh_process(times, name, size, setting)
    state = memory_to_read(setting.device)
    held = in_fresh_process(codec.peaks, name, size, 1, setting, ("ours",), memory=state)
    for direction in ("encode", "decode"):
        found[direction]["peak bytes"] = held[f"ours {direction}"]
    return found


def peers(options: argparse.Namespace, size: tuple[int, int], setting: Setting) -> list[Row]:
    """A row for each peer that `--peers` names: counts, times, or why it is "skipped"."""
    rows: dict[str, Row] = {}
    for peer in options.peers:
        timed = checkouts.measured(peer, options.peer_python, size, 1, setting)
        counted = checkouts.counted(peer, options.peer_python, [size])
        for found in [*timed, *(row for row in counted if "operations" in row)]:
            row = rows.setdefault(found["model"], {"model": found["model"], "height": size[0], "width": size[1]})
            row |= {
                key: found[key] for key in ("skipped", "parameters", "bits per pixel", "operations") if key in found
            }
            if "direction" in found:
                row["weights"] = "random"
                times = {key: found[key] for key in ("seconds", "quartiles", "repeats")}
                row[found["direction"]] = times | {"peak bytes": None}
    return list(rows.values())


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row a model. Returns 0, or 1 if a result was wrong; usage errors and a busy machine exit with 2."""
    parser = records.parser("paper.complexity", "Table 1's costs.", quick="a tiny picture, two rounds")
    checkouts.add_options(parser)
    options = parser.parse_args(argv)
    device = records.check(parser, options)
    record = records.environment(device) | {"complexity": []}
    size, setting = QUICK if options.quick else SIZE, Setting(device, options.quick)
    for name in CONFIGS:
        try:
            record["complexity"].append(counts(name, size) | measured(name, size, setting))
        except WrongResult as error:
            print(f"LALIC {name}: not timed, {error}; nothing is saved", file=sys.stderr)
            return 1
    record["complexity"] += peers(options, size, setting)
    report.show(record)
    records.keep(record, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
