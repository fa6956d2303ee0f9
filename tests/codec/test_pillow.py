"""The Pillow plug-in, through Pillow and through the libraries that open pictures with it."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

import lalic
import lalic.pillow
from lalic import codec

PHOTO = Path(lalic.__file__).parent / "assets" / "astronaut.png"


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.open(PHOTO).convert("RGB").crop((100, 50, 229, 147))


@pytest.fixture(scope="module")
def path(photo, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pillow") / "photo.lalic"
    photo.save(path, quality=30)
    return path


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.mode == b.mode and a.size == b.size and a.tobytes() == b.tobytes()


def test_saves_what_encode_writes_and_opens_what_decode_reads(photo, path):
    data = path.read_bytes()
    assert data == lalic.encode(photo, quality=30)
    with Image.open(path) as image:
        assert (image.format, image.get_format_mimetype()) == ("LALIC", "image/x-lalic")
        assert same(image, lalic.decode(data))
        assert image.fp is None  # the file is closed as soon as its pixels are there
    out = io.BytesIO()
    photo.save(out, "LALIC")
    assert out.getvalue() == lalic.encode(photo)
    assert same(Image.open(out).convert("RGB"), lalic.decode(out.getvalue()))


def test_opening_decodes_nothing(path):
    script = (
        f"import sys, lalic.pillow; from PIL import Image; image = Image.open({str(path)!r});"
        "assert (image.size, image.mode) == ((129, 97), 'RGB'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "I;16", "CMYK"])
def test_modes_come_back_by_the_rules_of_pictures(photo, mode):
    if mode == "I;16":
        image = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    else:
        image = photo.convert(mode)
        image.info = {}
    if "A" in mode:
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    out = io.BytesIO()
    image.save(out, "lalic")
    opened = Image.open(out)
    expected = lalic.decode(lalic.encode(image))
    assert opened.mode == expected.mode
    assert same(opened.copy(), expected)


def test_drafts_are_smaller_pictures(path):
    data = path.read_bytes()
    image = Image.open(path)
    assert image.draft("L", (30, 20)) == ("RGB", (0, 0, 129 / 4, 97 / 4))
    assert same(image.copy(), lalic.decode(data, scale=4))
    assert image.draft(None, (1, 1)) is None  # it is decoded

    image = Image.open(path)
    image.draft(None, (30, 20))
    image.draft(None, (129, 97))  # the last one counts
    assert image.size == (129, 97)

    image = Image.open(path)
    image.thumbnail((32, 32))
    assert image.size == (32, 24)
    whole = lalic.decode(data).resize((32, 24), Image.Resampling.BICUBIC)
    difference = np.asarray(image, np.float32) - np.asarray(whole, np.float32)
    assert np.sqrt((difference**2).mean()) < 3  # two ways to reduce the same picture


def test_metadata_goes_through(photo):
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    image = photo.copy()
    image.info = {"exif": exif.tobytes(), "xmp": b"<x:xmpmeta/>", "dpi": (300, 300), "title": "before"}

    def saved(**options) -> Image.Image:
        out = io.BytesIO()
        image.save(out, "LALIC", **options)
        return Image.open(out)

    opened = saved()
    assert opened.getexif()[0x010F] == "a camera"
    assert opened.info["xmp"] == b"<x:xmpmeta/>"
    assert opened.info["dpi"] == (300, 300)
    assert opened.info["title"] == "before"
    exif[0x010F] = "another"
    assert saved(exif=exif).getexif()[0x010F] == "another"
    assert saved(exif=None).getexif().get(0x010F) is None
    assert saved(dpi=(72, 72)).info["dpi"] == (72, 72)
    assert not saved(strip=True).info
    assert image.info["title"] == "before" and image.info["exif"] != exif.tobytes()


def test_pickles_as_other_formats_do(path):
    image = pickle.loads(pickle.dumps(Image.open(path)))
    assert same(image, lalic.decode(path.read_bytes()))


def test_damage_is_an_oserror_of_one_sentence(path, tmp_path):
    data = path.read_bytes()
    with pytest.raises(OSError, match="truncated"):
        Image.open(io.BytesIO(data[:-1]))
    with pytest.raises(OSError, match="checksum does not match"):
        Image.open(io.BytesIO(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]))
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(b"\x89LAX" + data[4:]))
    other = tmp_path / "cut.lalic"
    other.write_bytes(data[:40])
    with pytest.raises(OSError, match="truncated"):
        Image.open(other)


def test_what_cannot_be_saved_leaves_no_file(photo, tmp_path):
    target = tmp_path / "a.lalic"
    with pytest.raises(OSError, match="floating-point pixels"):
        photo.convert("F").save(target)
    with pytest.raises(OSError, match="quality is 101"):
        photo.save(target, quality=101)
    assert not target.exists()


def test_pillows_limit_on_pixels_holds(path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(codec, "MAX_PIXELS", 1000)
    Image.open(path).load()


def test_another_model_codes_where_it_is_chosen(photo, path):
    model = lalic.slim()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "shipped_model", None)  # not to be called
        try:
            lalic.pillow.use(model)
            out = io.BytesIO()
            photo.save(out, "LALIC", quality=30)
            assert out.getvalue() == path.read_bytes()
            assert same(Image.open(out).copy(), lalic.decode(path.read_bytes(), model))
        finally:
            lalic.pillow.use()


def test_a_folder_of_pictures_is_not_compressed_twice():
    assert ".lalic" not in lalic.images.readable_extensions()


# Libraries that open pictures through Pillow


@pytest.mark.slow
def test_imageio(path, photo, tmp_path):
    imageio = pytest.importorskip("imageio.v3", reason="needs imageio")
    expected = np.asarray(lalic.decode(path.read_bytes()))
    assert np.array_equal(imageio.imread(path), expected)
    imageio.imwrite(tmp_path / "a.lalic", np.asarray(photo), quality=30)
    pixels = Image.fromarray(np.asarray(photo))  # imageio knows no metadata
    assert (tmp_path / "a.lalic").read_bytes() == lalic.encode(pixels, quality=30)


@pytest.mark.slow
def test_torchvision_image_folder(path, tmp_path):
    datasets = pytest.importorskip("torchvision.datasets", reason="needs torchvision", exc_type=Exception)
    from torch.utils.data import DataLoader

    for name in ("cat/1", "cat/2", "dog/1"):
        target = tmp_path / f"{name}.lalic"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    expected = np.asarray(lalic.decode(path.read_bytes()))
    folder = datasets.ImageFolder(tmp_path, transform=np.asarray, is_valid_file=lambda name: name.endswith(".lalic"))
    for workers in (0, 2):
        loaded = list(DataLoader(folder, batch_size=None, num_workers=workers))
        assert [label for _, label in loaded] == [0, 0, 1]
        assert all(np.array_equal(pixels, expected) for pixels, _ in loaded)


@pytest.mark.slow
def test_huggingface_datasets(path):
    datasets = pytest.importorskip("datasets", reason="needs datasets")
    table = datasets.Dataset.from_dict({"image": [str(path)] * 2}).cast_column("image", datasets.Image())
    expected = lalic.decode(path.read_bytes())
    assert all(same(row["image"].convert("RGB"), expected) for row in table)
