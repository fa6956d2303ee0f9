"""Graphs on a real device: equal to plain launches and to a CPU, no wait before the end, threads, memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from graph_double import damaged

import lalic
from lalic import images
from lalic.coder import Stream, gpu
from lalic.coder.graphs import GraphCache
from lalic.errors import BitstreamError
from lalic.model import LALIC

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[2]
QUALITIES = (20.0, 50.0, 80.0)


@pytest.fixture(autouse=True)
def same_bits_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN may choose an algorithm that adds in no fixed order."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


@pytest.fixture(scope="module")
def model() -> Iterator[LALIC]:
    yield lalic.slim().to("cuda")


@pytest.fixture(scope="module")
def pictures() -> list[torch.Tensor]:
    whole = images.to_tensor(images.load(ROOT / "lalic" / "assets" / "astronaut.png"))
    return [whole[:, :, 64 * i : 64 * i + 192, 64 * i : 64 * i + 256].contiguous() for i in range(3)]


@pytest.fixture(scope="module")
def files(pictures: list[torch.Tensor]) -> list[Stream]:
    """Of a CPU."""
    here = lalic.slim()
    return [here.encode(x, q) for x, q in zip(pictures, QUALITIES, strict=True)]


def decode(model: LALIC, file: Stream, quality: float, graph: bool | None) -> torch.Tensor:
    with torch.inference_mode():
        return model.decode(file, 192, 256, quality, graph=graph)


def test_graph_equals_plain_and_reads_files_of_a_cpu(model: LALIC, files: list[Stream]) -> None:
    for _ in range(2):
        for file, quality in zip(files, QUALITIES, strict=True):
            plain = decode(model, file, quality, False)
            assert torch.equal(decode(model, file, quality, True), plain)
    bad = Stream(damaged(files[0].data), files[0].checksum)
    with pytest.raises(BitstreamError):
        decode(model, bad, QUALITIES[0], True)
    assert torch.equal(decode(model, files[0], QUALITIES[0], True), decode(model, files[0], QUALITIES[0], False))


def test_a_cpu_reads_files_of_a_gpu(model: LALIC, pictures: list[torch.Tensor]) -> None:
    here = lalic.slim()
    for graph in (False, True):
        for x, quality in zip(pictures, QUALITIES, strict=True):
            with torch.inference_mode():
                file = model.encode(x.cuda(), quality, graph=graph)
                shown = here.decode(file, 192, 256, quality)
            assert (shown - decode(model, file, quality, graph).cpu()).abs().max() < 1e-3


def test_a_picture_in_tiles(model: LALIC) -> None:
    """Windows and tiles in batches, by graphs from the second picture on; a CPU reads the file."""
    photo = images.load(ROOT / "lalic" / "assets" / "astronaut.png").resize((1700, 1600))
    data = [lalic.encode(photo, model) for _ in range(2)]
    assert data[0] == data[1]
    whole = [np.asarray(lalic.decode(data[0], model, graph=graph)).astype(int) for graph in (False, None, None)]
    here = np.asarray(lalic.decode(data[0])).astype(int)
    part = np.asarray(lalic.decode(data[0], model, region=(700, 700, 900, 900))).astype(int)
    for found in whole:
        assert abs(found - here).max() <= 1 and abs(part - found[700:900, 700:900]).max() <= 1


def test_pixels_are_those_of_a_cpu(pictures: list[torch.Tensor]) -> None:
    """To the bit, on the way up and on the way down."""
    noisy = pictures[0] + 0.1 * torch.randn(pictures[0].shape)
    for x in (noisy, noisy.contiguous(memory_format=torch.channels_last), noisy[:, :, 3:90, 5:77]):
        shown = images.from_tensor(x.cuda())
        assert shown.tobytes() == images.from_tensor(x).tobytes()
        assert torch.equal(images.to_tensor(shown, torch.device("cuda")).cpu(), images.to_tensor(shown))


def test_float32_is_float32_whatever_the_settings(model: LALIC, pictures: list[torch.Tensor]) -> None:
    wanted = model.latents(pictures[0].cuda())
    torch.backends.cudnn.allow_tf32 = True  # the default; `exact_float32` of conftest.py sets it back
    assert torch.equal(model.latents(pictures[0].cuda()), wanted)


def test_in_a_stream_that_is_not_the_default(model: LALIC, files: list[Stream]) -> None:
    wanted = decode(model, files[0], QUALITIES[0], False).cpu()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        x = decode(model, files[0], QUALITIES[0], True)
        assert torch.cuda.current_stream() == stream
        assert torch.equal(x.cpu(), wanted)


def test_nothing_waits_between_bytes_and_pixels(
    model: LALIC, files: list[Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch raises for everything that waits, until the check at the end."""
    look = gpu._finish_decoding

    def last(*given: object) -> object:
        torch.cuda.set_sync_debug_mode("default")
        return look(*given)

    monkeypatch.setattr(gpu, "_finish_decoding", last)
    for graph in (False, True):
        decode(model, files[0], QUALITIES[0], graph)
        torch.cuda.set_sync_debug_mode("error")
        try:
            decode(model, files[1], QUALITIES[1], graph)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_a_batch(model: LALIC, files: list[Stream]) -> None:
    streams = [files[0], Stream(damaged(files[1].data), files[1].checksum), files[2]]
    for graph in (False, True):
        with torch.inference_mode():
            found = model.decode_batch(streams, 192, 256, list(QUALITIES), graph=graph)
        assert isinstance(found[1], BitstreamError)
        for i in (0, 2):
            assert (found[i] - decode(model, files[i], QUALITIES[i], False)).abs().max() < 1e-4


def test_threads_while_others_capture(model: LALIC, files: list[Stream]) -> None:
    wanted = [decode(model, file, q, False) for file, q in zip(files, QUALITIES, strict=True)]
    own = lalic.slim().to("cuda")
    wrong: list[object] = []

    def work(i: int) -> None:
        try:
            for step in range(8):
                graph = True if (i + step) % 2 else None
                which = (i + step) % 3
                if not torch.equal(decode(own, files[which], QUALITIES[which], graph), wanted[which]):
                    wrong.append((i, step))
                torch.randn(1000, 1000, generator=torch.Generator("cuda"), device="cuda").sum().item()
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_weights_that_change(files: list[Stream]) -> None:
    own = lalic.slim().to("cuda")
    before = decode(own, files[0], QUALITIES[0], True)
    with torch.no_grad():
        own.g_s[-1].weight.mul_(0.5)
    after = decode(own, files[0], QUALITIES[0], True)
    assert not torch.equal(after, before) and torch.equal(after, decode(own, files[0], QUALITIES[0], False))


def test_memory_is_bounded() -> None:
    own = lalic.slim().to("cuda")
    x = torch.rand(1, 3, 64, 64, device="cuda")
    graphs: GraphCache = own.decoding.look(own).get("graphs", GraphCache)
    with torch.inference_mode():
        for width in range(64, 64 * 25, 64):
            wide = x.expand(1, 3, 64, 64).repeat(1, 1, 1, width // 64)
            file = own.encode(wide, 50.0, graph=False)
            own.decode(file, 64, width, 50.0, graph=True)
    assert len(graphs) == 16 and all(isinstance(graph, gpu._DecodeGraph) for graph in graphs._graphs.values())
    full = torch.cuda.memory_reserved()
    own.decoding._last = None
    del graphs
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() < full
