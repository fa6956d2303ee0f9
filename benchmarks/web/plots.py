"""Line charts as inline SVG: no script, no font, no file beside the page. A point carries the record's two values."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence

WIDTH, HEIGHT = 480, 320  # a phone's width, so that letters stay readable there
LEFT, RIGHT, TOP, BOTTOM = 66, 24, 14, 46
# Told apart by eyes that do not see all colours, and by dashes and marks where there is no colour at all.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7a6000", "#7f7f7f", "#56b4e9", "#e69f00")
DASHES = ("", "7 3", "2 3", "10 3 2 3", "4 2", "1 2", "12 3", "8 2 2 2 2 2")
Series = tuple[str, Sequence[tuple[float, float]]]


def chart(
    title: str, x_label: str, y_label: str, series: Sequence[Series], log: bool, base: int = 10,
    per: tuple[float, float] = (1, 1), from_zero: bool = True,
) -> str:  # fmt: skip
    """A figure with a legend; nothing if there is no point.

    Args:
        series: (name in HTML, points) each; at most eight.
        log: both axes; `base` is that of the x axis.
        per: what x and y are divided by on the axes.
        from_zero: whether a y axis that is not logarithmic starts there.
    """
    series = [(name, sorted(points)) for name, points in series if points]
    if not series:
        return ""
    if len(series) > len(COLOURS):
        raise ValueError(f"series: expected at most {len(COLOURS)}, got {len(series)}")
    xs = [x / per[0] for _, points in series for x, _ in points]
    ys = [y / per[1] for _, points in series for _, y in points]
    if log and min(xs + ys) <= 0:
        raise ValueError("series: expected positive values on logarithmic axes")
    x_ticks, y_ticks = (_powers(xs, base), _powers(ys, 10)) if log else (_steps(xs), _steps(ys, from_zero))
    place_x = _scale([*xs, *x_ticks], LEFT, WIDTH - RIGHT, log)
    place_y = _scale([*ys, *y_ticks], HEIGHT - BOTTOM, TOP, log)
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for value in y_ticks:
        y = place_y(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>')
        parts.append(_text(LEFT - 6, y + 4, _label(value, log, 10), "end", "tick"))
    for value in x_ticks:
        x = place_x(value)
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{bottom}"/>')
        parts.append(_text(x, bottom + 16, _label(value, log, base), "middle", "tick"))
    for number, (_, points) in enumerate(series):
        placed = [(place_x(x / per[0]), place_y(y / per[1])) for x, y in points]
        path = "L".join(f"{left:.1f} {top:.1f}" for left, top in placed)
        parts.append(f'<path class="line" d="M{path}" {_stroke(number)}/>')
        for (x, y), (left, top) in zip(points, placed, strict=True):
            where = f'cx="{left:.1f}" cy="{top:.1f}"'
            parts.append(f'<circle {where} r="3" fill="{COLOURS[number]}" data-x="{x!r}" data-y="{y!r}"/>')
    parts.append(_text((LEFT + right) / 2, HEIGHT - 8, html.escape(x_label), "middle"))
    middle = (TOP + bottom) / 2
    parts.append(f'<g transform="rotate(-90 14 {middle})">{_text(14, middle, html.escape(y_label), "middle")}</g>')
    legend = "".join(
        '<li><svg viewBox="0 0 30 10" width="30" height="10" aria-hidden="true">'
        f'<path class="line" d="M0 5H30" {_stroke(n)}/></svg> {label}</li>'
        for n, (label, _) in enumerate(series)
    )
    said, inner = html.escape(title), "\n".join(parts)
    picture = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">{inner}</svg>'
    return f'<figure><figcaption>{said}</figcaption>\n{picture}\n<ul class="legend">{legend}</ul></figure>'


def _text(x: float, y: float, inner: str, anchor: str, kind: str = "label") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{inner}</text>'


def _stroke(number: int) -> str:
    return f'stroke="{COLOURS[number]}" stroke-dasharray="{DASHES[number]}"'


def _scale(values: Sequence[float], low: float, high: float, log: bool) -> Callable[[float], float]:
    turned = [math.log(v) for v in values] if log else list(values)
    least, most = min(turned), max(turned)
    span = most - least or 1.0
    return lambda v: low + (high - low) * ((math.log(v) if log else v) - least) / span


def _powers(values: Sequence[float], base: int) -> list[float]:
    """Whole powers from the one below the least to the one above the largest; not each if there are many."""
    first = math.floor(math.log(min(values), base) + 1e-9)
    last = math.ceil(math.log(max(values), base) - 1e-9)
    step = max(1, (last - first) // 6)
    return [float(base) ** n for n in range(first, last + 1, step)]


def _steps(values: Sequence[float], from_zero: bool = True) -> list[float]:
    """Round numbers from zero, or from the last below the least, to the first above the largest."""
    least = 0.0 if from_zero else min(values)
    span = max(values) - least or 1.0
    unit = 10 ** math.floor(math.log10(span))
    step = next(unit * f for f in (0.2, 0.5, 1, 2) if span / (unit * f) <= 6)
    first = math.floor(least / step + 1e-9)
    return [step * n for n in range(first, math.ceil(max(values) / step - 1e-9) + 1)]


def _label(value: float, log: bool, base: int) -> str:
    if not log:
        return f"{value:.10g}"
    return f'{base}<tspan dy="-5" font-size="9">{round(math.log(value, base))}</tspan>'
