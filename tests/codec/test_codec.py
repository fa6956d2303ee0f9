"""lalic.codec: sizes, padding, which model a file wants, devices, threads."""

from __future__ import annotations

import copy
import io
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import astronaut, noise, tiny

import lalic
from lalic import codec, images
from lalic.alpha import encode_alpha
from lalic.coder import Stream
from lalic.container import MAX_OVERHEAD, parse
from lalic.errors import BitstreamError, ImageError, LalicError, ModelMismatchError, RequestError
from lalic.model import LALIC


@pytest.fixture
def shipped(monkeypatch):
    """Replaces the weights that ship; counts how often they are loaded."""
    loads = []

    def slim(pretrained):
        assert pretrained is True
        loads.append(threading.get_ident())
        return tiny()

    monkeypatch.setattr(lalic, "slim", slim, raising=False)
    monkeypatch.setattr(codec, "_cache", {})
    return loads


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (63, 64), (64, 64), (65, 127), (130, 3)])
def test_the_decoder_shows_the_encoders_reconstruction(size):
    """A file of any size decodes to the synthesis of the padded picture's latents, cropped."""
    model, image = tiny(), noise(size=size)
    data = codec.encode(image, model)
    container = parse(data)
    assert (container.width, container.height) == size and len(data) - container.stream_bytes <= MAX_OVERHEAD
    (width, height), pixels = size, np.asarray(image)
    padded = np.pad(pixels, ((0, -height % 64), (0, -width % 64), (0, 0)), mode="edge")
    with torch.inference_mode():
        y_hat = model.compress(images.to_tensor(Image.fromarray(padded)))["y_hat"]
        expected = images.from_tensor(model.g_s(y_hat)[:, :, :height, :width])
    decoded = codec.decode(data, model)
    assert decoded.mode == "RGB" and (np.asarray(decoded) == np.asarray(expected)).all()


def test_path_and_bytes_are_taken(tmp_path):
    out = io.BytesIO()
    noise(size=(50, 40)).save(out, "PNG")
    (tmp_path / "a.png").write_bytes(out.getvalue())
    data = codec.encode(noise(size=(50, 40)), tiny())
    assert codec.encode(out.getvalue(), tiny()) == codec.encode(tmp_path / "a.png", tiny()) == data


def test_the_options_of_load_are_passed_on():
    clear = Image.new("RGBA", (3, 2), (0, 0, 0, 0))
    orange = codec.encode(Image.new("RGB", (3, 2), (255, 128, 0)), tiny())
    assert codec.encode(clear, tiny(), background="#ff8000") == orange
    with pytest.raises(ImageError, match="limit is 99"):
        codec.encode(noise(size=(10, 10)), tiny(), max_pixels=99)
    with pytest.raises(BitstreamError, match="limit is 99"):
        codec.decode(codec.encode(noise(size=(10, 10)), tiny()), tiny(), max_pixels=99)


def test_alpha_comes_back_as_it_was():
    clear = noise(size=(90, 70)).convert("RGBA")
    alpha = Image.linear_gradient("L").resize((90, 70))
    clear.putalpha(alpha)
    decoded = codec.decode(codec.encode(clear, tiny()), tiny())
    assert decoded.mode == "RGBA" and decoded.getchannel("A").tobytes() == alpha.tobytes()
    part = codec.decode(codec.encode(clear, tiny()), tiny(), region=(10, 20, 50, 60), scale=2)
    assert part.tobytes()[3::4] == decoded.crop((10, 20, 50, 60)).getchannel("A").reduce(2).tobytes()


def test_what_open_picture_decides_is_not_asked_for_again():
    picture = images.open_picture(noise(size=(20, 10)))
    for option in ({"strip": True}, {"background": "white"}):
        with pytest.raises(RequestError, match=r"^background, strip: expected none beside a Picture"):
            codec.encode(picture, tiny(), **option)


def test_alpha_is_coded_once_for_every_quality(monkeypatch):
    clear = noise(size=(20, 10)).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    calls = []
    monkeypatch.setattr(codec, "encode_alpha", lambda channel: calls.append(channel.size) or encode_alpha(channel))
    prepared = codec.Prepared(clear, tiny(qualities=3))
    assert prepared.encode(10) != prepared.encode(90) and calls == [(20, 10)]


def test_metadata_comes_back_unless_stripped():
    photo = noise(size=(50, 40))
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    out = io.BytesIO()
    photo.save(out, "JPEG", exif=exif, dpi=(300, 300))
    decoded = codec.decode(codec.encode(out.getvalue(), tiny()), tiny())
    assert decoded.getexif()[0x010F] == "a camera" and decoded.info["dpi"] == (300, 300)
    assert not codec.decode(codec.encode(out.getvalue(), tiny(), strip=True), tiny()).info


def test_no_gradient_is_recorded(monkeypatch):
    modes = []
    for name in ("encode", "decode"):
        method = getattr(LALIC, name)
        monkeypatch.setattr(
            LALIC, name, lambda *a, m=method, **k: modes.append(torch.is_inference_mode_enabled()) or m(*a, **k)
        )
    codec.decode(codec.encode(noise(size=(50, 40)), tiny()), tiny())
    assert modes == [True, True]


def test_the_shipped_model_is_the_default_and_is_loaded_once(shipped):
    data = codec.encode(noise(size=(50, 40)))
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


def test_other_weights_are_refused_by_hash_and_never_run(shipped, monkeypatch):
    monkeypatch.setattr(LALIC, "decode", lambda *_, **__: pytest.fail("decoded"))
    ours, other = tiny(lmbda=0.002), tiny(lmbda=0.03)
    data = codec.encode(noise(size=(50, 40)), other)
    with pytest.raises(ModelMismatchError) as caught:
        codec.decode(data, ours)
    assert other.weights_hash().hex() in str(caught.value) and ours.weights_hash().hex() in str(caught.value)
    with pytest.raises(ModelMismatchError, match="model of this release has hash"):
        codec.decode(data)


def test_another_name_is_refused_even_with_the_same_hash():
    container = parse(codec.encode(noise(size=(50, 40)), tiny()))
    renamed = replace(container, model_name="full").pack()
    with pytest.raises(ModelMismatchError, match=r"'full' with hash .* but the given model is 'slim'"):
        codec.decode(renamed, tiny())


def test_a_model_that_does_not_ship_must_be_given(shipped):
    model = tiny("full")
    data = codec.encode(noise(size=(50, 40)), model)
    with pytest.raises(ModelMismatchError, match=r"'full' .* does not ship with this release"):
        codec.decode(data)
    assert shipped == []
    assert codec.decode(data, model).size == (50, 40)
    with pytest.raises(LalicError, match="no model named 'full' ships"):
        codec.shipped_model("full")


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:99", "", "cpu:x"])
def test_bad_devices(device, shipped):
    with pytest.raises(LalicError, match="device is"):
        codec.encode(noise(size=(50, 40)), device=device)
    with pytest.raises(LalicError, match="device is"):
        codec.encode(noise(size=(50, 40)), tiny(), device=device)


def test_a_given_model_is_not_moved(monkeypatch):
    monkeypatch.setattr(LALIC, "device", torch.device("meta"))
    with pytest.raises(LalicError, match="the given model is on meta; move it"):
        codec.encode(noise(size=(50, 40)), tiny(), device="cpu")


def test_a_file_says_what_the_model_made(monkeypatch):
    monkeypatch.setattr(LALIC, "encode", lambda self, x, quality, graph: Stream(b"stream", 7))
    container = parse(codec.encode(noise(size=(50, 40)), tiny()))
    assert container.tiles == ((b"stream", 7),)
    assert (container.model_name, container.model_hash) == ("slim", tiny().weights_hash())


def test_weights_that_were_written_to_without_torch_knowing():
    """Averages of weights are often written through .data, which bumps no version; nothing stale is coded with."""
    model, picture = copy.deepcopy(tiny()), astronaut(0, 0, 64, 64)
    before = lalic.encode(picture, model)
    for parameter in model.parameters():
        parameter.data.mul_(1.01)
    model.update(force=True)
    fresh = copy.deepcopy(model)  # its caches start empty
    data = lalic.encode(picture, model)
    assert data != before and data == lalic.encode(picture, fresh)
    assert lalic.decode(data, model).tobytes() == lalic.decode(data, fresh).tobytes()
    with torch.no_grad():
        x = torch.rand(1, 3, 64, 64)
        assert model(x)["x_hat"].equal(fresh(x)["x_hat"])
