"""`compare`: one picture with several codecs at equal size or PSNR, and a sheet of crops."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lalic import images
from lalic.errors import LalicError
from lalic.eval.codecs import Codec, Coded, Options, Quality, open_codecs
from lalic.eval.curves import Figures, decibels
from lalic.eval.measure import code, figures_of
from lalic.metrics import psnr
from lalic.search import BPP_TOLERANCE, PSNR_TOLERANCE, check_target

__all__ = [
    "Box",
    "Known",
    "Match",
    "SideBySide",
    "choose_crops",
    "coded_at",
    "compare",
    "nearest",
    "parse_box",
    "remarks",
    "sheet",
    "shortfall",
    "verdict",
]

Box = tuple[int, int, int, int]  # left, top, width, height

_EQUAL_BPP, _EQUAL_PSNR = 0.05, 0.25  # a share, and dB: what counts as equal in a sentence
_CROP, _ZOOM = 160, 2
_MARGIN, _LINE = 8, 18


@dataclass(frozen=True)
class SideBySide:
    """Result of `compare`. left_out: one sentence for each codec that is not installed."""

    picture: Image.Image
    matches: list[Match]
    left_out: list[str]


def compare(
    picture: images.ImageSource,
    codecs: Sequence[str | Codec],
    target: float | None = None,
    *,
    match: str = "bpp",
    background: images.Color | None = None,
    **options: Unpack[Options],
) -> SideBySide:
    """Compress one picture with several codecs at equal size or PSNR.

    picture: a path, bytes, or a `PIL.Image` (`lalic.images.load`). codecs: names, such as "webp" or "webp:20,40", or
    objects (`lalic.eval.codecs`); with qualities given, a codec is measured at them, else as near to the target as
    possible. match: "bpp" or "psnr". target: bits per pixel or dB; None: the value of the first codec at its first
    given quality, or at the middle one of its defaults. background: colour to put below transparent pixels.
    options: `lalic.eval.codecs.Options`, such as checkpoints.

    Raises `LalicError` for wrong arguments, `ImageError` for a picture that is not taken, `OSError` if it cannot be
    opened.

        >>> results = compare("photo.png", ["lalic", "jpeg"], 0.4)
        >>> sheet(results.picture, results.matches).save("crops.png")
    """
    if match not in ("bpp", "psnr"):
        raise LalicError(f"match is {match!r}, expected bpp or psnr")
    check_target(target, "bits per pixel" if match == "bpp" else "dB")
    opened, left_out = open_codecs(codecs, **options)
    if not opened:
        raise LalicError("nothing is left to compare")
    loaded = images.load(picture, background=background)
    matches: list[Match] = []
    for codec in opened:
        if codec.chosen:
            matches += [coded_at(codec, loaded, quality) for quality in codec.qualities]
        elif target is None:
            matches.append(coded_at(codec, loaded, codec.qualities[len(codec.qualities) // 2]))
        else:
            matches.append(nearest(codec, loaded, match, target))
        target = matches[0].value(match) if target is None else target
    return SideBySide(loaded, matches, left_out)


# Matching


@dataclass(frozen=True)
class Match(Figures):
    """A picture coded by a codec at one quality, and its figures."""

    codec: Codec
    quality: Quality
    coded: Coded

    def value(self, metric: str) -> float:
        """Bits per pixel ("bpp") or PSNR in dB ("psnr")."""
        return self.bpp if metric == "bpp" else self.psnr

    def text(self) -> str:
        """One line with quality, bytes, bits per pixel, PSNR, MS-SSIM."""
        quality = "" if self.quality is None else f"quality {self.quality:g}, "
        ms_ssim = "" if self.ms_ssim is None else f", MS-SSIM {decibels(self.ms_ssim):.2f} dB"
        return f"{quality}{self.coded.size} bytes, {self.bpp:.4f} bits per pixel, PSNR {self.psnr:.2f} dB{ms_ssim}"

    def heading(self) -> str:
        """Bits per pixel and PSNR in short, below a title."""
        return f"{self.bpp:.3f} bpp, {self.psnr:.2f} dB"


def coded_at(codec: Codec, picture: Image.Image, quality: Quality) -> Match:
    """Code an RGB picture at a quality, and measure it."""
    coded, figures = code(codec, picture, quality)
    return Match(**vars(figures), codec=codec, quality=quality, coded=coded)


Known = dict[Quality, tuple[float, float]]  # (bits per pixel, PSNR) of one picture with one codec


def nearest(codec: Codec, picture: Image.Image, metric: str, target: float, known: Known | None = None) -> Match:
    """The match whose bits per pixel ("bpp", nearest by ratio) or PSNR ("psnr") is nearest to `target`.

    A binary search in the codec's steps, which assumes that both rise with the quality; if not, the result may be one
    step off. If the codec does not reach the target, the result is the end of its range. known: what earlier searches
    have measured, which this one uses and adds to.
    """
    if None in codec.qualities:
        return coded_at(codec, picture, None)
    low, high = codec.bounds
    known = {} if known is None else known
    found: dict[bool, tuple[Quality, Coded]] = {}  # the newest that reaches the target, and that does not

    def quality(step: int) -> Quality:
        exact = low + step * codec.step if codec.increasing else high - step * codec.step
        return int(exact) if exact == int(exact) else round(exact, 6)

    def value(step: int) -> float:
        at = quality(step)
        if at not in known:
            coded = codec.code(picture, at)
            known[at] = 8 * coded.size / (picture.width * picture.height), psnr(picture, coded.picture)
            found[known[at][metric == "psnr"] >= target] = at, coded
        return known[at][metric == "psnr"]

    def match(step: int) -> Match:
        at = quality(step)
        for tried, coded in found.values():
            if tried == at:
                return Match(**vars(figures_of(picture, coded)), codec=codec, quality=at, coded=coded)
        return coded_at(codec, picture, at)

    last = round((high - low) / codec.step)
    begin, end = 0, last
    for at, values in known.items():
        assert at is not None
        step = round((at - low) / codec.step if codec.increasing else (high - at) / codec.step)
        if values[metric == "psnr"] < target:
            begin = max(begin, min(step + 1, last))
        else:
            end = min(end, step)
    first = bisect_left(range(last), target, min(begin, end), end, key=value)  # that reaches it, or the last
    above = value(first)
    if first == 0 or above < target:
        return match(first)
    below = value(first - 1)
    nearer_below = target / below < above / target if metric == "bpp" else target - below < above - target
    return match(first - 1 if nearer_below else first)


# Sentences


def remarks(matches: Sequence[Match], metric: str, target: float | None = None) -> list[str]:
    """Sentences on matches: which is better, the first or another, or that a codec does not come near the target.

    target: of `compare`; None for the value of the first match. Nothing is said of a match that differs for another
    reason, such as a quality that was given.
    """
    first = matches[0].value(metric)
    goal = first if target is None else target
    short = shortfall(matches[0], metric, goal)
    found = [] if short is None else [short]
    for match in matches[1:]:
        value = match.value(metric)
        if (short := shortfall(match, metric, goal)) is not None:
            found.append(short)
        elif abs(value / first - 1) < _EQUAL_BPP if metric == "bpp" else abs(value - first) < _EQUAL_PSNR:
            found.append(verdict(matches[0], match, metric))
    return found


def shortfall(match: Match, metric: str, target: float) -> str | None:
    """One sentence if the end of the codec's range is all that `nearest` could give for a target, else None."""
    value = match.value(metric)
    tolerance = BPP_TOLERANCE * target if metric == "bpp" else PSNR_TOLERANCE
    if abs(value - target) <= tolerance or match.quality not in (None, *match.codec.bounds):
        return None
    unit = "bits per pixel" if metric == "bpp" else "dB"
    return f"{match.codec.title} does not reach {target:.4g} {unit} for this picture; {value:.4g} is the nearest"


def verdict(ours: Match, theirs: Match, metric: str) -> str:
    """One sentence on two matches of about equal size ("bpp") or about equal PSNR ("psnr")."""
    ours_title, theirs_title = ours.codec.title, theirs.codec.title
    if metric == "psnr":
        saved = 100 * (1 - ours.coded.size / theirs.coded.size)
        if abs(saved) < 0.5:
            return f"{ours_title} and {theirs_title} take the same size at this PSNR"
        smaller = "smaller" if saved > 0 else "larger"
        return f"{ours_title} is {abs(saved):.0f} % {smaller} than {theirs_title} at this PSNR"
    gained = ours.psnr - theirs.psnr
    if not math.isfinite(gained) or abs(gained) < 0.05:
        return f"{ours_title} and {theirs_title} have the same PSNR at this size"
    more = "more" if gained > 0 else "less"
    return f"{ours_title} has {abs(gained):.1f} dB {more} PSNR than {theirs_title} at this size"


# The sheet


def parse_box(text: str, picture: Image.Image) -> Box:
    """ "X,Y,W,H" as a box. Raises `LalicError` for another form or one that is not inside the picture."""
    try:
        left, top, width, height = map(int, text.split(","))
    except ValueError:
        raise LalicError(f"crop is {text!r}, expected X,Y,WIDTH,HEIGHT in pixels") from None
    inside = left >= 0 and top >= 0 and left + width <= picture.width and top + height <= picture.height
    if not inside or width < 1 or height < 1:
        raise LalicError(f"crop is {text!r}, expected a box inside {picture.width}x{picture.height}")
    return left, top, width, height


def choose_crops(picture: Image.Image) -> list[Box]:
    """Up to three squares without overlap, chosen in the original: one with most detail, and two with less.

    Detail is the mean absolute difference of neighbours. Squares are on a grid of half their side, sorted by detail;
    the first and those at one fifth and two fifths of the list are taken, or the next one without overlap.
    """
    side = min(_CROP, *picture.size)
    grey = np.asarray(picture.convert("L"), dtype=np.float64)
    detail = np.zeros_like(grey)
    detail[:-1] += abs(np.diff(grey, axis=0))
    detail[:, :-1] += abs(np.diff(grey, axis=1))
    grid = (range(0, length - side + 1, max(1, side // 2)) for length in (picture.height, picture.width))
    corners = [(left, top) for top, left in itertools.product(*grid)]
    corners.sort(key=lambda at: -detail[at[1] : at[1] + side, at[0] : at[0] + side].sum())
    chosen: list[tuple[int, int]] = []
    for share in (0.0, 0.2, 0.4):
        for left, top in corners[int(share * len(corners)) :]:
            if all(abs(left - x) >= side or abs(top - y) >= side for x, y in chosen):
                chosen.append((left, top))
                break
    return [(left, top, side, side) for left, top in chosen]


def sheet(picture: Image.Image, matches: Sequence[Match], boxes: Sequence[Box] | None = None) -> Image.Image:
    """Crops enlarged by two: a row for each box, a column for the original and each codec, with a heading.

    boxes: None for those of `choose_crops`. Returns an RGB picture.
    """
    boxes = boxes or choose_crops(picture)
    columns = [("original", f"{picture.width}x{picture.height}", picture)]
    for match in matches:
        columns.append((match.codec.title, match.heading(), match.coded.picture))
    font = ImageFont.load_default(size=13)
    width = max(max(box[2] for box in boxes) * _ZOOM, 150)
    head = 2 * _LINE + _MARGIN
    height = head + sum(box[3] * _ZOOM + _MARGIN for box in boxes)
    result = Image.new("RGB", (len(columns) * (width + _MARGIN) + _MARGIN, height + _MARGIN), "white")
    draw = ImageDraw.Draw(result)
    for i, (title, line, whole) in enumerate(columns):
        left, top = _MARGIN + i * (width + _MARGIN), head
        draw.text((left, _MARGIN // 2), f"{title}\n{line}", fill="black", font=font)
        for x, y, w, h in boxes:
            crop = whole.crop((x, y, x + w, y + h)).resize((w * _ZOOM, h * _ZOOM), Image.Resampling.NEAREST)
            result.paste(crop, (left, top))
            top += h * _ZOOM + _MARGIN
    return result
