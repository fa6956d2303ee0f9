"""Options that choose how a picture is coded: a quality or a target, the precision, no CUDA graphs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from tiny import noise, save, tiny

import lalic
from lalic import codec, search
from lalic.metrics import psnr
from lalic.model import LALIC


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
    assert any(line.endswith(f"100x80, quality {quality:g}, one tile") for line in run("info", "a.lalic").out)
    assert run("decompress", "a.lalic", "-o", "b.png").code == 0


def test_targets_are_met(run, photo):
    assert run("compress", "a.png", "--target-bpp", "2").code == 0
    assert entry(run)["bits_per_pixel"] == pytest.approx(2, rel=0.01)
    assert run("compress", "a.png", "-f", "--target-psnr", "22").code == 0
    assert run("decompress", "a.lalic", "-o", "b.png").code == 0
    assert psnr(photo, Image.open("b.png")) == pytest.approx(22, abs=0.05)


def test_out_of_reach_names_the_range(run, photo):
    done = run("compress", "a.png", "-q", "0")
    assert done.code == 2 and "expected 1 to 100" in done.err[0]
    done = run("compress", "a.png", "--target-psnr", "200")
    assert done.code == 1 and "qualities 1 to 100" in done.err[0] and done.err[0].startswith("lalic: a.png: ")


def test_a_model_of_one_quality(run, photo, monkeypatch):
    monkeypatch.setattr(lalic, "slim", lambda pretrained: tiny(), raising=False)
    done = run("compress", "a.png", "--target-bpp", "1")
    assert done.code == 1 and "cannot meet a target" in done.err[0]
    assert run("compress", "a.png").code == 0
    assert entry(run)["quality"] is None


# Precision and graphs


@pytest.fixture
def calls(here, monkeypatch):
    """(name, model, options) of the calls of codec.encode and codec.decode; a.png is a picture."""
    found = []
    for name in ("encode", "decode"):
        inner = getattr(codec, name)

        def call(data, model, inner=inner, name=name, **options):
            found.append((name, model, options))
            return inner(data, model, **options)

        monkeypatch.setattr(codec, name, call)
    noise().save("a.png")
    return found


def test_precision_reaches_a_model_of_its_own(run, here, calls):
    assert run("compress", "a.png", "--precision", "bfloat16").code == 0
    other = save(here / "other.pth", tiny())  # of another name, so that the file is refused
    words = ("decompress", "a.lalic", "-o", "b.png", "--precision", "float16")
    assert run(*words, "--checkpoint", other).code == 1
    assert run(*words).code == 0
    assert [model.precision for _, model, _ in calls] == ["bfloat16", "float16", "float16"]
    assert codec._cache == {}  # the shared model is not the one that was changed


def test_no_graph_reaches_both_directions(run, calls):
    for words in (["compress", "a.png"], ["decompress", "a.lalic", "-o", "b.png"]):
        assert run(*words, "-f").code == run(*words, "-f", "--no-graph").code == 0
    assert [(name, options["graph"]) for name, _, options in calls] == [
        ("encode", None), ("encode", False), ("decode", None), ("decode", False)
    ]  # fmt: skip


def test_what_a_model_is_asked(monkeypatch):
    """`graph` reaches the model when coding once, at several qualities, and in a search; the bytes are equal."""
    asked, model = [], tiny(qualities=3)
    for name in ("encode", "encode_latents", "decode"):
        inner = getattr(LALIC, name)

        def call(self, *given, inner=inner, name=name, **options):
            asked.append((name, options.get("graph", "nothing")))
            return inner(self, *given, **options)

        monkeypatch.setattr(LALIC, name, call)
    plain, without = (codec.encode(noise(), model, **options) for options in ({}, {"graph": False}))
    assert plain == without and asked == [("encode", None), ("encode", False)]
    asked.clear()
    quality = codec.Prepared(noise(), model).encode(50)
    found = search.encode_to_psnr(noise(), 18.0, model, tolerance=30.0, graph=False)
    assert quality == plain and found.data and len(asked) == 5
    assert asked[1:] == 2 * [("encode_latents", False), ("decode", False)]


def test_a_graph_where_there_can_be_none():
    with pytest.raises(ValueError, match="graph: expected None or False"):
        codec.encode(noise(), tiny(), graph=True)
