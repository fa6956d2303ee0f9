"""lalic.codec with a stand-in model: sizes, padding, which model a file wants, devices, threads."""

from __future__ import annotations

import io
import threading

import numpy as np
import pytest
import torch
from fake_model import FakeModel
from PIL import Image

import lalic
from lalic import codec
from lalic.coder import Stream
from lalic.container import Container, parse
from lalic.errors import BitstreamError, ImageError, LalicError, ModelMismatchError


def picture(width=50, height=40, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def shipped(monkeypatch):
    """Replaces the weights that ship; counts how often they are loaded."""
    loads = []

    def slim(pretrained):
        assert pretrained is True
        loads.append(threading.get_ident())
        return FakeModel("slim", seed=len(loads))

    monkeypatch.setattr(lalic, "slim", slim, raising=False)
    monkeypatch.setattr(codec, "_cache", {})
    return loads


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (63, 64), (64, 64), (65, 127), (130, 3)])
def test_every_size_comes_back(fake, size):
    image = picture(*size)
    data = codec.encode(image, fake)
    assert (parse(data).width, parse(data).height) == size
    decoded = codec.decode(data, fake)
    assert decoded.mode == "RGB" and decoded.size == size
    assert (np.asarray(decoded) == np.asarray(image)).all()


def test_padding_repeats_the_edge():
    seen = []

    class Spy(FakeModel):
        def encode(self, x, *quality, graph):
            seen.append(x)
            return super().encode(x, *quality)

    image = picture(70, 5)
    codec.encode(image, Spy())
    padded = np.pad(np.asarray(image), ((0, 59), (0, 58), (0, 0)), mode="edge")
    assert (seen[0][0].permute(1, 2, 0) * 255).round().numpy().tolist() == padded.tolist()


def test_path_and_bytes_are_taken(fake, tmp_path):
    out = io.BytesIO()
    picture().save(out, "PNG")
    (tmp_path / "a.png").write_bytes(out.getvalue())
    data = codec.encode(picture(), fake)
    assert codec.encode(out.getvalue(), fake) == codec.encode(tmp_path / "a.png", fake) == data


def test_the_options_of_load_are_passed_on(fake):
    clear = Image.new("RGBA", (3, 2), (0, 0, 0, 0))
    with pytest.raises(ImageError, match="transparent"):
        codec.encode(clear, fake)
    decoded = codec.decode(codec.encode(clear, fake, background="#ff8000"), fake)
    assert decoded.getpixel((2, 1)) == (255, 128, 0)
    with pytest.raises(ImageError, match="limit is 99"):
        codec.encode(picture(10, 10), fake, max_pixels=99)
    with pytest.raises(BitstreamError, match="limit is 99"):
        codec.decode(codec.encode(picture(10, 10), fake), fake, max_pixels=99)


def test_a_side_beyond_16_bit_is_refused(fake):
    with pytest.raises(ImageError, match="65536x1, expected at most 65535"):
        codec.encode(Image.new("RGB", (65536, 1)), fake)


def test_no_gradient_is_recorded(fake, monkeypatch):
    modes = []
    for name in ("encode", "decode"):
        method = getattr(fake, name)
        monkeypatch.setattr(
            fake, name, lambda *a, method=method, **k: modes.append(torch.is_inference_mode_enabled()) or method(*a)
        )
    codec.decode(codec.encode(picture(), fake), fake)
    assert modes == [True, True]


def test_the_shipped_model_is_the_default_and_is_loaded_once(shipped):
    data = codec.encode(picture())
    assert codec.decode(data).size == codec.decode(data, device="cpu").size == (50, 40)
    assert len(shipped) == 1


def test_threads_share_one_model(shipped):
    barrier = threading.Barrier(8)
    got = []

    def work():
        barrier.wait()
        got.append(codec.shipped_model("slim", "cpu"))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(shipped) == 1 and len(got) == 8 and all(model is got[0] for model in got)


def test_other_weights_are_refused_by_hash_and_never_run(shipped):
    ours, other = FakeModel(seed=1), FakeModel(seed=2)
    data = codec.encode(picture(), other)
    with pytest.raises(ModelMismatchError) as caught:
        codec.decode(data, ours)
    assert other.weights_hash().hex() in str(caught.value) and ours.weights_hash().hex() in str(caught.value)
    with pytest.raises(ModelMismatchError, match="model of this release has hash"):
        codec.decode(data)
    assert ours.decoded == other.decoded == 0


def test_another_name_is_refused_even_with_the_same_hash(fake):
    container = parse(codec.encode(picture(), fake))
    renamed = Container(**{**vars(container), "model_name": "full"}).pack()
    with pytest.raises(ModelMismatchError, match=r"'full' with hash .* but the given model is 'slim'"):
        codec.decode(renamed, fake)


def test_a_model_that_does_not_ship_must_be_given(shipped):
    model = FakeModel("full")
    data = codec.encode(picture(), model)
    with pytest.raises(ModelMismatchError, match=r"'full' .* does not ship with this release"):
        codec.decode(data)
    assert shipped == []
    assert codec.decode(data, model).size == (50, 40)
    with pytest.raises(LalicError, match="no model named 'full' ships"):
        codec.shipped_model("full")


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:99", "", "cpu:x"])
def test_bad_devices(device, shipped, fake):
    with pytest.raises(LalicError, match="device is"):
        codec.encode(picture(), device=device)
    with pytest.raises(LalicError, match="device is"):
        codec.encode(picture(), fake, device=device)


def test_a_given_model_is_not_moved():
    model = FakeModel()
    model.device = torch.device("meta")
    with pytest.raises(LalicError, match="the given model is on meta; move it"):
        codec.encode(picture(), model, device="cpu")


def test_errors_of_the_model_come_through(fake):
    container = parse(codec.encode(picture(), fake))
    changed = Container(**{**vars(container), "symbol_checksum": container.symbol_checksum ^ 1}).pack()
    with pytest.raises(BitstreamError, match="symbols do not match"):
        codec.decode(changed, fake)


def test_a_file_says_what_the_model_made():
    model = FakeModel()
    model.encode = lambda x, quality, graph: Stream(b"stream", 7)
    container = parse(codec.encode(picture(), model))
    assert (container.stream, container.symbol_checksum) == (b"stream", 7)
    assert (container.model_name, container.model_hash) == ("slim", model.weights_hash())
