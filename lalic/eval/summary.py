"""What was measured, for a person to read: a table, and how much smaller our files are than the others'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lalic.errors import LalicError
from lalic.eval.bdrate import METHODS, bd_rate, rate_at, within
from lalic.eval.measure import Curve, Point, Row, decibels

__all__ = ["METRICS", "Comparison", "Other", "compare", "table"]

METRICS = ("psnr", "ms-ssim")
_NAMES = {"psnr": "PSNR", "ms-ssim": "MS-SSIM"}
_HEAD = f"  {'quality':>16}  {'bpp':>7}  {'PSNR':>6}  {'MS-SSIM':>8}  {'dB':>6}  {'encode':>9}  {'decode':>9}"


@dataclass(frozen=True)
class Other:
    """A curve that was read and not measured here: points by metric, (bits per pixel, dB)."""

    title: str
    points: dict[str, list[tuple[float, float]]]


@dataclass(frozen=True)
class Comparison:
    """One of our curves against one anchor. percent: BD-rate by method, None where there is none. low, high: dB that
    both cover. share: see `bdrate.Delta`. at: at our own points' quality, how many percent more or less rate we take.
    problem: why there is no figure."""

    test: str
    anchor: str
    metric: str
    percent: dict[str, float] | None = None
    low: float | None = None
    high: float | None = None
    share: float | None = None
    at: tuple[tuple[float, float], ...] = ()
    problem: str | None = None

    def sentence(self) -> str:
        """One line."""
        head = f"{self.test} against {self.anchor}, {_NAMES[self.metric]}:"
        if self.percent is not None:
            figures = ", ".join(f"{value:+.2f} % ({method})" for method, value in self.percent.items())
            return f"{head} BD-rate {figures}, over {self.low:.2f} to {self.high:.2f} dB, {self.share:.0%} of both"
        if self.at:
            return f"{head} " + ", ".join(f"{percent:+.1f} % at {value:.2f} dB" for value, percent in self.at)
        return f"{head} no figure, {self.problem}"

    def as_json(self) -> dict[str, Any]:
        """For records."""
        return asdict(self)


def compare(
    tests: Sequence[Curve], anchors: Sequence[Curve | Other], bpp: tuple[float, float] | None = None
) -> list[Comparison]:
    """Every test against every anchor, by PSNR and by MS-SSIM where both have it.

    bpp: only points within these bits per pixel count, on both sides. A test of fewer than four points (a model of one
    rate) is compared point by point instead, at its own quality.
    """
    found = []
    for metric in METRICS:
        for test in tests:
            for anchor in anchors:
                ours = test.along(metric)
                theirs = anchor.points.get(metric, []) if isinstance(anchor, Other) else anchor.along(metric)
                if ours and theirs:
                    found.append(_one(test.title, anchor.title, metric, ours, theirs, bpp))
    return found


def _one(test: str, anchor: str, metric: str, ours: list, theirs: list, bpp: tuple[float, float] | None) -> Comparison:
    if bpp is not None:
        ours, theirs = within(ours, *bpp), within(theirs, *bpp)
    try:
        if len(ours) < 4:
            at = tuple((value, 100 * (rate / rate_at(theirs, value) - 1)) for rate, value in ours)
            return Comparison(test, anchor, metric, at=at, problem=None if at else "there is no point to compare")
        deltas = {method: bd_rate(theirs, ours, method) for method in METHODS}
    except LalicError as error:
        return Comparison(test, anchor, metric, problem=str(error))
    first = deltas[METHODS[0]]
    percent = {method: delta.percent for method, delta in deltas.items()}
    return Comparison(test, anchor, metric, percent, first.low, first.high, first.share)


def table(curves: Sequence[Curve], each: bool = False) -> str:
    """A line a point, means over the pictures; with `each` a line for each picture below it."""
    lines = []
    for curve in curves:
        lines += [f"{curve.title} ({curve.version})", _HEAD]
        for point in curve.points:
            lines.append(_line(point.label or "-", point))
            lines += [_line(f"  {row.picture}", row) for row in point.rows if each]
    return "\n".join(lines)


def _line(name: str, of: Point | Row) -> str:
    close, timed = of.ms_ssim, of.decode_seconds
    words = [f"{name:>16}", f"{of.bpp:7.4f}", f"{of.psnr:6.3f}"]
    words.append(f"{'-':>8}" if close is None else f"{close:8.5f}")
    words.append(f"{'-':>6}" if close is None else f"{decibels(close):6.2f}")
    words += [f"{of.encode_seconds:7.4f} s", f"{'-':>9}" if timed is None else f"{timed:7.4f} s"]
    return "  " + "  ".join(words)
