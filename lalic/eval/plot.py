"""Rate-distortion curves as PNG and SVG, through matplotlib, with the device and the versions under them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lalic.errors import LalicError

__all__ = ["Line", "draw"]

_LABELS = {"psnr": "PSNR in dB", "ms-ssim": "MS-SSIM in dB"}


@dataclass(frozen=True)
class Line:
    """A curve to draw: points (bits per pixel, dB). ours: solid and thick. published: dotted, as somebody else's."""

    title: str
    points: Sequence[tuple[float, float]]
    ours: bool = False
    published: bool = False


def draw(lines: Sequence[Line], metric: str, stem: Path, title: str, caption: str, most: float = 2.0) -> list[Path]:
    """Write `stem`.png and `stem`.svg and return their paths.

    metric: "psnr" or "ms-ssim". most: bits per pixel where the axis ends. The same lines give the same SVG, whenever it
    is drawn. Raises `LalicError` if matplotlib is not installed or there is nothing to draw.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise LalicError("plots need matplotlib, which is not installed (pip install matplotlib)") from None
    kept = [(line, sorted(point for point in line.points if point[0] <= most)) for line in lines]
    kept = [(line, points) for line, points in kept if points]
    if not kept:
        raise LalicError(f"there is nothing to draw below {most:g} bits per pixel")
    settings: Any = {"svg.hashsalt": "lalic", "svg.fonttype": "none", "font.size": 10}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(7.2, 5.0), layout="constrained")
        axes = figure.add_subplot()
        style: dict[str, Any]
        for line, points in kept:
            rates, values = zip(*points, strict=True)
            if len(points) == 1:
                style = {"linestyle": "none", "marker": "*", "markersize": 11}
            elif line.published:
                style = {"linestyle": ":", "marker": "."}
            else:
                style = {"linestyle": "-" if line.ours else "--", "marker": "o" if line.ours else "."}
            width = 2.2 if line.ours else 1.2
            axes.plot(rates, values, label=line.title, linewidth=width, zorder=3 if line.ours else 2, **style)
        axes.set_xlim(left=0)
        axes.set_xlabel("bits per pixel, of the whole file")
        axes.set_ylabel(_LABELS[metric])
        axes.set_title(title, fontsize=11)
        axes.grid(alpha=0.35)
        axes.legend(loc="lower right", fontsize=9)
        figure.supxlabel(textwrap.fill(caption, 120), fontsize=7, color="0.35")
        paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
        figure.savefig(paths[0], dpi=150, metadata={"Software": None})
        figure.savefig(paths[1], metadata={"Date": None, "Creator": None})
    return paths
