"""What the events of the page do, one after another and at once, without a browser, with a tiny model."""

from __future__ import annotations

import io
import itertools

import pytest
from tiny import astronaut, tiny

pytest.importorskip("gradio", reason="the page needs gradio (pip install lalic[web])")

from lalic.web.desk import Desk
from lalic.web.page import _Page, _Tab
from lalic.web.shelf import Shelf

WISHES = ("quality", 50, None, "jpeg", "bpp")


@pytest.fixture(scope="module")
def model():
    return tiny(qualities=3)


@pytest.fixture
def page(model):
    names = ["tab", "viewer", "status", "stop", "controls", "figures", "curve"]
    return _Page(Desk(model), Shelf(), *names)


def face(side: int = 96) -> bytes:
    out = io.BytesIO()
    astronaut(150, 20, side, side).save(out, "PNG")
    return out.getvalue()


def opening(page, tab, data: bytes, name: str, wishes=WISHES):
    return page._open(tab, wishes, lambda: (data, name))


def statuses(changes) -> list[str]:
    """The texts above the picture, as they are shown one after another."""
    return [each["status"] for each in changes if isinstance(each.get("status"), str)]


def test_the_newest_file_wins_whenever_it_comes(page):
    for steps in itertools.count(1):
        tab = _Tab()
        old = opening(page, tab, face(), "old.png")
        if len([*itertools.islice(old, steps)]) < steps:  # it has nothing more to say
            break
        new = opening(page, tab, face(80), "new.png")
        next(new)
        shown = [*new]
        assert "new, 80x80" in statuses(shown)[-1]
        assert page.desk.get(tab.key).name == "new"
        assert not any("views" in each.get("viewer", {}) for each in old), steps  # it changes nothing any more
        assert page.desk.get(tab.key).name == "new"
    assert steps > 8


def test_an_old_file_that_opens_late_makes_way(page, monkeypatch):
    tab, keys = _Tab(), []
    inner = page.desk.open

    def open_late(data, name, report):
        if name == "old.png":
            keys.append(inner(data, name))
            [*opening(page, tab, face(80), "new.png")]
            return keys[0]
        return inner(data, name, report)

    monkeypatch.setattr(page.desk, "open", open_late)
    [*opening(page, tab, face(), "old.png")]
    assert page.desk.get(tab.key).name == "new"
    with pytest.raises(ValueError, match="closed"):
        page.desk.get(keys[0])


def test_a_broken_file_is_named_and_ends_nothing(page):
    tab = _Tab()
    first = opening(page, tab, face(), "face.png")
    while tab.key is None:
        next(first)
    assert "&lt;b&gt;.png: this is not a picture" in statuses(opening(page, tab, b"no picture", "<b>.png"))[-1]
    rest = statuses(first)
    assert rest and all("this is not a picture" in text for text in rest)
    assert page.desk.get(tab.key).results.theirs is not None
    assert "face, 96x96" in statuses(page.code(tab, *WISHES))[-1]  # the next wish takes the sentence away


def test_a_missing_number_is_told(page):
    tab = _Tab()
    [*opening(page, tab, face(), "face.png")]
    for aim, text in (("quality", "Quality has"), ("bpp", "Bits per pixel has"), ("size", "File size has")):
        wishes = aim, None, None, "jpeg", "bpp"
        page.want(tab, *wishes)
        assert f"{text} no number; enter one" in statuses(page.code(tab, *wishes))[-1]
    assert "no picture is open" in statuses(page.code(_Tab(), *WISHES))[-1].lower()


def test_controls_say_what_is_shown(page):
    tab = _Tab()
    [*opening(page, tab, face(), "face.png")]
    results = page.desk.get(tab.key).results
    _, target, _ = page.choose_aim(tab, "size")
    assert target["value"] == round(results.ours.coded.size / 1000, 1) and "kB" in target["label"]
    size = target["value"] * 1.2
    [*page.code(tab, "size", 50, size, "jpeg", "bpp")]
    made = page.desk.get(tab.key).results.ours.quality
    assert made != 50
    assert "The target is 1e+09 kB" in statuses(page.code(tab, "size", 50, 1e9, "webp", "bpp"))[-1]
    quality, _, status = page.choose_aim(tab, "quality")
    assert quality["value"] == made and "face, 96x96" in status
    assert page.desk.get(tab.key).results.theirs.codec.name == "jpeg"
    [*page.catch_up(tab, "quality", made, None, "webp", "bpp")]
    assert page.desk.get(tab.key).results.theirs.codec.name == "webp"
    assert len([*page.catch_up(tab, "quality", made, None, "webp", "bpp")]) == 1  # there is nothing to do


def test_the_curve_of_a_picture_that_is_gone_is_not_drawn(page):
    tab = _Tab()
    [*opening(page, tab, face(), "face.png")]
    old = page.draw(tab, *WISHES)
    while "svg" not in next(old):
        pass
    [*opening(page, tab, page.desk.get(tab.key).results.ours.coded.data, "face.lalic")]
    assert not any(isinstance(each, str) for each in old)
    assert [*page.draw(tab, *WISHES)] == [""]
