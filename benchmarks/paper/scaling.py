"""Operations and memory against the size of the picture: `python -m benchmarks.paper.scaling`.

It is Figure 10 of the supplement. Counted for every size up to 8K, on tensors without memory (`benchmarks.counting`);
with --measure also the memory that a forward pass really takes, where it fits. Beside ours the yardstick networks that
ship, CompressAI's where it is installed, and with --peers those of other people's checkouts
(`benchmarks.peers.checkouts`). Each quantity gets a straight line through its sizes, with R^2, so that "linear" is a
number.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import records
from benchmarks.counting import memory, operations
from benchmarks.counting.memory import CONFIGS
from benchmarks.counting.operations import Size
from benchmarks.measure import MEMORY, in_fresh_process, memory_to_read
from benchmarks.peers import checkouts
from benchmarks.peers.hyperprior import MeanScaleHyperprior
from lalic.model import LALIC

# To 1024 x 1024, where the figure ends, Kodak's size among them; then 1080p, 4K and 8K, sides filled up to multiples of
# 64. Height, width.
SIZES: tuple[Size, ...] = (
    (256, 256), (384, 384), (512, 512), (512, 768), (640, 640), (768, 768), (896, 896), (1024, 1024), (1088, 1920),
    (2176, 3840), (4352, 7680),
)  # fmt: skip
NETWORKS = "mean-scale hyperprior, networks only"
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


def built(name: str) -> tuple[str, nn.Module, Callable[[Tensor], Any]]:
    """(name in rows, modules, forward pass) of a configuration or of the yardstick, in eval mode."""
    if name == NETWORKS:
        networks = MeanScaleHyperprior().eval()
        return NETWORKS, networks, lambda x: networks.g_s(networks.encoding(x)[0])
    model = LALIC.from_config(CONFIGS[name]).eval()
    return f"LALIC {name}", model, model


def subjects() -> Iterator[tuple[str, nn.Module, Callable[[Tensor], Any]]]:
    """`built` of all that are counted; ours without memory."""
    for name in (*CONFIGS, NETWORKS):
        with torch.device("meta"):
            ours = built(name)
        yield ours
    yield from checkouts.installed()


def count(sizes: Sequence[Size]) -> list[Row]:
    """Rows of all subjects; one that cannot be counted says why in "skipped"."""
    rows: list[Row] = []
    for name, modules, run in subjects():
        try:
            flops = list(operations.operations(modules, run, sizes))
        except Exception as error:  # a peer's code, which need not bear tensors without memory
            if name == NETWORKS or name.startswith("LALIC"):
                raise
            rows.append({"model": name, "skipped": f"{type(error).__name__}: {str(error).splitlines()[0]}"})
            continue
        config = CONFIGS.get(name.removeprefix("LALIC "))
        held = [None] * len(sizes) if config is None else list(memory.held(config, sizes))
        for (height, width), found, bytes_held in zip(sizes, flops, held, strict=True):
            row: Row = {"model": name, "height": height, "width": width, "pixels": height * width, "operations": found}
            rows.append(row if bytes_held is None else row | {"bytes": bytes_held})
    return rows


def count_peers(names: Sequence[str], python: Path, sizes: Sequence[Size]) -> list[Row]:
    """Rows of what `--peers` names, from processes of their own."""
    return [row for name in names for row in _named(checkouts.counted(name, python, sizes))]


def _named(rows: Sequence[Row]) -> list[Row]:
    """A peer's rows under the key that ours have."""
    return [{"model": row["side"], **{key: value for key, value in row.items() if key != "side"}} for row in rows]


def fits(rows: Sequence[Row], keys: Sequence[tuple[str, ...]]) -> dict[str, dict[str, Row]]:
    """Lines by model and quantity, over the rows that have it; `keys` are paths in a row."""
    found: dict[str, dict[str, Row]] = {}
    for name in dict.fromkeys(row["model"] for row in rows):
        for path in keys:
            points = [(row["pixels"], _at(row, path)) for row in rows if row["model"] == name and _at(row, path)]
            fit = line([p for p, _ in points], [v for _, v in points])
            if fit is not None:
                found.setdefault(name, {})[" ".join(path)] = fit
    return found


def _at(row: Row, path: Sequence[str]) -> Any:
    value: Any = row
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


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
    """Rows of one of our models, or of the yardstick. Runs in a process of its own."""
    torch.manual_seed(0)
    title, modules, run = built(name)
    modules.to(device)
    return passes(title, run, sizes, device, longest)


def measure(
    sizes: Sequence[Size], device: torch.device, longest: float, names: Sequence[str], python: Path
) -> list[Row]:
    """Bytes that a pass adds at its peak to weights and picture, each model, and each peer of `--peers`, by itself."""
    state = memory_to_read(device)
    rows: list[Row] = []
    for name in (*CONFIGS, NETWORKS):
        rows += in_fresh_process(_measured, name, sizes, device, longest, memory=state)
    with mock.patch.dict(os.environ, MEMORY[state]):  # a peer's process inherits it
        for name in names:
            rows += _named(checkouts.passed(name, python, sizes, device, longest))
    return rows


# The command


def lines(rows: Sequence[Row], found: dict[str, dict[str, Row]]) -> Iterator[str]:
    """Rows and lines as text."""
    for name in dict.fromkeys(row["model"] for row in rows):
        yield name
        for row in rows:
            if row["model"] == name:
                yield f"  {_text(row)}"
        for quantity, fit in found.get(name, {}).items():
            through = f"{fit['slope']:.6g} a pixel + {fit['intercept']:.4g}"
            yield f"  {quantity}: {through}, R^2 = {fit['r2']:.8f}, within {fit['worst']:.2g}"


def _text(row: Row) -> str:
    if "pixels" not in row:
        return f"not run: {row['skipped']}"
    parts = [f"{row['width']}x{row['height']}:"]
    if "operations" in row:
        flops = row["operations"]
        parts.append(f"{flops['complete'] / 1e9:.2f} GFLOP complete, {flops['formulas'] / 1e9:.2f} by formulas;")
        parts.append(f"{flops['layers'] / 1e9:.2f} GMAC of layers, {flops['thop'] / 1e9:.2f} as thop sees them")
    if "bytes" in row:
        parts[-1] += f"; {row['bytes']['peak'] / 2**20:.0f} MiB"
    if row.get("peak bytes") is not None:
        parts.append(f"+{row['peak bytes'] / 2**20:.0f} MiB measured")
    if "extrapolated bytes" in row:
        parts.append(f"+{row['extrapolated bytes'] / 2**20:.0f} MiB extrapolated;")
    if "skipped" in row:
        parts.append(f"not run: {row['skipped']}")
    return " ".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Print counts, measurements and lines. Returns 0; usage errors and a busy machine exit with 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper.scaling", description="Cost against pixels.")
    parser.add_argument("--measure", action="store_true", help="the memory that passes really take here as well")
    parser.add_argument("--longest", type=float, default=60.0, metavar="S", help="seconds a pass (default %(default)s)")
    parser.add_argument("--largest", type=int, default=8000, metavar="N", help="leave out sides above N pixels")
    records.add_where(parser)
    records.add_saving(parser)
    checkouts.add_options(parser)
    options = parser.parse_args(argv)
    device = records.check(parser, options, timed=options.measure)
    sizes = [size for size in SIZES if max(size) <= options.largest]
    if len(sizes) < 3:
        parser.error(f"--largest {options.largest} leaves fewer than three sizes, and a line needs three")
    rows = count(sizes) + count_peers(options.peers, options.peer_python, sizes)
    found = fits(rows, COUNTS)
    print("\n".join(lines(rows, found)), flush=True)
    if options.save:
        records.keep(records.counted(scaling=rows, fits=found), options.results)
    if options.measure:
        record = records.environment(device) | {"quick": False}
        print(records.header(record), flush=True)
        rows = measure(sizes, device, options.longest, options.peers, options.peer_python)
        found = fits(rows, (("peak bytes",),))
        print("\n".join(lines(rows, found)))
        if options.save:
            records.keep(record | {"scaling": rows, "fits": found}, options.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
