"""The option --no-graph, and the argument `graph` of the functions that it calls."""

import numpy as np
import pytest
from PIL import Image
from tiny import tiny

from lalic import codec, search
from lalic.model import LALIC


def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))


def test_it_reaches_both_directions(run, here, monkeypatch):
    picture().save("a.png")
    asked = []
    for name in ("encode", "decode"):
        inner = getattr(codec, name)

        def call(data, model, inner=inner, name=name, **options):
            asked.append((name, options.pop("graph")))
            return inner(data, model, **options)

        monkeypatch.setattr(codec, name, call)
    for words in (["compress", "a.png"], ["decompress", "a.lalic", "-o", "b.png"]):
        assert run(*words, "-f").code == run(*words, "-f", "--no-graph").code == 0
    assert asked == [("encode", None), ("encode", False), ("decode", None), ("decode", False)]


def test_what_a_model_is_asked(monkeypatch):
    """`graph` reaches the model when coding once, at several qualities, and in a search; the bytes are equal."""
    asked, model = [], tiny(qualities=3)
    for name in ("encode", "encode_latents", "decode"):
        inner = getattr(LALIC, name)

        def call(self, *given, inner=inner, name=name, **options):
            asked.append((name, options.get("graph", "nothing")))
            return inner(self, *given, **options)

        monkeypatch.setattr(LALIC, name, call)
    plain, without = (codec.encode(picture(), model, **options) for options in ({}, {"graph": False}))
    assert plain == without and asked == [("encode", None), ("encode", False)]
    asked.clear()
    quality = codec.Prepared(picture(), model).encode(50)
    found = search.encode_to_psnr(picture(), 18.0, model, tolerance=30.0, graph=False)
    assert quality == plain and found.data and len(asked) == 5
    assert asked[1:] == 2 * [("encode_latents", False), ("decode", False)]


def test_a_graph_where_there_can_be_none():
    with pytest.raises(ValueError, match="graph: expected None or False"):
        codec.encode(picture(), tiny(), graph=True)
