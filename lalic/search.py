"""Search for the quality at which a picture's file has a given size, or its decoded picture a given PSNR.

Every step encodes a file; the size is that of the whole file, and PSNR is measured on the decoded picture. The analysis
transform runs once.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from lalic import codec
from lalic.errors import LalicError
from lalic.images import ImageSource, Picture
from lalic.metrics import psnr
from lalic.model import LALIC
from lalic.strips import StripImage

__all__ = [
    "BPP_TOLERANCE",
    "PSNR_TOLERANCE",
    "Encoded",
    "check_target",
    "encode_to_bpp",
    "encode_to_psnr",
    "encode_to_size",
]

BPP_TOLERANCE = 0.01  # of the target: one percent
PSNR_TOLERANCE = 0.05  # dB
_LOWEST, _HIGHEST = 100, 10000  # hundredths


class Encoded(NamedTuple):
    """Result of a search. data: the .lalic file. quality: of the file. value: what was searched for, as it came out."""

    data: bytes
    quality: float
    value: float


def encode_to_bpp(
    image: ImageSource | Picture | codec.Prepared,
    bpp: float,
    model: LALIC | None = None,
    *,
    tolerance: float = BPP_TOLERANCE,
    **options: Any,
) -> Encoded:
    """Encode a picture to a file of `bpp` bits per pixel.

    tolerance: allowed difference, relative to `bpp`. image, model, options: arguments of `lalic.codec.Prepared`; or one
    of these alone. Raises `LalicError` for a model of one quality, and if no quality from 1 to 100 gives the target.
    """
    return _search(image, bpp, model, tolerance * bpp, "bits per pixel", options)


def encode_to_psnr(
    image: ImageSource | Picture | codec.Prepared,
    decibels: float,
    model: LALIC | None = None,
    *,
    tolerance: float = PSNR_TOLERANCE,
    **options: Any,
) -> Encoded:
    """Encode a picture to a file with a PSNR (`lalic.metrics.psnr`) of `decibels`.

    tolerance: allowed difference in dB. image, model, options: arguments of `lalic.codec.Prepared`; or one of these
    alone. Raises `LalicError` for a model of one quality, and if no quality from 1 to 100 gives the target.
    """
    return _search(image, decibels, model, tolerance, "dB", options)


def encode_to_size(
    image: ImageSource | Picture | codec.Prepared,
    kilobytes: float,
    model: LALIC | None = None,
    *,
    tolerance: float = BPP_TOLERANCE,
    **options: Any,
) -> Encoded:
    """Encode a picture to a file of `kilobytes` times 1000 bytes.

    tolerance: allowed difference, relative to `kilobytes`. Otherwise as `encode_to_bpp`.
    """
    return _search(image, kilobytes, model, tolerance * kilobytes, "kB", options)


def check_target(target: float | None, unit: str) -> None:
    """Raise `LalicError` for a target that no file can have, whatever the picture is."""
    if target is not None and not 0 < target < math.inf:
        raise LalicError(f"the target is {target:g} {unit}, expected more than 0")


def _search(
    image: ImageSource | Picture | codec.Prepared,
    target: float,
    model: LALIC | None,
    tolerance: float,
    unit: str,
    options: dict[str, Any],
) -> Encoded:
    check_target(target, unit)
    if isinstance(image, codec.Prepared) and (model is not None or options):
        raise TypeError(f"{', '.join(options) or 'model'}: expected none beside a Prepared, which has its own")
    prepared = image if isinstance(image, codec.Prepared) else codec.Prepared(image, model, **options)
    name = prepared.model.config.name
    if codec.coded_quality(prepared.model, None) is None:
        raise LalicError(f"the model {name!r} was trained for one quality: it cannot meet a target")
    picture = prepared.picture.image
    pixels = math.prod(picture.size)
    original = None if isinstance(picture, StripImage) else picture.convert("RGB")
    if unit == "dB" and original is None:
        raise LalicError("a target in dB needs the whole picture, and this one is read strip by strip")

    def at(hundredths: int) -> Encoded:
        data = prepared.encode(hundredths / 100)
        value = len(data) / 1000 if unit == "kB" else 8 * len(data) / pixels
        if unit == "dB" and original is not None:
            decoded = codec.decode(data, prepared.model, max_pixels=pixels, graph=prepared.graph)
            value = psnr(original, decoded.convert("RGB"))
        return Encoded(data, hundredths / 100, value)

    def off(encoded: Encoded) -> float:
        return abs(encoded.value - target)

    low, high = at(_LOWEST), at(_HIGHEST)
    best = min(low, high, key=off)
    if not low.value - tolerance <= target <= high.value + tolerance:
        raise LalicError(
            f"the target is {target:g} {unit}, but qualities 1 to 100 of the model {name!r} give {low.value:.4g} to "
            f"{high.value:.4g} {unit} for this picture"
        )
    a, b, halve = _LOWEST, _HIGHEST, False
    while off(best) > tolerance and b - a > 1:
        # Values (of rates the logarithm) are nearly linear in the quality, so interpolation comes near. Every other
        # step halves the interval, in case they are not.
        values = [math.log(v) if unit != "dB" else v for v in (low.value, high.value, target)]
        fraction = 0.5 if halve or values[0] == values[1] else (values[2] - values[0]) / (values[1] - values[0])
        middle = min(b - 1, max(a + 1, round(a + fraction * (b - a))))
        encoded = at(middle)
        if encoded.value < target:
            a, low = middle, encoded
        else:
            b, high = middle, encoded
        best = min(best, encoded, key=off)
        halve = not halve
    if off(best) > tolerance:
        raise LalicError(
            f"the target is {target:g} {unit}; the nearest that a quality in hundredths gives is {best.value:.4g}"
        )
    return best
