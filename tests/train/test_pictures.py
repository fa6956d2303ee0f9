"""Pictures to train on: opened as for coding, in bounded memory; those that cannot be read are named and left out."""

from __future__ import annotations

import io
import tarfile
import tempfile
import warnings

import numpy as np
import pytest
from PIL import Image

from lalic import images
from lalic.cli import main
from lalic.errors import ImageError, ImageWarning
from lalic.memory import Kept
from lalic.train import Recipe, train
from lalic.train.data import Crops
from scripts import held_out
from tests.codec.kinds import KINDS


def noise(seed: int, side: int = 70) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8))


@pytest.fixture
def five(tmp_path):
    """Five pictures of noise, and a truncated JPEG between them."""
    folder = tmp_path / "five"
    folder.mkdir()
    for i in range(5):
        noise(i).save(folder / f"{i}.png")
    out = io.BytesIO()
    noise(9, 300).save(out, "JPEG")
    (folder / "2b.jpg").write_bytes(out.getvalue()[:9000])
    return folder


def tar_of(folder, path, mode="w"):
    with tarfile.open(path, mode) as tar:
        for file in sorted(folder.iterdir(), reverse=True):
            tar.add(file, file.name)
    return path


def batch(crops, count=40):
    """Crops of every picture, each with its eight orientations sorted out: (count, 3) sums of channels."""
    return crops.first(count).sum((2, 3))


def test_every_kind_is_opened_as_for_coding(tmp_path):
    """By folder and by tar; what coding refuses is named and left out."""
    taken = {}
    for number, kind in enumerate(KINDS):
        path = tmp_path / "kinds" / f"{number:03d}.png"  # the content decides, not the name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(kind.make())
        if not kind.refused:
            with warnings.catch_warnings(action="ignore"):
                taken[path.name] = np.asarray(images.open_picture(path).image.convert("RGB"))
    for paths in (tmp_path / "kinds", tar_of(tmp_path / "kinds", tmp_path / "kinds.tar")):
        crops = Crops([paths], 64, 1, seed=1)
        sources = crops._train + crops._held_out
        assert len(sources) == len(KINDS)
        with pytest.warns(ImageWarning) as caught:
            found = {s.path.name if s.size < 0 else s.name[-7:]: list(crops._readable([s])) for s in sources}
        for name, pixels in found.items():
            assert len(pixels) == (name in taken)
            if pixels:
                assert np.array_equal(pixels[0], taken[name])
        left_out = {
            str(w.message).split(" is left out: ")[0][-7:] for w in caught if " is left out: " in str(w.message)
        }
        assert left_out == found.keys() - taken.keys()


def test_sixteen_bit_grey_does_not_turn_white(tmp_path):
    ramp = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (256, 1))
    for i in range(2):
        Image.fromarray(ramp).save(tmp_path / f"{i}.png")
    levels = Crops([tmp_path], 256, 1, seed=1)[0].unique() * 255
    assert len(levels) == 256 and levels.diff().max() < 1.5


def test_formats_are_those_of_coding(tmp_path):
    for extension in (".png", ".avif", ".jp2", ".tga"):
        noise(1).save(tmp_path / f"a{extension}")
    (tmp_path / "notes.txt").write_text("no picture")
    crops = Crops([tmp_path], 64, 1, seed=1)
    assert len(crops) + len(crops.held_out_sources()) == 4
    assert len(Crops([tmp_path / "a.avif"], 64, 1, seed=1)) == 1


def test_a_damaged_picture_is_named_and_replaced(five, tmp_path):
    """In place of it comes the next one in the order, so that batches depend on seed and number alone."""
    crops = Crops([five], 64, 2, seed=1)
    with pytest.warns(ImageWarning, match=r"2b\.jpg is left out: the picture is damaged or truncated") as caught:
        whole = [crops[i] for i in range(10)]
    assert len(caught) == 1  # once, though it had its turn several times
    again = Crops([five], 64, 2, seed=1, keep_mib=0)
    with pytest.warns(ImageWarning, match=r"2b\.jpg"):
        for i in (7, 3):
            assert again[i].equal(whole[i])


def test_held_out_pictures_that_are_damaged(five):
    crops = Crops([five], 64, 2, seed=1, hold_out=3)  # 0.png and 2b.jpg
    assert [source.path.name for source in crops.held_out_sources()] == ["0.png", "2b.jpg"]
    with pytest.warns(ImageWarning, match=r"2b\.jpg"):
        assert len(crops.held_out(2)) == 1


def test_nothing_but_damage(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"no picture")
    with pytest.warns(ImageWarning), pytest.raises(ImageError, match="none of 2 pictures to train on can be read"):
        Crops([tmp_path], 64, 2, seed=1)[0]


def test_a_file_that_comes_back_is_read_again(five):
    """A disk or network that fails for a while does not take a picture out of the rest of a run."""
    wanted = batch(Crops([five / "0.png"], 64, 1, seed=1))
    crops = Crops([five / "0.png"], 64, 1, seed=1)
    (five / "0.png").rename(five / "away")
    with pytest.warns(ImageWarning, match=r"0\.png: No such file"), pytest.raises(ImageError, match="none of 1"):
        crops[0]
    (five / "away").rename(five / "0.png")
    assert batch(crops).equal(wanted)


def test_tars_are_not_read_whole(five, tmp_path):
    (five / "2b.jpg").unlink()
    (five / "._0.png").write_bytes(b"what another system adds")
    wanted = Crops([five], 64, 4, seed=1)[3]
    for name, mode in (("a.tar", "w"), ("a.tgz", "w:gz"), ("a.tar.xz", "w:xz"), ("a.tar.bz2", "w:bz2")):
        crops = Crops([tar_of(five, tmp_path / name, mode)], 64, 4, seed=1)
        assert crops[3].equal(wanted)
        assert all(source.name.startswith(f"{tmp_path / name}/") for source in crops.held_out_sources())
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:20000])
    with pytest.raises(ImageError, match=r"a\.tar: the tar is damaged"):
        Crops([tmp_path / "a.tar"], 64, 4, seed=1)
    (tmp_path / "a.tgz").write_bytes((tmp_path / "a.tgz").read_bytes()[:20000])
    with pytest.raises(ImageError, match=r"a\.tgz: the tar is damaged"):
        Crops([tmp_path / "a.tgz"], 64, 4, seed=1)


def test_links_in_tars_are_followed(five, tmp_path):
    """tar writes the second name of a file as a link to the first."""
    (five / "2b.jpg").unlink()
    (five / "5.png").hardlink_to(five / "0.png")
    (five / "more").mkdir()
    (five / "more" / "6.png").symlink_to("../1.png")
    wanted = Crops([five], 64, 6, seed=1)
    for name, mode in (("a.tar", "w"), ("a.tgz", "w:gz")):
        with tarfile.open(tmp_path / name, mode) as tar:
            tar.add(five, ".")
        crops = Crops([tmp_path / name], 64, 6, seed=1)
        assert len(crops) == len(wanted) == 6 and crops[0].equal(wanted[0])
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        tar.add(five / "0.png", "0.png")
        link = tarfile.TarInfo("1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "1.png"
        tar.addfile(link)
    with pytest.warns(ImageWarning, match=r"b\.tar/1\.png is left out: it is no file in the tar, and no link to one"):
        assert len(Crops([tmp_path / "b.tar"], 64, 1, seed=1)) == 1


def test_temporary_files_are_for_compressed_tars_alone(five, tmp_path, monkeypatch):
    """They go with what reads them. Without them a folder for temporary files is not needed."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    crops = Crops([tar_of(five, tmp_path / "a.tgz", "w:gz")], 64, 1, seed=1)
    assert len(list((tmp_path / "temporary").iterdir())) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del crops
    assert list((tmp_path / "temporary").iterdir()) == []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    Crops([five, tar_of(five, tmp_path / "a.tar")], 64, 1, seed=1)


def test_kept_pictures_have_a_limit(tmp_path, monkeypatch):
    """Two of four of 300 KiB fit; which ones are kept changes nothing but how often a file is read."""
    for i in range(5):
        noise(i, 320).save(tmp_path / f"{i}.png")
    opened = []
    original = images.open_picture
    monkeypatch.setattr(images, "open_picture", lambda data, **o: opened.append(len(data)) or original(data, **o))
    batches = []
    for keep, most in ((0, 0), (1, 1 << 20), (1024, 1 << 30)):
        crops = Crops([tmp_path], 64, 4, seed=1, keep_mib=keep)
        batches.append([crops[i] for i in range(3)])
        kept = crops._kept._values.values()
        assert sum(pixels.nbytes for pixels in kept) <= most
        assert len(opened) == 4 + 2 * (4 - len(kept))  # each in the first epoch, then those that are not kept
        opened.clear()
    assert all(a.equal(b) and a.equal(c) for a, b, c in zip(*batches, strict=True))


def test_kept_values_are_the_first_that_fit():
    kept, made = Kept(10, len), []

    def get(key):
        return kept.get(key, lambda: made.append(key) or key)

    for key in ("aaaa", "bbbbb", "cccc", "d", "aaaa", "bbbbb", "cccc", "d"):
        assert get(key) == key
    assert made == ["aaaa", "bbbbb", "cccc", "d", "cccc"]


def test_a_held_out_picture_of_the_size_of_a_crop_warns_about_nothing(tmp_path):
    """As torch does of arrays that may not be written to, which Pillow's are."""
    for i in range(2):
        noise(i, 64).save(tmp_path / f"{i}.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (crop,) = Crops([tmp_path], 64, 1, seed=1).held_out(1)
        Crops([tmp_path], 64, 1, seed=1)[0].add_(1)
    assert crop.shape == (1, 3, 64, 64)


def test_one_picture_is_trained_on_and_not_held_out(five):
    crops = Crops([five / "0.png"], 64, 2, seed=1)
    assert len(crops) == 1 and crops.held_out(1) == [] and crops[0].shape == (2, 3, 64, 64)


def test_the_command_names_a_damaged_picture_and_goes_on(five, tmp_path, capsys, one_thread):
    words = ["--steps", "4", "--batch", "4", "--patch", "64", "--threads", "1", "--qualities", "0", "--keep-mib", "0"]
    shape = tmp_path / "shape.json"
    shape.write_text(
        '{"N": 3, "M": 8, "dims": [48, 9, 8, 8, 6, 5], "depths": [1, 0, 0, 0], "groups": [3, 5], '
        '"aggregation_widths": [6], "context_width": 9}'
    )
    assert main(["train", str(five), "-o", str(tmp_path / "run"), "--model", str(shape), *words]) == 0
    out, err = capsys.readouterr()
    assert "step 4 " in out
    (line,) = err.splitlines()
    assert line.startswith(f"lalic: warning: {five / '2b.jpg'} is left out: the picture is damaged or truncated")
    with pytest.raises(ValueError, match="keep_mib: expected at least 0, got -1"):
        train(five, tmp_path / "run", Recipe(), keep_mib=-1)


def test_held_out_files_are_opened_as_for_coding(tmp_path, capsys):
    """16 bits are rounded, and what is damaged is named."""
    (tmp_path / "in").mkdir()
    Image.fromarray(np.full((80, 80), 30000, np.uint16)).save(tmp_path / "in" / "0.png")
    for i in range(1, 101):
        (tmp_path / "in" / f"{i:03d}.png").write_bytes(b"no picture")
    assert held_out.main([str(tmp_path / "in"), "-o", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert out.endswith("out: 1 pictures\n") and err.count(" is left out: ") == 2
    with Image.open(tmp_path / "out" / "000-0.png") as picture:
        assert picture.getpixel((0, 0)) == (117, 117, 117)
