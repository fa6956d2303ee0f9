"""The JSON that CompressAI's evaluation tools print and its plot tool reads, written and read.

    {"name": ..., "description": ...,
     "results": {"bpp": [...], "psnr-rgb": [...], "ms-ssim-rgb": [...], "encoding_time": [...], "decoding_time": [...]}}

One number a point in each list, means over the pictures; MS-SSIM is a plain value here, not dB. Two keys more, which
CompressAI's tools ignore: "qualities", and "pictures", which holds the same results for each picture by its name. A
figure that was not measured has no list; one that is not finite (PSNR, where a picture came back the same) is null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lalic.errors import LalicError
from lalic.eval.measure import Curve, Point, Row, decibels

__all__ = ["as_json", "read"]

_FIGURES: dict[str, Callable[[Point | Row], float | None]] = {
    "bpp": lambda of: of.bpp,
    "psnr-rgb": lambda of: of.psnr,
    "ms-ssim-rgb": lambda of: of.ms_ssim,
    "encoding_time": lambda of: of.encode_seconds,
    "decoding_time": lambda of: of.decode_seconds,
}


def as_json(curve: Curve, description: str) -> dict[str, Any]:
    """The curve in CompressAI's form. description: what a reader must know, such as device and versions."""
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
    found = {}
    for name, figure in _FIGURES.items():
        values = [figure(item) for item in items]
        if None not in values:
            found[name] = [value if math.isfinite(value) else None for value in values if value is not None]
    return found


def read(path: str | Path, metric: str) -> tuple[str, list[tuple[float, float]]]:
    """Name and points (bits per pixel, dB) of a file in this form; metric: "psnr" or "ms-ssim".

    Raises `LalicError` if it is no such file, or does not hold the metric.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        results = data["results"]
        rates = [float(rate) for rate in results["bpp"]]
        values = next((results[key] for key in (f"{metric}-rgb", metric) if key in results), None)
        if values is None:
            raise LalicError(f"{path}: this file holds no {metric}, expected {metric}-rgb in its results")
        found = [(rate, float(value)) for rate, value in zip(rates, values, strict=True)]
    except (OSError, json.JSONDecodeError) as error:
        raise LalicError(f"{path}: this file cannot be read as JSON ({error})") from None
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, LalicError):
            raise
        raise LalicError(f"{path}: expected results with lists of bpp and {metric}-rgb, as CompressAI writes") from None
    if metric == "ms-ssim":
        found = [(rate, decibels(value)) for rate, value in found]
    return str(data.get("name", Path(path).stem)), found
