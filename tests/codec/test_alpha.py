"""The alpha channel: stored without loss, hostile files refused, and smooth colours below transparent pixels."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from kinds import chunk, file, png
from PIL import Image

from lalic import alpha as module
from lalic.alpha import decode_alpha, encode_alpha, fill_transparent, strips
from lalic.errors import BitstreamError

SIZES = [(1, 1), (1, 9), (9, 1), (8, 5), (37, 50), (64, 64)]


def channel(width: int, height: int, levels: int = 256, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, levels, (height, width)) * 255 // (levels - 1)
    return Image.fromarray(values.astype(np.uint8))


# Storage


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("levels", [2, 3, 256])
def test_alpha_comes_back_exactly(size, levels):
    original = channel(*size, levels)
    data = encode_alpha(original)
    assert data[24] == (8 if len(set(original.tobytes()) - {0, 255}) else 1)  # bits a pixel
    back = decode_alpha(data, size)
    assert (back.mode, back.size, back.info) == ("L", size, {}) and back.tobytes() == original.tobytes()


def test_what_a_reader_may_skip_is_skipped():
    original = channel(8, 5)
    data = encode_alpha(original)
    bomb = b"key\0\0" + zlib.compress(bytes(10**7))
    extra = chunk(b"zTXt", bomb) + chunk(b"tRNS", b"\0\0") + chunk(b"acTL", struct.pack(">II", 9, 0))
    assert decode_alpha(data[:33] + extra + data[33:], (8, 5)).tobytes() == original.tobytes()


def test_a_picture_above_the_limit_of_pillow(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert decode_alpha(encode_alpha(channel(64, 64)), (64, 64)).size == (64, 64)


WIDTH, HEIGHT = 8, 5
ROWS = HEIGHT * (b"\0" + bytes(WIDTH))
SOUND = png(WIDTH, HEIGHT, 8, 0, ROWS)
HEADER = SOUND[8:33]


def of(*chunks: bytes, header: bytes = HEADER) -> bytes:
    return SOUND[:8] + header + b"".join(chunks) + chunk(b"IEND", b"")


IDAT = chunk(b"IDAT", zlib.compress(ROWS))
HOSTILE = {
    "empty": b"",
    "no PNG file": file(channel(WIDTH, HEIGHT), "GIF"),
    "the signature alone": SOUND[:8],
    "another width": png(WIDTH + 1, HEIGHT, 8, 0, ROWS),
    "another height": png(WIDTH, HEIGHT + 1, 8, 0, ROWS),
    "turned": png(HEIGHT, WIDTH, 8, 0, ROWS),
    "huge": png(2**31 - 1, 2**31 - 1, 8, 0, ROWS),
    "RGB": png(WIDTH, HEIGHT, 8, 2, ROWS),
    "palette": png(WIDTH, HEIGHT, 8, 3, ROWS),
    "16 bits": png(WIDTH, HEIGHT, 16, 0, ROWS),
    "2 bits": png(WIDTH, HEIGHT, 2, 0, ROWS),
    "interlaced": png(WIDTH, HEIGHT, 8, 0, ROWS, interlace=1),
    "too few rows": png(WIDTH, HEIGHT, 8, 0, ROWS[:-1]),
    "too many rows": png(WIDTH, HEIGHT, 8, 0, ROWS + b"\0"),
    "no rows": png(WIDTH, HEIGHT, 8, 0, b""),
    "a bomb": png(WIDTH, HEIGHT, 8, 0, bytes(10**8)),
    "unknown filters": png(WIDTH, HEIGHT, 8, 0, HEIGHT * (b"\x09" + bytes(WIDTH))),
    "not compressed": of(chunk(b"IDAT", ROWS)),
    "bytes after the zlib stream": of(chunk(b"IDAT", zlib.compress(ROWS) + b"x")),
    "a chunk after the zlib stream": of(IDAT, IDAT),
    "an unfinished zlib stream": of(chunk(b"IDAT", zlib.compress(ROWS)[:-5])),
    "no IDAT": of(),
    "no IEND": SOUND[:-12],
    "two headers": of(HEADER, IDAT),
    "a header of 14 bytes": of(IDAT, header=chunk(b"IHDR", HEADER[8:21] + b"\0")),
    "a chunk that a reader must know": of(chunk(b"NEWS", b""), IDAT),
    "a palette": of(chunk(b"PLTE", bytes(3)), IDAT),
    "bytes after its end": SOUND + b"x",
    "a wrong checksum": SOUND[:-20] + bytes((SOUND[-20] ^ 1,)) + SOUND[-19:],
    "a huge chunk": SOUND[:33] + struct.pack(">I", 2**32 - 1) + SOUND[37:],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_sentence_and_little_memory(name):
    tracemalloc.start()
    try:
        with pytest.raises(BitstreamError, match="the alpha channel is invalid: ") as caught:
            decode_alpha(HOSTILE[name], (WIDTH, HEIGHT))
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)


def test_mutated_files_decode_or_are_refused():
    rng = np.random.default_rng(1)
    data = encode_alpha(channel(WIDTH, HEIGHT))
    for _ in range(500):
        damaged = bytearray(data[: rng.integers(len(data) + 1)] if rng.random() < 0.2 else data)
        for place in rng.integers(0, max(1, len(damaged)), 2):
            damaged[place : place + 1] = bytes((rng.integers(256),))
        if rng.random() < 0.5 and len(damaged) == len(data):  # with checksums that match
            at = 33
            damaged[29:33] = struct.pack(">I", zlib.crc32(damaged[12:29]))
            size = int.from_bytes(damaged[at : at + 4], "big")
            damaged[at + 8 + size : at + 12 + size] = struct.pack(">I", zlib.crc32(damaged[at + 4 : at + 8 + size]))
        try:
            assert decode_alpha(bytes(damaged), (WIDTH, HEIGHT)).size == (WIDTH, HEIGHT)
        except BitstreamError as error:
            assert "\n" not in str(error)


# Below transparent pixels


def noise(width: int, height: int, mode: str) -> Image.Image:
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_visible_pixels_stay(size, mode):
    original, alpha = noise(*size, mode), channel(*size, 4, seed=3)
    image = original.copy()
    fill_transparent(image, alpha)
    visible = np.asarray(alpha) > 0
    assert (np.asarray(image)[visible] == np.asarray(original)[visible]).all()
    assert image.mode == mode and image.size == size


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_hidden_colours_have_no_effect_and_one_colour_goes_on(mode):
    alpha = Image.new("L", (70, 45))
    alpha.paste(1, (20, 9, 31, 30))
    color = (200, 90, 7) if mode == "RGB" else 93
    results = set()
    for hidden in (noise(70, 45, mode), Image.new(mode, (70, 45))):
        hidden.paste(color, (20, 9, 31, 30))
        fill_transparent(hidden, alpha)
        results.add(hidden.tobytes())
    assert results == {Image.new(mode, (70, 45), color).tobytes()}


def test_what_is_filled_is_smooth_and_within_the_visible_colours():
    y, x = np.mgrid[0:256, 0:256]
    visible = (x - 128) ** 2 + (y - 128) ** 2 < 60**2
    pixels = np.stack([x // 2, y // 2, 100 + 0 * x], axis=2).astype(np.uint8)
    image = Image.fromarray(np.where(visible[:, :, None], pixels, noise(256, 256, "RGB")))
    fill_transparent(image, Image.fromarray(visible * np.uint8(255)))
    filled = np.asarray(image).astype(int)
    for axis in (0, 1):
        assert np.abs(np.diff(filled, axis=axis)).max() <= 8  # of 255, the edge of the disc included
    low, high = pixels[visible].min(axis=0).astype(int), pixels[visible].max(axis=0).astype(int)
    assert (filled >= low - 2).all() and (filled <= high + 2).all()


def test_a_picture_without_a_visible_pixel_is_black():
    image = noise(37, 50, "RGB")
    fill_transparent(image, Image.new("L", image.size))
    assert image.tobytes() == bytes(3 * 37 * 50)


def test_strips_show_nowhere(monkeypatch):
    alpha = channel(37, 50, 3, seed=5)
    whole, stripped = noise(37, 50, "RGB"), noise(37, 50, "RGB")
    fill_transparent(whole, alpha)
    monkeypatch.setattr(module, "_STRIP_PIXELS", 64)
    assert len(list(strips((37, 50)))) == 25
    fill_transparent(stripped, alpha)
    difference = np.abs(np.asarray(whole).astype(int) - np.asarray(stripped))
    assert difference.max() <= 1 and difference.mean() < 0.1  # the interpolation rounds a half up or down
