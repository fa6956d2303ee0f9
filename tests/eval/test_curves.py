"""BD-rates: published points give the published ones, and errors name what cannot be computed."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from lalic.errors import LalicError
from lalic.eval.curves import bd_rate, published_curve, published_curves, rate_at, within

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
    anchor, test = (published_curve(codec, pictures, metric).points for codec in ("vtm-9.1", "lalic-published"))
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


def test_within() -> None:
    assert within([(0.1, 1.0), (0.5, 2.0), (1.0, 3.0), (1.1, 4.0)], 0.5, 1.0) == [(0.5, 2.0), (1.0, 3.0)]


def test_published_points_are_whole() -> None:
    curves = published_curves()
    assert len(curves) == 8
    for each in curves:
        rates, values = zip(*each.points, strict=True)
        assert len(each.points) in (6, 8) and list(rates) == sorted(rates) and list(values) == sorted(values)
        assert each.source and each.metric in ("psnr", "ms-ssim")
    with pytest.raises(LalicError, match="no ms-ssim curve of vtm-9"):
        published_curve("vtm-9.1", "clic", "ms-ssim")
