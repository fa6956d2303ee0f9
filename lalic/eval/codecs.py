"""The codecs that are compared, behind one interface: a picture and a quality in, a coded picture and its size out.

    name        what it is                                            quality       needs
    lalic       .lalic files; models of `--checkpoint`                1..100        -
    jpeg        Pillow, 4:2:0, progressive, optimised Huffman tables  1..95         -
    jpeg-444    the same at 4:4:4                                     1..95         -
    webp        Pillow, lossy, method 6 (the slowest)                 0..100        Pillow with WebP
    avif        Pillow, libaom, 4:4:4, speed 6                        0..100        Pillow with AVIF
    avif-psnr   the same with libaom's tune=psnr                      0..100        Pillow with AVIF
    jxl         pillow-jxl-plugin, VarDCT, effort 7                   0..99         pillow-jxl-plugin
    heic        pillow-heif, HEVC intra by x265, 4:4:4                0..100        pillow-heif
    vtm         the VVC reference software, `lalic.eval.vtm`          QP 0..63      its binaries
    compressai-NAME  CompressAI's pretrained NAME                     1..8          compressai, and its weights

Qualities are each codec's own: equal numbers mean nothing across codecs.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, features

from lalic import codec as lalic_codec
from lalic.errors import LalicError

__all__ = ["NAMES", "Codec", "Coded", "LalicCodec", "NotInstalled", "PillowCodec", "Quality", "make", "parse"]


class NotInstalled(LalicError):
    """A codec cannot be had here; the sentence says what it needs."""


Quality = float | None  # None: the codec has one rate


@dataclass(frozen=True)
class Coded:
    """A picture that went through a codec. size: bytes of the whole file. decode_seconds: None if decoding is no step
    of its own. data: the file, where there is one."""

    picture: Image.Image
    size: int
    encode_seconds: float
    decode_seconds: float | None
    data: bytes | None = None


class Codec:
    """What `measure` and `match` need: `name`, `version`, `qualities` (the ladder that is measured), `code`.

    name: the word on the command line. title: the word in plots. version: library and release. increasing: whether a
    larger quality means a larger file. bounds: lowest and highest quality, which go in steps of `step`. chosen: whether
    somebody asked for `qualities`, or they are the codec's own ladder.
    """

    name: str
    title: str
    version: str
    qualities: tuple[Quality, ...]
    bounds: tuple[float, float] = (0, 100)
    step = 1.0
    increasing = True
    chosen = False
    extension: str

    def encode(self, picture: Image.Image, quality: Quality) -> bytes:
        """The file of an RGB picture."""
        raise NotImplementedError

    def decode(self, data: bytes) -> Image.Image:
        """The RGB picture of a file."""
        raise NotImplementedError

    def code(self, picture: Image.Image, quality: Quality) -> Coded:
        """Encode and decode, timed; the file stays in memory, so that no disk is timed."""
        start = time.perf_counter()
        data = self.encode(picture, quality)
        middle = time.perf_counter()
        decoded = self.decode(data)
        end = time.perf_counter()
        return Coded(decoded, len(data), middle - start, end - middle, data)


class LalicCodec(Codec):
    """.lalic files of one model (None: the one that ships, on `device`)."""

    name, extension = "lalic", ".lalic"
    bounds = (1, 100)
    step = 0.1  # files hold hundredths; a tenth is below a hundredth of a dB

    def __init__(self, model: Any, qualities: Sequence[Quality] = (), title: str = "lalic") -> None:
        self.model = model
        self.title = title
        self.version = f"{model.config.name}, weights {model.weights_hash().hex()}"
        gained = lalic_codec.coded_quality(model, None) is not None
        if not gained and any(q is not None for q in qualities):
            raise LalicError(f"{title}: this model has one rate, expected no quality")
        self.chosen = bool(qualities)
        self.qualities = tuple(qualities) or ((5, 20, 35, 50, 65, 80, 95) if gained else (None,))

    def encode(self, picture: Image.Image, quality: Quality) -> bytes:
        return lalic_codec.encode(picture, self.model, quality=quality)

    def decode(self, data: bytes) -> Image.Image:
        return lalic_codec.decode(data, self.model)


@dataclass
class PillowCodec(Codec):
    """A format that Pillow writes and reads, by itself or through a plug-in."""

    name: str
    title: str
    format: str
    extension: str
    qualities: tuple[Quality, ...]
    options: dict[str, Any] = field(default_factory=dict)
    bounds: tuple[float, float] = (0, 100)
    feature: tuple[str, str] | None = None  # what Pillow's build must have, and the library's name
    plugin: tuple[str, str] | None = None  # module and distribution
    start: Callable[[Any], str | None] = lambda module: None  # registers it; may say which coder is in it

    def __post_init__(self) -> None:
        if self.plugin is not None:
            module, distribution = self.plugin
            try:
                inside = self.start(importlib.import_module(module))
            except ImportError:
                raise NotInstalled(
                    f"{self.name} needs {distribution}, which is not installed (pip install {distribution})"
                ) from None
            self.version = f"{distribution} {importlib.metadata.version(distribution)}"
            self.version += f", {inside}" if inside else ""
            return
        assert self.feature is not None
        word, library = self.feature
        if not features.check(word):
            raise NotInstalled(f"{self.name} needs {library}, which this Pillow was built without")
        if word == "jpg" and features.check("libjpeg_turbo"):
            word, library = "libjpeg_turbo", "libjpeg-turbo"
        self.version = f"Pillow {importlib.metadata.version('pillow')}, {library} {features.version(word)}"
        self.version += _libaom() if word == "avif" else ""

    def encode(self, picture: Image.Image, quality: Quality) -> bytes:
        out = io.BytesIO()
        assert quality is not None
        picture.save(out, self.format, quality=int(quality), **self.options)
        return out.getvalue()

    def decode(self, data: bytes) -> Image.Image:
        with Image.open(io.BytesIO(data)) as picture:
            return picture.convert("RGB")


def _libaom() -> str:
    """ ", libaom VERSION"; Pillow says it where only its own code looks, so no version is a possible answer."""
    says = getattr(importlib.import_module("PIL._avif"), "codec_versions", lambda: "")()
    found = re.search(r"aom \[[^]]*\]:v?([\w.]+)", says)
    return f", libaom {found[1]}" if found else ""


# The ladders take Kodak from about 0.1 to 2 bits per pixel where the format reaches so far.
_JPEG = {"format": "JPEG", "extension": ".jpg", "bounds": (1, 95), "feature": ("jpg", "libjpeg")}
_AVIF = {"format": "AVIF", "extension": ".avif", "feature": ("avif", "libavif")}
_AVIF_OPTIONS = {"codec": "aom", "speed": 6, "subsampling": "4:4:4"}
_AVIF_LADDER = (10, 20, 30, 40, 50, 60, 70, 80)
_PILLOW: dict[str, dict[str, Any]] = {
    "jpeg": _JPEG
    | {
        "title": "JPEG 4:2:0",
        "qualities": (5, 10, 20, 30, 45, 60, 75, 85, 92),
        "options": {"subsampling": "4:2:0", "optimize": True, "progressive": True},
    },
    "jpeg-444": _JPEG
    | {
        "title": "JPEG 4:4:4",
        "qualities": (5, 10, 20, 30, 45, 60, 75, 85, 90),
        "options": {"subsampling": "4:4:4", "optimize": True, "progressive": True},
    },
    "webp": {
        "title": "WebP",
        "format": "WEBP",
        "extension": ".webp",
        "qualities": (1, 5, 12, 25, 45, 65, 80, 90),
        "options": {"method": 6},
        "feature": ("webp", "libwebp"),
    },
    "avif": _AVIF | {"title": "AVIF 4:4:4", "qualities": _AVIF_LADDER, "options": _AVIF_OPTIONS},
    "avif-psnr": _AVIF
    | {
        "title": "AVIF 4:4:4, tune=psnr",
        "qualities": _AVIF_LADDER,
        "options": _AVIF_OPTIONS | {"advanced": {"tune": "psnr"}},
    },
    "jxl": {
        "title": "JPEG XL",
        "format": "JXL",
        "extension": ".jxl",
        "qualities": (5, 10, 20, 40, 60, 75, 85, 90),
        "bounds": (0, 99),  # 100 is another coder, without loss
        "options": {"effort": 7},
        "plugin": ("pillow_jxl", "pillow-jxl-plugin"),
    },
    "heic": {
        "title": "HEVC 4:4:4 (x265)",
        "format": "HEIF",
        "extension": ".heic",
        "qualities": (10, 16, 22, 28, 34, 40, 48, 56),
        "options": {"chroma": 444},
        "plugin": ("pillow_heif", "pillow-heif"),
        "start": lambda module: module.register_heif_opener() or module.libheif_info().get("HEIF"),
    },
}

NAMES = ("lalic", *_PILLOW, "vtm", "compressai-NAME")


def parse(word: str) -> tuple[str, tuple[Quality, ...]]:
    """A codec as the command line names it: "webp" -> ("webp", ()), "webp:20,40.5" -> ("webp", (20, 40.5)).

    Raises `LalicError` for another form. Whether there is such a codec is not looked at here.
    """
    name, colon, rest = word.partition(":")
    try:
        qualities = tuple(float(text) for text in rest.split(",")) if colon else ()
    except ValueError:
        raise LalicError(f"{word!r} is no codec with qualities, expected CODEC or CODEC:QUALITY,...") from None
    return name, tuple(int(q) if q == int(q) else q for q in qualities)


def make(name: str, qualities: Sequence[Quality] = ()) -> Codec:
    """The codec called `name` (jpeg ... heic, compressai-NAME), to be measured at `qualities` (none: its own ladder).

    Raises `NotInstalled` if something that it needs is not, `LalicError` if there is no such codec or a quality is out
    of its bounds.
    """
    found: Codec
    if name in _PILLOW:
        found = PillowCodec(name=name, **_PILLOW[name])
    elif name.startswith("compressai-"):
        from lalic.eval.peers import CompressAICodec

        found = CompressAICodec(name)
    else:
        raise LalicError(f"there is no codec {name!r}, expected one of {', '.join(NAMES)}")
    if qualities:
        found.qualities, found.chosen = tuple(qualities), True
    check_bounds(found)
    return found


def check_bounds(codec: Codec) -> None:
    """Raise `LalicError` if a quality of the codec's ladder is out of its bounds, or between two that there are."""
    low, high = codec.bounds
    for quality in codec.qualities:
        if quality is None:
            continue
        if not low <= quality <= high:
            raise LalicError(f"{codec.name}: quality is {quality:g}, expected {low:g} to {high:g}")
        if codec.step == 1 and quality != int(quality):
            raise LalicError(f"{codec.name}: quality is {quality:g}, expected a whole number")
