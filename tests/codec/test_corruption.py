"""1000 corrupted files: each is refused with one sentence, quickly and without taking memory."""

from __future__ import annotations

import re
import time
import tracemalloc

import numpy as np
import pytest
import torch
from corruption import claiming, corrupted, resealed, with_version
from fake_model import FakeModel
from PIL import Image

import lalic
from lalic import codec
from lalic.errors import BitstreamError, LalicError, ModelMismatchError

_SIZES = [(50, 40), (64, 64), (90, 130), (1, 1)]
_SECONDS = 10.0  # a file here takes milliseconds; the bound only tells a hang from a busy machine


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    made = []
    for width, height in _SIZES:
        y, x = np.mgrid[:height, :width]
        waves = np.stack([np.sin(x / (3 + c)) + np.cos(y / (5 - c)) for c in range(3)], axis=-1)
        made.append(Image.fromarray((waves * 50 + 128 + rng.normal(0, 8, waves.shape)).clip(0, 255).astype(np.uint8)))
    return made


def assert_refused(what: str, data: bytes, model: torch.nn.Module) -> str:
    """Decoding raises a LalicError of one sentence within the bound; returns the sentence."""
    start = time.perf_counter()
    with pytest.raises(LalicError) as caught:
        codec.decode(data, model)
        pytest.fail(f"a file was decoded after: {what}")
    assert time.perf_counter() - start < _SECONDS, what
    message = str(caught.value)
    assert re.fullmatch(r"[^\n]{10,300}[^.]", message), f"{what}: {message!r}"
    return message


def untrained(seed: int) -> torch.nn.Module:
    """The slim model with random weights: what is tested here must not lean on the weights that ship."""
    torch.manual_seed(seed)
    model = lalic.slim(pretrained=False).eval()
    model.update()
    return model


@pytest.fixture(scope="module")
def slim() -> torch.nn.Module:
    return untrained(seed=0)


@pytest.fixture(scope="module")
def slim_files(slim) -> list[bytes]:
    return [codec.encode(picture, slim) for picture in pictures()]


def test_1000_corrupted_files(slim, slim_files):
    """What happens to files by accident never gets past the checksums."""
    seen = set()
    tracemalloc.start()
    for what, data in corrupted(slim_files, 1000, seed=1):
        seen.add(re.sub(r"\d+", "N", assert_refused(what, data, slim)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24
    for part in (
        "not a .lalic file",
        "format version N",
        "truncated",
        "header is damaged",
        "data is damaged",
        "trailing",
    ):
        assert any(part in message for message in seen), part


def test_files_with_forged_checksums_are_refused_by_the_model(slim, slim_files):
    """Damage whose checksums were made to fit reaches entropy decoding: streams that do not end where they should, or
    symbols with another checksum. Nothing comes out, whichever section it was."""
    messages = [assert_refused(what, data, slim) for what, data in resealed(slim_files, 150, seed=2)]
    assert len(set(messages)) > 1


def test_the_stand_in_refuses_too():
    """The same through the model of the other tests, so that they rest on something that refuses as well."""
    fake = FakeModel()
    files = [codec.encode(picture, fake) for picture in pictures()]
    for what, data in corrupted(files, 300, seed=3):
        assert_refused(what, data, fake)


@pytest.mark.parametrize(("width", "height"), [(65535, 512), (8192, 4096), (5000, 5000), (1, 65535), (4096, 64)])
def test_a_small_file_that_claims_a_large_picture(slim, slim_files, width, height):
    """Within the limits, so the header is believed; the sections end long before such a picture would be full."""
    assert_refused(f"{width}x{height}", claiming(slim_files[0], width, height), slim)


def test_a_later_version_says_so(slim, slim_files):
    for version in (3, 200):
        message = assert_refused("version", with_version(slim_files[0], version), slim)
        assert message.startswith(f"format version {version} is not readable")


def test_other_weights_say_so(slim_files):
    other = untrained(seed=1)
    for data in slim_files:
        with pytest.raises(ModelMismatchError, match="'slim' with hash"):
            codec.decode(data, other)


def test_the_files_were_good(slim, slim_files):
    """Everything above would pass with files that nothing can read."""
    for picture, data in zip(pictures(), slim_files, strict=True):
        assert codec.decode(data, slim).size == picture.size
    with pytest.raises(BitstreamError):
        codec.decode(slim_files[0][:-1], slim)
