"""The option --precision."""

import numpy as np
from PIL import Image
from tiny import save, tiny

from lalic import codec


def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))


def test_precision_reaches_a_model_of_its_own(run, here, monkeypatch):
    picture().save("a.png")
    used = []
    for name in ("encode", "decode"):
        inner = getattr(codec, name)
        monkeypatch.setattr(
            codec, name, lambda data, model, inner=inner, **more: used.append(model) or inner(data, model, **more)
        )
    assert run("compress", "a.png", "--precision", "bfloat16").code == 0
    other = save(here / "other.pth", tiny())  # of another name, so that the file is refused
    assert run("decompress", "a.lalic", "-o", "b.png", "--precision", "float16", "--checkpoint", other).code == 1
    assert run("decompress", "a.lalic", "-o", "b.png", "--precision", "float16").code == 0
    assert [model.precision for model in used] == ["bfloat16", "float16", "float16"]
    assert codec._cache == {}  # the shared model is not the one that was changed
    assert run("compress", "a.png", "--precision", "int8").code == 2
