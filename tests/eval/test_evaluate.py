"""`lalic eval`: arguments, output and files."""

from __future__ import annotations

import functools
import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image
from tiny import astronaut, save, tiny

import lalic
from lalic import cli
from lalic.eval.curves import published_curves

LAMBDAS = {"1": 0.0005, "2": 0.002, "3": 0.008, "4": 0.03}


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> list[Path]:
    """Checkpoints of models of one rate; files get larger and better with the number."""
    folder = tmp_path_factory.mktemp("family")
    return [save(folder / f"{name}.pth", tiny(lmbda=lmbda)) for name, lmbda in LAMBDAS.items()]


@pytest.fixture
def run(folder, command):
    """Runs `lalic eval` over the two pictures."""
    return functools.partial(command, "eval", folder)


def test_checkpoints_of_one_rate_make_one_curve(run, family, tmp_path) -> None:
    pytest.importorskip("bjontegaard")
    result = run("--checkpoint", *family, "--codecs", "lalic", "webp", "--json")
    assert result.code == 0
    ours, webp = json.loads(result.out)
    assert ours["name"] == "lalic" and ours["qualities"] == list(LAMBDAS)
    assert "4 models: 1 custom" in ours["description"] and "thread" in ours["description"]
    assert webp["name"] == "WebP" and len(webp["results"]["bpp"]) == 8
    for each in (ours, webp):
        assert each["results"]["bpp"] == sorted(each["results"]["bpp"])
        assert each["results"]["psnr-rgb"] == sorted(each["results"]["psnr-rgb"])
        assert set(each["pictures"]) == {"face", "arm"}
    # What was printed is what lalic.encode gives.
    with Image.open(tmp_path / "pictures" / "face.png") as picture:
        data = lalic.encode(picture, tiny("custom", lmbda=LAMBDAS["2"]))
        assert ours["pictures"]["face"]["bpp"][1] == 8 * len(data) / (picture.width * picture.height)


def test_table_deltas_and_files(run, family, tmp_path) -> None:
    pytest.importorskip("bjontegaard")
    out = tmp_path / "out"
    words = ["--codecs", "lalic", "jpeg", "--published", "kodak", "-o", out, "--name", "two crops"]
    result = run("--checkpoint", *family, *words)
    assert result.code == 0
    # The tiny model takes half as much again as JPEG.
    assert "lalic against JPEG 4:2:0, PSNR: BD-rate +" in result.out and "% (akima), over" in result.out
    assert "lalic against VTM-9.1 (published), MS-SSIM:" in result.out
    assert "2 pictures of two crops;" in result.out.splitlines()[-1]
    comparisons = json.loads((out / "comparisons.json").read_text())
    assert [c["anchor"] for c in comparisons[:3]] == ["JPEG 4:2:0", "LALIC (published)", "VTM-9.1 (published)"]
    assert 20 < comparisons[0]["percent"]["pchip"] < 200 and 0 < comparisons[0]["share"] < 1
    assert json.loads((out / "jpeg-4-2-0.json").read_text())["results"]["bpp"]
    # Without lalic the first codec is compared; a written file is read again, and a codec equals itself.
    again = run("--codecs", "jpeg", "--against", out / "jpeg-4-2-0.json", "--each")
    (line,) = (line for line in again.out.splitlines() if line.startswith("JPEG 4:2:0 against JPEG 4:2:0, PSNR"))
    assert re.search(r"BD-rate [+-]0\.00 % \(pchip\), [+-]0\.00 % \(akima\), .* 100% of both", line)
    assert sum(line.split()[:1] == ["face"] for line in again.out.splitlines()) == 9  # a line a picture and point


def test_files_of_one_name_stay_apart(run, tmp_path) -> None:
    """Training calls all weights by one name; a codec may be named twice."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    paths = [save(tmp_path / name / "weights.pth", tiny(qualities=n)) for name, n in (("one", 2), ("other", 3))]
    result = run("--checkpoint", *paths, "--codecs", "lalic:30,70", "webp:20", "webp:60", "-o", tmp_path / "out")
    assert result.code == 0 and "lalic one/weights against WebP" in result.out
    names = {path.name for path in (tmp_path / "out").glob("*.json")}
    assert names == {
        "comparisons.json",
        "lalic-one-weights.json",
        "lalic-other-weights.json",
        "webp.json",
        "webp-2.json",
    }
    qualities = [
        json.loads((tmp_path / "out" / name).read_text())["qualities"] for name in ("webp.json", "webp-2.json")
    ]
    assert qualities == [["20"], ["60"]]


def test_plots_say_what_they_show(run, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    words = ("--codecs", "jpeg:20,40", "webp:20,40", "--published", "kodak")
    assert run(*words, "-o", tmp_path / "a").code == 0
    for metric, unit in (("psnr", "PSNR in dB"), ("ms-ssim", "MS-SSIM in dB")):
        with Image.open(tmp_path / "a" / f"{metric}.png") as picture:
            assert picture.width > 1000
        text = " ".join(ElementTree.parse(tmp_path / "a" / f"{metric}.svg").getroot().itertext())
        for said in (unit, "JPEG 4:2:0", "WebP", "VTM-9.1 (published)", "2 pictures of pictures", "Pillow", "Python"):
            assert said in text, said


def test_a_model_with_a_quality_is_a_curve_of_its_own(run, tmp_path) -> None:
    pytest.importorskip("bjontegaard")
    a, bc = (save(tmp_path / f"{name}.pth", tiny(qualities=3)) for name in ("a", "bc"))
    result = run("--checkpoint", a, bc, "-q", "3", "40.5", "90", "--codecs", "lalic", "--json")
    assert result.code == 0
    curves = json.loads(result.out)
    assert [curve["name"] for curve in curves] == ["lalic a", "lalic bc"]
    for curve in curves:
        assert curve["qualities"] == ["3", "40.5", "90"]
        assert curve["results"]["psnr-rgb"] == sorted(curve["results"]["psnr-rgb"])
    one = run("--checkpoint", a, "--codecs", "lalic", "jpeg", "--json")
    assert [len(curve["qualities"]) for curve in json.loads(one.out)] == [7, 9]  # their default qualities
    table = run("--checkpoint", a, "--codecs", "lalic:5,20,60,90", "jpeg")
    assert "lalic against JPEG 4:2:0, PSNR: BD-rate +" in table.out


def test_one_rate_is_compared_at_its_own_quality(run) -> None:
    pytest.importorskip("bjontegaard")
    result = run("--codecs", "lalic", "jpeg")
    line = next(line for line in result.out.splitlines() if line.startswith("lalic against JPEG 4:2:0, PSNR"))
    assert line.count("%") == 1 and " % at " in line


def test_points_out_of_the_span_do_not_count(run) -> None:
    pytest.importorskip("bjontegaard")
    words = ("--codecs", "lalic", "jpeg:5,20", "--bpp")
    assert "no figure, there is no point to compare" in run(*words, 0.1, 0.2).out
    assert "no figure, the curve has 0 points" in run(*words, 0.8, 9).out


def test_what_is_missing_is_left_out_with_a_sentence(run, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    result = run("--codecs", "jpeg:30", "jxl", "vtm")
    assert result.code == 1  # it was asked for
    assert "left out: jxl needs pillow-jxl-plugin, which is not installed" in result.err
    assert "left out: vtm needs VTM's encoder, which --vtm FILE names" in result.err
    assert "JPEG 4:2:0" in result.out


def test_without_the_optional_packages_the_rest_is_there(run, monkeypatch, tmp_path) -> None:
    for name in ("bjontegaard", "scipy.interpolate", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)
    result = run("--codecs", "jpeg:20,30,40,60", "webp", "--published", "kodak", "-o", tmp_path / "out")
    assert result.code == 0
    assert "JPEG 4:2:0 against WebP, PSNR: no figure, BD-rates need the package bjontegaard" in result.out
    assert "no psnr plot: plots need matplotlib, which is not installed" in result.err
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".json"}
    assert "need the package bjontegaard" in run("--codecs", "jpeg:20", "webp:30,40").out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--codecs", "gif"], "there is no codec 'gif'"),
        (["--codecs", "lalic:30"], "lalic: quality is 30, expected none: the model 'slim' was trained for one quality"),
        (["--codecs", "jpeg:300"], "jpeg: quality is 300, expected 1 to 95"),
        (["--codecs", "vtm"], "nothing is left to measure"),
        (["--against", "nothing.json"], "cannot be read as JSON"),
        (["--device", "tpu"], "device is 'tpu'"),
        (["--bpp", "2", "1"], "bpp is 2 1, expected the lowest rate that counts, then a higher one"),
        (["-o", __file__], "test_evaluate.py: is a file, expected a folder"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_measured(run, words, sentence) -> None:
    result = run(*words)
    assert result.code == 2 and sentence in result.err and not result.out
    assert "bits per pixel" not in result.err


def test_real_weights_at_a_published_rate(monkeypatch, folder, capfd) -> None:
    """The model that ships, on one small picture, against a published curve."""
    astronaut(200, 60, 128, 128).save(folder / "more" / "arm.png")
    assert cli.main(["eval", str(folder / "more"), "--codecs", "lalic", "--json"]) == 0
    (ours,) = json.loads(capfd.readouterr().out)
    points = published_curves("kodak")[1].rd_points("psnr")
    assert points[0][1] - 3 < ours["results"]["psnr-rgb"][0] < points[-1][1]
    assert 0.05 < ours["results"]["bpp"][0] < 5 and "ms-ssim-rgb" not in ours["results"]
