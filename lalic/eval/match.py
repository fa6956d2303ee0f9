"""The quality at which a codec's file has a wanted size, or its picture a wanted PSNR."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from lalic.demo import psnr
from lalic.eval.codecs import Codec, Coded, Quality
from lalic.eval.measure import decibels, similarity

__all__ = ["MATCHES", "Match", "coded_at", "nearest"]

MATCHES = ("bpp", "psnr")


@dataclass(frozen=True)
class Match:
    """A picture through a codec at one quality, with its figures. ms_ssim: dB, None for a small picture."""

    codec: Codec
    quality: Quality
    coded: Coded
    bpp: float
    psnr: float
    ms_ssim: float | None

    def value(self, what: str) -> float:
        """Bits per pixel ("bpp") or PSNR in dB ("psnr")."""
        return self.bpp if what == "bpp" else self.psnr


def coded_at(codec: Codec, picture: Image.Image, quality: Quality) -> Match:
    """The RGB picture through the codec at this quality."""
    coded = codec.code(picture, quality)
    close = similarity(picture, coded.picture)
    return Match(
        codec=codec,
        quality=quality,
        coded=coded,
        bpp=8 * coded.size / (picture.width * picture.height),
        psnr=psnr(picture, coded.picture),
        ms_ssim=None if close is None else decibels(close),
    )


def nearest(codec: Codec, picture: Image.Image, what: str, target: float) -> Match:
    """The quality whose bits per pixel ("bpp", nearest by ratio) or PSNR ("psnr") is nearest to `target`.

    A binary search in the codec's steps: both are taken to rise along its qualities, and where they waver the result
    may be a step off. Where the codec does not reach the target it is the end of its range; one of a single rate has no
    choice.
    """
    if None in codec.qualities:
        return coded_at(codec, picture, None)
    low, high = codec.bounds
    seen: dict[int, Match] = {}

    def value(step: int) -> float:
        if step not in seen:
            quality = low + step * codec.step if codec.increasing else high - step * codec.step
            seen[step] = coded_at(codec, picture, int(quality) if quality == int(quality) else round(quality, 6))
        return seen[step].value(what)

    first, last = 0, round((high - low) / codec.step)
    while first < last:  # the lowest step that reaches the target, or the last
        middle = (first + last) // 2
        if value(middle) >= target:
            last = middle
        else:
            first = middle + 1
    above = value(first)
    if first == 0 or above < target:
        return seen[first]
    below = value(first - 1)
    nearer_below = target / below < above / target if what == "bpp" else target - below < above - target
    return seen[first - 1] if nearer_below else seen[first]
