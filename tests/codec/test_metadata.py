"""Metadata: from picture files to boxes, and from boxes to picture files."""

from __future__ import annotations

import io
import json
import struct
import warnings

import numpy as np
import pytest
from kinds import EXIF, GREY, RGB, camera_exif, file, phone, wide_gamut_profile, with_alpha, xmp
from PIL import ExifTags, Image, PngImagePlugin, features

from lalic import metadata
from lalic.errors import BitstreamError, ImageWarning
from lalic.images import dump, open_picture


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error", ImageWarning)
        yield


THUMBNAIL = file(RGB.resize((16, 12)), "JPEG")
ALL = {
    "e": camera_exif(),
    "x": xmp(),
    "t": json.dumps({"Author": "A. Photographer", "Title": "ü 图", "comment": "made by hand"}).encode(),
    "r": struct.pack(">II", 3000000, 1500000),
    "c": b"converted to sRGB from Display P3",
}
FORMATS = [".png", ".jpg", ".webp", ".tif"] + [".avif"] * features.check("avif")


def boxes(data: bytes, **options) -> dict[str, bytes]:
    return open_picture(data, **options).metadata


def written(extension: str, metadata_: dict[str, bytes], image: Image.Image = RGB) -> Image.Image:
    """A decoded picture with these boxes, written to a file and opened by Pillow."""
    image = image.copy()
    metadata.attach(image, metadata_)
    out = Image.open(io.BytesIO(dump(image, extension)))
    out.load()
    return out


# EXIF


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_exif_is_kept_to_the_byte_but_for_its_orientation(kind, order, orientation):
    data = file(RGB, kind, exif=EXIF + camera_exif(orientation, order=order))
    assert boxes(data) == {"e": camera_exif(1, order=order)}
    assert boxes(data, strip=True) == {}


def test_the_thumbnail_is_cut_out_and_nothing_else():
    data = boxes(file(RGB, "PNG", exif=EXIF + camera_exif(6, thumbnail=THUMBNAIL)))["e"]
    assert THUMBNAIL[:20] not in data and len(data) < len(camera_exif(thumbnail=THUMBNAIL)) - len(THUMBNAIL) + 1
    with_, without = Image.Exif(), Image.Exif()
    with_.load(data)
    without.load(camera_exif())
    assert not with_.get_ifd(ExifTags.IFD.IFD1)
    for directory in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        found = {k: v for k, v in with_.get_ifd(directory).items() if k != ExifTags.IFD.Interop}
        assert found == {k: v for k, v in without.get_ifd(directory).items() if k != ExifTags.IFD.Interop}
        assert len(found) >= 2
    # One of plain pixels.
    plain = camera_exif(thumbnail=b"plain pixels")
    for tag, other in ((0x0201, 0x0111), (0x0202, 0x0117)):
        plain = plain.replace(struct.pack("<HHI", tag, 4, 1), struct.pack("<HHI", other, 4, 1))
    data = boxes(file(RGB, "PNG", exif=EXIF + plain))["e"]
    assert b"plain pixels" not in data and len(data) == len(plain) - len(b"plain pixels")
    # A thumbnail that points at something else takes nothing away.
    broken = camera_exif(thumbnail=b"no JPEG file")
    assert boxes(file(RGB, "PNG", exif=EXIF + broken))["e"].endswith(b"no JPEG file")


def test_the_colour_space_is_srgb_after_a_conversion():
    exif = camera_exif(color_space=0xFFFF)
    assert boxes(file(RGB, "PNG", exif=EXIF + exif))["e"] == exif
    found = boxes(file(RGB, "PNG", exif=EXIF + exif, icc_profile=wide_gamut_profile()))
    assert found["e"] == camera_exif(color_space=1)
    assert found["c"].startswith(b"converted to sRGB from ")


def test_exif_of_imagemagick_in_a_text_chunk():
    info = PngImagePlugin.PngInfo()
    data = EXIF + camera_exif(6)
    info.add_text("Raw profile type exif", f"\nexif\n{len(data):8}\n{data.hex()}\n")
    picture = open_picture(file(RGB, "PNG", pnginfo=info))
    assert picture.metadata == {"e": camera_exif()} and picture.image.size == RGB.size[::-1]


def test_damaged_exif_is_dropped_or_kept_and_never_raises():
    rng = np.random.default_rng(3)
    sound = camera_exif(6, thumbnail=THUMBNAIL[:100], color_space=2)
    image = RGB.copy()
    kept = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(1000):
            data = bytearray(sound[: rng.integers(len(sound) + 1)] if rng.random() < 0.3 else sound)
            for place in rng.integers(0, max(1, len(data)), 4):
                data[place : place + 1] = bytes((rng.integers(256),))
            image.info = {"exif": EXIF + bytes(data)}
            found = metadata.collect(image, metadata.orientation(image))
            metadata.note_conversion(found, "a profile")
            metadata.describe(found)
            kept += "e" in found
    assert 0 < kept < 1000


def test_a_large_box_is_dropped():
    image = RGB.copy()
    image.info["xmp"] = bytes(2**24 + 1)
    with pytest.warns(ImageWarning, match="XMP data of 16777217 bytes is dropped"):
        assert metadata.collect(image) == {}


# XMP, text, resolution


@pytest.mark.parametrize(
    "form", ['tiff:Orientation="%d"', "tiff:Orientation='%d'", "<tiff:Orientation>%d</tiff:Orientation>"]
)
def test_the_orientation_in_xmp_is_reset(form):
    image = RGB.copy()
    image.info["xmp"] = b"<x " + (form % 6).encode() + b" 6/>"
    assert metadata.collect(image) == {"x": b"<x " + (form % 1).encode() + b" 6/>"}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_xmp_alone_turns_the_picture_too(kind):
    options = {"tiffinfo": {700: xmp(6)}} if kind == "TIFF" else {"xmp": xmp(6)}
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp(6))
        options = {"pnginfo": info}
    picture = open_picture(file(RGB, kind, **options))
    assert picture.image.size == RGB.size[::-1]
    assert b'Orientation="6"' not in picture.metadata["x"] and b"Photographer" in picture.metadata["x"]


def test_comments_that_are_not_utf_8():
    assert json.loads(boxes(file(RGB, "JPEG", comment="größer".encode("latin-1")))["t"]) == {"comment": "größer"}
    assert json.loads(boxes(file(RGB, "JPEG", comment="größer".encode()))["t"]) == {"comment": "größer"}


@pytest.mark.parametrize(
    ("kind", "dpi"), [("JPEG", (300, 300)), ("PNG", (96, 72)), ("TIFF", (600, 599.5)), ("BMP", (72, 72))]
)
def test_the_resolution_is_exact_enough_to_be_written_again(kind, dpi):
    stored = Image.open(io.BytesIO(file(RGB, kind, dpi=dpi))).info["dpi"]
    image = RGB.copy()
    metadata.attach(image, boxes(file(RGB, kind, dpi=dpi)))
    assert image.info["dpi"] == pytest.approx(tuple(map(float, stored)), abs=5.1e-5)
    if kind != "BMP":
        again = Image.open(io.BytesIO(file(image, kind, dpi=image.info["dpi"]))).info["dpi"]
        assert tuple(map(float, again)) == pytest.approx(tuple(map(float, stored)), abs=1e-4)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_the_resolution_turns_with_the_picture(kind):
    data = file(RGB, kind, dpi=(300, 100), exif=EXIF + camera_exif(6))
    assert metadata.describe(boxes(data))["resolution"] in ("100 x 300 dpi", "99.9998 x 299.999 dpi")


@pytest.mark.parametrize(
    "dpi", [(0, 0), (-1, 1), (float("nan"), 1), (float("inf"), 1), (1e9, 1), "300", 300, (1, 2, 3)]
)
def test_a_resolution_without_sense_is_dropped(dpi):
    image = RGB.copy()
    image.info["dpi"] = dpi
    assert metadata.collect(image) == {}


# Writing


@pytest.mark.parametrize("extension", FORMATS)
@pytest.mark.parametrize("image", [RGB, GREY], ids=["RGB", "L"])
def test_every_format_gets_what_it_can_hold(extension, image):
    out = written(extension, ALL, image)
    exif = out.getexif()
    assert exif[ExifTags.Base.Model] == "Canon EOS 5D" and exif.get(ExifTags.Base.Orientation, 1) == 1
    assert exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] == "2023:05:01 09:59:59"
    assert exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] == (52, 31, 0)
    assert out.info["xmp"] == xmp()
    if extension in (".png", ".jpg", ".tif"):
        assert out.info["dpi"] == pytest.approx((300, 150), abs=0.02)
    if extension == ".png":
        assert out.text == {
            "XML:com.adobe.xmp": xmp().decode(),
            "Author": "A. Photographer",
            "Title": "ü 图",
            "Comment": "made by hand",
        }
        assert out.info["srgb"] == 0
    if extension == ".jpg":
        assert out.info["comment"] == b"made by hand"
    if extension in (".png", ".jpg", ".webp"):
        assert out.info["exif"].removeprefix(EXIF) == ALL["e"]
    if extension in (".png", ".webp", ".tif"):
        assert out.convert("RGB").tobytes() == image.convert("RGB").tobytes()


@pytest.mark.parametrize("extension", [".png", ".webp", ".tif"])
def test_a_picture_with_alpha_keeps_its_metadata(extension):
    alpha = np.arange(RGB.width * RGB.height).reshape(RGB.height, RGB.width).astype(np.uint8) | 1
    out = written(extension, ALL, with_alpha(alpha))
    assert out.mode == "RGBA" and (np.asarray(out)[..., 3] == alpha).all() and out.info["xmp"] == xmp()


@pytest.mark.parametrize("extension", [".png", ".jpg", ".webp", ".tif"])
def test_boxes_come_back_from_the_file_that_was_written(extension):
    image = RGB.copy()
    metadata.attach(image, ALL)
    found = boxes(dump(image, extension))
    assert found["x"] == ALL["x"]
    assert metadata.describe(found)["camera"] == "Canon EOS 5D"
    assert extension == ".tif" or found["e"] == ALL["e"]
    assert boxes(image) == {letter: found for letter, found in ALL.items() if letter != "c"} | {"t": boxes(image)["t"]}
    assert json.loads(boxes(image)["t"]) == json.loads(ALL["t"])
    assert image.text == json.loads(ALL["t"]) and image.info["Author"] == "A. Photographer"


@pytest.mark.parametrize("extension", [*FORMATS, ".gif", ".bmp", ".ppm"])
def test_a_picture_without_metadata_and_formats_that_hold_none(extension):
    assert written(extension, {}).size == written(extension, ALL).size == RGB.size


@pytest.mark.parametrize(
    ("letter", "contents", "name"), [("e", camera_exif() + bytes(65536), "EXIF"), ("x", bytes(65536), "XMP"),
                                     ("t", json.dumps({"comment": 65534 * "a"}).encode(), "comment")]
)  # fmt: skip
def test_what_does_not_fit_into_a_jpeg_is_dropped(letter, contents, name):
    with pytest.warns(ImageWarning, match=f"{name}.* does not fit into a JPEG file"):
        out = written(".jpg", ALL | {letter: contents})
    assert ("exif" in out.info, "xmp" in out.info, "comment" in out.info) == tuple(letter != other for other in "ext")
    assert written(".png", ALL | {letter: contents}).size == RGB.size


@pytest.mark.parametrize("extension", FORMATS)
def test_damaged_exif_in_a_box_does_not_lose_the_picture(extension):
    rng = np.random.default_rng(4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for data in (b"", b"II*\0", b"junk" * 9, camera_exif()[:60], *(rng.bytes(80) for _ in range(3))):
            assert written(extension, {"e": data}).size == RGB.size
        # A number where a text belongs: Pillow reads it, and cannot write it.
        number = b"II*\0" + struct.pack("<IHHHIfI", 8, 1, 0x010F, 11, 1, 1.5, 0)
        assert written(extension, {"e": number}).size == RGB.size
        for _ in range(30):
            data = bytearray(camera_exif())
            for place in rng.integers(8, len(data), 6):
                data[place] = rng.integers(256)
            assert written(extension, {"e": bytes(data)}).size == RGB.size


@pytest.mark.parametrize("extension", FORMATS)
def test_a_text_named_like_an_entry_of_pillow_stays_a_text(extension):
    texts = dict.fromkeys(("transparency", "icc_profile", "dpi", "exif", "compression", "loop"), "text")
    out = written(extension, {"t": json.dumps(texts).encode()})
    assert out.size == RGB.size and (extension != ".png" or out.text == texts)


@pytest.mark.parametrize("extension", [*FORMATS, ".gif", ".tga", ".jp2", ".bmp", ".sgi"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_text_named_like_an_option_of_a_writer_is_none(extension, mode):
    """Some of Pillow's writers look for their options in `info`."""
    names = ("palette", "id_section", "orientation", "rle", "quality", "save_all", "disposal", "bpp", "photoshop")
    image = RGB if mode == "RGB" else with_alpha(np.asarray(GREY))
    if (extension, mode) in ((".jpg", "RGBA"), (".bmp", "RGBA")):
        return
    out = written(extension, {"t": json.dumps(dict.fromkeys(names, "text")).encode()}, image)
    assert out.size == RGB.size


def test_the_comment_and_the_resolution_of_other_formats():
    for extension in (".gif", ".jp2"):
        assert written(extension, ALL).info["comment"] == b"made by hand"
    assert [round(dpi) for dpi in written(".bmp", ALL).info["dpi"]] == [300, 150]


def test_texts_that_a_png_cannot_hold():
    for key in ("", 80 * "k", "图", "a\nb"):
        with pytest.warns(ImageWarning, match="as a PNG file cannot hold it"):
            assert written(".png", {"t": json.dumps({key: "x", "b": "y"}).encode()}).text == {"b": "y"}


# Boxes made on purpose


@pytest.mark.parametrize(
    ("letter", "contents"),
    [("t", contents) for contents in (b"", b"\xff", b"[]", b"1", b'{"a": 1}', b'{"a": null}', b'{"a": {}}',
                                      b'{"a": "b"', b"[" * 10**5, b"1" * 5000, b'{"a": "\\ud800"}',
                                      b'{"\\udfff": "a"}')]
    + [("r", contents) for contents in (b"", bytes(7), bytes(8), bytes(9), b"\0\0\0\1" + bytes(4))],
)  # fmt: skip
def test_invalid_boxes_are_refused(letter, contents):
    for function in (metadata.describe, lambda boxes: metadata.attach(RGB.copy(), boxes)):
        with pytest.raises(BitstreamError, match=f"the box '{letter}' is invalid") as caught:
            function({letter: contents})
        assert "\n" not in str(caught.value)


def test_texts_without_end():
    """Each takes some hundred bytes of memory, however short it is."""
    many = {f"{i:x}": "" for i in range(2**16 + 1)}
    with pytest.raises(BitstreamError, match="it has 65537 texts, expected at most 65536"):
        metadata.describe({"t": json.dumps(many).encode()})
    image = RGB.copy()
    image.text = many
    with pytest.warns(ImageWarning, match="65537 texts are dropped; the limit is 65536"):
        assert open_picture(image).metadata == {}
    image.text = dict(list(many.items())[1:])
    assert len(json.loads(open_picture(image).metadata["t"])) == 2**16


# For people


def test_describe():
    assert metadata.describe(ALL) == {
        "exif_bytes": len(ALL["e"]),
        "camera": "Canon EOS 5D",
        "date": "2023:05:01 09:59:59",
        "gps": True,
        "xmp_bytes": len(ALL["x"]),
        "text": {"Author": "A. Photographer", "Title": "ü 图", "comment": "made by hand"},
        "resolution": "300 x 150 dpi",
        "colour": "converted to sRGB from Display P3",
    }
    assert metadata.describe({}) == {}
    assert list(metadata.describe(boxes(phone()))) == ["exif_bytes", "camera", "date", "gps", "xmp_bytes", "resolution"]


def test_describe_gives_no_control_characters_and_no_long_texts():
    found = metadata.describe({"t": json.dumps({"a\x1b[2J": "b\n\x07" + 10**6 * "c"}).encode(), "c": b"\x1b\xff" * 500})
    for text in [*found["text"], *found["text"].values(), found["colour"]]:
        assert text.isprintable() and len(text) <= 200
    assert metadata.describe({"e": b"junk"}) == {"exif_bytes": 4}
