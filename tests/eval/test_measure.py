"""Measurements equal those of the files, and the JSON is in CompressAI's format."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny import astronaut, tiny

from lalic import images
from lalic.errors import LalicError
from lalic.eval import evaluate
from lalic.eval import measure as measuring
from lalic.eval.codecs import LalicCodec, make
from lalic.eval.curves import Curve, Point, Row, compressai_json, decibels, read_curve
from lalic.eval.measure import load, measure, similarity
from lalic.metrics import ms_ssim, picture_ms_ssim, psnr


def test_rows_are_those_of_real_files(folder: Path) -> None:
    pictures = load([folder])
    assert list(pictures) == ["face", "arm"]
    codec = make("jpeg", (60, 20, 40, 80))
    heard: list[Point] = []
    curve = measure(codec, pictures, heard.append)
    assert [point.quality for point in heard] == [60, 20, 40, 80]
    assert [point.label for point in curve.points] == ["20", "40", "60", "80"]  # in order of rate
    for point in curve.points:
        for row, (name, picture) in zip(point.rows, pictures.items(), strict=True):
            data = codec.encode(picture, point.quality)
            decoded = images.load(data)
            assert (row.picture, row.size) == (name, len(data))
            assert row.bpp == 8 * len(data) / (picture.width * picture.height)
            assert row.psnr == psnr(picture, decoded)
            wanted = float(ms_ssim(images.to_tensor(picture), images.to_tensor(decoded)))
            assert row.ms_ssim == picture_ms_ssim(picture, decoded) and 0.5 < wanted < 1
            assert row.ms_ssim == pytest.approx(wanted, abs=5e-7)  # eight roundings of float32, which its sums are not
        assert point.psnr == pytest.approx(sum(row.psnr for row in point.rows) / 2)
        assert point.bpp == pytest.approx(sum(row.bpp for row in point.rows) / 2)
    assert curve.rd_points("psnr") == [(point.bpp, point.psnr) for point in curve.points]
    assert curve.rd_points("ms-ssim")[0][1] == pytest.approx(-10 * math.log10(1 - curve.points[0].ms_ssim))


def test_sources() -> None:
    with pytest.raises(LalicError, match="no such file"):
        load(["nowhere"])


def test_a_folder_without_pictures_and_one_that_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(LalicError, match="holds no pictures"):
        load([tmp_path / "empty"])
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"not a picture")
    with pytest.raises(LalicError, match=r"a\.png: this is not a picture"):
        load([tmp_path / "bad"])
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        astronaut(0, 0, 192, 176).save(tmp_path / name / "same.png")
    with pytest.raises(LalicError, match="called same"):
        load([tmp_path / "x", tmp_path / "y"])


def test_small_pictures_have_no_ms_ssim() -> None:
    small = astronaut(0, 0, 160, 200)
    assert similarity(small, small) is None
    whole = astronaut(0, 0, 161, 200)
    assert similarity(whole, whole) == pytest.approx(1, abs=1e-6) and decibels(1.0) == math.inf


def curve() -> Curve:
    """Two points of two pictures, the second picture too small for MS-SSIM at the second point."""
    one = Point.of(1, [Row(2.0, 30.0, 0.9, 0.5, 0.25, "a", 50), Row(2.0, 34.0, 0.8, 0.7, 0.75, "b", 25)])
    two = Point.of(2, [Row(4.0, 40.0, 0.99, 0.5, 0.5, "a", 100), Row(4.0, math.inf, 0.98, 0.5, 0.5, "b", 50)])
    return Curve("x", "X", "x 1", (one, two))


def test_the_form_is_compressais(tmp_path: Path) -> None:
    written = compressai_json(curve(), "two cores")
    assert written["name"] == "X" and written["description"] == "x 1; two cores"
    assert written["results"] == {
        "bpp": [2.0, 4.0],
        "psnr-rgb": [32.0, None],  # a mean of 40 dB and infinity is no number
        "ms-ssim-rgb": [pytest.approx(0.85), pytest.approx(0.985)],
        "encoding_time": [pytest.approx(0.6), 0.5],
        "decoding_time": [0.5, 0.5],
    }
    assert written["pictures"]["a"]["psnr-rgb"] == [30.0, 40.0] and written["qualities"] == ["1", "2"]
    path = tmp_path / "x.json"
    path.write_text(json.dumps(written, allow_nan=False))
    again = read_curve(path)
    assert again.title == "X" and again.points["psnr"] == [(2.0, 32.0)]
    assert [rate for rate, _ in again.points["ms-ssim"]] == [2.0, 4.0]
    assert again.points["ms-ssim"][0][1] == pytest.approx(-10 * math.log10(0.15))


def test_compressais_own_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "vtm.json"
    path.write_text('{"name": "VTM", "results": {"psnr-rgb": [26.1, 28.4], "bpp": [0.05, 0.11]}}')
    assert (read_curve(path).title, read_curve(path).points) == ("VTM", {"psnr": [(0.05, 26.1), (0.11, 28.4)]})
    path.write_text('{"results": {"psnr": [26.1, 28.4], "bpp": [0.05, 0.11]}}')  # as its first releases wrote
    assert (read_curve(path).title, read_curve(path).points) == ("vtm", {"psnr": [(0.05, 26.1), (0.11, 28.4)]})
    for text, word in (
        ("{", "cannot be read"),
        ('{"results": {}}', "expected results"),
        ("[]", "expected results"),
        ('{"results": {"bpp": [0.1], "psnr-rgb": [30, 31]}}', "expected results"),
        ('{"results": {"bpp": [0.1]}}', "holds no psnr and no ms-ssim"),
    ):
        path.write_text(text)
        with pytest.raises(LalicError, match=word):
            read_curve(path)


def test_a_codec_that_gives_another_size_back_is_not_believed(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    codec = LalicCodec(tiny())
    monkeypatch.setattr(codec, "decode", lambda data: Image.new("RGB", (4, 4)))
    with pytest.raises(LalicError, match="lalic gave"):
        measure(codec, load([folder]))


def test_evaluate_from_python(folder: Path) -> None:
    """Plain arguments, names and an object as codecs, and `log` gets all messages."""
    heard: list[str] = []
    ours = LalicCodec(tiny(), title="mine")
    results = evaluate(folder, ["jpeg:20,40", ours], published="kodak", bpp=(0.1, 50), log=heard.append)
    assert (results.name, results.pictures, results.left_out) == ("pictures", 2, [])
    assert [curve.title for curve in results.curves] == ["JPEG 4:2:0", "mine"]
    assert [curve.title for curve in results.others] == ["LALIC (published)", "VTM-9.1 (published)"]
    wanted = measure(make("jpeg", (20, 40)), load([folder]))
    assert results.curves[0].rd_points("psnr") == wanted.rd_points("psnr")
    assert heard[0].startswith("JPEG 4:2:0 (Pillow") and any("bits per pixel" in line for line in heard)
    assert {comparison.test for comparison in results.comparisons()} == {"mine"}
    with pytest.raises(LalicError, match="published is 'moon', expected one of clic, kodak, tecnick"):
        evaluate(folder, ["jpeg:20"], published="moon")


def test_pictures_beyond_the_limit_are_opened_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves are the same, whatever is kept; a damaged picture is named before anything is measured."""
    wanted = measure(make("jpeg", (20, 40)), load([folder]))
    opened: list[object] = []
    original = images.load
    monkeypatch.setattr(images, "load", lambda path, **options: opened.append(path) or original(path, **options))
    monkeypatch.setattr(measuring, "KEEP_MIB", 0)
    found = measure(make("jpeg", (20, 40)), load([folder]))
    assert [p.bpp for p in found.points] == [p.bpp for p in wanted.points]
    assert len(opened) == 2 + 1 + 2 * 2  # to find damage, the call that is not timed, and each point
    (folder / "more" / "arm.png").write_bytes((folder / "more" / "arm.png").read_bytes()[:900])
    with pytest.raises(LalicError, match=r"arm\.png: the picture is damaged or truncated"):
        load([folder])


def test_transparent_pictures_need_a_background(command: Any, tmp_path: Path) -> None:
    """The sentence names an option that the commands have."""
    path = tmp_path / "clear.png"
    Image.new("RGBA", (64, 64), (200, 0, 0, 0)).save(path)
    for words in (("eval", path, "--codecs", "jpeg:50"), ("compare", path, "jpeg:50", "-o", tmp_path / "out")):
        refused = command(*words)
        assert refused.code == 2 and f"{path}: the picture has transparent pixels" in refused.err
        assert "--background white" in refused.err
        assert command(*words, "--background", "#00ff00").code == 0
    assert load([path], "white")["clear"].getpixel((0, 0)) == (255, 255, 255)
