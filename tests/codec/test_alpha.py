"""The alpha channel: stored without loss, hostile files refused, and smooth colours below transparent pixels."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
from kinds import file
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
    back = decode_alpha(encode_alpha(original), size)
    assert (back.mode, back.size) == ("L", size) and back.tobytes() == original.tobytes()


def test_opaque_tiles_take_no_bytes():
    assert encode_alpha(Image.new("L", (9, 5), 255)) == b""
    assert decode_alpha(b"", (9, 5)).tobytes() == bytes([255]) * 45


WIDTH, HEIGHT = 8, 5
SOUND = encode_alpha(channel(WIDTH, HEIGHT))
COLOURS = Image.merge("RGB", [channel(WIDTH, HEIGHT, seed=i) for i in range(3)])


def webp(image: Image.Image, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, "WEBP", **options)
    return out.getvalue()


def with_header(width: int, height: int) -> bytes:
    return SOUND[:21] + (width - 1 | height - 1 << 14).to_bytes(4, "little") + SOUND[25:]


HOSTILE = {
    "no WebP file": file(channel(WIDTH, HEIGHT), "PNG"),
    "the signature alone": SOUND[:12],
    "lossy": webp(COLOURS),
    "with further chunks": webp(COLOURS, lossless=True, exif=b"Exif\0\0II*\0"),
    "several frames": webp(COLOURS, lossless=True, save_all=True, append_images=[COLOURS.transpose(0)]),
    "another width": with_header(WIDTH + 1, HEIGHT),
    "another height": with_header(WIDTH, HEIGHT + 1),
    "turned": with_header(HEIGHT, WIDTH),
    "huge": with_header(1 << 14, 1 << 14),
    "truncated": SOUND[:-4],
    "truncated, with lengths that fit": SOUND[:4] + (40).to_bytes(4, "little") + SOUND[8:16]
    + (28).to_bytes(4, "little") + SOUND[20:48],
    "bytes after its end": SOUND + b"xx",
}  # fmt: skip


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
    for _ in range(500):
        damaged = bytearray(SOUND[: rng.integers(len(SOUND) + 1)] if rng.random() < 0.2 else SOUND)
        for place in rng.integers(0, max(1, len(damaged)), 2):
            damaged[place : place + 1] = bytes((rng.integers(256),))
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
