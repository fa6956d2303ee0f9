"""The alpha channel beside a picture: how it is stored, and what is put below transparent pixels."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, PngImagePlugin

from lalic.errors import BitstreamError
from lalic.tiles import Box

__all__ = ["decode_alpha", "encode_alpha", "fill_transparent", "strips"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_STRIP_PIXELS = 2**20
_INFLATE_BYTES = 2**20  # at a time, to count what a PNG file holds


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
    """A PNG file of an image of mode L, of 1 bit a pixel if all are 0 or 255, else 8."""
    if not any(alpha.histogram()[1:255]):
        alpha = alpha.convert("1", dither=Image.Dither.NONE)
    out = io.BytesIO()
    alpha.save(out, "PNG", compress_level=7)  # 9 saves 3 % more in four times the time
    return out.getvalue()


def decode_alpha(data: bytes, size: tuple[int, int]) -> Image.Image:
    """The image of mode L, of `size` = (width, height), in a PNG file: grey, 1 or 8 bits, not interlaced.

    Chunks that a reader may skip are skipped. Raises `BitstreamError` for anything else, before memory is taken for
    more than an image of this size.
    """
    header, compressed = _read_png(data)
    width, height, depth, colour, *methods = struct.unpack(">IIBBBBB", header)
    if (width, height) != tuple(size):
        raise _invalid(f"it is {width}x{height}, and the picture is {size[0]}x{size[1]}")
    if depth not in (1, 8) or colour != 0 or any(methods):
        raise _invalid("it is not grey with 1 or 8 bits a pixel, without interlace")
    _check_length(compressed, height * (1 + -(-width * depth // 8)))
    clean = _SIGNATURE + _chunk(b"IHDR", header) + b"".join(_chunk(b"IDAT", part) for part in compressed)
    try:
        # `Image.open` would try other formats, and has a limit of its own on pixels.
        alpha: Image.Image = PngImagePlugin.PngImageFile(io.BytesIO(clean + _chunk(b"IEND", b"")))
        alpha.load()
    except Exception as error:  # Pillow's decoders raise many types for a damaged file
        raise _invalid("it cannot be decoded") from error
    alpha = alpha.convert("L")  # a plain image, also from mode L
    alpha.info = {}
    return alpha


def _invalid(reason: str) -> BitstreamError:
    return BitstreamError(f"the alpha channel is invalid: {reason}")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _read_png(data: bytes) -> tuple[bytes, list[bytes]]:
    """Contents of IHDR, and of each IDAT."""
    if data[:8] != _SIGNATURE:
        raise _invalid("it is not a PNG file")
    chunks: list[tuple[bytes, bytes]] = []
    at = 8
    while not chunks or chunks[-1][0] != b"IEND":
        length, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        content, checksum = data[at + 8 : at + 8 + length], data[at + 8 + length : at + 12 + length]
        at += 12 + length
        if at > len(data):
            raise _invalid("it is truncated")
        if int.from_bytes(checksum, "big") != zlib.crc32(name + content):
            raise _invalid("the checksum of one of its chunks does not match")
        if not name[0] & 0x20:  # a capital letter: a reader must know it
            chunks.append((name, content))
    names = [name for name, _ in chunks]
    if at < len(data):
        raise _invalid("bytes follow its end")
    if names != [b"IHDR", *([b"IDAT"] * (len(names) - 2)), b"IEND"] or len(chunks[0][1]) != 13:
        raise _invalid("its chunks are not those of a grey PNG file")
    return chunks[0][1], [content for _, content in chunks[1:-1]]


def _check_length(compressed: list[bytes], expected: int) -> None:
    """Raise unless the zlib stream holds exactly the expected number of bytes: Pillow takes others without a word."""
    stream, count = zlib.decompressobj(), 0
    try:
        for part in compressed:
            while part and count <= expected:
                count += len(stream.decompress(part, _INFLATE_BYTES))
                part = stream.unconsumed_tail
        count += len(stream.flush()) if count <= expected else 0  # what was left to put out: some hundred bytes
    except zlib.error:
        raise _invalid("it is not compressed by zlib") from None
    if not stream.eof or stream.unused_data or count != expected:
        raise _invalid(f"it does not hold {expected} bytes")
