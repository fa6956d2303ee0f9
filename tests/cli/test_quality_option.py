"""`lalic compress -q`, `--target-bpp`, `--target-psnr`, and the output of `lalic info` for them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from tiny import tiny

import lalic
from lalic.metrics import psnr


@pytest.fixture
def photo(here, monkeypatch):
    """A picture in the folder, and a tiny model with a choice of qualities in place of the one that ships."""
    monkeypatch.setattr(lalic, "slim", lambda pretrained: tiny(qualities=3), raising=False)
    rng = np.random.default_rng(4)
    picture = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)).resize((100, 80), Image.Resampling.BICUBIC)
    picture.save("a.png")
    return picture


def entry(run) -> dict:
    return json.loads("\n".join(run("info", "a.lalic", "--json").out))[0]


@pytest.mark.parametrize(("words", "quality"), [(["-q", "20.5"], 20.5), (["--quality", "100"], 100.0), ([], 50.0)])
def test_quality_goes_into_the_file(run, photo, words, quality):
    done = run("compress", "a.png", *words)
    assert done.code == 0 and f"quality {quality:g}" in done.out[0]
    assert entry(run)["quality"] == quality
    assert any(line.endswith(f"100x80, quality {quality:g}") for line in run("info", "a.lalic").out)
    assert run("decompress", "a.lalic", "-o", "b.png").code == 0


def test_targets_are_met(run, photo):
    assert run("compress", "a.png", "--target-bpp", "2").code == 0
    assert entry(run)["bits_per_pixel"] == pytest.approx(2, rel=0.01)
    assert run("compress", "a.png", "-f", "--target-psnr", "22").code == 0
    assert run("decompress", "a.lalic", "-o", "b.png").code == 0
    assert psnr(photo, Image.open("b.png")) == pytest.approx(22, abs=0.05)


def test_a_target_out_of_reach_names_the_range(run, photo):
    done = run("compress", "a.png", "--target-psnr", "200")
    assert done.code == 1 and "qualities 1 to 100" in done.err[0] and done.err[0].startswith("lalic: a.png: ")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["-q", "0"], "expected 1 to 100"),
        (["-q", "x"], "invalid float"),
        (["-q", "5", "--target-bpp", "1"], "not allowed"),
    ],
)
def test_wrong_words_start_nothing(run, photo, here, words, sentence):
    done = run("compress", "a.png", *words)
    assert done.code == 2 and sentence in done.err[0]
    assert not (here / "a.lalic").exists()


def test_a_model_of_one_quality_refuses_before_it_starts(run, photo, monkeypatch):
    monkeypatch.setattr(lalic, "slim", lambda pretrained: tiny(), raising=False)
    done = run("compress", "a.png", "-q", "50")
    assert done.code == 2 and len(done.err) == 1 and "trained for one quality" in done.err[0]
    done = run("compress", "a.png", "--target-bpp", "1")
    assert done.code == 1 and "cannot meet a target" in done.err[0]
    assert run("compress", "a.png").code == 0
    assert entry(run)["quality"] is None
