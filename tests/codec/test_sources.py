"""What `encode`, `decode` and a model take: paths, bytes, files, pictures, arrays, tensors, values in [0, 1]."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import noise, tiny

import lalic
from lalic import container, images


def encode(source: object) -> bytes:
    return lalic.encode(source, model=tiny())


def test_every_form_of_a_picture_gives_the_same_file(tmp_path: Path) -> None:
    picture = noise()
    picture.save(tmp_path / "a.png")
    expected, contents = encode(picture), (tmp_path / "a.png").read_bytes()
    array = np.asarray(picture)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    with open(tmp_path / "a.png", "rb") as file:
        sources = {
            "path": tmp_path / "a.png", "name": str(tmp_path / "a.png"), "bytes": contents,
            "view": memoryview(contents),
            "array of bytes": bytearray(contents), "file": file, "memory file": io.BytesIO(contents), "array": array,
            "strided array": np.asfortranarray(array), "tensor": tensor, "batch": tensor[None],
            "float": tensor / 255, "double": tensor.double() / 255, "with gradient": (tensor / 255).requires_grad_(),
        }  # fmt: skip
        for name, source in sources.items():
            assert encode(source) == expected, name
        assert not file.closed


def test_channels_of_arrays_and_tensors() -> None:
    grey, alpha = noise().convert("L"), noise(mode="RGBA")
    for picture in (grey, alpha):
        array = np.asarray(picture)
        tensor = torch.from_numpy(array.copy())
        tensor = tensor[None] if picture is grey else tensor.permute(2, 0, 1)
        assert encode(array) == encode(tensor) == encode(picture)
        assert lalic.decode(encode(array), model=tiny()).mode == picture.mode


@pytest.mark.parametrize(
    "source",
    [
        np.zeros((4, 4, 3)), np.zeros((4, 4, 3), np.uint16), np.zeros((2, 4, 4, 3), np.uint8), np.zeros(7, np.uint8),
        np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 2), np.uint8), torch.zeros(2, 3, 4, 4), torch.zeros(5, 4, 3),
        torch.rand(3, 8, 8) * 255, torch.rand(3, 8, 8) * 2 - 1, torch.full((3, 8, 8), torch.nan), torch.zeros(3, 4, 0),
        torch.zeros(3, 4, 4, dtype=torch.int64), torch.zeros(5),
    ],
)  # fmt: skip
def test_other_arrays_and_tensors_are_refused(source: np.ndarray | torch.Tensor) -> None:
    with pytest.raises(lalic.ImageError, match=r"^image: expected (an array|a tensor) .*, got ") as caught:
        encode(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", [None, 3, ["a.png"], io.StringIO("text"), object()], ids=lambda x: type(x).__name__)
def test_what_is_no_picture_and_no_file_is_named(source: object) -> None:
    with pytest.raises(TypeError, match=r"^image is "):
        encode(source)
    with pytest.raises(
        TypeError, match=r"^data is .*, expected the bytes of a \.lalic file, its path or a binary file"
    ):
        lalic.decode(source)


def test_every_form_of_a_file_gives_the_same_picture(tmp_path: Path) -> None:
    data = encode(noise())
    path = tmp_path / "a.lalic"
    path.write_bytes(data)
    expected = lalic.decode(data, model=tiny()).tobytes()
    with path.open("rb") as file:
        sources = [path, str(path), bytearray(data), memoryview(data), np.frombuffer(data, np.uint8), file]
        for source in sources:
            assert lalic.decode(source, model=tiny()).tobytes() == expected
    many = lalic.decode_many([path, io.BytesIO(data), data], model=tiny())
    assert [picture.tobytes() for picture in many] == [expected] * 3
    assert container.parse(path) == container.parse(data)
    with pytest.raises(FileNotFoundError):
        lalic.decode(tmp_path / "none.lalic")
    with pytest.raises(lalic.ImageError, match=r"not a picture to compress, but a \.lalic file"):
        images.load(path)


@pytest.mark.parametrize("scale", ["255", "-1 to 1", "nan", "inf"])
def test_values_that_are_not_a_pictures_are_not_coded(scale: str) -> None:
    x = torch.rand(1, 3, 64, 64)
    wrong = {"255": 255 * x, "-1 to 1": 2 * x - 1, "nan": x.clone(), "inf": x.clone()}[scale]
    if scale in ("nan", "inf"):
        wrong[0, 1, 2, 3] = float(scale)
    message = "cannot be coded" if scale == "nan" else r"^x: expected values in \[0, 1\], got "
    for code in (tiny().compress, tiny().encode):
        with pytest.raises(ValueError, match=message):
            code(wrong)
        code(x * 1.2 - 0.1)  # an overshoot, as of resampling


@pytest.mark.parametrize("entropy", ["exact", "float"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_weights_that_are_not_finite_code_nothing(value: float, entropy: str) -> None:
    x = torch.rand(1, 3, 64, 64)
    weights = {
        "g_a.0.weight": 5,
        "h_a.0.bias": 1,
        "h_s.0.weight": 12,
        "latent_codec.y.latent_codec.y1.entropy_parameters.0.key.weight": 0,
    }
    for name, index in weights.items():
        model = copy.deepcopy(tiny())
        model.entropy = entropy
        with torch.no_grad():
            model.get_parameter(name).view(-1)[index] = value
        with pytest.raises(lalic.LalicError):
            model.compress(x)
        with pytest.raises(lalic.LalicError):
            model.encode(x)
