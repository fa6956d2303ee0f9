"""How much smaller one codec's files are than another's at equal quality, in the mean over qualities.

Source: Bjontegaard, "Calculation of average PSNR differences between RD-curves", VCEG-M33, 2001, with the
interpolations that came later: PCHIP, which never overshoots and is the default, or Akima. Computed by the package
`bjontegaard`.

Rates are averages in the log domain, so the result is 10^(mean of log10 R_test - log10 R_anchor) - 1, over the span of
quality that both curves cover.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lalic.errors import LalicError

__all__ = ["METHODS", "Delta", "bd_rate", "rate_at", "within"]

METHODS = ("pchip", "akima")
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Delta:
    """percent: of rate, negative where the test's files are smaller. low, high: the span of quality in dB that both
    curves cover. share: of the two curves' whole span; far below 1 the figure says little."""

    percent: float
    low: float
    high: float
    share: float


def bd_rate(anchor: Points, test: Points, method: str = "pchip") -> Delta:
    """BD-rate of `test` against `anchor`; each is (bits per pixel, quality in dB), at least four points, in any order.

    method: "pchip" or "akima". Raises `LalicError` for fewer points, for a curve on which more rate does not give more
    quality, for curves that share no quality, or if the package `bjontegaard` is not installed.
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
    # The package warns of a small overlap; `share` says it instead.
    percent = bjontegaard.bd_rate(
        rates_a, values_a, rates_t, values_t, method=method, require_matching_points=False, min_overlap=0
    )
    whole = max(values_a[-1], values_t[-1]) - min(values_a[0], values_t[0])
    return Delta(float(percent), low, high, (high - low) / whole)


def rate_at(curve: Points, value: float) -> float:
    """Bits per pixel at which the curve has the quality `value` in dB: PCHIP of the log rate over the quality.

    Raises `LalicError` if the curve does not reach there, or scipy (which comes with `bjontegaard`) is missing.
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


def _checked(what: str, points: Points, least: int) -> tuple[list[float], list[float]]:
    """Rates and qualities in order of rate, both strictly rising."""
    if len(points) < least:
        raise LalicError(f"the {what} has {len(points)} points, expected at least {least}")
    rates, values = (list(map(float, column)) for column in zip(*sorted(points), strict=True))
    if not np.isfinite(rates + values).all() or rates[0] <= 0:
        raise LalicError(f"the {what} has a point that is not finite or of no rate, expected numbers above 0")
    for i in range(1, len(rates)):
        if rates[i] <= rates[i - 1] or values[i] <= values[i - 1]:
            raise LalicError(
                f"the {what} goes from {values[i - 1]:.3f} dB at {rates[i - 1]:.4f} bits per pixel to "
                f"{values[i]:.3f} dB at {rates[i]:.4f}, expected more quality for more rate"
            )
    return rates, values
