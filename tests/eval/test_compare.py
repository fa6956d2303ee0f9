"""`lalic compare`: sizes and PSNR are matched, and the sheet shows the decoded pictures."""

from __future__ import annotations

import functools
import sys

import numpy as np
import pytest
from PIL import Image
from tiny import astronaut, tiny

from lalic.errors import LalicError
from lalic.eval import compare, side_by_side
from lalic.eval.codecs import Codec, Coded, LalicCodec, make
from lalic.eval.side_by_side import coded_at, nearest


class Ladder(Codec):
    """A codec with files of 100 level bytes and grey pictures of that level: the quality, or 51 minus the quality."""

    name = title = "ladder"
    version, qualities, bounds = "1", (10, 20, 30), (1, 50)

    def __init__(self, increasing: bool) -> None:
        self.increasing, self.asked = increasing, []

    def code(self, picture, quality):
        self.asked.append(quality)
        level = quality if self.increasing else 51 - quality
        return Coded(Image.new("RGB", picture.size, (level,) * 3), 100 * level, 0.1, 0.1)


@pytest.mark.parametrize("increasing", [True, False])
@pytest.mark.parametrize(("target", "level"), [(23, 23), (23.4, 23), (23.6, 24), (0.01, None), (90, None)])
def test_the_nearest_size_is_found(increasing: bool, target: float, level: int | None) -> None:
    codec, picture = Ladder(increasing), Image.new("RGB", (20, 20))
    match = nearest(codec, picture, "bpp", 2 * target)  # 100 bytes are 2 bits a pixel of 20 x 20
    if level is None:  # out of reach: the end of the range
        level = 1 if target < 1 else 50
    assert match.coded.size == 100 * level
    assert match.quality == (level if increasing else 51 - level)
    assert match.bpp == pytest.approx(2 * level) and len(codec.asked) == len(set(codec.asked)) <= 8


def test_real_codecs_meet_a_size_and_a_psnr() -> None:
    picture = astronaut(150, 20, 192, 176)
    goal = coded_at(make("jpeg"), picture, 50)
    for name in ("jpeg", "webp"):
        codec = make(name)
        for what in ("bpp", "psnr"):
            match = nearest(codec, picture, what, goal.value(what))
            beside = [coded_at(codec, picture, match.quality + step).value(what) for step in (-1, 1)]
            off = abs(match.value(what) - goal.value(what))
            # Neighbours are not nearer; ratio and difference agree for values this near.
            assert off <= min(abs(value - goal.value(what)) for value in beside) * 1.02, (name, what)
    assert nearest(make("jpeg"), picture, "bpp", goal.bpp).quality == 50


def test_one_rate_has_no_choice() -> None:
    codec, picture = LalicCodec(tiny()), astronaut(0, 0, 192, 176)
    match = nearest(codec, picture, "psnr", 20)
    assert match.quality is None and match.psnr == coded_at(codec, picture, None).psnr > 25


def test_lalic_meets_a_psnr_to_a_tenth_of_a_quality() -> None:
    picture, codec = astronaut(150, 20, 192, 176), LalicCodec(tiny(qualities=3))
    match = nearest(codec, picture, "psnr", 26.0)
    assert match.quality == round(match.quality, 1) and 1 < match.quality < 100
    beside = [coded_at(codec, picture, round(match.quality + step, 1)).psnr for step in (-1, 1)]
    assert abs(match.psnr - 26) <= min(abs(value - 26) for value in beside)


def test_what_is_chosen_stays_and_the_rest_follows() -> None:
    picture = astronaut(150, 20, 192, 176)
    found = compare(picture, ["jpeg", "webp:10,60", "jpeg-444"]).matches
    assert [match.quality for match in found[:3]] == [45, 10, 60]  # the middle default; as given
    assert found[3].bpp == pytest.approx(found[0].bpp, rel=0.05)
    found = compare(picture, ["jpeg", "webp"], 30.0, match="psnr").matches
    assert all(abs(match.psnr - 30) < 0.3 for match in found)


def test_crops_are_chosen_by_detail() -> None:
    """Three squares of different detail on a flat picture: the busiest comes first, and none overlap."""
    pixels = np.full((480, 640, 3), 128, np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8)
    pixels[320:, 480:] = noise
    pixels[:160, :160] = 128 + (noise - 128.0) / 4
    boxes = side_by_side.choose_crops(Image.fromarray(pixels))
    assert boxes[0] == (480, 320, 160, 160) and len(boxes) == 3
    for i, (x, y, w, h) in enumerate(boxes):
        assert 0 <= x <= 640 - w and 0 <= y <= 480 - h
        assert all(abs(x - other[0]) >= w or abs(y - other[1]) >= h for other in boxes[:i])
    assert side_by_side.choose_crops(Image.new("RGB", (30, 20)))[0] == (0, 0, 20, 20)


def test_the_sheet_shows_the_crops() -> None:
    picture = astronaut(150, 20, 192, 176)
    found = compare(picture, ["jpeg", "webp"]).matches
    boxes = [(10, 20, 100, 80), (60, 90, 100, 80)]
    sheet = np.asarray(side_by_side.sheet(picture, found, boxes))
    width, height = 100 * 2, 80 * 2
    for column, whole in enumerate([picture, *(match.coded.picture for match in found)]):
        for row, (x, y, w, h) in enumerate(boxes):
            left, top = 8 + column * (width + 8), 44 + row * (height + 8)
            shown = sheet[top : top + height : 2, left : left + width : 2]
            assert np.array_equal(shown, np.asarray(whole)[y : y + h, x : x + w])
        assert (sheet[:44, left : left + width] < 128).any()  # its heading


def test_compare_from_python() -> None:
    """Plain arguments; the result has the picture, the matches and what was left out, all that a sheet needs."""
    picture = astronaut(150, 20, 192, 176)
    both = compare(picture, ["jpeg", LalicCodec(tiny(qualities=3)), "vtm"], 28.0, match="psnr")
    assert np.array_equal(np.asarray(both.picture), np.asarray(picture))
    assert [match.codec.name for match in both.matches] == ["jpeg", "lalic"] and "vtm needs" in both.left_out[0]
    assert all(abs(match.psnr - 28) < 0.3 for match in both.matches)
    assert both.matches[0].text().startswith(f"quality {both.matches[0].quality:g}, {both.matches[0].coded.size} b")
    assert side_by_side.sheet(both.picture, both.matches).width == 3 * (2 * 160 + 8) + 8
    for codecs, options, message in (
        (["vtm"], {}, "nothing is left to compare"),
        (["jpeg"], {"match": "size"}, "match is 'size', expected bpp or psnr"),
        (["jpeg"], {"target": float("nan")}, "the target is nan bits per pixel, expected more than 0"),
        (["jpeg"], {"target": 0.0, "match": "psnr"}, "the target is 0 dB, expected more than 0"),
    ):
        with pytest.raises(LalicError, match=message):
            compare(picture, codecs, **options)


@pytest.fixture
def run(tmp_path, monkeypatch, command):
    """Runs `lalic compare` on a picture in an empty folder."""
    monkeypatch.chdir(tmp_path)
    astronaut(150, 20, 192, 176).save("a.png")
    return functools.partial(command, "compare")


def test_the_command(run, tmp_path) -> None:
    words = ("a.png", "jpeg:30", "webp", "lalic", "--match", "psnr", "--crop", "5,6,70,60")
    result = run(*words)
    assert result.code == 0 and "wrote a-compare.png" in result.out
    assert [line.partition(": ")[0] for line in result.out.splitlines()[:3]] == ["JPEG 4:2:0", "WebP", "lalic"]
    with Image.open(tmp_path / "a-compare.png") as sheet:
        assert sheet.width == 4 * (150 + 8) + 8 and sheet.height == 44 + 128 + 8
    assert "quality 30" in result.out and "Pillow" in result.out and "torch" in result.out
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "a-compare.png"}
    again = run(*words)
    assert again.code == 2 and "a-compare.png exists already, --force overwrites it" in again.err
    (tmp_path / "a-compare.png").unlink()
    (tmp_path / "a-compare-2-webp.png").touch()
    half = run(*words, "--pictures")
    assert half.code == 2 and "a-compare-2-webp.png exists already" in half.err
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "a-compare-2-webp.png"}
    assert run(*words, "--force", "--pictures").code == 0
    decoded = [np.asarray(Image.open(tmp_path / f"a-compare-{name}.png")) for name in ("1-jpeg", "2-webp", "3-lalic")]
    assert np.array_equal(decoded[0], np.asarray(make("jpeg").code(astronaut(150, 20, 192, 176), 30).picture))
    assert np.array_equal(decoded[2], np.asarray(LalicCodec(tiny()).code(astronaut(150, 20, 192, 176), None).picture))


def test_what_is_wrong_or_missing_is_said(run, monkeypatch, tmp_path) -> None:
    for words, sentence in (
        (("a.png", "gif"), "there is no codec 'gif'"),
        (("nothing.png", "jpeg"), "nothing.png: No such file"),
        (("a.png", "jpeg", "-o", "a.png/x"), "a.png: is a file, expected a folder"),
        (("a.png", "jpeg", "--crop", "1,2,3"), "expected X,Y,WIDTH,HEIGHT"),
        (("a.png", "jpeg", "--crop", "150,0,60,60"), "expected a box inside 192x176"),
    ):
        result = run(*words)
        assert result.code == 2 and sentence in result.err, result.err
    assert not list(tmp_path.glob("*compare*"))
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    (tmp_path / "out").mkdir()
    result = run("a.png", "jpeg", "jxl", "-o", "out/x")
    assert result.code == 1 and "left out: jxl needs pillow-jxl-plugin" in result.err
    assert (tmp_path / "out" / "x.png").exists()
    assert run("a.png", "jpeg", "-o", "out/").code == 0
    assert (tmp_path / "out" / "a-compare.png").exists()
