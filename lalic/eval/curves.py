"""Rate-distortion curves: their points, BD-rates, CompressAI's JSON format, published curves."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
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
    "Point",
    "Published",
    "ReadCurve",
    "Row",
    "bd_rate",
    "compare_curves",
    "compressai_json",
    "decibels",
    "published_curve",
    "published_curves",
    "published_for",
    "rate_at",
    "read_compressai_json",
    "read_curve",
    "within",
]

METRICS = ("psnr", "ms-ssim")
METHODS = ("pchip", "akima")
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Row:
    """One picture at one quality.

    width, height: in pixels. size: bytes of the whole file. psnr: dB, over all channels of the 8-bit result; infinite
    for equal pictures. ms_ssim: in [0, 1]; None if a side is below 161 pixels. Seconds: wall-clock.
    """

    picture: str
    width: int
    height: int
    size: int
    psnr: float
    ms_ssim: float | None
    encode_seconds: float
    decode_seconds: float | None

    @property
    def bpp(self) -> float:
        """Bits per pixel of the whole file."""
        return 8 * self.size / (self.width * self.height)


@dataclass(frozen=True)
class Point:
    """One quality over all pictures, with plain means over the pictures, as usual.

    quality: None for a model of one rate. label: name of the point.
    """

    quality: float | None
    label: str
    rows: tuple[Row, ...]

    @property
    def bpp(self) -> float:
        """Mean bits per pixel."""
        return statistics.fmean(row.bpp for row in self.rows)

    @property
    def psnr(self) -> float:
        """Mean of the pictures' PSNR in dB."""
        return statistics.fmean(row.psnr for row in self.rows)

    @property
    def ms_ssim(self) -> float | None:
        """Mean MS-SSIM; None if a picture is too small for it."""
        return _mean_or_none([row.ms_ssim for row in self.rows])

    @property
    def encode_seconds(self) -> float:
        """Mean seconds per picture."""
        return statistics.fmean(row.encode_seconds for row in self.rows)

    @property
    def decode_seconds(self) -> float | None:
        """Mean seconds per picture; None if decoding was not timed."""
        return _mean_or_none([row.decode_seconds for row in self.rows])


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


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return statistics.fmean(numbers) if len(numbers) == len(values) else None


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


def within(curve: Points, low: float, high: float) -> list[tuple[float, float]]:
    """The points of at least `low` and at most `high` bits per pixel."""
    return [(rate, value) for rate, value in curve if low <= rate <= high]


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

    bpp: range of bits per pixel, None for all points. A test of fewer than four points (a model of one rate) is
    compared point by point, at the quality of each point.
    """
    comparisons = []
    for metric in METRICS:
        for test in tests:
            for anchor in anchors:
                ours = test.rd_points(metric)
                theirs = anchor.rd_points(metric)
                if ours and theirs:
                    comparisons.append(_comparison(test.title, anchor.title, metric, ours, theirs, bpp))
    return comparisons


def _comparison(
    test: str,
    anchor: str,
    metric: str,
    ours: list[tuple[float, float]],
    theirs: list[tuple[float, float]],
    bpp: tuple[float, float] | None,
) -> Comparison:
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


# CompressAI's JSON

_FIGURES: dict[str, Callable[[Point | Row], float | None]] = {
    "bpp": lambda of: of.bpp,
    "psnr-rgb": lambda of: of.psnr,
    "ms-ssim-rgb": lambda of: of.ms_ssim,
    "encoding_time": lambda of: of.encode_seconds,
    "decoding_time": lambda of: of.decode_seconds,
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


def _lists(items: Sequence[Point | Row]) -> dict[str, list[float | None]]:
    lists = {}
    for name, figure in _FIGURES.items():
        values = [figure(item) for item in items]
        if None not in values:
            lists[name] = [value if math.isfinite(value) else None for value in values if value is not None]
    return lists


def read_compressai_json(path: Name, metric: str) -> tuple[str, list[tuple[float, float]]]:
    """Name and points (bits per pixel, dB) of a file in CompressAI's format. metric: "psnr" or "ms-ssim".

    Raises `LalicError` if it is no such file, or does not have the metric.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        results = data["results"]
        rates = [float(rate) for rate in results["bpp"]]
        values = next((results[key] for key in (f"{metric}-rgb", metric) if key in results), None)
        if values is None:
            raise LalicError(f"{path}: this file holds no {metric}, expected {metric}-rgb in its results")
        points = [(rate, float(value)) for rate, value in zip(rates, values, strict=True)]
    except (OSError, json.JSONDecodeError) as error:
        raise LalicError(f"{path}: this file cannot be read as JSON ({error})") from None
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, LalicError):
            raise
        raise LalicError(f"{path}: expected results with lists of bpp and {metric}-rgb, as CompressAI writes") from None
    if metric == "ms-ssim":
        points = [(rate, decibels(value)) for rate, value in points]
    return str(data.get("name", Path(path).stem)), points


def read_curve(path: Name) -> ReadCurve:
    """The curve of a file in CompressAI's format, by PSNR and MS-SSIM. Raises `LalicError` if it has neither."""
    title, points, problems = str(path), {}, []
    for metric in METRICS:
        try:
            title, points[metric] = read_compressai_json(path, metric)
        except LalicError as error:
            problems.append(str(error))
    if not points:
        raise LalicError(problems[0])
    return ReadCurve(title, points)


# Published curves


@dataclass(frozen=True)
class Published:
    """A published curve.

    codec: "lalic-published" or "vtm-9.1". pictures: "kodak", "clic" or "tecnick". metric: "psnr" or "ms-ssim", both in
    dB. points: (bits per pixel, dB), rising. source: where it was published.
    """

    codec: str
    title: str
    pictures: str
    metric: str
    points: tuple[tuple[float, float], ...]
    source: str


def published_curves() -> tuple[Published, ...]:
    """The published curves that ship with the package, with their sources."""
    text = resources.files("lalic.eval").joinpath("published.json").read_text(encoding="utf-8")
    return tuple(
        Published(**entry | {"points": tuple((float(rate), float(value)) for rate, value in entry["points"])})
        for entry in json.loads(text)["curves"]
    )


def published_curve(codec: str, pictures: str, metric: str) -> Published:
    """The published curve of a codec on a set. Raises `LalicError` if there is none."""
    curves = published_curves()
    for curve in curves:
        if (curve.codec, curve.pictures, curve.metric) == (codec, pictures, metric):
            return curve
    names = ", ".join(f"{c.codec} {c.pictures} {c.metric}" for c in curves)
    raise LalicError(f"no {metric} curve of {codec} on {pictures} ships with lalic, expected one of: {names}")


def published_for(pictures: str) -> list[ReadCurve]:
    """The published curves of a set, "kodak", "clic" or "tecnick": one for each codec, with both metrics.

    Raises `LalicError` for another set.
    """
    curves: dict[str, ReadCurve] = {}
    for published in published_curves():
        if published.pictures == pictures:
            title = published.title if "published" in published.title else f"{published.title} (published)"
            curves.setdefault(published.codec, ReadCurve(title, {})).points[published.metric] = list(published.points)
    if not curves:
        sets = sorted({published.pictures for published in published_curves()})
        raise LalicError(f"published is {pictures!r}, expected one of {', '.join(sets)}")
    return list(curves.values())
