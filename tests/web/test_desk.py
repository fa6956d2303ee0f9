"""What the page does with a picture, without a browser and without a web library, with a tiny model."""

from __future__ import annotations

import contextlib
import gc
import io
import threading
import time
import tracemalloc
import weakref
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from tiny import astronaut, noise, tiny

from lalic import codec, metrics
from lalic.errors import LalicError
from lalic.eval.codecs import make
from lalic.eval.side_by_side import nearest
from lalic.web import desk as desks
from lalic.web.desk import Closed, Desk, Request, Superseded, opponents
from lalic.web.follow import Step, follow


def png(image: Image.Image, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, options.pop("format", "PNG"), **options)
    return out.getvalue()


@pytest.fixture(scope="module")
def model():
    return tiny(qualities=3)


@pytest.fixture
def desk(model):
    return Desk(model)


PHOTO = astronaut(150, 20, 192, 176)


def test_results_grow_and_are_those_of_the_codec(desk, model):
    key = desk.open(png(PHOTO), "face.png")
    assert desk.get(key).name == "face"
    first, second, third = desk.code(key, Request(value=40, other="jpeg"))
    assert first.theirs is None and second.bits is None and third.matches == [first.ours, second.theirs]
    assert third.ours.coded.data == codec.encode(PHOTO, model, quality=40, strip=True)
    assert np.array_equal(np.asarray(third.ours.coded.picture), np.asarray(codec.decode(third.ours.coded.data, model)))
    assert third.ours.psnr == metrics.psnr(PHOTO, third.ours.coded.picture)
    expected = nearest(make("jpeg"), PHOTO, "bpp", third.ours.bpp)
    assert third.theirs.quality == expected.quality and third.theirs.coded.size == expected.coded.size
    assert third.bits.sum() == pytest.approx(8 * third.ours.coded.size, rel=0.15)  # of a file of 1 kB


def test_what_is_known_makes_the_next_match_short(desk, monkeypatch):
    """A second search uses what the first and the curve have measured, and finds the same."""
    key = desk.open(png(PHOTO), "face.png")
    list(desk.code(key, Request(value=40)))
    list(desk.curve(key, Request(value=40)))
    asked = []
    inner = desks.PillowCodec.code
    monkeypatch.setattr(
        desks.PillowCodec, "code", lambda self, picture, quality: asked.append(quality) or inner(self, picture, quality)
    )
    *_, last = desk.code(key, Request(value=41))
    assert len(asked) <= 4
    assert last.theirs.quality == nearest(make("jpeg"), PHOTO, "bpp", last.ours.bpp).quality
    asked.clear()
    assert [*desk.code(key, Request(value=41))][-1].ours is last.ours  # kept


@pytest.mark.parametrize("metric", ["bpp", "psnr"])
def test_a_search_that_knows_something_finds_what_one_finds_that_does_not(metric):
    for number in (0, 50, 93):
        known = {quality: (at.bpp, at.psnr) for quality in (number, 20) if (at := match_at(quality))}
        for target in (0.3, 0.9, 2.5) if metric == "bpp" else (22, 31, 60):
            plain = nearest(make("webp"), PHOTO, metric, target)
            assert nearest(make("webp"), PHOTO, metric, target, dict(known)).quality == plain.quality


def match_at(quality):
    return nearest(make("webp"), PHOTO, "bpp", 1e9) if quality == 100 else desks.coded_at(make("webp"), PHOTO, quality)


def test_a_curve_has_both_codecs_and_what_was_coded(desk):
    key = desk.open(png(PHOTO), "face.png")
    *_, results = desk.code(key, Request(value=33, other="webp"))
    steps = list(desk.curve(key, Request(value=33, other="webp")))
    assert all(len(a["lalic"]) + len(a["WebP"]) < len(b["lalic"]) + len(b["WebP"]) for a, b in pairwise(steps))
    last = steps[-1]
    assert (results.ours.bpp, results.ours.psnr) in last["lalic"] and len(last["lalic"]) == 8
    assert last["WebP"] == sorted(last["WebP"]) and len(last["WebP"]) >= 8


@pytest.mark.parametrize(("aim", "value"), [("bpp", 1.5), ("psnr", 27.0), ("size", 6.0)])
def test_aims_are_met(desk, aim, value):
    key = desk.open(png(PHOTO), "face.png")
    *_, results = desk.code(key, Request(aim, value, other=None))
    got = results.ours.coded.size / 1000 if aim == "size" else results.ours.value(aim)
    assert got == pytest.approx(value, rel=0.011) and results.theirs is None


def test_what_cannot_be_is_said_as_the_command_line_says_it(desk):
    key = desk.open(png(PHOTO), "face.png")
    for request, words in (
        (Request("bpp", 90.0), "the target is 90 bits per pixel, but qualities 1 to 100 of the model 'slim' give"),
        (Request("psnr", float("nan")), "expected more than 0"),
        (Request("size", 0.0), "expected more than 0"),
        (Request(value=101), "expected a number from 1 to 100|expected 1 to 100"),
    ):
        with pytest.raises(LalicError, match=words):
            list(desk.code(key, request))
    one = Desk(tiny())
    assert not one.has_qualities
    key = one.open(png(PHOTO), "face.png")
    assert [*one.code(key, Request())][-1].ours.quality is None
    with pytest.raises(LalicError, match="cannot meet a target"):
        list(one.code(key, Request("bpp", 1.0)))


# Kinds of pictures


def test_kinds_that_are_taken(desk):
    transparent = PHOTO.convert("RGBA")
    transparent.putalpha(Image.linear_gradient("L").resize(PHOTO.size))
    deep = Image.fromarray((np.arange(64 * 48, dtype=np.uint16) * 20).reshape(48, 64))
    for name, data, size in (
        ("one.png", png(noise(size=(1, 1))), (1, 1)),
        ("thin.png", png(noise(size=(300, 2))), (300, 2)),
        ("clear.png", png(transparent), PHOTO.size),
        ("deep.png", png(deep), (64, 48)),
        ("grey.jpg", png(PHOTO.convert("L"), format="JPEG"), PHOTO.size),
        ("palette.gif", png(PHOTO.quantize(16), format="GIF"), PHOTO.size),
        ("ink.tif", png(PHOTO.convert("CMYK"), format="TIFF"), PHOTO.size),
    ):
        key = desk.open(data, name)
        opened = desk.get(key)
        *_, results = desk.code(key, Request())
        assert opened.picture.mode == "RGB" and opened.picture.size == results.ours.coded.picture.size == size
        assert bool(opened.notes) == (name in ("clear.png", "ink.tif")), opened.notes  # the second has an odd profile
        assert (results.ours.ms_ssim is None) == (min(size) < 161)


def test_kinds_that_are_refused(model):
    desk = Desk(model, max_pixels=50_000)
    frames = [noise(seed) for seed in range(3)]
    for data, words in (
        (b"", "not a picture in a format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "EPS|not a picture"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "damaged|not a picture"),
        (png(PHOTO)[:5000], "damaged or truncated"),
        (png(frames[0], format="GIF", save_all=True, append_images=frames[1:]), "3 frames"),
        (png(noise(size=(400, 200))), "400x200 is 80000 pixels, and the limit is 50000"),
        (codec.encode(noise(size=(400, 200)), model), "400x200 is 80000 pixels, and the limit is 50000"),
        (codec.encode(PHOTO, tiny("other", qualities=3)), "written by the model 'other'"),
        (codec.encode(PHOTO, model)[:-5], "truncated|damaged|checksum|short"),
    ):
        with pytest.raises(LalicError, match=words):
            desk.open(data, "x")


def test_a_lalic_file_opens(desk, model):
    clear = PHOTO.convert("RGBA")
    clear.putalpha(128)
    for picture, notes in ((PHOTO, 0), (clear, 1), (PHOTO.convert("L"), 0)):
        data = codec.encode(picture, model, quality=70)
        opened = desk.get(desk.open(data, "a.b.lalic"))
        assert (opened.name, opened.file, len(opened.notes)) == ("a.b", data, notes)
        assert opened.picture.mode == "RGB" and opened.picture.size == PHOTO.size
    assert metrics.psnr(opened.picture, PHOTO.convert("L").convert("RGB")) > 20


def test_tiles_are_reported_and_are_the_same_file(desk, model, monkeypatch):
    picture = astronaut(0, 0, 300, 200)
    monkeypatch.setattr(codec, "ONE_TILE", 1 << 14)
    monkeypatch.setattr(codec, "TILE", 128)
    said = []
    key = desk.open(png(picture), "tiles.png")
    *_, results = desk.code(key, Request(), lambda text, share=None: said.append((text, share)))
    assert results.ours.coded.data == codec.encode(picture, model, strip=True)
    assert [share for text, share in said if text == "Encoding" and share] == [n / 6 for n in range(1, 7)]
    assert sum(text == "Decoding" and share == 1 for text, share in said) == 1
    assert results.bits.shape == (16, 20)


# Many pictures and many requests


def test_a_newer_request_ends_an_older_one(desk):
    key = desk.open(png(PHOTO), "face.png")
    older = desk.code(key, Request(value=20))
    next(older)
    desk.want(key, Request(value=30))
    with pytest.raises(Superseded):
        list(older)
    curve = desk.curve(key, Request(value=20))
    with pytest.raises(Superseded):
        list(curve)
    assert [*desk.code(key, Request(value=30))][-1].ours.quality == 30
    older = desk.code(key, Request(value=31))
    next(older)
    desk.stop(key)
    with pytest.raises(Superseded):
        list(older)


def test_pictures_are_closed_to_make_room(desk, monkeypatch):
    monkeypatch.setattr(desks, "KEPT_BYTES", 2 * 8 * 192 * 176)  # with latents
    keys = [desk.open(png(PHOTO), f"{i}.png") for i in range(2)]
    desk.get(keys[0])
    keys.append(desk.open(png(PHOTO), "2.png"))
    for key, there in zip(keys, (True, False, True), strict=True):
        if there:
            desk.get(key)
        else:
            with pytest.raises(Closed, match="open it again"):
                desk.get(key)
    desk.close(keys[0])
    for key in (keys[0], None, "nonsense"):
        with pytest.raises(Closed):
            list(desk.code(key, Request()))
        desk.want(key, Request())
        desk.stop(key)
        desk.close(key)


def test_two_at_once_take_turns(desk):
    """While one coding runs another says that it waits, and both end."""
    keys = [desk.open(png(PHOTO), f"{i}.png") for i in range(2)]
    said, done = [], []
    begun, go_on = threading.Event(), threading.Event()

    def slow(text, share=None):
        begun.set()
        assert go_on.wait(20)

    first = threading.Thread(target=lambda: done.append([*desk.code(keys[0], Request(), slow)][-1]))
    first.start()
    assert begun.wait(20)
    report = lambda text, share=None: (said.append(text), go_on.set() if "Waiting" in text else None)  # noqa: E731
    second = threading.Thread(target=lambda: done.append([*desk.code(keys[1], Request(), report)][-1]))
    second.start()
    for thread in (first, second):
        thread.join(30)
    assert len(done) == 2 and "Waiting for another picture" in said
    assert done[0].ours.coded.data == done[1].ours.coded.data


def test_opponents_are_those_that_are_installed(monkeypatch):
    assert opponents()[:2] == ["jpeg", "webp"]
    monkeypatch.setitem(__import__("sys").modules, "pillow_jxl", None)
    assert "jxl" not in opponents()


# Progress


def test_steps_come_between_results():
    def work(report):
        report("Thinking", 0)
        time.sleep(0.05)
        yield 1
        report("Thinking", 0.5)
        time.sleep(0.05)
        yield 2

    found = list(follow(work))
    assert [each for each in found if not isinstance(each, Step)] == [1, 2]
    steps = [each for each in found if isinstance(each, Step)]
    assert [step.share for step in steps] == [0, 0.5] and steps[1].seconds >= 0.04 and steps[1].left is None
    assert Step("x", 0.25, 4.0).left == pytest.approx(12)


def test_errors_and_the_end_of_interest_reach_the_work():
    def fails(report):
        yield 1
        raise LalicError("no")

    with pytest.raises(LalicError, match="no"):
        list(follow(fails))
    ended = threading.Event()

    def endless(report):
        try:
            while True:
                report("Working", None)
                time.sleep(0.01)
                yield 1
        except Superseded:
            ended.set()
            raise

    following = follow(endless)
    next(following)
    following.close()
    assert ended.wait(10)


# Memory


def traced(work) -> int:
    """The most bytes of numpy's and Python's that work() holds at a time."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_closed_picture_leaves_at_once(desk):
    """Neither its results nor an error hold it in a circle, which stays until Python looks for circles."""
    key = desk.open(png(PHOTO), "face.png")
    list(follow(lambda report: desk.code(key, Request(value=40), report)))
    list(follow(lambda report: desk.curve(key, Request(value=40), report)))
    older = follow(lambda report: desk.code(key, Request(value=20), report))
    while isinstance(next(older), Step):
        pass
    desk.want(key, Request(value=30))
    with contextlib.suppress(Superseded):
        list(older)
    with pytest.raises(LalicError):
        list(follow(lambda report: desk.code(key, Request("size", 0.0), report)))
    opened = desk.get(key)
    held = [weakref.ref(each) for each in (opened, opened.picture, opened.results.ours.coded.picture, opened.prepared)]
    gc.collect()
    gc.disable()
    try:
        desk.close(key)
        del opened, older
        end = time.monotonic() + 5
        while any(each() is not None for each in held) and time.monotonic() < end:
            time.sleep(0.01)  # threads end
        assert not [each() for each in held if each() is not None]
    finally:
        gc.enable()


def test_a_search_keeps_two_pictures(monkeypatch):
    """Not all that it has tried, which are many and large."""
    made = []

    class Watched(desks.PillowCodec):
        def code(self, picture, quality):
            coded = super().code(picture, quality)
            made.append(weakref.ref(coded.picture))
            most.append(sum(each() is not None for each in made))
            return coded

    for target in (0.2, 0.7, 1.9, 90.0):
        most = []
        found = nearest(Watched("webp"), PHOTO, "bpp", target)
        assert len(most) > 4 and max(most) <= 3  # the new one too
        assert found.quality == nearest(make("webp"), PHOTO, "bpp", target).quality
        made.clear()


def test_what_pictures_hold_is_counted(desk, monkeypatch):
    """Results and latents count, so pictures that were opened and coded one after another are closed."""
    size = PHOTO.width * PHOTO.height
    monkeypatch.setattr(desks, "KEPT_BYTES", 3 * 16 * size)
    keys = []
    for number in range(6):
        keys.append(desk.open(png(PHOTO), f"{number}.png"))
        list(desk.code(keys[-1], Request()))
        assert desk.get(keys[-1]).kept_bytes == 16 * size  # the picture, both results, latents
    assert len(desk._open) == 3
    assert desk.get(keys[-1]).prepared.picture.image is desk.get(keys[-1]).picture  # no copy


def test_free_memory_goes_back_after_large_pictures_alone(desk, monkeypatch):
    given = []
    monkeypatch.setattr(desks, "give_back", lambda: given.append(desk._coding.locked()))
    key = desk.open(png(PHOTO), "face.png")
    list(desk.code(key, Request()))
    assert not given  # a small one would only be slower
    monkeypatch.setattr(desks, "LARGE", PHOTO.width * PHOTO.height - 1)
    key = desk.open(png(PHOTO), "face.png")
    assert given == [False]
    list(desk.code(key, Request(value=40)))
    assert given == [False, True, True, True]  # after each codec and the bits, before the next coding begins
    with contextlib.suppress(LalicError):
        list(desk.code(key, Request("size", 0.0)))
    assert len(given) == 5


def test_pictures_are_measured_in_strips(monkeypatch):
    large, other = PHOTO.resize((768, 704)), PHOTO.rotate(1).resize((768, 704))
    monkeypatch.setattr(metrics, "_STRIP", 1 << 14)
    assert traced(lambda: metrics.psnr(large, other)) < 768 * 704  # not even a copy of one in bytes
