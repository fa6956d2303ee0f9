"""Measure launch tables: `python -m benchmarks.tune biwkv [--output FILE] [--save]`, on the GPU the table is for.

For each use (forward, scan, backward), size class and bytes an element, every candidate's result is verified against
the reference path in float64, as in `benchmarks.run`, and all are timed in turn; the smallest median wins. The winners
become the architecture's rows of lalic_kernels/biwkv/launches.json; all other rows stay. Nothing is tuned at run time.

`--compile 90` measures nothing: it compiles every candidate for that architecture and prints registers and spills.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import lalic_kernels
from benchmarks import records, report
from benchmarks.cases.biwkv import biwkv_arguments, check_biwkv, check_biwkv_gradients
from benchmarks.measure import Call, Case, Setting, measure
from benchmarks.measure import Row as Measured
from lalic_kernels.biwkv import gpu as launches
from lalic_kernels.launch import Launch

# (GROUPS, BLOCK_C, warps): a thread has the four tokens of a group times four channels, or eight.
_HALF = ((16, 8, 1), (16, 16, 2), (32, 16, 4), (64, 16, 8))
_WHOLE = ((16, 16, 1), (32, 16, 2), (64, 16, 4), (128, 16, 8))
CANDIDATES: dict[tuple[str, int | None], tuple[tuple[int, int, int], ...]] = {
    ("forward", 2): _HALF + _WHOLE,
    ("forward", 4): _HALF + _WHOLE,
    # (PIECE, BLOCK_C, warps)
    ("scan", None): ((32, 4, 1), (32, 8, 2), (64, 4, 2), (128, 2, 2), (128, 4, 4)),
    # (LENGTH, BLOCK_C, warps)
    ("backward", 2): ((32, 16, 4), (64, 16, 4), (64, 16, 8)),
    ("backward", 4): ((32, 16, 4), (64, 16, 4), (64, 16, 8)),
}
# Where a class of sizes begins, in T * C, and the shape that stands for it: the model's stages where there is one.
FORWARD_SIZES = (
    (0, (8, 128, 192)),
    (1 << 16, (1, 384, 256)),
    (1 << 18, (1, 2040, 256)),
    (1 << 20, (1, 6144, 256)),
    (1 << 21, (1, 24576, 144)),
    (1 << 22, (1, 98304, 96)),
)
SIZES: dict[str, tuple[tuple[int, tuple[int, int, int]], ...]] = {
    "forward": FORWARD_SIZES,
    "scan": ((0, (1, 2040, 256)), (33, (1, 6144, 256)), (257, (1, 98304, 96))),  # begins are counted in chunks
    "backward": FORWARD_SIZES,
}
DTYPES = {2: torch.bfloat16, 4: torch.float32, None: torch.bfloat16}


def launch_of(use: str, sizes: tuple[int, int, int]) -> Launch:
    """A candidate as a launch."""
    *constants, warps = sizes
    return Launch(tuple(zip(launches.CONSTANTS[use], constants, strict=True)), num_warps=warps)


@contextlib.contextmanager
def using(rows: Iterable[launches.Row]) -> Iterator[None]:
    """Other rows in place of the table's, for this process and a while."""
    before, launches.TABLE = launches.TABLE, tuple(rows)
    try:
        yield
    finally:
        launches.TABLE = before


def with_row(table: Iterable[launches.Row], row: launches.Row) -> tuple[launches.Row, ...]:
    """The table, with a row instead of all that there are for its use, architecture and itemsize, whatever the size."""
    key = (row.use, row.architecture, row.itemsize)
    return (*(other for other in table if (other.use, other.architecture, other.itemsize) != key), row)


def merged(rows: Sequence[launches.Row]) -> list[launches.Row]:
    """Rows of one use in order of their start, without those that say what the one before says."""
    kept: list[launches.Row] = []
    for row in sorted(rows, key=lambda row: row.start):
        if not kept or kept[-1].launch != row.launch:
            kept.append(row)
    return kept


def write(rows: Iterable[launches.Row], path: Path) -> None:
    """Write rows as launches.json has them: one a line, "any" first."""
    uses = list(launches.CONSTANTS)

    def place(row: launches.Row) -> tuple:
        return row.architecture != "any", row.architecture, uses.index(row.use), row.itemsize or 0, row.start

    found = [
        {"use": row.use, "architecture": row.architecture, "itemsize": row.itemsize, "start": row.start}
        | dict(row.launch.constants)
        | {"num_warps": row.launch.num_warps}
        for row in sorted(rows, key=place)
    ]
    path.write_text("[\n" + ",\n".join(f"  {json.dumps(line)}" for line in found) + "\n]\n", encoding="utf-8")


def case(row: launches.Row, candidates: Sequence[Launch], shape: tuple[int, int, int], setting: Setting) -> Case:
    """All candidates for `row` on one shape, each verified by `benchmarks.measure` before any is timed."""
    arguments = biwkv_arguments(shape, DTYPES[row.itemsize], setting)
    upstream = torch.randn(shape, device=setting.device).to(arguments[2].dtype)
    leaves = [x.detach().requires_grad_() for x in arguments]

    def forward(table: tuple[launches.Row, ...]) -> Any:
        with using(table):
            return lalic_kernels.biwkv(*arguments, backend="triton")

    def backward(table: tuple[launches.Row, ...]) -> Any:
        with using(table):
            y = lalic_kernels.biwkv(*leaves, backend="triton")
            return torch.autograd.grad(y, leaves, upstream)

    run: Callable[..., Any] = forward
    check: Callable[..., None] = partial(check_biwkv, arguments)
    if row.use != "forward":  # which scans long sequences alone; every backward does
        run, check = backward, partial(check_biwkv_gradients, arguments, upstream)
    calls = []
    for launch in candidates:
        table = with_row(launches.TABLE, replace(row, start=0, launch=launch))
        calls.append(Call(name_of(launch), partial(run, table), check))
    return Case(f"{row.use} from {row.start} {shape} {str(arguments[2].dtype).removeprefix('torch.')}", tuple(calls))


def name_of(launch: Launch) -> str:
    """A launch in words, as a key."""
    return " ".join(f"{name} {number}" for name, number in launch.options().items())


def tune(architecture: str, setting: Setting, timed: Callable[[Case], list[Measured]]) -> Iterator[list[launches.Row]]:
    """The architecture's best rows: those found so far, after each use. Raises `WrongResult` for a wrong candidate."""
    best: list[launches.Row] = []
    # The forward first: how many chunks there are decides what the scan has to do.
    for (use, itemsize), sizes in CANDIDATES.items():
        candidates = [launch_of(use, each) for each in sizes]
        found = []
        with using((*(row for row in launches.TABLE if row.architecture != architecture), *best)):
            for start, shape in SIZES[use]:
                row = launches.Row(use, architecture, itemsize, start, candidates[0])
                rows = timed(case(row, candidates, shape, setting))
                fastest = min(rows, key=lambda row: row["seconds"])["call"]
                found.append(replace(row, launch=next(x for x in candidates if name_of(x) == fastest)))
        best += merged(found)
        yield best


def compile_candidates(architecture: str) -> Iterator[dict[str, Any]]:
    """What becomes of the kernels that need most registers, for every candidate, with whole vectors of channels."""
    from benchmarks.compiled import biwkv as ours
    from benchmarks.compiled import core

    target = core.target_of("cuda", architecture)
    for (use, itemsize), candidates in CANDIDATES.items():
        for launch in (launch_of(use, each) for each in candidates):
            if itemsize is None:
                for job in ours.scans(launch):
                    yield core.describe(job, target)
                continue
            dtype = "bf16" if itemsize == 2 else "fp32"
            *_, (kernel, blocks, _, more) = ours.variants(launches.Row(use, "any", itemsize, 0, launch))
            yield core.describe(ours.by_chunk(kernel, blocks, dtype, name_of(launch), more, 16 // itemsize), target)


def main(argv: Sequence[str] | None = None) -> int:
    """Write a table. Returns 0; usage errors, and a machine without a GPU, exit with 2."""
    parser = records.parser("tune", "Measure a launch table on a GPU.", where=False)
    parser.add_argument("op", choices=("biwkv",))
    parser.add_argument("--output", type=Path, default=launches.FILE, metavar="FILE", help="default: the package's own")
    parser.add_argument("--compile", metavar="90", help="only compile the candidates, for a CUDA architecture")
    options = parser.parse_args(argv)
    if options.compile:
        for found in compile_candidates(options.compile):
            print(json.dumps(found), flush=True)
        return 0
    if not torch.cuda.is_available():
        parser.error("a launch table is measured on the GPU that it is for, and torch finds none on this machine")
    device = torch.device("cuda")
    architecture = launches.architecture(device)
    record = records.environment(device)
    setting = Setting(device)

    def timed(case: Case) -> list[Measured]:
        rows = measure("tune biwkv", case, setting)
        report.show(record | {"rows": rows})
        records.keep(record | {"rows": rows}, options)
        return rows

    others = [row for row in launches.TABLE if row.architecture != architecture]
    for best in tune(architecture, setting, timed):  # what is cut short keeps what it has
        uses = {(row.use, row.itemsize) for row in best}
        mine = (row for row in launches.TABLE if row.architecture == architecture)
        write([*others, *(row for row in mine if (row.use, row.itemsize) not in uses), *best], options.output)
        print(f"wrote {len(best)} rows for {architecture} to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
