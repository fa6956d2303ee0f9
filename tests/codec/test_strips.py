"""Pictures that Pillow would hold whole, through libvips. The limit is made small, so that pictures can be."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from kinds import KINDS, file, xmp
from PIL import Image, ImageOps, PngImagePlugin
from tiny import astronaut, tiny

from lalic import batch, codec, files, images, search, strips
from lalic.batch import compress_files, decompress_files
from lalic.container import parse
from lalic.errors import BitstreamError, ImageError, LalicError
from lalic.model import LALIC
from lalic.tiles import Box

SIZE = (300, 200)
LIMIT = SIZE[0] * SIZE[1] - 1


@pytest.fixture
def vips(monkeypatch):
    monkeypatch.setattr(strips, "MAX_PIXELS", LIMIT)
    monkeypatch.setattr(codec, "ONE_TILE", 128 * 128)
    monkeypatch.setattr(codec, "TILE", 128)
    return pytest.importorskip("pyvips", reason="libvips needs pyvips", exc_type=ImportError)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_files_are_those_of_pillow(vips, mode, tmp_path, monkeypatch) -> None:
    """The same bytes as through Pillow, and back; whole pictures stay in files."""
    picture = astronaut(0, 0, *SIZE).convert(mode)
    exif = Image.Exif()
    exif[0x010F] = "a scanner"
    picture.save(tmp_path / "a.tif", exif=exif)
    opened = images.open_picture(tmp_path / "a.tif")
    assert (
        isinstance(opened.image, strips.StripImage)
        and opened.alpha is None
        and (opened.image.size, opened.image.mode) == (SIZE, mode)
    )
    assert pixels(opened.image.crop((10, 20, 200, 190))).tolist() == pixels(picture.crop((10, 20, 200, 190))).tolist()
    (done,) = compress_files([tmp_path / "a.tif"], model=tiny())
    assert done.error is None
    data = (tmp_path / "a.lalic").read_bytes()
    (back,) = decompress_files([tmp_path / "a.lalic"], tmp_path / "b.png", tiny())
    assert back.error is None and (back.width, back.height) == SIZE and back.size == (tmp_path / "b.png").stat().st_size
    monkeypatch.setattr(strips, "MAX_PIXELS", 10**9)
    assert codec.encode(tmp_path / "a.tif", tiny()) == data
    with Image.open(tmp_path / "b.png") as found:
        assert found.mode == mode and found.getexif()[0x010F] == "a scanner"
        assert (pixels(found) == pixels(codec.decode(data, tiny()))).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.lalic", "a.tif", "b.png"]


def test_large_files_are_read_part_by_part(vips, tmp_path, monkeypatch) -> None:
    data = codec.encode(astronaut(0, 0, *SIZE), tiny())
    (tmp_path / "a.lalic").write_bytes(data)
    monkeypatch.setattr(batch, "LARGE_FILE", len(data) + 1)
    (back,) = decompress_files([tmp_path / "a.lalic"], tmp_path / "whole.png", tiny())
    assert back.error is None
    monkeypatch.setattr(batch, "LARGE_FILE", len(data) - 1)
    monkeypatch.setattr(batch, "read", None)
    for limit, name in ((LIMIT, "strips.png"), (10**9, "pillow.png")):
        monkeypatch.setattr(strips, "MAX_PIXELS", limit)
        (back,) = decompress_files([tmp_path / "a.lalic"], tmp_path / name, tiny())
        assert back.error is None
        with Image.open(tmp_path / "whole.png") as whole, Image.open(tmp_path / name) as found:
            assert (pixels(found) == pixels(whole)).all()
    (tmp_path / "a.lalic").write_bytes(data[:-1])
    (back,) = decompress_files([tmp_path / "a.lalic"], tmp_path / "b.png", tiny())
    assert "truncated" in str(back.error) and not (tmp_path / "b.png").exists()


def test_colours_orientation_and_depth(vips, tmp_path) -> None:
    values = np.random.default_rng(3).integers(0, 65536, (SIZE[1], SIZE[0]), dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.tif")
    opened = images.open_picture(tmp_path / "deep.tif").image
    assert opened.mode == "L" and (pixels(opened.crop((0, 0, *SIZE))) == (values.astype(int) + 128) // 257).all()
    exif = Image.Exif()
    exif[0x0112] = 6
    astronaut(0, 0, *SIZE).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    assert images.open_picture(tmp_path / "turned.jpg").image.size == SIZE[::-1]
    clear = astronaut(0, 0, *SIZE).convert("RGBA")
    alpha = Image.linear_gradient("L").resize(SIZE)
    clear.putalpha(alpha)
    clear.save(tmp_path / "clear.png")
    (done,) = compress_files([tmp_path / "clear.png"], model=tiny())
    (back,) = decompress_files([tmp_path / "clear.lalic"], tmp_path / "back.png", tiny())
    assert (done.error, back.error) == (None, None)
    with Image.open(tmp_path / "back.png") as found:
        assert found.mode == "RGBA" and found.getchannel("A").tobytes() == alpha.tobytes()
    clear.putalpha(0)
    clear.save(tmp_path / "clear.png")
    white = images.open_picture(tmp_path / "clear.png", background="white").image
    assert (pixels(white.crop((0, 0, *SIZE))) == 255).all()


@pytest.mark.parametrize("name", ["16-bit CMYK TIFF", "wide-gamut JPEG (Display P3)", "phone JPEG, EXIF orientation 6"])
def test_kinds_that_libvips_would_take_otherwise(vips, name, monkeypatch) -> None:
    data = next(kind for kind in KINDS if kind.name == name).make()
    whole = images.open_picture(data)
    monkeypatch.setattr(strips, "MAX_PIXELS", 100)
    opened = images.open_picture(data)
    assert isinstance(opened.image, strips.StripImage) and opened.image.size == whole.image.size
    difference = pixels(opened.image.crop((0, 0, *opened.image.size))) - pixels(whole.image)
    assert np.abs(difference).mean() < (40 if "CMYK" in name else 1)  # without a profile, libvips has one of its own
    assert opened.metadata.keys() == whole.metadata.keys() and opened.metadata.get("e") == whole.metadata.get("e")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_that_of_pillow(vips, orientation, monkeypatch) -> None:
    """Whole and in parts, colours and alpha; libvips reads from top to bottom alone, which takes little memory."""
    picture = astronaut(0, 0, *SIZE).convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize(SIZE))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file(picture, "TIFF", exif=exif)
    accesses = []
    load = vips.Image.new_from_buffer
    monkeypatch.setattr(
        vips.Image,
        "new_from_buffer",
        lambda *args, **options: accesses.append(options["access"]) or load(*args, **options),
    )
    turned = images.open_picture(data)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert accesses == ["sequential"] and isinstance(turned.image, strips.StripImage)
    assert turned.image.size == expected.size
    for box in ((0, 0, *expected.size), (10, 20, 150, 190), (37, 0, 38, 200)):
        assert turned.image.crop(box).tobytes() == expected.convert("RGB").crop(box).tobytes()
        assert turned.alpha.crop(box).tobytes() == expected.getchannel("A").crop(box).tobytes()


def test_the_orientation_of_xmp_is_applied(vips, monkeypatch) -> None:
    data = file(astronaut(0, 0, *SIZE), "JPEG", xmp=xmp(6))
    opened = images.open_picture(data)
    assert opened.image.size == SIZE[::-1] and opened.metadata == {"x": xmp(1)}


@pytest.mark.parametrize("mode", ["I", "F"])
def test_deep_numbers_are_not_cut_off(vips, mode) -> None:
    with pytest.raises(ImageError, match=r"pixels of libvips' format (int|float), expected 8 or 16 bits"):
        images.open_picture(file(Image.new(mode, SIZE, 300), "TIFF"))


def test_pages_and_eps_are_refused_before_libvips_sees_them(vips) -> None:
    page = astronaut(0, 0, *SIZE)
    with pytest.raises(ImageError, match="the file holds 2 frames"):
        images.open_picture(file(page, "TIFF", save_all=True, append_images=[page]))
    with pytest.raises(ImageError, match="EPS files are refused"):
        images.open_picture(file(page, "EPS"))


def test_jpeg_of_strips_is_that_of_pillow(vips, tmp_path) -> None:
    """Quality 95 and no subsampling; alpha is not dropped; what libvips does not write is refused before decoding."""
    rgb = np.asarray(astronaut(0, 0, *SIZE))
    whole = Box(0, 0, *SIZE)
    strips.write_strips([(whole, rgb)], SIZE, str(tmp_path / "a.jpg"))
    other = Image.open(io.BytesIO(images.dump(Image.fromarray(rgb), ".jpg")))
    with Image.open(tmp_path / "a.jpg") as found:
        assert np.abs(pixels(found) - rgb).mean() < 1.01 * np.abs(pixels(other) - rgb).mean()
    clear = np.dstack([rgb, rgb[..., 0]])
    with pytest.raises(ImageError, match=r"^\.jpg files hold no alpha channel"):
        strips.write_strips([(whole, clear)], SIZE, str(tmp_path / "b.jpg"))
    with pytest.raises(ImageError, match=r"^libvips writes no \.bmp files"):
        strips.write_strips(iter(lambda: pytest.fail("decoded"), None), SIZE, str(tmp_path / "b.bmp"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]


def test_what_cannot_be_done_is_said(vips, tmp_path) -> None:
    astronaut(0, 0, *SIZE).save(tmp_path / "a.png")
    broken = (tmp_path / "a.png").read_bytes()
    (tmp_path / "broken.png").write_bytes(broken[: len(broken) // 2])
    with pytest.raises(ImageError, match="damaged or truncated"):
        codec.encode(tmp_path / "broken.png", tiny())
    with pytest.raises(LalicError, match="a target in dB needs the whole picture"):
        search.encode_to_psnr(tmp_path / "a.png", 30, tiny(qualities=3))
    with pytest.raises(ImageError, match="too large to be held whole"):
        images.load(tmp_path / "a.png")
    (tmp_path / "a.lalic").write_bytes(codec.encode(tmp_path / "a.png", tiny()))
    (done,) = decompress_files([tmp_path / "a.lalic"], "-", tiny())
    assert "not written to standard output" in str(done.error)
    os.mkfifo(tmp_path / "pipe")
    (done,) = decompress_files([tmp_path / "a.lalic"], tmp_path / "pipe", tiny())
    assert isinstance(done.error, OSError) and "is not a file" in str(done.error) and (tmp_path / "pipe").is_fifo()
    (done,) = decompress_files([tmp_path / "a.lalic"], tmp_path / "new" / "a.png", tiny())
    assert done.error is None and (tmp_path / "new" / "a.png").is_file()
    (done,) = decompress_files([tmp_path / "a.lalic"], tmp_path / "a.bmp", tiny())
    assert isinstance(done.error, ImageError) and not (tmp_path / "a.bmp").exists()


def test_without_pyvips_there_is_a_sentence(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(strips, "MAX_PIXELS", LIMIT)
    monkeypatch.setitem(sys.modules, "pyvips", None)
    astronaut(0, 0, *SIZE).save(tmp_path / "a.png")
    with pytest.raises(LalicError, match=r"read and written by libvips, which cannot be loaded .*lalic\[large\]"):
        codec.encode(tmp_path / "a.png", tiny())


PROBE = """
import resource, sys
import numpy as np
import pyvips
from lalic.strips import open_strips, write_strips
from lalic.tiles import Box

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

before, part = peak(), np.full((256, 256, 3), 7, np.uint8)
boxes = [Box(x, y, x + 256, y + 256) for y in range(0, 16384, 256) for x in range(0, 4096, 256)]
write_strips(((box, part) for box in boxes), (4096, 16384), sys.argv[1])
written = peak()
image, _ = open_strips(sys.argv[1])
assert all(image.crop(box).getextrema() == ((7, 7),) * 3 for box in boxes)
print(written - before, peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="units of ru_maxrss")
def test_files_of_pixels_are_not_mapped(vips, tmp_path) -> None:
    """Of 192 MiB of pixels, few are in memory at a time. Nothing is left of the file."""
    environment = os.environ | {"TMPDIR": str(tmp_path), "VIPS_CONCURRENCY": "2"}
    command = [sys.executable, "-c", PROBE, str(tmp_path / "a.tif")]
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    written, opened = map(int, out.split())
    assert written < 96 and opened < 96, out
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


@pytest.mark.parametrize("bands", [1, 3, 4])
@pytest.mark.parametrize("size", [(300, 200), (7, 1), (1, 7)])
def test_parts_that_are_written_come_back(vips, size, bands, tmp_path) -> None:
    values = np.random.default_rng(bands).integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
    values = values[..., 0] if bands == 1 else values
    for ending in (".png", ".tif"):
        strips.write_strips([(Box(0, 0, *size), values)], size, str(tmp_path / f"a{ending}"))
        with Image.open(tmp_path / f"a{ending}") as found:
            assert np.array_equal(np.asarray(found), values)


@pytest.mark.parametrize("name", ["16 bits", "grey", "wide gamut"])
@pytest.mark.parametrize("below", ["white", "red"])
def test_a_background_is_below_what_a_viewer_shows(vips, name, below, monkeypatch) -> None:
    """The colour is one of 8 bits and sRGB, whatever the file has."""
    alpha = np.asarray(Image.linear_gradient("L").resize(SIZE))
    if name == "16 bits":
        rgb = np.asarray(astronaut(0, 0, *SIZE)).astype(np.uint16) * 257
        deep = np.dstack([rgb, alpha.astype(np.uint16) * 257])
        data = vips.Image.new_from_array(deep, interpretation="rgb16").write_to_buffer(".png")
    else:
        picture = astronaut(0, 0, *SIZE).convert("L" if name == "grey" else "RGB")
        picture.putalpha(Image.fromarray(alpha))
        profile = next(kind for kind in KINDS if kind.name == "wide-gamut JPEG (Display P3)").make()
        wide = {"icc_profile": Image.open(io.BytesIO(profile)).info["icc_profile"]} if name == "wide gamut" else {}
        data = file(picture, "PNG", **wide)
    found = images.open_picture(data, background=below)
    monkeypatch.setattr(strips, "MAX_PIXELS", 10**9)
    whole = images.open_picture(data, background=below)
    assert isinstance(found.image, strips.StripImage) and found.alpha is None is whole.alpha
    assert found.image.mode == whole.image.mode
    part = (20, 0, 250, SIZE[1])
    assert np.abs(pixels(found.image.crop(part)) - pixels(whole.image.crop(part))).max() <= 3


def test_an_open_file_is_taken(vips) -> None:
    data = file(astronaut(0, 0, *SIZE), "PNG")
    found = images.open_picture(io.BytesIO(data))
    assert isinstance(found.image, strips.StripImage) and found.image.size == SIZE


def test_text_and_resolution(vips, tmp_path) -> None:
    """Text is stored, but libvips does not write it; resolution goes both ways."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Title", "a scan")
    astronaut(0, 0, *SIZE).save(tmp_path / "a.png", pnginfo=info, dpi=(300, 150))
    (done,) = compress_files([tmp_path / "a.png"], model=tiny())
    assert done.error is None and done.warnings == []
    assert parse((tmp_path / "a.lalic").read_bytes(), None).metadata.keys() == {"t", "r"}
    for ending in (".png", ".tif"):
        (back,) = decompress_files([tmp_path / "a.lalic"], tmp_path / f"b{ending}", tiny())
        assert back.error is None and back.warnings == ["text is not written to a picture as large as this one"]
        with Image.open(tmp_path / f"b{ending}") as found:
            assert found.info["dpi"] == pytest.approx((300, 150), abs=0.05)


def test_a_bad_resolution_is_found_before_decoding(vips, tmp_path) -> None:
    with pytest.raises(BitstreamError, match="the box 'r' is invalid"):
        strips.write_strips(iter(lambda: pytest.fail("decoded"), None), SIZE, str(tmp_path / "a.png"), {"r": b"1"})
    assert not list(tmp_path.iterdir())


def test_launches_one_by_one_where_that_is_asked_for(vips, tmp_path, monkeypatch) -> None:
    (tmp_path / "a.lalic").write_bytes(codec.encode(astronaut(0, 0, *SIZE), tiny()))
    asked = []
    coder = LALIC.coder
    monkeypatch.setattr(LALIC, "coder", lambda model, graph=None: asked.append(graph) or coder(model, None))
    (back,) = decompress_files([tmp_path / "a.lalic"], tmp_path / "b.png", tiny(), graph=False)
    assert back.error is None and asked and set(asked) == {False}


def test_pixels_of_a_process_that_was_killed_are_removed(vips, tmp_path, monkeypatch) -> None:
    """They lie in a hidden file that is locked while it is used, as every temporary file beside a target."""
    names = []

    def parts():
        names.extend(path.name for path in tmp_path.iterdir())
        yield Box(0, 0, *SIZE), np.zeros((SIZE[1], SIZE[0]), np.uint8)

    strips.write_strips(parts(), SIZE, str(tmp_path / "a.png"))
    assert len(names) == 1 and names[0].startswith(".") and files._PART in names[0]
    (left := tmp_path / names[0]).write_bytes(b"pixels")
    os.utime(left, (0, 0))
    monkeypatch.setattr(files, "_swept", set())
    strips.write_strips(parts(), SIZE, str(tmp_path / "a.png"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
