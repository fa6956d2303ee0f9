"""Every row of the table in lalic.images."""

from __future__ import annotations

import errno
import io
import os
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from lalic.errors import ImageError
from lalic.images import (
    ImageWarning,
    dump,
    from_tensor,
    load,
    open_picture,
    parse_color,
    readable_extensions,
    save,
    to_tensor,
)


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error", ImageWarning)
        yield


def noise(height=9, width=14, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


RGB = noise()
GREY = noise(channels=1)
OPAQUE = np.full_like(GREY, 255)
HALF = np.where(np.arange(14) < 7, 0, 255).astype(np.uint8) * np.ones((9, 1), np.uint8)


def pixels(source, **options):
    image = load(source, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


def file(image, kind="PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP"])
def test_a_loaded_picture_holds_no_metadata(kind):
    """Pillow's classes of file formats hold texts and tags beside `info`: what is coded next would carry them."""
    texts = PngInfo()
    texts.add_text("Author", "somebody")
    exif = Image.Exif()
    exif[0x8298] = "somebody"
    options = {"pnginfo": texts} if kind == "PNG" else {}
    data = file(Image.fromarray(RGB), kind, exif=exif, dpi=(300, 300), **options)
    assert open_picture(data).metadata
    assert not open_picture(load(data)).metadata
    assert not open_picture(Image.open(io.BytesIO(data)), strip=True).metadata
    assert not open_picture(load(Image.open(io.BytesIO(data)))).metadata


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP", "BMP", "PPM"])
def test_a_picture_is_not_copied_to_be_loaded(kind, monkeypatch):
    data = file(Image.fromarray(RGB), kind)
    monkeypatch.setattr(Image.Image, "copy", None)
    found = open_picture(data).image
    assert type(found) is Image.Image and found.size == Image.fromarray(RGB).size and found.getpixel((0, 0))


def png(width, height, depth, color_type, rows: bytes, extra=b"") -> bytes:
    """A PNG made by hand, for the kinds that Pillow does not write."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def trns(data: bytes) -> bytes:
    return chunk(b"tRNS", data)


def grey_rgb(grey):
    return np.repeat(grey[:, :, None], 3, axis=2)


def refused(source, match, **options):
    with pytest.raises(ImageError, match=match) as caught:
        load(source, **options)
    assert "\n" not in str(caught.value)


# Sources


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_a_path_bytes_and_an_image_are_the_same(kind, tmp_path):
    data = file(Image.fromarray(RGB), kind)
    (tmp_path / "bild ü").write_bytes(data)
    for source in (data, tmp_path / "bild ü", str(tmp_path / "bild ü"), Image.fromarray(RGB)):
        assert (pixels(source) == RGB).all()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "JPEG2000", "GIF"])
def test_other_formats_open(kind):
    assert pixels(file(Image.fromarray(grey_rgb(GREY)).convert("RGB"), kind)).shape == (9, 14, 3)


def test_the_result_is_a_copy():
    image = Image.fromarray(RGB)
    load(image).putpixel((0, 0), (1, 2, 3))
    assert (np.asarray(image) == RGB).all()


def all_modes():
    rgb, grey = Image.fromarray(RGB), Image.fromarray(GREY)
    yield from (rgb.convert(mode) for mode in ("RGB", "RGBX", "L", "1", "P", "CMYK", "YCbCr", "HSV"))
    yield from (with_alpha(HALF), with_alpha(HALF).convert("RGBa"), with_alpha(OPAQUE))
    yield from (Image.merge("LA", [grey, Image.fromarray(HALF)]), Image.fromarray(GREY.astype(np.uint16) * 257))
    yield ImageCms.profileToProfile(
        rgb, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    for image, clear in ((rgb, tuple(map(int, RGB[0, 0]))), (grey, int(GREY[0, 0])), (rgb.quantize(8), 0)):
        image = image.copy()
        image.info["transparency"] = clear
        yield image


@pytest.mark.parametrize("options", [{}, {"background": "white"}, {"background": "red"}])
def test_the_callers_picture_does_not_change(options):
    for image in all_modes():
        for profile in (None, swapped_profile()):
            if profile and image.mode in ("RGB", "RGBA", "L"):
                image.info["icc_profile"] = profile
            before = (image.mode, image.size, dict(image.info), image.tobytes())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                picture = open_picture(image, **options)
            assert before == (image.mode, image.size, dict(image.info), image.tobytes())
            picture.image.putpixel((0, 0), 77 if picture.image.mode == "L" else (1, 2, 3))
            assert before[3] == image.tobytes()
            assert picture.image.info == {} and (not options or picture.alpha is None)


def test_one_pixel():
    assert (pixels(Image.fromarray(RGB[:1, :1])) == RGB[:1, :1]).all()


# Modes


def test_grey_palette_and_one_bit():
    assert (pixels(file(Image.fromarray(GREY))) == grey_rgb(GREY)).all()
    palette = Image.fromarray(RGB).quantize(16)
    assert (pixels(file(palette)) == np.asarray(palette.convert("RGB"))).all()
    bits = Image.fromarray(GREY > 127)
    assert bits.mode == "1" and (pixels(file(bits)) == np.where(GREY > 127, 255, 0)[:, :, None]).all()


def test_cmyk_without_a_profile_takes_the_plain_formula():
    image = Image.fromarray(RGB).convert("CMYK")
    assert (pixels(file(image, "TIFF")) == np.asarray(image.convert("RGB"))).all()


@pytest.mark.parametrize("mode", ["YCbCr", "HSV"])
def test_other_colour_spaces(mode):
    error = np.abs(pixels(Image.fromarray(RGB).convert(mode)).astype(int) - RGB)
    assert error.max() <= 8  # one of 256 hues is up to 6 levels wide, and both ways round


def test_lab():
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(Image.fromarray(RGB), srgb, lab, outputMode="LAB")
    # 8-bit a* and b* are coarse for dark saturated colours; a wrong white point or channel order differs by dozens
    assert np.abs(pixels(file(image, "TIFF")).astype(int) - RGB).mean() < 2


def test_16_bit_grey_rounds():
    values = np.array([[0, 128, 129, 257, 385, 386, 32768, 65407, 65406, 65535]], dtype=np.uint16)
    expected = np.floor(values / 257 + 0.5)[:, :, None] * np.ones(3)
    for kind in ("PNG", "TIFF"):
        data = file(Image.fromarray(values), kind)
        assert (pixels(data) == expected).all()
    assert (pixels(Image.fromarray(values.astype(np.int32))) == expected).all()  # mode I


def test_every_16_bit_value():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.round(values.astype(np.float64) / 257)  # 257 is odd, so that no tie exists
    assert (pixels(Image.fromarray(values))[:, :, 0] == expected).all()


@pytest.mark.parametrize("value", [-1, 65536, 2**31 - 1])
def test_32_bit_integers_beyond_16_bit(value):
    refused(Image.fromarray(np.array([[5, value]], dtype=np.int32)), r"expected 16-bit grey, 0 to 65535")


def test_floating_point():
    refused(Image.fromarray(RGB[:, :, 0].astype(np.float32)), r"floating-point pixels")


# Transparency


def with_alpha(alpha):
    return Image.fromarray(np.dstack([RGB, alpha]))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_opaque_alpha_is_accepted(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    assert (pixels(file(with_alpha(OPAQUE), kind, **options)) == RGB).all()
    assert (pixels(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(OPAQUE)])) == grey_rgb(GREY)).all()


def test_one_transparent_pixel_is_refused():
    alpha = OPAQUE.copy()
    alpha[3, 3] = 254
    refused(with_alpha(alpha), r"transparent pixels.*--background")
    refused(file(with_alpha(alpha)), r"transparent pixels")


@pytest.mark.parametrize(
    ("color", "rgb"), [("white", (255, 255, 255)), ("#102030", (16, 32, 48)), ((1, 2, 3), (1, 2, 3))]
)
def test_a_background_is_laid_below(color, rgb):
    result = pixels(with_alpha(HALF), background=color)
    assert (result[:, 7:] == RGB[:, 7:]).all() and (result[:, :7] == rgb).all()
    grey = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(HALF)])
    result = pixels(grey, background=color)
    assert (result[:, 7:] == grey_rgb(GREY)[:, 7:]).all() and (result[:, :7] == rgb).all()


def test_half_transparent_pixels_blend():
    image = Image.new("RGBA", (2, 2), (200, 100, 0, 128))
    expected = np.array([200, 100, 0]) * (128 / 255) + 255 * (127 / 255)
    assert np.abs(pixels(image, background="white") - expected).max() <= 0.51  # rounded to 8 bit
    premultiplied = image.convert("RGBa")
    assert np.abs(pixels(premultiplied, background="white") - expected).max() <= 1.51  # rounded twice more


def test_a_transparent_palette_entry():
    image = Image.fromarray(RGB).quantize(16)
    refused(file(image, transparency=0), r"transparent pixels")
    result = pixels(file(image, transparency=0), background="red")
    index = np.asarray(image)
    assert (result[index == 0] == (255, 0, 0)).all() and (index == 0).any()
    assert (result[index != 0] == np.asarray(image.convert("RGB"))[index != 0]).all()
    assert (pixels(file(image, transparency=200)) == np.asarray(image.convert("RGB"))).all()  # an entry nobody uses


@pytest.mark.parametrize("mode", ["RGB", "L", "1"])
def test_a_transparent_colour(mode):
    image = Image.new(mode, (4, 3))
    image.paste({"RGB": (9, 9, 9), "L": 9, "1": 1}[mode], (0, 0, 2, 3))
    black = {"RGB": (0, 0, 0), "L": 0, "1": 0}[mode]
    refused(file(image, transparency=black), r"transparent pixels")
    result = pixels(file(image, transparency=black), background="#0000ff")
    assert (result[:, 2:] == (0, 0, 255)).all()
    assert (result[:, :2] == np.asarray(image.convert("RGB"))[:, :2]).all()


def test_a_transparent_16_bit_grey():
    rows = b"\0" + np.array([5 * 257, 7 * 257], dtype=">u2").tobytes()
    data = png(2, 1, 16, 0, rows, trns(struct.pack(">H", 5 * 257)))
    refused(data, r"transparent pixels")
    assert pixels(data, background="white").tolist() == [[[255] * 3, [7] * 3]]
    assert pixels(png(2, 1, 16, 0, rows, trns(struct.pack(">H", 5)))).tolist() == [[[5] * 3, [7] * 3]]


def test_a_palette_with_alpha():
    image = with_alpha(HALF).quantize(16)
    assert image.palette.mode == "RGBA"
    picture = open_picture(image)
    assert (
        picture.image.mode == "RGB" and (np.asarray(picture.alpha) == np.asarray(image.convert("RGBA"))[..., 3]).all()
    )


def test_grey_on_a_coloured_background_is_colour():
    grey = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(HALF)])
    assert open_picture(grey, background="silver").image.mode == "L"
    assert open_picture(grey, background="red").image.mode == "RGB"


@pytest.mark.parametrize("color", ["nonsense", "#12345678", (1, 2), (0, 0, 256), (0.5, 0, 0)])
def test_bad_backgrounds(color):
    with pytest.raises(ImageError, match="background"):
        parse_color(color)


# Frames, orientation, profiles


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_several_frames_are_refused(kind):
    frames = [Image.fromarray(noise(seed=i)) for i in range(3)]
    refused(file(frames[0], kind, save_all=True, append_images=frames[1:]), r"3 frames")


def test_of_a_multi_picture_jpeg_the_main_one_is_taken():
    main, other = (Image.fromarray(grey_rgb(np.full((16, 16), level, np.uint8))) for level in (40, 200))
    data = file(main, "MPO", save_all=True, append_images=[other])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert np.abs(pixels(data).astype(int) - 40).max() <= 2  # JPEG of one flat colour


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(kind, orientation):
    stored = Image.new("RGB", (32, 16), "black")
    stored.paste((255, 255, 255), (0, 0, 16, 8))  # the corner that is stored first
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = pixels(file(stored, kind, exif=exif))
    assert shown.shape == ((16, 32, 3) if orientation <= 4 else (32, 16, 3))
    # EXIF 2.3, tag 274: where the stored first row and first column are shown.
    corner = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "tl", 6: "tr", 7: "br", 8: "bl"}[orientation]
    height, width = shown.shape[:2]
    for name, part in {
        "tl": shown[: height // 2, : width // 2],
        "tr": shown[: height // 2, width // 2 :],
        "bl": shown[height // 2 :, : width // 2],
        "br": shown[height // 2 :, width // 2 :],
    }.items():
        assert (part.mean() > 128) == (name == corner)


def test_damaged_exif_does_not_lose_the_picture():
    rng = np.random.default_rng(1)
    image = Image.fromarray(RGB)
    for _ in range(50):
        tail = rng.integers(0, 256, 40, dtype=np.uint8).tobytes()
        data = file(image, "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x03" + tail)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert sorted(pixels(data).shape) == [3, 9, 14]


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped_profile() -> bytes:
    """The sRGB profile with its red and blue primaries exchanged, so that its effect cannot be missed."""
    data = bytearray(SRGB)
    count = struct.unpack(">I", data[128:132])[0]
    tags = {bytes(data[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, blue = tags[b"rXYZ"], tags[b"bXYZ"]
    data[red : red + 4], data[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(data)


def test_an_srgb_profile_leaves_the_pixels():
    assert (pixels(file(Image.fromarray(RGB), icc_profile=SRGB)) == RGB).all()
    assert (pixels(file(Image.fromarray(GREY), icc_profile=SRGB)) == grey_rgb(GREY)).all()


def test_a_profile_is_applied():
    result = pixels(file(Image.fromarray(RGB), icc_profile=swapped_profile()))
    assert np.abs(result.astype(int) - RGB[:, :, ::-1]).max() <= 2  # lcms works in 8 bit here
    palette = Image.fromarray(RGB).quantize(16)
    result = pixels(file(palette, icc_profile=swapped_profile()))
    assert np.abs(result.astype(int) - np.asarray(palette.convert("RGB"))[:, :, ::-1]).max() <= 2


def test_a_profile_under_transparency():
    data = file(with_alpha(HALF), icc_profile=swapped_profile())
    result = pixels(data, background=(10, 20, 30))
    assert (result[:, :7] == (10, 20, 30)).all()  # the background is sRGB and stays
    assert np.abs(result[:, 7:].astype(int) - RGB[:, 7:, ::-1]).max() <= 2


@pytest.mark.parametrize("profile", [b"junk" * 100, SRGB[:300], SRGB[:-100], b"\0"])
def test_a_broken_profile_is_ignored_with_a_warning(profile):
    data = file(Image.fromarray(RGB), icc_profile=profile)
    with pytest.warns(ImageWarning, match="ICC profile is ignored"):
        assert (pixels(data) == RGB).all()


def test_a_profile_that_does_not_fit_is_ignored_with_a_warning():
    image = Image.fromarray(RGB).convert("CMYK")
    with pytest.warns(ImageWarning, match="RGB profile on a picture of mode CMYK"):
        assert (pixels(file(image, "TIFF", icc_profile=SRGB)) == np.asarray(image.convert("RGB"))).all()


# Damage and limits


def test_no_picture():
    for data in (b"", b"hello", bytes(1000), b"\x89LAL" + bytes(60)):
        refused(data, r"not a picture")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"])
def test_truncated_pictures(kind):
    data = file(Image.fromarray(noise(64, 64)), kind)
    for part in (0.3, 0.6, 0.9):
        refused(data[: int(part * len(data))], r"damaged or truncated|not a picture")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"])
def test_damaged_pictures_are_read_or_refused(kind):
    """Formats without checksums may show noise; nothing but ImageError may come out."""
    data = file(Image.fromarray(noise(40, 40)), kind)
    rng = np.random.default_rng(2)
    for _ in range(60):
        damaged = bytearray(data)
        for position in rng.integers(0, min(len(data), 300), 4):
            damaged[position] ^= 1 << rng.integers(8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert load(bytes(damaged), background="white").mode == "RGB"
                assert open_picture(bytes(damaged)).image.mode in ("RGB", "L")
            except ImageError as error:
                assert "\n" not in str(error)


def test_bombs_are_refused_by_their_header():
    row = b"\0" * (1 + 3 * 100)
    for side in (16385, 100000, 2**31 - 1):
        refused(png(side, side, 8, 2, row), r"too large")


def test_the_pixel_limit():
    assert pixels(Image.fromarray(RGB), max_pixels=9 * 14).shape == (9, 14, 3)
    refused(Image.fromarray(RGB), r"14x9 is 126 pixels, and the limit is 125", max_pixels=125)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
def test_the_limit_of_pillow_does_not_matter(kind, orientation, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file(Image.fromarray(RGB), kind, exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixels(data).size == RGB.size
        with ThreadPoolExecutor(4) as pool:
            assert len(list(pool.map(pixels, 40 * [data]))) == 40
    assert Image.MAX_IMAGE_PIXELS == 10
    refused(data, r"too large", max_pixels=9)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_eps_is_refused():
    refused(file(Image.fromarray(RGB), "EPS"), r"EPS")


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.png")


BROKEN_WHERE_IT_IS_CONVERTED = {
    "a palette PNG without a palette": png(4, 1, 8, 3, b"\0\0\1\2\3"),
    "pixels beyond the palette": png(4, 1, 8, 3, b"\0\0\1\2\3", chunk(b"PLTE", bytes(3)) + trns(bytes(300))),
}


@pytest.mark.parametrize("name", BROKEN_WHERE_IT_IS_CONVERTED)
def test_damage_that_shows_only_in_a_conversion_is_damage(name):
    refused(BROKEN_WHERE_IT_IS_CONVERTED[name], r"^the picture is damaged or truncated")


@pytest.mark.parametrize("mode", ["RGB", "P", "L", "1", "I", "I;16"])
def test_a_transparency_that_is_none(mode):
    image = Image.new(mode, (4, 3))
    image.info["transparency"] = (1, 2, 3, 4, 5)
    refused(image, r"^the picture is damaged or truncated")


def test_too_little_memory_is_no_damage(monkeypatch):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "getchannel", full)
    with pytest.raises(MemoryError):
        open_picture(Image.fromarray(np.dstack([RGB, GREY])))


@pytest.mark.parametrize("source", [0, True, None, 1.5, ["a.png"], io.BytesIO, {}])
def test_what_is_no_source(source):
    """Among them integers, which `open` takes for file descriptors, and would close."""
    with pytest.raises(TypeError, match=f"image is of type {type(source).__name__}, expected a path, the bytes"):
        open_picture(source)


def test_any_buffer_of_bytes_is_a_file():
    data = file(Image.fromarray(RGB))
    for source in (bytearray(data), memoryview(data), memoryview(data[::-1])[::-1]):
        assert np.array_equal(pixels(source), RGB)


def test_a_profile_that_a_png_cannot_give_is_told():
    data = png(1, 1, 8, 2, b"\0\1\2\3", chunk(b"iCCP", b"a profile\0\0no stream of zlib"))
    with pytest.warns(ImageWarning, match=r"the ICC profile is ignored \(it is damaged\)"):
        assert open_picture(data).image.getpixel((0, 0)) == (1, 2, 3)


def grey_tiff(bits: int, photometric: int, rows: bytes, width: int) -> bytes:
    """A TIFF of one row, little-endian."""
    entries = [(256, width), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 1)]
    entries.append((279, len(rows)))
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, 3, 1, v) for tag, v in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(rows)) + rows + directory + bytes(4)


def test_deep_greys_of_a_tiff_by_its_tags():
    """Pillow gives 16 bits as they are stored, also where white is 0, and 12 bits as numbers up to 4095."""
    deep = struct.pack("<4H", 0, 257, 32896, 65535)
    for photometric, expected in ((1, [0, 1, 128, 255]), (0, [255, 254, 127, 0])):
        image = open_picture(grey_tiff(16, photometric, deep, 4)).image
        assert image.mode == "L" and list(image.tobytes()) == expected
    image = open_picture(grey_tiff(12, 1, bytes.fromhex("000010808fff"), 4)).image
    assert list(image.tobytes()) == [0, 1, 128, 255]


# Tensors and writing


def test_tensors_round_trip_exactly():
    every = np.arange(256, dtype=np.uint8)
    image = Image.fromarray(np.stack([every, every[::-1], every * 7], axis=1).reshape(16, 16, 3))
    tensor = to_tensor(image)
    assert tensor.shape == (1, 3, 16, 16) and tensor.dtype == torch.float32 and tensor.is_contiguous()
    assert tensor.min() == 0 and tensor.max() == 1
    assert (np.asarray(from_tensor(tensor)) == np.asarray(image)).all()


def test_from_tensor_clamps_and_rounds_half_up():
    values = torch.tensor([-3.0, 0.499 / 255, 0.5 / 255, 254.6 / 255, 7.0, 1.0], dtype=torch.float64)
    out = from_tensor(values.view(1, 1, 1, 6).expand(1, 3, 1, 6))
    assert np.asarray(out)[0, :, 0].tolist() == [0, 0, 1, 255, 255, 255]


def test_tensors_are_those_of_plain_numpy():
    """To the bit, whatever the layout and dtype: values at, just below and just above each place of rounding."""
    rng = np.random.default_rng(0)
    edges = ((np.arange(256) - 0.5) / 255).astype(np.float32)
    near = np.concatenate([edges, np.nextafter(edges, np.float32(9)), np.nextafter(edges, np.float32(-9))])
    values = torch.from_numpy(
        np.concatenate([near, rng.uniform(-0.1, 1.1, 768).astype(np.float32)]).reshape(1, 3, 16, 32)
    )
    for x in (values, values.contiguous(memory_format=torch.channels_last), values[:, :, 1:9, 3:20], values.bfloat16()):
        scaled = x[0].float().numpy().clip(0, 1) * np.float32(255) + np.float32(0.5)
        found = np.asarray(from_tensor(x))
        assert (found == np.floor(scaled).astype(np.uint8).transpose(1, 2, 0)).all()
        again = to_tensor(Image.fromarray(found))
        assert (again[0].numpy() == found.transpose(2, 0, 1).astype(np.float32) / np.float32(255)).all()


def test_from_tensor_refuses_what_it_cannot_show():
    with pytest.raises(ValueError, match="shape"):
        from_tensor(torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match="finite"):
        from_tensor(torch.full((1, 3, 2, 2), float("nan")))
    for bad in (float("nan"), float("inf"), float("-inf")):
        one = torch.zeros(1, 3, 4, 4)
        one[0, 1, 2, 3] = bad
        with pytest.raises(ValueError, match="finite"):
            from_tensor(one)
    with pytest.raises(ImageError, match="mode L"):
        to_tensor(Image.fromarray(GREY))


@pytest.mark.parametrize("extension", [".png", ".PNG", ".tif", ".bmp", ".webp"])
def test_dump_keeps_the_pixels(extension):
    assert (pixels(dump(Image.fromarray(RGB), extension)) == RGB).all()


def test_dump_writes_jpeg_and_refuses_unknown_extensions():
    assert Image.open(io.BytesIO(dump(Image.fromarray(RGB), ".jpg"))).format == "JPEG"
    for extension in (".xyz", "", ".lalic", ".psd"):
        with pytest.raises(ImageError, match="no picture format"):
            dump(Image.fromarray(RGB), extension)


def test_readable_extensions():
    found = readable_extensions()
    assert {".png", ".jpg", ".jpeg", ".webp", ".tif", ".bmp"} <= found
    assert not found & {".eps", ".ps", ".mpg", ".pdf", ".lalic"}


@pytest.mark.parametrize("extension", [".jpg", ".bmp", ".ppm", ".pgm", ".pcx"])
def test_alpha_is_not_dropped_without_a_word(extension):
    image = Image.fromarray(np.dstack([RGB, HALF]))
    with pytest.raises(ImageError, match=rf"^{extension} files hold no alpha channel"):
        dump(image, extension)
    assert dump(image.convert("RGB"), extension)


@pytest.mark.parametrize("extension", [".png", ".webp", ".tif"])
def test_colours_below_transparent_pixels_are_written_too(extension):
    image = Image.fromarray(np.dstack([RGB, HALF]))
    assert Image.open(io.BytesIO(dump(image, extension))).tobytes() == image.tobytes()


@pytest.mark.parametrize("extension", [".ico", ".icns"])
def test_what_would_be_written_in_another_size(extension):
    with pytest.raises(ImageError, match=r"hold icons of fixed sizes"):
        dump(Image.fromarray(RGB), extension)


@pytest.mark.parametrize("extension", [".png", ".jpg", ".tif", ".jp2", ".webp", ".bmp", ".gif", ".tga", ".sgi"])
def test_a_full_disk_is_an_error_of_the_disk(extension):
    """Pillow's encoder of JPEG 2000 would go on without end."""

    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as caught:
        save(Image.fromarray(RGB), extension, Full())
    assert not isinstance(caught.value, ImageError)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_has_a_name_and_cannot_seek(tmp_path):
    """As what a shell makes of <(command)."""
    out = io.BytesIO()
    Image.fromarray(RGB).save(out, "PNG")
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(out.getvalue(),))
    writer.start()
    picture = open_picture(path)
    writer.join()
    assert np.array_equal(np.asarray(picture.image), RGB)
