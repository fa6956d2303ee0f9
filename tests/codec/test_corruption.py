"""Thousands of corrupted files: each is refused with one sentence, quickly and without taking memory."""

from __future__ import annotations

import re
import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from corruption import claiming, corrupted, resealed
from PIL import Image
from tiny import tiny

from lalic import codec, images
from lalic.errors import BitstreamError, LalicError

_SIZES = [(50, 40), (64, 64), (90, 130), (1, 1)]
_SECONDS = 10.0  # a file takes milliseconds; the bound only detects a hang


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    made = []
    for width, height in _SIZES:
        y, x = np.mgrid[:height, :width]
        waves = np.stack([np.sin(x / (3 + c)) + np.cos(y / (5 - c)) for c in range(3)], axis=-1)
        made.append(Image.fromarray((waves * 50 + 128 + rng.normal(0, 8, waves.shape)).clip(0, 255).astype(np.uint8)))
    return made


def assert_refused(what: str, data: bytes) -> str:
    """Decoding raises a LalicError of one sentence within the bound; returns the sentence."""
    start = time.perf_counter()
    with pytest.raises(LalicError) as caught:
        codec.decode(data, tiny())
        pytest.fail(f"a file was decoded after: {what}")
    assert time.perf_counter() - start < _SECONDS, what
    message = str(caught.value)
    assert re.fullmatch(r"[^\n]{10,300}[^.]", message), f"{what}: {message!r}"
    return message


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    """One picture in one tile each, one in four tiles with alpha and metadata."""
    small = [codec.encode(picture, tiny()) for picture in pictures()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "ONE_TILE", 0)
        patch.setattr(codec, "TILE", 64)
        picture = images.open_picture(pictures()[2])
        alpha = Image.linear_gradient("L").resize(picture.image.size)
        return [*small, codec.encode(replace(picture, alpha=alpha, metadata={"e": b"Exif" * 9, "c": b"P3"}), tiny())]


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_corrupted_files(files, count):
    """Checksums detect all accidental damage."""
    seen = set()
    tracemalloc.start()
    for what, data in corrupted(files, count, seed=count):
        seen.add(re.sub(r"\d+", "N", assert_refused(what, data)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24
    for part in ("not a .lalic", "format version N", "truncated", "header is damaged", "tile N of", "box"):
        assert any(part in message for message in seen), part


def test_files_with_forged_checksums_are_refused_by_the_model(files):
    """Damage with correct checksums is detected by entropy decoding: streams of another length, or other symbols."""
    messages = [assert_refused(what, data) for what, data in resealed(files, 150, seed=2)]
    assert len(set(messages)) > 1


@pytest.mark.parametrize(("width", "height"), [(65535, 512), (8192, 4096), (5000, 5000), (1, 65535), (4096, 64)])
def test_a_small_file_that_claims_a_large_picture(files, width, height):
    """The header is valid, but the stream is far too short for such a picture."""
    assert_refused(f"{width}x{height}", claiming(files[0], width, height))


def test_the_files_were_good(files):
    """The tests above would also pass if no file could be read."""
    for picture, data in zip([*pictures(), pictures()[2]], files, strict=True):
        assert codec.decode(data, tiny()).size == picture.size
    with pytest.raises(BitstreamError):
        codec.decode(files[0][:-1], tiny())
