"""Formats that Pillow writes and reads: JPEG, WebP, AVIF, and with plug-ins JPEG XL and HEVC."""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, features

from lalic.eval.codecs.base import Codec, NotInstalled, Quality

__all__ = ["FORMATS", "PillowCodec"]


@dataclass
class PillowCodec(Codec):
    """A format that Pillow writes and reads, by itself or with a plug-in: ``PillowCodec(name, **FORMATS[name])``.

    Raises `NotInstalled` if Pillow was built without it, or its plug-in is not installed.
    """

    name: str
    title: str
    format: str
    extension: str
    qualities: tuple[Quality, ...]
    options: dict[str, Any] = field(default_factory=dict)
    bounds: tuple[float, float] = (0, 100)
    feature: tuple[str, str] | None = None  # name in `PIL.features`, and of the library
    plugin: tuple[str, str] | None = None  # module and distribution
    start: Callable[[Any], str | None] = lambda module: None  # registers the plug-in; may return its encoder's name

    def __post_init__(self) -> None:
        if self.plugin is not None:
            module, distribution = self.plugin
            try:
                encoder = self.start(importlib.import_module(module))
            except ImportError:
                raise NotInstalled(
                    f"{self.name} needs {distribution}, which is not installed (pip install {distribution})"
                ) from None
            self.version = f"{distribution} {importlib.metadata.version(distribution)}"
            self.version += f", {encoder}" if encoder else ""
            return
        assert self.feature is not None
        feature, library = self.feature
        if not features.check(feature):
            raise NotInstalled(f"{self.name} needs {library}, which this Pillow was built without")
        if feature == "jpg" and features.check("libjpeg_turbo"):
            feature, library = "libjpeg_turbo", "libjpeg-turbo"
        self.version = f"Pillow {importlib.metadata.version('pillow')}, {library} {features.version(feature)}"
        self.version += _libaom() if feature == "avif" else ""

    def encode(self, picture: Image.Image, quality: Quality) -> bytes:
        out = io.BytesIO()
        assert quality is not None
        picture.save(out, self.format, quality=int(quality), **self.options)
        return out.getvalue()

    def decode(self, data: bytes) -> Image.Image:
        with Image.open(io.BytesIO(data)) as picture:
            return picture.convert("RGB")


def _libaom() -> str:
    """ ", libaom VERSION", from Pillow's AVIF module; empty if it does not have the version."""
    versions = getattr(importlib.import_module("PIL._avif"), "codec_versions", lambda: "")()
    match = re.search(r"aom \[[^]]*\]:v?([\w.]+)", versions)
    return f", libaom {match[1]}" if match else ""


# The qualities give about 0.1 to 2 bits per pixel on Kodak, as far as the format allows.
_JPEG = {"format": "JPEG", "extension": ".jpg", "bounds": (1, 95), "feature": ("jpg", "libjpeg")}
_AVIF = {"format": "AVIF", "extension": ".avif", "feature": ("avif", "libavif")}
_AVIF_OPTIONS = {"codec": "aom", "speed": 6, "subsampling": "4:4:4"}
_AVIF_QUALITIES = (10, 20, 30, 40, 50, 60, 70, 80)
FORMATS: dict[str, dict[str, Any]] = {
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
    "avif": _AVIF | {"title": "AVIF 4:4:4", "qualities": _AVIF_QUALITIES, "options": _AVIF_OPTIONS},
    "avif-psnr": _AVIF
    | {
        "title": "AVIF 4:4:4, tune=psnr",
        "qualities": _AVIF_QUALITIES,
        "options": _AVIF_OPTIONS | {"advanced": {"tune": "psnr"}},
    },
    "jxl": {
        "title": "JPEG XL",
        "format": "JXL",
        "extension": ".jxl",
        "qualities": (5, 10, 20, 40, 60, 75, 85, 90),
        "bounds": (0, 99),  # 100 is lossless, another coder
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
