"""Operations and memory against the size of the picture: `python -m benchmarks.paper.scaling`.

It is Figure 10 of the supplement. Counted for every size up to 8K, on tensors without memory (`benchmarks.counting`);
with --measure also the memory that a forward pass really takes, where it fits. --peers adds other people's networks
(`benchmarks.peers.checkouts`). Each quantity gets a straight line through its sizes, with R^2, so that "linear" is a
number.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from benchmarks import records, report
from benchmarks.counting import memory, operations
from benchmarks.counting.memory import CONFIGS
from benchmarks.counting.operations import Size
from benchmarks.measure import MEMORY, in_fresh_process, memory_to_read
from benchmarks.peers import checkouts
from lalic.model import LALIC

# To 1024 x 1024, where the figure ends, Kodak's size among them; then 1080p, 4K and 8K, sides filled up to multiples of
# 64. Height, width.
SIZES: tuple[Size, ...] = (
    (256, 256), (384, 384), (512, 512), (512, 768), (640, 640), (768, 768), (896, 896), (1024, 1024), (1088, 1920),
    (2176, 3840), (4352, 7680),
)  # fmt: skip
FIRST_GUESS = 1500  # bytes a pixel that a forward pass of the full model takes at most, before one was measured
Row = dict[str, Any]


def line(pixels: Sequence[float], values: Sequence[float]) -> Row | None:
    """Least squares: {"slope", "intercept", "r2", "worst", "points"}; None for fewer than three points.

    R^2 is one less the squared residuals over the squared deviations from the mean; the largest sizes decide it. So
    "worst" is there too: the largest distance from the line, in shares of the value.
    """
    if len(values) < 3:
        return None
    x, y = np.asarray(pixels, dtype=np.float64), np.asarray(values, dtype=np.float64)
    slope, intercept = np.polyfit(x, y, 1)
    residuals = y - slope * x - intercept
    return {
        "slope": float(slope),
        "intercept": float(intercept),
        "r2": float(1 - (residuals**2).sum() / ((y - y.mean()) ** 2).sum()),
        "worst": float((abs(residuals) / abs(y)).max()),
        "points": len(values),
    }


# Counting


def count(sizes: Sequence[Size]) -> list[Row]:
    """Rows of our models."""
    rows: list[Row] = []
    for name, config in CONFIGS.items():
        with torch.device("meta"):
            model = LALIC.from_config(config).eval()
        flops, held = list(operations.operations(model, model, sizes)), memory.held(config, sizes)
        for (height, width), found, bytes_held in zip(sizes, flops, held, strict=True):
            where = {"model": f"LALIC {name}", "height": height, "width": width, "pixels": height * width}
            rows.append(where | {"operations": found, "bytes": bytes_held})
    return rows


def fits(rows: Sequence[Row], keys: Sequence[tuple[str, ...]]) -> dict[str, dict[str, Row]]:
    """Lines by model and quantity, over the rows that have it; `keys` are paths in a row."""
    found: dict[str, dict[str, Row]] = {}
    for name in dict.fromkeys(row["model"] for row in rows):
        for path in keys:
            own = [row for row in rows if row["model"] == name and report.at(row, path)]
            fit = line([row["pixels"] for row in own], [report.at(row, path) for row in own])
            if fit is not None:
                found.setdefault(name, {})[" ".join(path)] = fit
    return found


COUNTS = (("operations", "complete"), ("operations", "layers"), ("operations", "thop"), ("bytes", "peak"))


# Measuring


def passes(
    name: str, run: Callable[[Tensor], Any], sizes: Sequence[Size], device: torch.device, longest: float
) -> list[Row]:
    """Rows of forward passes without gradients, smallest first; where one does not fit, why, and the line's value."""
    rows: list[Row] = []
    with torch.inference_mode():
        run(torch.rand(1, 3, 128, 128, device=device))
        for height, width in sorted(sizes, key=lambda size: size[0] * size[1]):
            pixels = height * width
            row: Row = {"model": name, "height": height, "width": width, "pixels": pixels}
            rows.append(row)
            done = [r for r in rows if r.get("peak bytes")]
            fit = line([r["pixels"] for r in done], [r["peak bytes"] for r in done])
            guess = FIRST_GUESS * pixels if fit is None else fit["slope"] * pixels + fit["intercept"]
            reason = memory.too_large(int(1.25 * guess), device)
            seconds = done[-1]["seconds"] * pixels / done[-1]["pixels"] if done else 0.0
            if reason is None and seconds > longest:
                reason = f"would take about {seconds:.3g} s by the size before, more than {longest:g} s"
            if reason is not None:
                row |= {"skipped": reason} | ({} if fit is None else {"extrapolated bytes": guess})
                continue
            x = torch.rand(1, 3, height, width, device=device)
            start = time.perf_counter()
            row["peak bytes"] = memory.peak_bytes(lambda x=x: run(x), device)  # type: ignore[misc]
            row["seconds"] = time.perf_counter() - start  # of one call, to see what the next may take
    return rows


def _measured(name: str, sizes: Sequence[Size], device: torch.device, longest: float) -> list[Row]:
    """Rows of one of our models. Runs in a process of its own."""
    torch.manual_seed(0)
    model = LALIC.from_config(CONFIGS[name]).eval().to(device)
    return passes(f"LALIC {name}", model, sizes, device, longest)


def measure(
    sizes: Sequence[Size], device: torch.device, longest: float, names: Sequence[str], python: Path
) -> list[Row]:
    """Bytes that a pass adds at its peak to weights and picture, each model, and each peer of `--peers`, by itself."""
    state = memory_to_read(device)
    rows: list[Row] = []
    for name in CONFIGS:
        rows += in_fresh_process(_measured, name, sizes, device, longest, memory=state)
    with mock.patch.dict(os.environ, MEMORY[state]):  # a peer's process inherits it
        for name in names:
            rows += checkouts.passed(name, python, sizes, device, longest)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Print counts, measurements and lines. Returns 0; usage errors and a busy machine exit with 2."""
    parser = records.parser("paper.scaling", "Cost against pixels.")
    parser.add_argument("--measure", action="store_true", help="the memory that passes really take here as well")
    parser.add_argument("--longest", type=float, default=60.0, metavar="S", help="seconds a pass (default %(default)s)")
    parser.add_argument("--largest", type=int, default=8000, metavar="N", help="leave out sides above N pixels")
    checkouts.add_options(parser)
    options = parser.parse_args(argv)
    device = records.check(parser, options, timed=options.measure)
    sizes = [size for size in SIZES if max(size) <= options.largest]
    if len(sizes) < 3:
        parser.error(f"--largest {options.largest} leaves fewer than three sizes, and a line needs three")
    rows = count(sizes)
    for name in options.peers:
        rows += checkouts.counted(name, options.peer_python, sizes)
    record = records.counted(scaling=rows, fits=fits(rows, COUNTS))
    report.show(record)
    records.keep(record, options)
    if options.measure:
        record = records.environment(device)
        rows = measure(sizes, device, options.longest, options.peers, options.peer_python)
        record |= {"scaling": rows, "fits": fits(rows, (("peak bytes",),))}
        report.show(record)
        records.keep(record, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
