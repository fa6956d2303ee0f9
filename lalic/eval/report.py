"""Reports of measurements: a table, BD-rates, plots, files."""

from __future__ import annotations

import io
import itertools
import json
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lalic.errors import LalicError, one_line
from lalic.eval.curves import METRICS, Comparison, Curve, Figures, compressai_json, decibels
from lalic.eval.measure import Results
from lalic.files import write_atomic

__all__ = ["Line", "comparison_line", "draw", "table", "text", "write"]

_NAMES = {"psnr": "PSNR", "ms-ssim": "MS-SSIM"}
_HEAD = f"  {'quality':>16}  {'bpp':>7}  {'PSNR':>6}  {'MS-SSIM':>8}  {'dB':>6}  {'encode':>9}  {'decode':>9}"
_LABELS = {"psnr": "PSNR in dB", "ms-ssim": "MS-SSIM in dB"}


def text(results: Results, each: bool = False) -> str:
    """The table, the comparisons, and a line on pictures and machine. each: also a line for each picture."""
    lines = [table(results.curves, each), ""]
    lines += [comparison_line(comparison) for comparison in results.comparisons()]
    lines.append(one_line(f"{_title(results)}; {results.caption}"))
    return "\n".join(lines)


def write(results: Results, folder: Path, log: Callable[[str], None] | None = None) -> list[Path]:
    """Write a JSON file in CompressAI's format for each codec, the comparisons, and plots if matplotlib is installed.

    folder: made if it does not exist; files of an earlier call are replaced. log: called with a message for each plot
    that cannot be made. Returns the paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    contents: dict[Path, Any] = {folder / "comparisons.json": [asdict(each) for each in results.comparisons()]}
    for curve in results.curves:
        name = re.sub(r"[^a-z0-9.]+", "-", curve.title.lower()).strip("-")
        paths = (folder / f"{name}{'' if n == 1 else f'-{n}'}.json" for n in itertools.count(1))
        contents[next(path for path in paths if path not in contents)] = compressai_json(curve, results.caption)
    for path, content in contents.items():
        write_atomic(path, (json.dumps(content, indent=2) + "\n").encode())
    written = list(contents)
    caption = "; ".join([results.caption, *(f"{curve.title}: {curve.version}" for curve in results.curves)])
    for metric in METRICS:
        lines = [Line(curve.title, curve.rd_points(metric), ours=curve.name == "lalic") for curve in results.curves]
        lines += [Line(curve.title, curve.rd_points(metric), published=True) for curve in results.others]
        if any(line.points for line in lines):
            try:
                written += draw(lines, metric, folder / metric, _title(results), caption)
            except LalicError as error:
                if log is not None:
                    log(f"no {metric} plot: {error}")
    return written


def _title(results: Results) -> str:
    return f"{results.pictures} picture{'s' if results.pictures > 1 else ''} of {results.name}"


def comparison_line(comparison: Comparison) -> str:
    """One comparison as one line."""
    head = f"{comparison.test} against {comparison.anchor}, {_NAMES[comparison.metric]}:"
    if comparison.percent is not None:
        figures = ", ".join(f"{value:+.2f} % ({method})" for method, value in comparison.percent.items())
        span = f"over {comparison.low:.2f} to {comparison.high:.2f} dB, {comparison.share:.0%} of both"
        return f"{head} BD-rate {figures}, {span}"
    if comparison.at:
        return f"{head} " + ", ".join(f"{percent:+.1f} % at {value:.2f} dB" for value, percent in comparison.at)
    return f"{head} no figure, {comparison.problem}"


def table(curves: Sequence[Curve], each: bool = False) -> str:
    """One line for each point, means over the pictures; with `each` also a line for each picture."""
    lines = []
    for curve in curves:
        lines += [f"{curve.title} ({curve.version})", _HEAD]
        for point in curve.points:
            lines.append(_line(point.label or "-", point))
            lines += [_line(f"  {row.picture}", row) for row in point.rows if each]
    return "\n".join(lines)


def _line(name: str, of: Figures) -> str:
    ms_ssim, decode_seconds = of.ms_ssim, of.decode_seconds
    cells = [f"{one_line(name):>16}", f"{of.bpp:7.4f}", f"{of.psnr:6.3f}"]
    cells.append(f"{'-':>8}" if ms_ssim is None else f"{ms_ssim:8.5f}")
    cells.append(f"{'-':>6}" if ms_ssim is None else f"{decibels(ms_ssim):6.2f}")
    cells += [f"{of.encode_seconds:7.4f} s", f"{'-':>9}" if decode_seconds is None else f"{decode_seconds:7.4f} s"]
    return "  " + "  ".join(cells)


# Plots


@dataclass(frozen=True)
class Line:
    """A curve to draw. points: (bits per pixel, dB). ours: solid and thick. published: dotted. Others are dashed."""

    title: str
    points: Sequence[tuple[float, float]]
    ours: bool = False
    published: bool = False


def draw(lines: Sequence[Line], metric: str, stem: Path, title: str, caption: str, highest: float = 2.0) -> list[Path]:
    """Draw `stem`.png and `stem`.svg with matplotlib, and return their paths.

    metric: "psnr" or "ms-ssim". highest: end of the axis in bits per pixel. The same lines always give the same SVG.
    Raises `LalicError` if matplotlib is not installed or there is nothing to draw.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise LalicError("plots need matplotlib, which is not installed (pip install matplotlib)") from None
    shown = [(line, sorted(point for point in line.points if point[0] <= highest)) for line in lines]
    shown = [(line, points) for line, points in shown if points]
    if not shown:
        raise LalicError(f"there is nothing to draw below {highest:g} bits per pixel")
    settings: Any = {"svg.hashsalt": "lalic", "svg.fonttype": "none", "font.size": 10}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(7.2, 5.0), layout="constrained")
        axes = figure.add_subplot()
        for line, points in shown:
            style: dict[str, Any] = {"linestyle": "--", "marker": ".", "linewidth": 1.2, "zorder": 2}
            if line.ours:
                style |= {"linestyle": "-", "marker": "o", "linewidth": 2.2, "zorder": 3}
            elif line.published:
                style["linestyle"] = ":"
            if len(points) == 1:
                style |= {"linestyle": "none", "marker": "*", "markersize": 11}
            axes.plot(*zip(*points, strict=True), label=line.title, **style)
        axes.set_xlim(left=0)
        axes.set_xlabel("bits per pixel, of the whole file")
        axes.set_ylabel(_LABELS[metric])
        axes.set_title(title, fontsize=11)
        axes.grid(alpha=0.35)
        axes.legend(loc="lower right", fontsize=9)
        figure.supxlabel(textwrap.fill(caption, 120), fontsize=7, color="0.35")
        paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
        of_png: dict[str, Any] = {"format": "png", "dpi": 150, "metadata": {"Software": None}}
        of_svg: dict[str, Any] = {"format": "svg", "metadata": {"Date": None, "Creator": None}}
        for path, options in zip(paths, (of_png, of_svg), strict=True):
            out = io.BytesIO()
            figure.savefig(out, **options)
            write_atomic(path, out.getvalue())
    return paths
