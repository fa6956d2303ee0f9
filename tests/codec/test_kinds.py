"""The table of real-world kinds of picture: what goes in, and what `open_picture` makes of it."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from kinds import KINDS, Kind
from PIL import Image
from tiny import tiny

from lalic import codec
from lalic.container import parse
from lalic.errors import ImageError, ImageWarning
from lalic.images import dump, load, open_picture

EVERY = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


@EVERY
def test_what_goes_in_and_what_is_compressed(kind: Kind, tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(kind.make())
    if kind.refused:
        with pytest.raises(ImageError, match=kind.refused) as caught:
            open_picture(path)
        assert "\n" not in str(caught.value)
        return
    with warnings.catch_warnings(record=True) as caught_warnings:
        warnings.simplefilter("always")
        picture = open_picture(path)
    messages = [str(warning.message) for warning in caught_warnings if warning.category is ImageWarning]
    assert len(messages) == (kind.warning is not None) and (not messages or kind.warning in messages[0])
    image = picture.image
    assert (image.mode, image.size, image.info) == (kind.mode, kind.size, {})
    assert "".join(picture.metadata) == kind.boxes
    visible = np.ones((image.height, image.width), bool)
    if kind.alpha is None:
        assert picture.alpha is None
    else:
        assert picture.alpha.mode == "L" and (np.asarray(picture.alpha) == kind.alpha()).all()
        visible = kind.alpha() > 0
    if kind.pixels is not None:
        difference = np.abs(np.asarray(image).astype(int) - kind.pixels().astype(int))
        assert difference[visible].max() <= kind.error


@EVERY
def test_load_is_the_same_in_rgb(kind: Kind):
    data = kind.make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImageWarning)
        if kind.refused:
            with pytest.raises(ImageError, match=kind.refused):
                load(data)
            return
        if kind.alpha is not None:
            with pytest.raises(ImageError, match="transparent pixels"):
                load(data)
        flat, stripped = load(data, background="white"), open_picture(data, background="white", strip=True)
    assert flat.mode == "RGB" and flat.info == {}
    assert (stripped.image.mode, stripped.alpha, stripped.metadata) == (kind.mode, None, {})
    assert stripped.image.convert("RGB").tobytes() == flat.tobytes()


@EVERY
def test_what_comes_back(kind: Kind):
    """Through a file: mode, size, alpha to the bit, and metadata where Pillow's users look for it."""
    if kind.refused:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImageWarning)
        data = codec.encode(kind.make(), tiny())
        decoded = codec.decode(data, tiny())
    container = parse(data)
    assert (decoded.mode, decoded.size, "".join(container.metadata)) == (kind.back, kind.size, kind.boxes)
    if kind.alpha is not None:
        assert (np.asarray(decoded.getchannel("A")) == kind.alpha()).all()
    assert ("exif" in decoded.info, "xmp" in decoded.info, "dpi" in decoded.info) == tuple(
        b in kind.boxes for b in "exr"
    )
    again = Image.open(io.BytesIO(dump(decoded, ".png")))
    assert again.size == kind.size and again.mode == kind.back
    assert "".join(open_picture(again).metadata) == kind.boxes.replace("c", "")


def test_the_table_has_the_kinds_that_people_have():
    assert len(KINDS) >= 20 and len({kind.name for kind in KINDS}) == len(KINDS)
