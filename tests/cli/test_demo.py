"""lalic demo: its output, its files, and its search for the JPEG of equal PSNR."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import astronaut

import lalic
from lalic import cli, codec, demo
from lalic.metrics import psnr

ASSETS = Path(lalic.__file__).parent / "assets"


def test_the_picture_is_the_one_its_readme_names():
    digest = hashlib.sha256((ASSETS / "astronaut.png").read_bytes()).hexdigest()
    assert digest in (ASSETS / "README.md").read_text()


@pytest.fixture(scope="module")
def crop():
    return astronaut(150, 30, 128, 128)


@pytest.mark.parametrize("wanted", [20.0, 30.0, 38.0])
def test_the_jpeg_is_the_smallest_that_is_good_enough(crop, wanted):
    match = demo.jpeg_of_equal_psnr(crop, wanted)
    assert match.psnr >= wanted
    with Image.open(io.BytesIO(match.data)) as decoded:
        assert decoded.format == "JPEG" and psnr(crop, decoded) == match.psnr
    every = [demo.JpegMatch(crop, quality, s) for quality in range(1, 101) for s in ("4:4:4", "4:2:0")]
    best = min((m for m in every if m.psnr >= wanted), key=lambda m: len(m.data))
    # PSNR may fall by hundredths of a dB at the next quality, so the search can be one step off.
    assert match.subsampling == best.subsampling and match.quality - best.quality in (0, 1)


def test_no_jpeg_is_lossless(crop):
    assert demo.jpeg_of_equal_psnr(crop, float("inf")) is None


@pytest.mark.parametrize("jpeg", [True, False])
def test_the_command(here, monkeypatch, capsys, jpeg):
    if not jpeg:
        monkeypatch.setattr(demo, "jpeg_of_equal_psnr", lambda picture, wanted: None)
    assert cli.main(["demo"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    folder = here / "lalic-demo"
    size = (folder / "astronaut.lalic").stat().st_size
    decoded = Image.open(folder / "astronaut-lalic.png")
    original = Image.open(folder / "astronaut.png")
    decibels = psnr(original, decoded)
    assert f"{size} bytes, {8 * size / 512**2:.3f} bits per pixel, PSNR {decibels:.2f} dB" in out
    for part in ("512x512", "preliminary", "encode ", "decode ", "warm-up", str(folder)):
        assert part in out
    found = {path.name for path in folder.iterdir()}
    assert found == {"astronaut.png", "astronaut.lalic", "astronaut-lalic.png"} | (
        {"astronaut-jpeg.jpg"} if jpeg else set()
    )
    if jpeg:
        jpeg_size = (folder / "astronaut-jpeg.jpg").stat().st_size
        assert f"jpeg     {jpeg_size} bytes" in out
        assert ("lalic file is smaller" in out) == (size < jpeg_size)
        assert (np.asarray(decoded) == np.asarray(codec.decode((folder / "astronaut.lalic").read_bytes()))).all()
    else:
        assert f"no JPEG of Pillow's reaches {decibels:.2f} dB" in out


def test_another_folder(run, here):
    assert run("demo", "--out-dir", "a/b").code == 0
    assert (here / "a" / "b" / "astronaut.lalic").exists()
    (here / "file").touch()
    done = run("demo", "--out-dir", "file")
    assert (done.code, done.err) == (2, ["lalic: file: is a file, expected a folder"])
