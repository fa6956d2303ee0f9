"""Formats that Pillow reads with another package: registered where it is installed, named where it is not."""

from __future__ import annotations

import importlib
import io
import sys
from types import SimpleNamespace

import pytest
from PIL import Image
from tiny import noise as picture

from lalic import images
from lalic.errors import ImageError

HEADS = {
    "pillow-heif": [
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        b"\0\0\0\x1cftypmif1\0\0\0\0",
        b"\0\0\0\x1cftyphevc\0\0\0\0",
    ],
    "pillow-jxl-plugin": [b"\xff\x0a\xfa\x7f\x01", b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl "],
}


@pytest.fixture(autouse=True)
def fresh():
    images._register_packages.cache_clear()
    yield
    images._register_packages.cache_clear()


@pytest.mark.parametrize(("package", "head"), [(package, head) for package in HEADS for head in HEADS[package]])
def test_the_package_that_is_missing_is_named(monkeypatch, package, head):
    for name in ("pillow_heif", "pillow_jxl"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImageError, match=rf"reads with the package {package}: pip install {package}$"):
        images.load(head * 9)


def test_a_package_that_is_installed_is_used_without_an_import_by_the_user(monkeypatch):
    """A stand-in, which opens the format by taking a PNG behind its head."""
    head = HEADS["pillow-heif"][0]

    def register_heif_opener():
        def open_it(stream, name):
            stream.seek(0)
            return Image.open(io.BytesIO(stream.read()[len(head) :]))

        Image.register_open("LALICTEST", open_it, lambda start: start.startswith(head[:12]))
        Image.register_extension("LALICTEST", ".heic")

    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=register_heif_opener))
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    monkeypatch.setattr(Image, "ID", [*Image.ID])
    for registry in ("OPEN", "EXTENSION"):
        monkeypatch.setattr(Image, registry, dict(getattr(Image, registry)))
    data = head + images.dump(picture(), ".png")
    assert images.load(data).tobytes() == picture().tobytes()  # the file alone
    assert ".heic" in images.readable_extensions()  # in a folder


def test_real_packages(tmp_path):
    found = images._register_packages()
    if not found:
        pytest.skip("neither pillow-heif nor pillow-jxl-plugin is installed")
    for extension in [extension for extension, name in images.PACKAGES.items() if name in found]:
        importlib.invalidate_caches()
        picture(size=(64, 48)).save(tmp_path / f"a{extension}")
        assert images.load(tmp_path / f"a{extension}").size == (64, 48)


def test_a_picture_of_no_known_format_is_not_blamed_on_a_package():
    with pytest.raises(ImageError, match="not a picture in a format that Pillow reads"):
        images.load(b"ftypheic is not at its place")
