"""Rate-distortion curves: their points, BD-rates, CompressAI's JSON format, published curves."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from lalic.errors import LalicError
from lalic.files import Name

__all__ = [
    "METHODS",
    "METRICS",
    "Comparison",
    "Curve",
    "Delta",
    "Figures",
    "Point",
    "ReadCurve",
    "Row",
    "bd_rate",
    "compare_curves",
    "compressai_json",
    "decibels",
    "published_curves",
    "rate_at",
    "read_curve",
]

METRICS = ("psnr", "ms-ssim")
METHODS = ("pchip", "akima")
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Figures:
    """Figures of one coded picture, or their means over several.

    bpp: bits per pixel of the whole file. psnr: dB, over all channels of the 8-bit result; infinite for equal pictures.
    ms_ssim: in [0, 1]; None if a side is below 161 pixels. encode_seconds, decode_seconds: wall-clock; the second is
    None if decoding was not timed.
    """

    bpp: float
    psnr: float
    ms_ssim: float | None
    encode_seconds: float
    decode_seconds: float | None


@dataclass(frozen=True)
class Row(Figures):
    """One picture at one quality. picture: its name. size: bytes of the whole file."""

    picture: str
    size: int


@dataclass(frozen=True)
class Point(Figures):
    """One quality over all pictures: plain means over the rows, as usual; None where a row has None.

    quality: None for a model of one rate. label: name of the point.
    """

    quality: float | None
    label: str
    rows: tuple[Row, ...]

    @classmethod
    def of(cls, quality: float | None, rows: Sequence[Row]) -> Point:
        """The point of these rows, called as its quality."""
        means: dict[str, Any] = {}
        for name in Figures.__dataclass_fields__:
            values = [getattr(row, name) for row in rows]
            means[name] = None if None in values else statistics.fmean(values)
        return cls(**means, quality=quality, label="" if quality is None else f"{quality:g}", rows=tuple(rows))


@dataclass(frozen=True)
class Curve:
    """The points of one codec in order of rate. name: of the codec. title: in plots. version: library and release."""

    name: str
    title: str
    version: str
    points: tuple[Point, ...]

    def rd_points(self, metric: str) -> list[tuple[float, float]]:
        """(bits per pixel, quality in dB) of each point; metric: "psnr" or "ms-ssim". Empty if it was not measured."""
        if metric == "psnr":
            return [(point.bpp, point.psnr) for point in self.points]
        return [(p.bpp, decibels(p.ms_ssim)) for p in self.points if p.ms_ssim is not None]


@dataclass(frozen=True)
class ReadCurve:
    """A curve from a file. points: for each metric, a list of (bits per pixel, dB)."""

    title: str
    points: dict[str, list[tuple[float, float]]]

    def rd_points(self, metric: str) -> list[tuple[float, float]]:
        """(bits per pixel, quality in dB) of each point; metric: "psnr" or "ms-ssim". Empty if it has none."""
        return self.points.get(metric, [])


def decibels(value: float) -> float:
    """MS-SSIM in dB, -10 log10(1 - value); infinite for 1."""
    return math.inf if value >= 1 else -10 * math.log10(1 - value)


# BD-rates


@dataclass(frozen=True)
class Delta:
    """A BD-rate.

    percent: difference in rate, negative if the test's files are smaller. low, high: range of quality in dB that both
    curves cover. share: of that range in the range of either curve; a BD-rate of a small share means little.
    """

    percent: float
    low: float
    high: float
    share: float


def bd_rate(anchor: Points, test: Points, method: str = "pchip") -> Delta:
    """BD-rate of `test` against `anchor`: each at least four points (bits per pixel, quality in dB), in any order.

    Source: Bjontegaard, "Calculation of average PSNR differences between RD-curves", VCEG-M33, 2001, with the
    later interpolations PCHIP, which never overshoots, and Akima. Computed by the package `bjontegaard`. The result is
    10^(mean of log10 R_test - log10 R_anchor) - 1, over the range of quality that both curves cover.

    method: "pchip" or "akima". Raises `LalicError` for fewer points, for a curve whose quality does not rise with the
    rate, for curves without a common range of quality, or if the package `bjontegaard` is not installed.
    """
    if method not in METHODS:
        raise LalicError(f"method is {method!r}, expected one of {', '.join(METHODS)}")
    try:
        import bjontegaard
    except ImportError:
        raise LalicError("BD-rates need the package bjontegaard (pip install bjontegaard)") from None
    (rates_a, values_a), (rates_t, values_t) = _checked("anchor", anchor, 4), _checked("test", test, 4)
    low, high = max(values_a[0], values_t[0]), min(values_a[-1], values_t[-1])
    if low >= high:
        raise LalicError(
            f"the curves share no quality: one covers {values_a[0]:.2f} to {values_a[-1]:.2f} dB, "
            f"the other {values_t[0]:.2f} to {values_t[-1]:.2f} dB"
        )
    # The package warns of a small overlap; `share` gives it instead.
    percent = bjontegaard.bd_rate(
        rates_a, values_a, rates_t, values_t, method=method, require_matching_points=False, min_overlap=0
    )
    whole = max(values_a[-1], values_t[-1]) - min(values_a[0], values_t[0])
    return Delta(float(percent), low, high, (high - low) / whole)


def rate_at(curve: Points, value: float) -> float:
    """Bits per pixel of a curve at the quality `value` in dB, by PCHIP of the log rate over the quality.

    Raises `LalicError` if the curve does not have that quality, or if scipy (installed with `bjontegaard`) is missing.
    """
    try:
        from scipy.interpolate import PchipInterpolator
    except ImportError:
        raise LalicError("rates at equal quality need the package bjontegaard (pip install bjontegaard)") from None
    rates, values = _checked("curve", curve, 2)
    if not values[0] <= value <= values[-1]:
        raise LalicError(f"the curve covers {values[0]:.2f} to {values[-1]:.2f} dB, expected {value:.2f} dB within")
    return float(10 ** PchipInterpolator(values, np.log10(rates))(value))


def _checked(name: str, points: Points, least: int) -> tuple[list[float], list[float]]:
    """Rates and qualities in order of rate. Raises `LalicError` unless both rise strictly."""
    if len(points) < least:
        raise LalicError(f"the {name} has {len(points)} points, expected at least {least}")
    rates, values = (list(map(float, column)) for column in zip(*sorted(points), strict=True))
    if not np.isfinite(rates + values).all() or rates[0] <= 0:
        raise LalicError(f"the {name} has a point that is not finite or of no rate, expected numbers above 0")
    for i in range(1, len(rates)):
        if rates[i] <= rates[i - 1] or values[i] <= values[i - 1]:
            raise LalicError(
                f"the {name} goes from {values[i - 1]:.3f} dB at {rates[i - 1]:.4f} bits per pixel to "
                f"{values[i]:.3f} dB at {rates[i]:.4f}, expected more quality for more rate"
            )
    return rates, values


@dataclass(frozen=True)
class Comparison:
    """One curve, the test, against another, the anchor.

    percent: BD-rate by method, or None. low, high: range of quality in dB that both cover. share: of that range in the
    range of either curve. at: for a test of few points, (dB, difference of rate in percent) of each. problem: why there
    is no result.
    """

    test: str
    anchor: str
    metric: str
    percent: dict[str, float] | None = None
    low: float | None = None
    high: float | None = None
    share: float | None = None
    at: tuple[tuple[float, float], ...] = ()
    problem: str | None = None


def compare_curves(
    tests: Sequence[Curve], anchors: Sequence[Curve | ReadCurve], bpp: tuple[float, float] | None = None
) -> list[Comparison]:
    """Every test against every anchor, by PSNR and by MS-SSIM if both have it.

    bpp: lowest and highest bits per pixel of the points that count, None for all. A test of fewer than four points (a
    model of one rate) is compared point by point, at the quality of each point.
    """
    return [
        _comparison(test, anchor, metric, bpp or (0, math.inf))
        for metric in METRICS
        for test in tests
        for anchor in anchors
        if test.rd_points(metric) and anchor.rd_points(metric)
    ]


def _comparison(test: Curve, anchor: Curve | ReadCurve, metric: str, bpp: tuple[float, float]) -> Comparison:
    ours, theirs = ([p for p in curve.rd_points(metric) if bpp[0] <= p[0] <= bpp[1]] for curve in (test, anchor))
    titles = test.title, anchor.title, metric
    try:
        if len(ours) < 4:
            at = tuple((value, 100 * (rate / rate_at(theirs, value) - 1)) for rate, value in ours)
            return Comparison(*titles, at=at, problem=None if at else "there is no point to compare")
        deltas = {method: bd_rate(theirs, ours, method) for method in METHODS}
    except LalicError as error:
        return Comparison(*titles, problem=str(error))
    first = deltas[METHODS[0]]
    percent = {method: delta.percent for method, delta in deltas.items()}
    return Comparison(*titles, percent, first.low, first.high, first.share)


# CompressAI's JSON

_KEYS = {
    "bpp": "bpp",
    "psnr-rgb": "psnr",
    "ms-ssim-rgb": "ms_ssim",
    "encoding_time": "encode_seconds",
    "decoding_time": "decode_seconds",
}


def compressai_json(curve: Curve, description: str) -> dict[str, Any]:
    """The curve in the JSON format of CompressAI's evaluation and plot tools.

        {"name": ..., "description": ..., "results": {"bpp": [...], "psnr-rgb": [...], "ms-ssim-rgb": [...],
         "encoding_time": [...], "decoding_time": [...]}}

    Each list has one number for each point, a mean over the pictures; MS-SSIM is not in dB. CompressAI's tools ignore
    two more keys: "qualities", and "pictures", the same lists for each picture by name. A metric that was not measured
    has no list; a number that is not finite (PSNR of equal pictures) is null. description: such as device and versions.
    """
    by_picture: dict[str, list[Row]] = {}
    for point in curve.points:
        for row in point.rows:
            by_picture.setdefault(row.picture, []).append(row)
    return {
        "name": curve.title,
        "description": f"{curve.version}; {description}",
        "results": _lists(curve.points),
        "qualities": [point.label or point.quality for point in curve.points],
        "pictures": {name: _lists(rows) for name, rows in by_picture.items()},
    }


def _lists(items: Sequence[Figures]) -> dict[str, list[float | None]]:
    lists = {key: [getattr(item, name) for item in items] for key, name in _KEYS.items()}
    return {
        key: [value if math.isfinite(value) else None for value in values]
        for key, values in lists.items()
        if None not in values
    }


def read_curve(path: Name) -> ReadCurve:
    """The curve of a file in CompressAI's format, by PSNR and MS-SSIM; points that are null are left out.

    Raises `LalicError` if it is no such file, or has neither metric.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LalicError(f"{path}: this file cannot be read as JSON ({error})") from None
    points: dict[str, list[tuple[float, float]]] = {}
    try:
        results = data["results"]
        rates = results["bpp"]
        for metric in METRICS:
            values = results.get(f"{metric}-rgb", results.get(metric))  # its first releases wrote no "-rgb"
            if values is not None:
                pairs = [(float(r), float(v)) for r, v in zip(rates, values, strict=True) if v is not None]
                points[metric] = [(r, decibels(v)) for r, v in pairs] if metric == "ms-ssim" else pairs
        title = str(data.get("name", Path(path).stem))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise LalicError(f"{path}: expected results with lists of bpp and psnr-rgb, as CompressAI writes") from None
    if not any(points.values()):
        raise LalicError(f"{path}: this file holds no psnr and no ms-ssim, expected psnr-rgb in its results")
    return ReadCurve(title, points)


def published_curves(pictures: str) -> list[ReadCurve]:
    """The curves of LALIC and of VTM-9.1 as published for a set of pictures, "kodak", "clic" or "tecnick".

    Each has PSNR, and for Kodak MS-SSIM. `published.json` has their sources. Raises `LalicError` for another set.
    """
    text = resources.files("lalic.eval").joinpath("published.json").read_text(encoding="utf-8")
    entries = json.loads(text)["curves"]
    curves: dict[str, ReadCurve] = {}
    for entry in entries:
        if entry["pictures"] == pictures:
            curve = curves.setdefault(entry["codec"], ReadCurve(entry["title"], {}))
            curve.points[entry["metric"]] = [(rate, value) for rate, value in entry["points"]]
    if not curves:
        sets = sorted({entry["pictures"] for entry in entries})
        raise LalicError(f"published is {pictures!r}, expected one of {', '.join(sets)}")
    return list(curves.values())
