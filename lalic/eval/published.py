"""The published curves that ship, `published.json`: (bits per pixel, quality in dB), with where they are from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources

from lalic.errors import LalicError

__all__ = ["Published", "find", "load"]


@dataclass(frozen=True)
class Published:
    """A curve somebody else measured.

    codec: "lalic-published" or "vtm-9.1"; pictures: "kodak", "clic" or "tecnick"; metric: "psnr" or "ms-ssim", both in
    dB; points: (bits per pixel, dB), rising; source: in words.
    """

    codec: str
    title: str
    pictures: str
    metric: str
    points: tuple[tuple[float, float], ...]
    source: str


def load() -> tuple[Published, ...]:
    """All of them."""
    text = resources.files("lalic.eval").joinpath("published.json").read_text(encoding="utf-8")
    return tuple(
        Published(**entry | {"points": tuple((float(rate), float(value)) for rate, value in entry["points"])})
        for entry in json.loads(text)["curves"]
    )


def find(codec: str, pictures: str, metric: str) -> Published:
    """The one curve of a codec on a set. Raises `LalicError` if there is none."""
    everything = load()
    for curve in everything:
        if (curve.codec, curve.pictures, curve.metric) == (codec, pictures, metric):
            return curve
    known = ", ".join(f"{c.codec} {c.pictures} {c.metric}" for c in everything)
    raise LalicError(f"no {metric} curve of {codec} on {pictures} is published here, expected one of: {known}")
