"""Table 5 measured: `python -m benchmarks.paper.mechanisms [NAME ...] [--device cuda] [--save]`.

For each mechanism, width and length: the operations that the paper gives, those really executed, time and peak memory.
Each mechanism and width has a process of its own and, with --save, a record of its own: an interrupted run continues
where it stopped when the same command is given at the same commit. Memory is never filled: a point whose estimate is
above 0.7 of what is free is left out and says so, and so is one that would take longer than --longest seconds a call.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import records, report
from benchmarks.counting import memory
from benchmarks.counting.operations import Counted, count
from benchmarks.measure import Call, Case, Row, Setting, WrongResult, in_fresh_process, measure, memory_to_read, within
from benchmarks.paper.mechanism_modules import MECHANISMS, Mechanism, Parts

LENGTHS = tuple(1 << n for n in range(10, 21))
WIDTHS = (96, 192, 320)
SMALL = 256  # tokens at which the definition is affordable
FLOOR = 8 << 20  # bytes that any call may need besides
# Of the largest value. Longest sums: 10^6 terms of mean one, added pairwise or chunk by chunk in float32.
TOLERANCE = 1e-4


ROUNDS = (3, 25, 1.0)  # fewer than an op's: a point can take a minute


def operations_of(name: str, length: int, width: int, device: torch.device) -> Counted:
    """What `mix` executes on float32 on a device, counted on tensors without memory."""
    with FakeTensorMode(), device:
        mechanism = MECHANISMS[name](width).requires_grad_(False)
        parts = tuple(part.to(device) for part in mechanism.sample(length, torch.Generator()))
        return count(lambda: mechanism.mix(*parts))[0]


def needed_bytes(mechanism: Mechanism, length: int) -> int:
    """An estimate of what a call and its arguments hold at the peak, float32."""
    return int(4 * mechanism.copies * length * mechanism.width) + FLOOR


def _check_small(name: str, mechanism: Mechanism, device: torch.device) -> None:
    """Against the definition in float64."""
    parts = mechanism.sample(SMALL, torch.Generator(device).manual_seed(1))
    got = mechanism.mix(*parts)
    double = MECHANISMS[name](mechanism.width).double().requires_grad_(False)
    double.load_state_dict(mechanism.state_dict())
    want = double.definition(*(part.cpu().double() for part in parts))
    within(name, got.cpu(), want, TOLERANCE * float(want.abs().max()))


def _check_here(name: str, mechanism: Mechanism, parts: Parts, y: torch.Tensor) -> None:
    """The first and the last channels at all positions against the same mechanism in float64, which runs other code."""
    for channels in (slice(mechanism.unit), slice(mechanism.width - mechanism.unit, None)):
        few = tuple(part.double() for part in mechanism.narrowed_parts(parts, channels))
        want = mechanism.narrowed(channels).double().mix(*few)
        within(f"{name}, {len(y)} tokens", y[:, channels], want, TOLERANCE * float(want.abs().max()))


@torch.no_grad()
def rows(name: str, width: int, lengths: Sequence[int], setting: Setting, longest: float = 60.0) -> list[Row]:
    """Rows of one mechanism and width, shortest first. Raises `WrongResult` before a wrong one is timed.

    longest: seconds that a call may take, by the length before; longer ones are left out.
    """
    device = setting.device
    torch.manual_seed(0)
    mechanism = MECHANISMS[name](width).to(device).requires_grad_(False)
    _check_small(name, mechanism, device)
    before: tuple[int, float] | None = None
    found: list[Row] = []
    for length in sorted(lengths):
        counted = operations_of(name, length, width, device)
        row: Row = {
            "mechanism": name,
            "length": length,
            "width": width,
            "dtype": "float32",
            "runs": mechanism.runs(device, torch.float32),
            "theoretical": mechanism.coefficient * length * width,
            "theoretical an element": mechanism.coefficient,
            "operations": {
                "formula": counted.formula, "elementwise": counted.elementwise, "total": counted.total,
                "an element": counted.total / (length * width),
            },
        }  # fmt: skip
        expected = 0.0 if before is None else before[1] * length / before[0]
        reason = memory.too_large(needed_bytes(mechanism, length), device)
        if reason is None and expected > longest:
            reason = f"would take about {expected:.3g} s a call by the length before, more than {longest:g} s"
        if reason is None:
            row |= _measured(name, mechanism, length, setting)
            before = length, row["seconds"]
        else:
            row["skipped"] = reason
        found.append(row)
    return found


def _measured(name: str, mechanism: Mechanism, length: int, setting: Setting) -> dict[str, Any]:
    parts = mechanism.sample(length, torch.Generator(setting.device).manual_seed(2))
    call = Call(name, lambda: mechanism.mix(*parts), lambda y: _check_here(name, mechanism, parts, y))
    (row,) = measure("mechanisms", Case(f"{length} x {mechanism.width}", (call,)), setting)
    found = {key: row[key] for key in ("memory", "seconds", "quartiles", "repeats")}
    found["seconds an element"] = found["seconds"] / (length * mechanism.width)
    found["peak bytes"] = memory.peak_bytes(call.run, setting.device)
    found["argument bytes"] = sum(part.numel() * part.element_size() for part in parts)
    return found


# The command


def recorded(folder: Path, environment: dict[str, Any], lengths: Sequence[int]) -> set[tuple[str, int]]:
    """(mechanism, width) that the results hold already, of this device, commit, versions, threads and lengths."""
    keys = ("commit", "dirty", "device", "threads", "python", *records.PACKAGES)
    return {
        (r["mechanism"], r["width"])
        for r in records.load(folder)
        if "mechanisms" in r
        and all(r.get(key) == environment[key] for key in keys)
        and {row["length"] for row in r["mechanisms"]} >= set(lengths)
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print the rows. Returns 0, or 1 if a result was wrong; usage errors and a busy machine exit with 2."""
    parser = records.parser("paper.mechanisms", "Table 5, measured.", quick="two rounds a point")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(MECHANISMS)} (default: all)")
    parser.add_argument("--lengths", nargs="+", type=int, metavar="L", default=LENGTHS, help="default 2^10 .. 2^20")
    parser.add_argument("--widths", nargs="+", type=int, metavar="D", default=WIDTHS, help="default 96 192 320")
    parser.add_argument("--longest", type=float, default=60.0, metavar="S", help="seconds a call (default %(default)s)")
    options = parser.parse_args(argv)
    unknown = [name for name in options.names if name not in MECHANISMS]
    if unknown:
        parser.error(f"there is no mechanism {unknown[0]!r}, expected some of {', '.join(MECHANISMS)}")
    if bad := [n for n in options.lengths if n < 64 or n % 64]:
        parser.error(f"--lengths: {bad[0]} is no positive multiple of 64, which windows of 8 x 8 need")
    if bad := [n for n in options.widths if n < 32 or n % 32]:
        parser.error(f"--widths: {bad[0]} is no positive multiple of 32, a head of the window attention")
    device = records.check(parser, options)
    done = recorded(options.results, records.environment(device), options.lengths)
    setting = Setting(device, options.quick, memory_to_read(device), ROUNDS)
    failed = False
    for name in options.names or MECHANISMS:
        for width in options.widths:
            if options.save and (name, width) in done:
                print(f"{name}, D = {width}: is recorded", flush=True)
                continue
            try:
                words = (name, width, options.lengths, setting, options.longest)
                found = in_fresh_process(rows, *words, memory=setting.memory)
            except WrongResult as error:
                failed = True
                print(f"{name}, D = {width}: not timed, {error}", file=sys.stderr)
                continue
            record = records.environment(device) | {"mechanism": name, "width": width, "mechanisms": found}
            report.show(record)
            records.keep(record, options)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
