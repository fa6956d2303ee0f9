"""`.lalic` files as training data: our data set under torch's `DataLoader`, and WebDataset's own image handler."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import lalic
import lalic.pillow
from lalic import data as lalic_data
from lalic.data import Pictures
from lalic.errors import BitstreamError, ImageError
from tests.tiny import astronaut, tiny


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture
def folder(tmp_path, model):
    """Three pictures of one size and a grey one of another, in two folders; a file that is not ours."""
    (tmp_path / "b").mkdir()
    for number, name in enumerate(("a.lalic", "b/c.lalic", "d.lalic")):
        (tmp_path / name).write_bytes(lalic.encode(astronaut(64 * number, 0, 64, 48), model))
    (tmp_path / "e.lalic").write_bytes(lalic.encode(astronaut(0, 0, 40, 30).convert("L"), model))
    (tmp_path / "readme.txt").write_text("no picture")
    return tmp_path


def pixels(path, model) -> torch.Tensor:
    return torch.from_numpy(np.array(lalic.decode(path.read_bytes(), model).convert("RGB"))).permute(2, 0, 1)


def test_a_folder_in_the_order_of_its_names(folder, model):
    pictures = Pictures(folder, model=model)
    assert [path.name for path in pictures.files] == ["a.lalic", "c.lalic", "d.lalic", "e.lalic"]
    assert len(pictures) == 4
    for picture, path in zip((pictures[i] for i in range(4)), pictures.files, strict=True):
        assert picture.dtype == torch.uint8 and picture.is_contiguous()
        assert torch.equal(picture, pixels(path, model))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_a_loader(folder, model, workers):
    pictures = Pictures([folder / "d.lalic", folder / "a.lalic", folder / "b/c.lalic"], model=model)
    batches = list(DataLoader(pictures, batch_size=2, num_workers=workers))
    assert [tuple(batch.shape) for batch in batches] == [(2, 3, 48, 64), (1, 3, 48, 64)]
    assert torch.equal(torch.cat(batches), torch.stack([pixels(path, model) for path in pictures.files]))


def test_a_loader_asks_for_whole_batches(folder, model, monkeypatch):
    asked = []

    def decode_many(files, *args, batch, **options):
        asked.append(batch)
        return lalic.decode_many(files, *args, batch=batch, **options)

    monkeypatch.setattr(lalic_data, "decode_many", decode_many)
    for _ in DataLoader(Pictures(folder, lambda picture: picture.size, model=model), batch_size=3, collate_fn=list):
        pass
    assert asked == [3, 1]


def test_a_transform_gets_the_decoded_picture(folder, model):
    assert [picture.mode for picture in Pictures(folder, lambda x: x, model=model)] == ["RGB", "RGB", "RGB", "L"]


def test_faults_name_the_file(folder, model, tmp_path):
    path = folder / "d.lalic"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BitstreamError, match=r"d\.lalic: the file is truncated"):
        next(iter(DataLoader(Pictures(folder, model=model), batch_size=4)))
    with pytest.raises(FileNotFoundError):
        Pictures([folder / "none.lalic"])[0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match=r"expected a folder with \.lalic files"):
        Pictures(tmp_path / "empty")


@pytest.mark.slow
def test_webdataset(folder, model, tmp_path):
    wds = pytest.importorskip("webdataset", reason="needs webdataset")
    source = folder / "a.lalic"
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for name, content in (("1.lalic", source.read_bytes()), ("1.cls", b"7")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    handler = wds.imagehandler("torchrgb8", ["lalic"])
    samples = wds.WebDataset(str(tmp_path / "shard.tar"), shardshuffle=False).decode(handler).to_tuple("lalic", "cls")
    try:
        lalic.pillow.use(model)
        ((picture, label),) = samples
    finally:
        lalic.pillow.use()
    assert label == 7
    assert torch.equal(picture, pixels(source, model))
    assert Image.open(source).format == "LALIC"
