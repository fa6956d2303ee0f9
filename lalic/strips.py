"""Pictures above `MAX_PIXELS`, which Pillow would hold whole: libvips reads and writes them strip by strip.

It needs pyvips (`pip install "lalic[large]"`). `StripImage` has what the codec asks of a `PIL.Image`: size, mode, crop.
Colours are converted to sRGB, 16 bits rounded to 8, the orientation applied; grey stays grey, its profile unused.
Text behind the pixels of a PNG is left out, and hidden colours below transparent pixels are coded as they are.

Pixels lie in a temporary file meanwhile: 3 bytes each, 1 if grey, and 1 more with alpha. The file is read and not
mapped, as mapped pages count as memory of the process.
"""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from typing import IO, Any

import numpy as np
from PIL import Image

from lalic.container import MAX_PIXELS
from lalic.errors import ImageError, ImageWarning, LalicError
from lalic.files import temporary_beside
from lalic.memory import give_back
from lalic.metadata import parse_resolution
from lalic.tiles import Box

__all__ = ["StripImage", "needs_strips", "open_strips", "write_strips"]


_JPEG = (".jpg", ".jpeg", ".jpe", ".jfif")
_WITH_METADATA = (".png", ".webp", *_JPEG)
_MM_PER_INCH = 25.4


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
    """A picture whose pixels lie in a file: RGB or L, 8 bits. A part is read when it is asked for.

    file: row by row, `bands` bytes a pixel, and not buffered. width, height: of what is in the file. channels: those of
    the picture, 1 or 3. orientation: 1 to 8, how each part is turned after it was read.
    """

    def __init__(
        self, file: IO[bytes], width: int, height: int, bands: int, channels: slice, orientation: int = 1
    ) -> None:
        self._file, self._width, self._bands, self._channels = file, width, bands, channels
        self._transposed = orientation > 4  # first; then rows and columns may be reversed
        self._flips = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
        self.size = (height, width) if self._transposed else (width, height)
        self.mode = "L" if len(range(bands)[channels]) == 1 else "RGB"

    def crop(self, box: tuple[int, int, int, int]) -> Image.Image:
        """A part as a `PIL.Image`. box: (left, top, right, bottom), inside of the picture."""
        sides = [(box[axis], box[axis + 2]) for axis in (1, 0)]  # rows, then columns
        for axis in (0, 1):  # where they are in the file: what is done last to a part is undone first
            if self._flips[axis]:
                begin, end = sides[axis]
                sides[axis] = self.size[1 - axis] - end, self.size[1 - axis] - begin
        (top, bottom), (left, right) = reversed(sides) if self._transposed else sides
        pixels = np.empty((bottom - top, right - left, self._bands), np.uint8)
        for row, line in enumerate(pixels, top):
            self._file.seek((row * self._width + left) * self._bands)
            self._file.readinto(line.data)  # type: ignore[attr-defined]
        pixels = pixels.swapaxes(0, 1) if self._transposed else pixels
        pixels = np.flip(pixels, tuple(axis for axis in (0, 1) if self._flips[axis]))
        return Image.frombytes(self.mode, pixels.shape[1::-1], pixels[..., self._channels].tobytes())


def open_strips(
    source: Any, below: tuple[int, int, int] | None = None, orientation: int = 1
) -> tuple[StripImage, StripImage | None]:
    """Open a picture from a path or the bytes of a file: its colours, and alpha if it has some.

    below: colour to blend transparent pixels with instead. orientation: that of EXIF, 1 to 8, to apply. Raises
    `ImageError` for what libvips cannot read, `LalicError` without pyvips.
    """
    vips = _vips()
    try:
        if isinstance(source, str | os.PathLike):
            # revalidate: the file may have changed since libvips opened one of this name.
            image = vips.Image.new_from_file(os.fspath(source), access="sequential", fail_on="error", revalidate=True)
        else:
            image = vips.Image.new_from_buffer(bytes(source), "", access="sequential", fail_on="error")
        if image.format not in ("uchar", "ushort"):
            raise ImageError(f"the picture has pixels of libvips' format {image.format}, expected 8 or 16 bits")
        alpha = None
        if image.hasalpha():
            alpha = _to_8_bit(image[image.bands - 1], grey=True)
            image = image[: image.bands - 1]
        grey = image.bands == 1
        if image.get_typeof("icc-profile-data") and not grey:
            image = image.icc_transform("srgb", embedded=True, intent="perceptual")
        stays_grey = grey and (alpha is None or below is None or len(set(below)) == 1)
        image = _to_8_bit(image, grey).colourspace("b-w" if stays_grey else "srgb")
        if alpha is not None:
            image = image.bandjoin(alpha)
            if below is not None:  # in 8 bits of sRGB, as the colour is
                image = image.flatten(background=below[0] if stays_grey else list(below))
                alpha = None
    except vips.Error as error:
        raise ImageError(
            f"libvips, which reads pictures above {MAX_PIXELS} pixels, cannot open this one ({_line(error)})"
        ) from None
    width, height, bands = int(image.width), int(image.height), int(image.bands)
    folder, needed = tempfile.gettempdir(), width * height * bands
    if shutil.disk_usage(folder).free < needed:
        raise LalicError(f"the picture needs {needed} bytes in {folder}, where fewer are free (TMPDIR names a folder)")
    # Without a name the file is gone when it is closed, also if the process is killed.
    with tempfile.TemporaryDirectory(prefix="lalic-", ignore_cleanup_errors=True) as unnamed:
        try:
            image.rawsave(name := os.path.join(unnamed, "pixels"))
        except vips.Error as error:
            raise ImageError(f"the picture is damaged or truncated and cannot be decoded ({_line(error)})") from None
        flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_TEMPORARY", 0)  # those of Windows
        file = open(os.open(name, flags), "rb", buffering=0)  # noqa: SIM115
    colours = bands if alpha is None else bands - 1
    pixels = StripImage(file, width, height, bands, slice(0, colours), orientation)
    if alpha is None:
        return pixels, None
    return pixels, StripImage(file, width, height, bands, slice(colours, bands), orientation)


def _to_8_bit(image: Any, grey: bool) -> Any:
    if image.format != "ushort":
        return image
    meaning = "b-w" if grey else "cmyk" if image.interpretation == "cmyk" else "srgb"
    return ((image + 128) / 257).floor().cast("uchar").copy(interpretation=meaning)


def write_strips(
    parts: Iterable[tuple[Box, np.ndarray]],
    size: tuple[int, int],
    target: str,
    metadata: Mapping[str, bytes] | None = None,
) -> None:
    """Write a picture of `size` = (width, height) that comes in parts, of `lalic.codec.decode_parts`, to a file.

    The extension of `target` names the format, one that libvips writes. metadata: boxes of `lalic.metadata`; the
    resolution, EXIF and XMP are written where libvips can, text is not. Pixels lie in a temporary file beside the
    target meanwhile. Raises `ImageError` if the format cannot hold the picture, `BitstreamError` for an invalid box.
    """
    vips = _vips()
    extension, bands, boxes = os.path.splitext(target)[1].lower(), 3, metadata or {}
    resolution = parse_resolution(boxes["r"]) if "r" in boxes else None
    if extension not in vips.get_suffixes():  # now, and not after decoding
        raise ImageError(f"libvips writes no {extension} files, and this picture is too large for Pillow; try .png")
    with temporary_beside(target) as name, open(name, "w+b") as raw:
        begin = 0
        for place, pixels in parts:
            bands = 1 if pixels.ndim == 2 else pixels.shape[2]
            if bands == 4 and extension in _JPEG:
                raise ImageError(f"{extension} files hold no alpha channel, and the picture has one; try .png or .tif")
            if not begin:
                begin = raw.write(_tiff_header(size, bands))
            for row, values in enumerate(np.ascontiguousarray(pixels)):
                raw.seek(begin + ((place.top + row) * size[0] + place.left) * bands)
                raw.write(values.data)
        raw.flush()
        give_back()
        image = vips.Image.tiffload(name, access="sequential")
        if boxes.keys() & {"e", "x"} and extension not in _WITH_METADATA:
            warnings.warn("EXIF and XMP are written to PNG, JPEG and WebP only", ImageWarning, stacklevel=2)
        if "t" in boxes:
            warnings.warn("text is not written to a picture as large as this one", ImageWarning, stacklevel=2)
        if resolution is not None:
            across, down = (pixels / _MM_PER_INCH for pixels in resolution)
            image = image.copy(xres=across, yres=down)
        for letter, field, prefix in (("e", "exif-data", b"Exif\0\0"), ("x", "xmp-data", b"")):
            if letter in boxes:
                image.set_type(vips.GValue.blob_type, field, prefix + boxes[letter])
        try:
            options: dict[str, Any] = {"Q": 95, "subsample_mode": "off"} if extension in _JPEG else {}
            if extension in (".tif", ".tiff"):
                options["bigtiff"] = size[0] * size[1] * bands >= 2**31  # far below 4 GB, the end of a plain one
            image.write_to_file(target, **options)
        except vips.Error as error:
            raise ImageError(f"libvips cannot write this picture to {target} ({_line(error)})") from None


def _tiff_header(size: tuple[int, int], bands: int) -> bytes:
    """What makes the file of pixels that follow, row by row, a BigTIFF file: libvips would map a file without one."""
    (width, height), short, long = size, 3, 16  # types of 2 and 8 bytes
    count, row = 10, width * bands
    lists = 16 + 8 + 20 * count + 8  # where the offsets of rows begin, and after them their sizes
    offsets = lists + 16 * height + row * np.arange(height, dtype="<u8")
    out = b"II" + struct.pack("<HHHQQ", 43, 8, 0, 16, count)
    for tag, kind, values in (
        (256, long, [width]), (257, long, [height]), (258, short, [8] * bands), (259, short, [1]),
        (262, short, [1 if bands == 1 else 2]), (273, long, [int(offsets[0]) if height == 1 else lists]),
        (277, short, [bands]), (278, long, [1]), (279, long, [row if height == 1 else lists + 8 * height]),
        (338, short, [2] * (bands == 4)),  # alpha
    ):  # fmt: skip
        packed = struct.pack("<" + ("H" if kind == short else "Q") * len(values), *values)
        out += struct.pack("<HHQ", tag, kind, height if tag in (273, 279) else len(values)) + packed.ljust(8, b"\0")
    return out + bytes(8) + offsets.tobytes() + np.full(height, row, "<u8").tobytes()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
