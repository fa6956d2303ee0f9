"""BD-rates: published points give the published ones, and errors name what cannot be computed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from lalic.errors import LalicError
from lalic.eval import curves
from lalic.eval.curves import Curve, Point, ReadCurve, Row, bd_rate, compare_curves, published_curves, rate_at

pytest.importorskip("bjontegaard")


@pytest.mark.parametrize(
    ("pictures", "metric", "percent", "row"),
    [
        ("kodak", "psnr", -15.26, "Kodak, PSNR"),
        ("clic", "psnr", -15.41, "CLIC professional validation, PSNR"),
        ("tecnick", "psnr", -17.63, "Tecnick, PSNR"),
        ("kodak", "ms-ssim", -51.23, "Kodak, MS-SSIM"),
    ],
)
def test_the_published_figures_come_from_the_published_points(
    pictures: str, metric: str, percent: float, row: str
) -> None:
    """LALIC against VTM-9.1, tables 1 and 4 of the paper and its supplement, to 0.3 percentage points."""
    test, anchor = (curve.rd_points(metric) for curve in published_curves(pictures))
    pchip, akima = (bd_rate(anchor, test, method).percent for method in ("pchip", "akima"))
    assert pchip == pytest.approx(percent, abs=0.3)
    assert akima == pytest.approx(percent, abs=0.3)
    document = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert f"| {row} | {percent:.2f} % | {pchip:.2f} % | {akima:.2f} % |" in document


def curve(shift: float = 0.0, factor: float = 1.0, rates=(0.1, 0.2, 0.4, 0.8, 1.6)) -> list[tuple[float, float]]:
    return [(factor * rate, 30 + 5 * math.log2(rate) + 0.2 * math.log2(rate) ** 2 + shift) for rate in rates]


@pytest.mark.parametrize("method", ["pchip", "akima"])
def test_a_codec_that_takes_three_quarters_saves_a_quarter(method: str) -> None:
    delta = bd_rate(curve(), curve(factor=0.75), method)
    assert delta.percent == pytest.approx(-25, abs=1e-9) and delta.share == pytest.approx(1)
    assert bd_rate(curve(factor=0.75), curve(), method).percent == pytest.approx(100 / 3, abs=1e-9)
    assert bd_rate(curve(), curve()[::-1], method).percent == pytest.approx(0, abs=1e-9)  # order does not matter


def test_it_is_the_mean_of_the_log_rates_over_what_both_cover() -> None:
    """From the definition, with scipy's interpolation and a fine sum."""
    from scipy.interpolate import PchipInterpolator

    a, t = curve(), curve(shift=1.7, factor=1.2, rates=(0.05, 0.15, 0.3, 0.9))
    delta = bd_rate(a, t)
    low, high = max(a[0][1], t[0][1]), min(a[-1][1], t[-1][1])
    assert (delta.low, delta.high) == (low, high)
    assert delta.share == pytest.approx((high - low) / (max(a[-1][1], t[-1][1]) - min(a[0][1], t[0][1])))
    at = low + (high - low) * (np.arange(200000) + 0.5) / 200000
    logs = [PchipInterpolator([v for _, v in c], np.log([r for r, _ in c]))(at) for c in (a, t)]
    # The midpoint rule on 200,000 steps of a smooth function is good to 1e-9 of it.
    assert delta.percent == pytest.approx(100 * (math.exp(np.mean(logs[1] - logs[0])) - 1), abs=1e-5)


@pytest.mark.parametrize(
    ("anchor", "test", "word"),
    [
        (curve()[:3], curve(), "anchor has 3 points"),
        (curve(), curve(shift=40), "share no quality"),
        (curve(), [(0.1, 30.0), (0.2, 29.0), (0.3, 31.0), (0.4, 32.0)], "test goes from 30.000 dB"),
        (curve(), [(0.1, 30.0), (0.2, 31.0), (0.3, 32.0), (0.4, math.inf)], "not finite"),
    ],
)
def test_what_it_refuses(anchor: list, test: list, word: str) -> None:
    with pytest.raises(LalicError, match=word):
        bd_rate(anchor, test)


def test_another_method_is_refused() -> None:
    with pytest.raises(LalicError, match="'cubic', expected one of pchip, akima"):
        bd_rate(curve(), curve(), "cubic")


def test_rate_at_a_quality() -> None:
    points = curve()
    for rate, value in points:
        assert rate_at(points, value) == pytest.approx(rate, rel=1e-12)
    straight = [(0.1, 30.0), (0.2, 33.0), (0.4, 36.0)]
    assert rate_at(straight, 31.5) == pytest.approx(0.1 * math.sqrt(2), rel=1e-12)  # straight in the log of the rate
    with pytest.raises(LalicError, match="covers 30"):
        rate_at(straight, 29.9)


def test_points_at_the_ends_of_the_range_count() -> None:
    rows = [(0.1, 31.0), (0.5, 32.0), (1.0, 33.0), (1.1, 34.0)]
    test = Curve("x", "X", "1", tuple(Point.of(q, [Row(*row, None, 1.0, 1.0, "a", 9)]) for q, row in enumerate(rows)))
    anchor = ReadCurve("Y", {"psnr": [(0.5, 30.0), (1.0, 36.0)]})
    (comparison,) = compare_curves([test], [anchor], (0.5, 1.0))
    assert [value for value, _ in comparison.at] == [32.0, 33.0]


def test_published_points_are_whole() -> None:
    entries = json.loads((Path(curves.__file__).parent / "published.json").read_text())["curves"]
    assert len(entries) == 8 and all(entry["source"] for entry in entries)
    for pictures, metrics in (("kodak", ["psnr", "ms-ssim"]), ("clic", ["psnr"]), ("tecnick", ["psnr"])):
        found = published_curves(pictures)
        assert [each.title for each in found] == ["LALIC (published)", "VTM-9.1 (published)"]
        for each in found:
            assert list(each.points) == metrics
            for points in each.points.values():
                rates, values = zip(*points, strict=True)
                assert len(points) in (6, 8) and list(rates) == sorted(rates) and list(values) == sorted(values)
