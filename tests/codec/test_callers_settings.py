"""What a program around lalic does and expects: its numbers, its settings of torch, its random numbers."""

from __future__ import annotations

import decimal
import random

import numpy as np
import pytest
import torch
from tiny import astronaut, save, tiny

import lalic
from lalic import codec, images
from lalic.errors import ImageError, QualityError

PICTURE = astronaut(0, 0, 100, 80)


@pytest.fixture(scope="module")
def model():
    return tiny(qualities=4)


@pytest.fixture(scope="module")
def data(model):
    return lalic.encode(PICTURE, model, quality=60)


@pytest.mark.parametrize(
    "quality",
    [np.uint8(60), np.int16(60), np.float16(60), np.float64(60), np.array(60), torch.tensor(60), torch.tensor([60.0]),
     decimal.Decimal(60)],
    ids=repr,
)  # fmt: skip
def test_numbers_of_any_library_are_qualities(model, data, quality):
    """uint8 too, in which 100 times 60 is 112."""
    assert lalic.encode(PICTURE, model, quality=quality) == data
    assert codec.coded_quality(model, quality) == 60


@pytest.mark.parametrize("quality", ["60", b"60", [60, 70], {}, 10**400, np.array([1, 2])], ids=repr)
def test_what_is_no_number_is_no_quality(model, quality):
    with pytest.raises((TypeError, QualityError, ValueError), match="quality"):
        lalic.encode(PICTURE, model, quality=quality)


def test_other_arguments_of_numpy(model, data):
    part = lalic.decode(data, model).crop((0, 0, 32, 16))
    assert lalic.decode(data, model, region=np.array([0, 0, 32, 16])).tobytes() == part.tobytes()
    assert lalic.decode(data, model, scale=np.int64(2), max_pixels=np.int32(8000)).size == (50, 40)
    assert images.parse_color((np.uint8(1), np.int64(2), 3)) == (1, 2, 3)
    with pytest.raises(ImageError, match="background is"):
        images.parse_color((1.0, 2, 3))
    for wrong in (None, "9"):
        with pytest.raises(TypeError, match="max_pixels is"):
            lalic.encode(PICTURE, model, max_pixels=wrong)


@pytest.mark.parametrize("device", ["cpu:0", torch.device("cpu", 0), "cpu"])
def test_the_cpu_has_one_name(model, data, device):
    """torch takes cpu:0 for another device than cpu."""
    assert lalic.encode(PICTURE, model, quality=60, device=device) == data
    assert lalic.decode(data, model, device=device).size == (100, 80)


def test_autocast_of_the_caller_changes_no_file(model, data):
    """set_precision chooses how files are coded; in 16 bits other latents would be coded, and other pixels decoded."""
    picture = lalic.decode(data, model)
    with torch.autocast("cpu", torch.bfloat16):
        assert lalic.encode(PICTURE, model, quality=60) == data
        assert lalic.decode(data, model).tobytes() == picture.tobytes()
        (again,) = lalic.decode_many([data], model)
        assert again.tobytes() == picture.tobytes()
        ((_, parts),) = codec.decode_parts(data, model)
        assert np.array_equal(parts, np.asarray(picture))
        assert torch.is_autocast_enabled("cpu")


def test_between_the_parts_of_a_picture_nothing_is_set(model, data):
    for _ in codec.decode_parts(data, model):
        assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
        assert torch.ones(1, requires_grad=True).mul(2).requires_grad


def test_random_numbers_of_the_caller_stay(model, tmp_path):
    """A model that is loaded, perhaps by the first call, draws none that a seed was set for."""
    path = save(tmp_path / "model.pth", model)

    def drawn(use):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        use()
        return random.random(), np.random.rand(), float(torch.rand(()))

    def everything():
        loaded = lalic.load(path)
        lalic.decode(lalic.encode(PICTURE, loaded), loaded)

    assert drawn(everything) == drawn(lambda: None)
    assert drawn(lambda: lalic.slim(pretrained=True)) == drawn(lambda: None)
