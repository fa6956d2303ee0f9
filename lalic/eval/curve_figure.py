"""Rate and distortion of one picture as an SVG figure in a page: in the page's colours, without a library."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping, Sequence

__all__ = ["curve_figure"]

_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 8, 26, 34  # margins
_CLASSES = ("ours", "theirs")
Points = Sequence[tuple[float, float]]


def curve_figure(
    curves: Mapping[str, Points], marked: Sequence[tuple[float, float]] = (), size: tuple[int, int] = (360, 240)
) -> str:
    """An SVG element of up to two curves by their titles, each a list of (bits per pixel, dB) in order.

    marked: a point of each curve to show large. size: in the units of its text. The rates are those of the first curve
    and a little more. Returns an empty text if the first has no two points.
    """
    width, height = size
    inner, tall = width - _LEFT - _RIGHT, height - _TOP - _BOTTOM
    finite = {title: [point for point in points if math.isfinite(point[1])] for title, points in curves.items()}
    first = next(iter(finite.values()), [])
    if len(first) < 2:
        return ""
    most = 1.3 * max(rate for rate, _ in first)
    values = [value for points in finite.values() for rate, value in points if rate <= most]
    low, high = min(values), max(values)
    low, high = low - 0.05 * (high - low) - 0.1, high + 0.05 * (high - low) + 0.1

    def place(rate: float, value: float) -> tuple[float, float]:
        return _LEFT + inner * rate / most, height - _BOTTOM - tall * (value - low) / (high - low)

    parts = []
    for tick in _ticks(0, most, inner // 90):
        x, y = place(tick, low)
        parts.append(f'<path d="M{x:.1f} {_TOP}V{y:.1f}"/><text x="{x:.1f}" y="{y + 14:.1f}">{tick:g}</text>')
    for tick in _ticks(low, high, tall // 35):
        x, y = place(0, tick)
        parts.append(f'<path d="M{x:.1f} {y:.1f}H{width - _RIGHT}"/>')
        parts.append(f'<text class=value x="{x - 5:.1f}" y="{y + 4:.1f}">{tick:g}</text>')
    parts.append(f'<text x="{(_LEFT + width) / 2:.0f}" y="{height - 4}">bits per pixel</text>')
    parts.append('<text class=name x="2" y="14">PSNR in dB</text>')
    drawn, end = [], width - _RIGHT
    for name, (title, points) in reversed(list(zip(_CLASSES, finite.items(), strict=False))):
        parts.append(f'<text class="title {name}" x="{end}" y="14">{html.escape(title)}</text>')
        end -= 7 * len(title) + 14
        inside = [place(*point) for point in points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in inside)
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2"/>' for x, y in inside)
        drawn.append(f'<g class={name}><polyline points="{line}"/>{dots}</g>')
    for name, point in zip(_CLASSES, marked, strict=False):
        if all(map(math.isfinite, point)) and point[0] <= most and low <= point[1] <= high:
            x, y = place(*point)
            drawn.append(f'<g class={name}><circle cx="{x:.1f}" cy="{y:.1f}" r="5"/></g>')
    # A figure within the figure cuts off what lies outside of the axes.
    box = f'x="{_LEFT}" y="{_TOP}" width="{inner}" height="{tall}" viewBox="{_LEFT} {_TOP} {inner} {tall}"'
    parts.append(f"<svg {box}>{''.join(drawn)}</svg>")
    what = html.escape(f"PSNR over bits per pixel: {', '.join(finite)}")
    head = f'<svg class=lalic-curve viewBox="0 0 {width} {height}" role=img aria-label="{what}">'
    return f"{head}{''.join(parts)}</svg>"


def _ticks(low: float, high: float, count: int) -> Iterator[float]:
    """About `count` round numbers within a range."""
    rough = (high - low) / count
    unit = 10 ** math.floor(math.log10(rough))
    step = unit * min((1, 2, 5, 10), key=lambda factor: abs(factor * unit - rough))
    for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1):
        yield round(number * step, 10)
