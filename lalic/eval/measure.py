"""`evaluate`: size, distortion and time of pictures with several codecs."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

import torch
from PIL import Image

from lalic import __version__, images
from lalic.codec import resolve_device
from lalic.errors import LalicError
from lalic.eval import DEFAULT_CODECS
from lalic.eval.codecs import Codec, Coded, Options, Quality, open_codecs
from lalic.eval.curves import (
    Comparison,
    Curve,
    Figures,
    Point,
    ReadCurve,
    Row,
    compare_curves,
    published_curves,
    read_curve,
)
from lalic.files import Name, walk
from lalic.images import Color
from lalic.memory import KEEP_MIB, Kept
from lalic.metrics import MIN_SIDE, picture_ms_ssim, psnr

__all__ = [
    "Pictures",
    "Results",
    "caption",
    "code",
    "device_name",
    "evaluate",
    "figures_of",
    "load",
    "measure",
    "similarity",
]


@dataclass(frozen=True)
class Results:
    """Result of `evaluate`.

    name: of the set of pictures. pictures: their number. caption: device and versions. curves: one for each codec, in
    the order of the call. others: curves from files. left_out: one sentence for each codec that is not installed. bpp:
    range of bits per pixel for BD-rates, None for all.
    """

    name: str
    pictures: int
    caption: str
    curves: list[Curve]
    others: list[ReadCurve]
    left_out: list[str]
    bpp: tuple[float, float] | None = None

    def comparisons(self) -> list[Comparison]:
        """Compare lalic's curves with all others; without lalic, the first curve with all others."""
        tests = [curve for curve in self.curves if curve.name == "lalic"] or self.curves[:1]
        anchors: list[Curve | ReadCurve] = [curve for curve in self.curves if curve not in tests]
        return compare_curves(tests, [*anchors, *self.others], self.bpp)


def evaluate(
    pictures: Name | Sequence[Name],
    codecs: Sequence[str | Codec] = DEFAULT_CODECS,
    *,
    published: str | None = None,
    against: Sequence[Name] = (),
    bpp: tuple[float, float] | None = None,
    name: str | None = None,
    background: Color | None = None,
    log: Callable[[str], None] | None = None,
    **options: Unpack[Options],
) -> Results:
    """Compress and decompress pictures with each codec at each of its qualities.

    pictures: files and folders (`load`). codecs: names, such as "webp" or "webp:20,40", or objects
    (`lalic.eval.codecs`). published: "kodak", "clic" or "tecnick", to add published curves of that set. against: more
    curves, JSON files in CompressAI's format. bpp: lowest and highest bits per pixel of points for BD-rates. name: of
    the set of pictures, None for that of the first source. log: called with a line for each codec, each point, and each
    codec that is left out. options: `lalic.eval.codecs.Options`, such as checkpoints and qualities; several checkpoints
    of one rate each make one curve.

    Raises `LalicError` for wrong arguments, before anything is measured.

        >>> results = evaluate(["kodak/"], ["lalic", "jpeg"], published="kodak")
        >>> [(point.label, point.bpp, point.psnr) for point in results.curves[0].points]
    """
    report = log if log is not None else lambda message: None

    def progress(point: Point) -> None:
        report(f"  {point.label:>8}  {point.bpp:.4f} bits per pixel, {point.psnr:.3f} dB")

    if bpp is not None and not 0 <= bpp[0] < bpp[1]:
        raise LalicError(f"bpp is {bpp[0]:g} {bpp[1]:g}, expected the lowest rate that counts, then a higher one")
    sources = [pictures] if isinstance(pictures, (str, os.PathLike)) else list(pictures)
    others = [read_curve(path) for path in against]
    others += [] if published is None else published_curves(published)
    opened, left_out = open_codecs(codecs, **options)
    for message in left_out:
        report(f"left out: {message}")
    if not opened:
        raise LalicError("nothing is left to measure")
    loaded = load(sources, background)
    curves = []
    for codec in opened:
        report(f"{codec.title} ({codec.version})")
        curves.append(measure(codec, loaded, progress))
    return Results(
        name=name or Path(os.path.abspath(sources[0])).stem,
        pictures=len(loaded),
        caption=caption(resolve_device(options.get("device"))),
        curves=_joined(curves),
        others=others,
        left_out=left_out,
        bpp=bpp,
    )


def _joined(curves: Sequence[Curve]) -> list[Curve]:
    """The curves, with all models of one rate joined to one curve."""
    single = [curve for curve in curves if curve.name == "lalic" and curve.points[0].quality is None]
    if len(single) < 2:
        return list(curves)
    points = [replace(curve.points[0], label=curve.title.removeprefix("lalic ")) for curve in single]
    version = f"{len(single)} models: " + "; ".join(
        f"{p.label} {c.version}" for p, c in zip(points, single, strict=True)
    )
    joined = Curve("lalic", "lalic", version, tuple(sorted(points, key=lambda point: point.bpp)))
    return [joined, *(curve for curve in curves if curve not in single)]


# Pictures


def load_one(path: Name, background: Color | None = None) -> Image.Image:
    """`lalic.images.load` of a file. Raises `LalicError` that names it."""
    try:
        return images.load(path, background=background)
    except LalicError as error:
        raise LalicError(f"{os.fspath(path)}: {error}") from None


class Pictures(Mapping[str, Image.Image]):
    """RGB pictures by name, of which `KEEP_MIB` stay in memory; others are opened again when they are asked for."""

    def __init__(self, paths: Mapping[str, Path], background: Color | None = None) -> None:
        self._paths, self._background = paths, background
        self._kept: Kept[str, Image.Image] = Kept(KEEP_MIB << 20, lambda picture: 4 * picture.width * picture.height)

    def __getitem__(self, name: str) -> Image.Image:
        return self._kept.get(name, lambda: load_one(self._paths[name], self._background))

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


def load(sources: Iterable[Name], background: Color | None = None) -> Pictures:
    """The pictures of files and folders (`lalic.files.walk`), by name of the file without extension.

    Loaded by the rules of `lalic.images`. background: colour to put below transparent pixels. Raises `LalicError` for a
    missing source, a folder without pictures, a file that is not taken, and two pictures of one name, which results
    could not distinguish; `OSError` for a file that cannot be opened.
    """
    found: dict[str, Path] = {}
    for source in map(Path, sources):
        if not source.exists():
            raise LalicError(f"{source}: there is no such file or folder")
        paths = walk(source, images.readable_extensions()) if source.is_dir() else [source]
        if not paths:
            raise LalicError(f"{source}: this folder holds no pictures")
        for path in paths:
            if path.stem in found:
                raise LalicError(f"{path}: another picture is called {path.stem} as well, expected distinct names")
            found[path.stem] = path
    pictures = Pictures(found, background)
    for _ in pictures.values():  # opened once, so that a damaged one is found before anything is measured
        pass
    return pictures


# One codec


def similarity(a: Image.Image, b: Image.Image) -> float | None:
    """MS-SSIM of two RGB pictures of one size, in [0, 1], computed in float32; None if a side is below 161 pixels."""
    return None if min(a.size) < MIN_SIDE else picture_ms_ssim(a, b)


def code(codec: Codec, picture: Image.Image, quality: Quality) -> tuple[Coded, Figures]:
    """Code an RGB picture at a quality, and measure the result.

    Raises `LalicError` if the codec gives a picture of another size back.
    """
    coded = codec.code(picture, quality)
    if coded.picture.size != picture.size:
        raise LalicError(f"{codec.name} gave a picture of {coded.picture.size} back for one of {picture.size}")
    return coded, figures_of(picture, coded)


def figures_of(picture: Image.Image, coded: Coded) -> Figures:
    """The figures of a coded RGB picture."""
    return Figures(
        bpp=8 * coded.size / (picture.width * picture.height),
        psnr=psnr(picture, coded.picture),
        ms_ssim=similarity(picture, coded.picture),
        encode_seconds=coded.encode_seconds,
        decode_seconds=coded.decode_seconds,
    )


def measure(
    codec: Codec, pictures: Mapping[str, Image.Image], progress: Callable[[Point], None] = lambda point: None
) -> Curve:
    """Code every picture at every quality of the codec. progress: called with each point.

    The first picture is coded once before, without timing, to load libraries and compile kernels.
    """
    codec.code(next(iter(pictures.values())), codec.qualities[0])
    points = []
    for quality in codec.qualities:
        rows = []
        for name, picture in pictures.items():
            coded, figures = code(codec, picture, quality)
            rows.append(Row(**vars(figures), picture=name, size=coded.size))
        points.append(Point.of(quality, rows))
        progress(points[-1])
    return Curve(codec.name, codec.title, codec.version, tuple(sorted(points, key=lambda point: point.bpp)))


# The machine


def device_name(device: torch.device) -> str:
    """Name of the GPU, or of the processor with the number of cores that this process may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    info = Path("/proc/cpuinfo")
    text = info.read_text(errors="replace") if info.is_file() else ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    model = match[1].strip() if match else platform.processor() or platform.machine() or "unknown CPU"
    return f"{model}, {cores} core{'s' if cores > 1 else ''}"


def caption(device: torch.device) -> str:
    """One line on the machine, for figures: device, threads, versions of lalic, torch and Python."""
    threads = torch.get_num_threads()
    return (
        f"{device_name(device)}, {threads} thread{'s' if threads > 1 else ''}; lalic {__version__}, "
        f"torch {torch.__version__}, Python {platform.python_version()}"
    )
