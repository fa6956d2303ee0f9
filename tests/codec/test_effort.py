"""Files that took effort: ordinary ones, never worse by R + lambda D, in the time that was given."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import astronaut, tiny

import lalic
from lalic import codec, refine
from lalic.errors import LalicError
from lalic.images import to_tensor
from lalic.metrics import psnr
from lalic.refine import Refiner
from lalic.tiles import Box

MODEL = tiny(qualities=3)


@pytest.fixture
def few_steps(monkeypatch) -> None:
    monkeypatch.setattr(refine, "STEPS", 20)


def cost(data: bytes, picture: Image.Image, weight: float) -> float:
    """R + lambda D of a file."""
    decoded = np.asarray(lalic.decode(data, MODEL), np.float64)
    return 8 * len(data) + weight * float(((decoded - np.asarray(picture)) ** 2).sum()) / 255**2


@pytest.mark.parametrize("quality", [20, 50])
def test_an_ordinary_file_that_is_better(few_steps, quality) -> None:
    picture = astronaut(100, 50, 128, 64)
    plain = lalic.encode(picture, MODEL, quality=quality)
    data = lalic.encode(picture, MODEL, quality=quality, effort=math.inf)
    assert lalic.decode(data, MODEL).size == picture.size
    refined = Refiner(MODEL, quality)(to_tensor(picture), Box(0, 0, 8, 4), math.inf)
    assert refined.steps == 20 and refined.after < refined.before
    assert cost(data, picture, refined.weight) < cost(plain, picture, refined.weight)
    assert data == lalic.encode(picture, MODEL, quality=quality, effort=math.inf), "all steps give the same file"


def test_less_rate_at_equal_psnr(monkeypatch) -> None:
    monkeypatch.setattr(refine, "STEPS", 40)
    picture = astronaut(100, 50, 192, 128)
    files = [lalic.encode(picture, MODEL, quality=quality) for quality in (46, 48, 50, 52, 54)]
    rates, values = [len(data) for data in files], [psnr(picture, lalic.decode(data, MODEL)) for data in files]
    data = lalic.encode(picture, MODEL, quality=50, effort=math.inf)
    plain = np.interp(psnr(picture, lalic.decode(data, MODEL)), values, rates)
    assert len(data) < 0.99 * plain


def test_what_gets_worse_is_not_kept(few_steps, monkeypatch) -> None:
    monkeypatch.setattr(refine, "RATE", 1.0)
    picture = astronaut(100, 50, 64, 64)
    plain = lalic.encode(picture, MODEL, quality=50)
    assert lalic.encode(picture, MODEL, quality=50, effort=math.inf) == plain


def test_a_picture_of_one_colour(few_steps) -> None:
    picture = Image.new("RGB", (70, 50), (77, 77, 77))
    plain, data = (lalic.encode(picture, MODEL, quality=50, effort=effort) for effort in (None, math.inf))
    assert len(data) <= len(plain) and lalic.decode(data, MODEL).size == (70, 50)


def test_time_is_kept(monkeypatch) -> None:
    """Steps stop in time, whatever a step takes; the clock is the test's."""
    now = itertools.count(0, 1.0)
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    x, tile = to_tensor(astronaut(100, 50, 128, 64)), Box(0, 0, 8, 4)
    assert 20 < Refiner(MODEL, 50)(x, tile, 50).steps < 50
    assert Refiner(MODEL, 50)(x, tile, 1e-9).steps == 0


def test_tiles_are_refined_in_their_windows(few_steps, monkeypatch) -> None:
    for name, value in (("ONE_TILE", 128 * 128), ("TILE", 128), ("MARGIN", 64)):
        monkeypatch.setattr(codec, name, value)
    picture = astronaut(0, 0, 256, 150)
    done = []
    prepared = codec.Prepared(picture, MODEL)
    data = prepared.encode(50, effort=math.inf, progress=lambda *counts: done.append(counts))
    plain = prepared.encode(50)
    assert done == sorted(done) and {(i, 4) for i in range(1, 5)} <= set(done) and len(done) == 4 * 21
    weight = Refiner(MODEL, 50)(to_tensor(picture.crop((0, 0, 256, 128))), Box(0, 0, 16, 8), math.inf).weight
    assert cost(data, picture, weight) < cost(plain, picture, weight)


def test_alpha_grey_and_metadata_stay(few_steps) -> None:
    picture = astronaut(100, 50, 70, 60).convert("LA")
    picture.putalpha(Image.linear_gradient("L").resize((70, 60)))
    back = lalic.decode(lalic.encode(picture, MODEL, effort=math.inf), MODEL)
    plain = lalic.decode(lalic.encode(picture, MODEL), MODEL)
    assert back.mode == plain.mode and np.array_equal(np.asarray(back)[..., -1], np.asarray(plain)[..., -1])


def test_the_model_and_the_random_numbers_of_the_caller_are_left_alone(few_steps) -> None:
    before = torch.get_rng_state(), [p.requires_grad for p in MODEL.parameters()], MODEL.weights_hash()
    with torch.no_grad():
        lalic.encode(astronaut(100, 50, 64, 64), MODEL, effort=math.inf)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert [p.requires_grad for p in MODEL.parameters()] == before[1] and MODEL.weights_hash() == before[2]
    assert all(p.grad is None for p in MODEL.parameters())


@pytest.mark.parametrize(
    ("model", "effort", "sentence"),
    [
        (MODEL, 0, "effort is 0 seconds, expected more than 0"),
        (MODEL, -2, "effort is -2 seconds, expected more than 0"),
        (MODEL, math.nan, "effort is nan seconds, expected more than 0"),
        (tiny(), 60, "effort: expected a model of every quality, .* trained for one quality"),
    ],
)
def test_what_no_effort_can_be(model, effort, sentence) -> None:
    with pytest.raises(LalicError, match=sentence):
        lalic.encode(astronaut(0, 0, 64, 64), model, effort=effort)


@pytest.mark.slow
def test_the_weights_that_ship() -> None:
    picture = astronaut(100, 50, 192, 128)
    files = [lalic.encode(picture, quality=quality) for quality in (44, 47, 50, 53, 56)]
    rates, values = [len(data) for data in files], [psnr(picture, lalic.decode(data)) for data in files]
    data = lalic.encode(picture, quality=50, effort=math.inf)
    assert len(data) < 0.98 * np.interp(psnr(picture, lalic.decode(data)), values, rates)
