"""Formats that Pillow writes and reads: JPEG, WebP, AVIF, and with plug-ins JPEG XL and HEVC."""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import re
from typing import Any

from PIL import Image, features

from lalic.eval.codecs.base import Codec, NotInstalled, Quality

__all__ = ["FORMATS", "PillowCodec"]

_JPEG = {"optimize": True, "progressive": True}
_AVIF = {"codec": "aom", "speed": 6, "subsampling": "4:4:4"}
_AVIF_QUALITIES = (10, 20, 30, 40, 50, 60, 70, 80)

# name: title, Pillow's format, qualities, options. The qualities give about 0.1 to 2 bits per pixel on Kodak, as far
# as the format allows.
FORMATS: dict[str, tuple[str, str, tuple[Quality, ...], dict[str, Any]]] = {
    "jpeg": ("JPEG 4:2:0", "JPEG", (5, 10, 20, 30, 45, 60, 75, 85, 92), _JPEG | {"subsampling": "4:2:0"}),
    "jpeg-444": ("JPEG 4:4:4", "JPEG", (5, 10, 20, 30, 45, 60, 75, 85, 90), _JPEG | {"subsampling": "4:4:4"}),
    "webp": ("WebP", "WEBP", (1, 5, 12, 25, 45, 65, 80, 90), {"method": 6}),
    "avif": ("AVIF 4:4:4", "AVIF", _AVIF_QUALITIES, _AVIF),
    "avif-psnr": ("AVIF 4:4:4, tune=psnr", "AVIF", _AVIF_QUALITIES, _AVIF | {"advanced": {"tune": "psnr"}}),
    "jxl": ("JPEG XL", "JXL", (5, 10, 20, 40, 60, 75, 85, 90), {"effort": 7}),
    "heic": ("HEVC 4:4:4 (x265)", "HEIF", (10, 16, 22, 28, 34, 40, 48, 56), {"chroma": 444}),
}
_BOUNDS = {"JPEG": (1, 95), "JXL": (0, 99)}  # 100 of JPEG XL is lossless, another coder
_LIBRARIES = {"JPEG": ("jpg", "libjpeg"), "WEBP": ("webp", "libwebp"), "AVIF": ("avif", "libavif")}  # in PIL.features
_PLUGINS = {"JXL": ("pillow_jxl", "pillow-jxl-plugin"), "HEIF": ("pillow_heif", "pillow-heif")}  # module, distribution


class PillowCodec(Codec):
    """A format of `FORMATS`, which Pillow writes and reads by itself or with a plug-in.

    Raises `NotInstalled` if Pillow was built without it, or its plug-in is not installed.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.title, self.format, self.qualities, self.options = FORMATS[name]
        self.bounds = _BOUNDS.get(self.format, (0, 100))
        self.version = self._plugin_version() if self.format in _PLUGINS else self._library_version()

    def _plugin_version(self) -> str:
        """Import the plug-in, which adds the format to Pillow. Returns its version, and its encoder's."""
        module, distribution = _PLUGINS[self.format]
        try:
            plugin = importlib.import_module(module)
        except ImportError:
            raise NotInstalled(
                f"{self.name} needs {distribution}, which is not installed (pip install {distribution})"
            ) from None
        version = f"{distribution} {importlib.metadata.version(distribution)}"
        if self.format == "HEIF":
            plugin.register_heif_opener()
            encoder = plugin.libheif_info().get("HEIF")
            version += f", {encoder}" if encoder else ""
        return version

    def _library_version(self) -> str:
        feature, library = _LIBRARIES[self.format]
        if not features.check(feature):
            raise NotInstalled(f"{self.name} needs {library}, which this Pillow was built without")
        if feature == "jpg" and features.check("libjpeg_turbo"):
            feature, library = "libjpeg_turbo", "libjpeg-turbo"
        version = f"Pillow {importlib.metadata.version('pillow')}, {library} {features.version(feature)}"
        if feature == "avif":
            codecs = getattr(importlib.import_module("PIL._avif"), "codec_versions", lambda: "")()
            libaom = re.search(r"aom \[[^]]*\]:v?([\w.]+)", codecs)
            version += f", libaom {libaom[1]}" if libaom else ""
        return version

    def encode(self, picture: Image.Image, quality: Quality) -> bytes:
        out = io.BytesIO()
        assert quality is not None
        picture.save(out, self.format, quality=int(quality), **self.options)
        return out.getvalue()

    def decode(self, data: bytes) -> Image.Image:
        with Image.open(io.BytesIO(data)) as picture:
            return picture.convert("RGB")
