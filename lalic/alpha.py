"""The alpha channel beside a picture: how it is stored, and what is put below transparent pixels."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image, WebPImagePlugin

from lalic.errors import BitstreamError
from lalic.tiles import Box

__all__ = ["decode_alpha", "encode_alpha", "fill_transparent", "strips"]

_STRIP_PIXELS = 2**20


def strips(size: tuple[int, int]) -> Iterator[Box]:
    """Full-width strips of a picture from top to bottom, of about a megapixel and an even number of rows each."""
    width, height = size
    rows = 2 * max(1, _STRIP_PIXELS // (2 * width))
    for top in range(0, height, rows):
        yield Box(0, top, width, min(top + rows, height))


# Below transparent pixels


def fill_transparent(image: Image.Image, alpha: Image.Image) -> None:
    """Replace in place the colours of pixels of alpha 0 by smooth ones, which cost few bits. All others stay.

    image: mode RGB or L; alpha: mode L, of the same size. A hidden pixel takes the average colour of the visible ones
    in the smallest square of a pyramid that has any, interpolated between squares. So colours go on smoothly from the
    edge of what is visible, and a coarse picture shows no foreign colour there. Black if no pixel is visible.
    """
    if alpha.histogram()[0] == 0 or max(image.size) == 1:
        return
    half = (-(-image.width // 2), -(-image.height // 2))
    coarse, coarse_alpha = Image.new(image.mode, half), Image.new("L", half)
    for box in strips(image.size):
        averages, visible = _halved(np.asarray(image.crop(box)), np.asarray(alpha.crop(box)) > 0)
        size = (averages.shape[1], averages.shape[0])
        coarse.paste(Image.frombytes(image.mode, size, averages.tobytes()), (0, box.top // 2))
        coarse_alpha.paste(Image.frombytes("L", size, visible.tobytes()), (0, box.top // 2))
    fill_transparent(coarse, coarse_alpha)
    for box in strips(image.size):
        source = (0, box.top / 2, box.right / 2, box.bottom / 2)
        smooth = coarse.resize((box.width, box.height), Image.Resampling.BILINEAR, source)
        image.paste(smooth, box, alpha.crop(box).point(_HIDDEN))


_HIDDEN = [255] + 255 * [0]


def _halved(pixels: np.ndarray, visible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Averages of the visible pixels in squares of 2x2, and an alpha channel: 255 where a square has any.

    pixels: uint8 (height, width) or (height, width, 3); visible: bool (height, width). Both results are uint8, the
    first (height / 2, width / 2, channels), rounded up.
    """
    height, width = visible.shape
    pad = [(0, height % 2), (0, width % 2), (0, 0)]
    weights = np.pad(visible[..., None], pad).astype(np.uint16)
    sums = np.pad(pixels.reshape(height, width, -1), pad) * weights
    count, sums = (a[::2, ::2] + a[1::2, ::2] + a[::2, 1::2] + a[1::2, 1::2] for a in (weights, sums))
    averages = (sums + count // 2) // np.maximum(count, 1)
    return averages.astype(np.uint8), (count > 0) * np.uint8(255)


# Storage


def encode_alpha(alpha: Image.Image) -> bytes:
    """A lossless WebP file of an image of mode L, of at most 16383 pixels a side; no bytes if all pixels are opaque."""
    if alpha.getextrema()[0] == 255:
        return b""
    out = io.BytesIO()
    alpha.convert("RGB").save(out, "WEBP", lossless=True, quality=75, method=4)
    return out.getvalue()


def decode_alpha(data: bytes, size: tuple[int, int]) -> Image.Image:
    """The image of mode L, of `size` = (width, height), that `encode_alpha` stored: the green of a lossless WebP file.

    Raises `BitstreamError` for anything else, before memory is taken for more than an image of this size.
    """
    if not data:
        return Image.new("L", size, 255)
    if data[:4] != b"RIFF" or data[8:16] != b"WEBPVP8L" or data[20:21] != b"\x2f":
        raise _invalid("it is not a lossless WebP file without further chunks")
    length = int.from_bytes(data[16:20], "little")
    if int.from_bytes(data[4:8], "little") != len(data) - 8 or length + (length & 1) != len(data) - 20:
        raise _invalid(f"it has {len(data)} bytes and says otherwise")
    header = int.from_bytes(data[21:25], "little")
    width, height = 1 + (header & 0x3FFF), 1 + (header >> 14 & 0x3FFF)
    if (width, height) != tuple(size):
        raise _invalid(f"it is {width}x{height}, expected {size[0]}x{size[1]}")
    try:
        # `Image.open` would try other formats, and has a limit of its own on pixels.
        image: Image.Image = WebPImagePlugin.WebPImageFile(io.BytesIO(data))
        image.load()
        return image.getchannel("G")
    except Exception as error:  # Pillow's decoders raise many types for a damaged file
        raise _invalid("it cannot be decoded") from error


def _invalid(reason: str) -> BitstreamError:
    return BitstreamError(f"the alpha channel is invalid: {reason}")
