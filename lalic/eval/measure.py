"""Pictures through codecs: what each file takes, how near the result is, how long it took."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lalic import images
from lalic.demo import psnr
from lalic.errors import LalicError
from lalic.eval.codecs import Codec, Quality
from lalic.nn.ms_ssim import MIN_SIDE, ms_ssim

__all__ = ["Curve", "Picture", "Point", "Row", "decibels", "load", "measure", "similarity"]


@dataclass(frozen=True)
class Picture:
    """A picture to measure on. name: its file's, without extension."""

    name: str
    image: Image.Image


@dataclass(frozen=True)
class Row:
    """One picture at one quality. size: bytes of the whole file. psnr: dB, over all channels of the 8-bit result;
    infinite if every pixel is the same. ms_ssim: None if a side is below 161 pixels. Seconds: wall-clock."""

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
    """One quality over all pictures; its figures are plain means over the pictures, as is the custom.

    quality: None for a model of one rate. label: what tells this point from the others.
    """

    quality: Quality
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
        """Mean seconds a picture."""
        return statistics.fmean(row.encode_seconds for row in self.rows)

    @property
    def decode_seconds(self) -> float | None:
        """Mean seconds a picture; None if decoding was not timed."""
        return _mean_or_none([row.decode_seconds for row in self.rows])


@dataclass(frozen=True)
class Curve:
    """The points of one codec in order of rate. name: the codec's; title: in plots; version: library and release."""

    name: str
    title: str
    version: str
    points: tuple[Point, ...]

    def along(self, metric: str) -> list[tuple[float, float]]:
        """(bits per pixel, quality in dB) of each point; metric: "psnr" or "ms-ssim". Empty if it was not measured."""
        if metric == "psnr":
            return [(point.bpp, point.psnr) for point in self.points]
        return [(p.bpp, decibels(p.ms_ssim)) for p in self.points if p.ms_ssim is not None]


def decibels(value: float) -> float:
    """MS-SSIM in dB, -10 log10(1 - value); infinite for 1."""
    return math.inf if value >= 1 else -10 * math.log10(1 - value)


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if len(there) == len(values) else None


def load(sources: Iterable[str | Path]) -> list[Picture]:
    """The pictures of files and folders (searched recursively, hidden names left out), each folder in order of name.

    Read by the rules of `lalic.images`. Raises `LalicError` naming a source that is missing or holds none, a file that
    is refused, or two pictures of one name, which could not be told apart in the results.
    """
    found: dict[str, Picture] = {}
    for source in map(Path, sources):
        if not source.exists():
            raise LalicError(f"{source}: there is no such file or folder")
        for path in _pictures(source) if source.is_dir() else [source]:
            try:
                picture = Picture(path.stem, images.load(path))
            except LalicError as error:
                raise LalicError(f"{path}: {error}") from None
            if picture.name in found:
                raise LalicError(f"{path}: another picture is called {picture.name} as well, expected distinct names")
            found[picture.name] = picture
    return list(found.values())


def _pictures(folder: Path) -> list[Path]:
    take = images.readable_extensions()
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in take
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not paths:
        raise LalicError(f"{folder}: this folder holds no pictures")
    return paths


def similarity(a: Image.Image, b: Image.Image) -> float | None:
    """MS-SSIM of two RGB pictures of one size, in [0, 1]; None if a side is below 161 pixels, too few for it.

    In float32, as the field's tools compute it.
    """
    if min(a.size) < MIN_SIDE:
        return None
    return float(ms_ssim(images.to_tensor(a), images.to_tensor(b)))


def measure(
    codec: Codec,
    pictures: Sequence[Picture],
    progress: Callable[[Point], None] = lambda point: None,
) -> Curve:
    """Every picture at every quality of the codec's ladder; `progress` hears of each finished point.

    The first picture is coded once more before anything is timed: libraries load and kernels compile then.
    """
    codec.code(pictures[0].image, codec.qualities[0])
    points = []
    for quality in codec.qualities:
        rows = tuple(_row(codec, quality, picture) for picture in pictures)
        points.append(Point(quality, "" if quality is None else f"{quality:g}", rows))
        progress(points[-1])
    return Curve(codec.name, codec.title, codec.version, tuple(sorted(points, key=lambda point: point.bpp)))


def _row(codec: Codec, quality: Quality, picture: Picture) -> Row:
    coded = codec.code(picture.image, quality)
    if coded.picture.size != picture.image.size:
        raise LalicError(f"{codec.name} gave {coded.picture.size} back for {picture.name}, {picture.image.size}")
    width, height = picture.image.size
    return Row(
        picture=picture.name,
        width=width,
        height=height,
        size=coded.size,
        psnr=psnr(picture.image, coded.picture),
        ms_ssim=similarity(picture.image, coded.picture),
        encode_seconds=coded.encode_seconds,
        decode_seconds=coded.decode_seconds,
    )
