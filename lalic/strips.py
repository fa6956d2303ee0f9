"""Pictures above `MAX_PIXELS`, which Pillow would hold whole: libvips reads and writes them strip by strip.

It needs pyvips (`pip install "lalic[large]"`). `StripImage` has what the codec asks of a `PIL.Image`: size, mode, crop.
Colours are converted to sRGB, 16 bits rounded to 8, the EXIF orientation applied; grey stays grey, its profile unused.
Text is dropped, and hidden colours below transparent pixels are coded as they are.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from lalic.container import MAX_PIXELS
from lalic.errors import ImageError, ImageWarning, LalicError

__all__ = ["StripImage", "needs_strips", "open_strips", "write_strips"]


_WITH_METADATA = (".png", ".jpg", ".jpeg", ".webp")


def needs_strips(width: int, height: int) -> bool:
    """Whether a picture of this size goes through libvips."""
    return width * height > MAX_PIXELS


def _vips() -> Any:
    try:
        import pyvips
    except (ImportError, OSError) as error:
        raise LalicError(
            f"pictures above {MAX_PIXELS} pixels are read and written by libvips, which cannot be loaded ({error}); "
            'pip install "lalic[large]"'
        ) from None
    return pyvips


class StripImage:
    """A picture that libvips holds: RGB or L, 8 bits. A part is read, and converted, when it is asked for."""

    def __init__(self, image: Any) -> None:
        self._image = image
        self.size = (int(image.width), int(image.height))
        self.mode = "L" if image.bands == 1 else "RGB"

    def crop(self, box: tuple[int, int, int, int]) -> Image.Image:
        """A part as a `PIL.Image`. box: (left, top, right, bottom), inside of the picture."""
        left, top, right, bottom = box
        part = self._image.crop(left, top, right - left, bottom - top)
        try:
            pixels = part.write_to_memory()
        except _vips().Error as error:
            raise _damaged(error) from None
        return Image.frombytes(self.mode, (right - left, bottom - top), pixels)


def open_strips(source: Any, below: tuple[int, int, int] | None = None) -> tuple[StripImage, StripImage | None]:
    """Open a picture from a path or the bytes of a file: its colours, and alpha if it has some.

    below: colour to blend transparent pixels with instead. Raises `ImageError` for what libvips cannot read,
    `LalicError` without pyvips.
    """
    vips = _vips()
    try:
        if isinstance(source, str | os.PathLike):
            # revalidate: the file may have changed since libvips opened one of this name.
            image = vips.Image.new_from_file(os.fspath(source), access="random", fail_on="error", revalidate=True)
        else:
            image = vips.Image.new_from_buffer(bytes(source), "", access="random", fail_on="error")
        image = image.autorot()
        alpha = None
        if image.hasalpha() and below is not None:
            image = image.flatten(background=list(below) if image.bands > 2 else below[0])
        elif image.hasalpha():
            alpha = StripImage(_to_8_bit(image[image.bands - 1], grey=True))
            image = image[: image.bands - 1]
        grey = image.bands == 1
        if image.get_typeof("icc-profile-data") and not grey:
            image = image.icc_transform("srgb", embedded=True, intent="perceptual")
        image = _to_8_bit(image, grey).colourspace("b-w" if grey else "srgb")
        if image.format != "uchar":
            raise ImageError(f"the picture has pixels of libvips' format {image.format}, expected 8 or 16 bits")
        return StripImage(image), alpha
    except vips.Error as error:
        raise _damaged(error) from None


def _to_8_bit(image: Any, grey: bool) -> Any:
    if image.format != "ushort":
        return image
    return ((image + 128) / 257).floor().cast("uchar").copy(interpretation="b-w" if grey else "srgb")


def write_strips(
    rows: Iterable[np.ndarray], size: tuple[int, int], target: str, metadata: Mapping[str, bytes] | None = None
) -> None:
    """Write a picture whose rows come in blocks (h, W, 3), (h, W, 4) with alpha or (h, W), uint8, to a file.

    The extension of `target` names the format, one that libvips writes. metadata: boxes of `lalic.metadata`, of which
    EXIF and XMP are written where libvips can. Pixels lie in a temporary file beside the target meanwhile. Raises
    `ImageError` if the format cannot hold the picture.
    """
    vips = _vips()
    bands = 3
    with tempfile.NamedTemporaryFile(dir=os.path.dirname(target) or ".", suffix=".lalic-raw") as raw:
        for block in rows:
            bands = 1 if block.ndim == 2 else block.shape[2]
            raw.write(np.ascontiguousarray(block).data)
        raw.flush()
        image = vips.Image.rawload(raw.name, *size, bands)
        image = image.copy(interpretation="b-w" if bands == 1 else "srgb")
        if metadata and not target.lower().endswith(_WITH_METADATA):
            warnings.warn("EXIF and XMP are written to PNG, JPEG and WebP only", ImageWarning, stacklevel=2)
        for letter, name, prefix in (("e", "exif-data", b"Exif\0\0"), ("x", "xmp-data", b"")):
            if metadata and letter in metadata:
                image.set_type(vips.GValue.blob_type, name, prefix + metadata[letter])
        try:
            image.write_to_file(target)
        except vips.Error as error:
            raise ImageError(f"libvips cannot write this picture to {target} ({_line(error)})") from None


def _damaged(error: Exception) -> ImageError:
    return ImageError(f"the picture is damaged or truncated and cannot be decoded ({_line(error)})")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
