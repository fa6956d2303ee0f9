"""Large pictures on a GPU: windows and tiles in batches, by few graphs; recorded and replayed on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("the interpreter stands in for a GPU", allow_module_level=True)

from graph_double import damaged, interpreted, tiny
from tiny import noise

from lalic import codec
from lalic.coder import Stream
from lalic.coder.gpu import GpuCoder
from lalic.errors import BitstreamError
from lalic.model import LALIC


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ONE_TILE", 64), ("TILE", 64), ("MARGIN", 0)):
        monkeypatch.setattr(codec, name, value)


def test_pictures_of_many_sizes_by_four_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are those of a CPU to the bit, window by window; so are pixels here, but for roundings of a batch."""
    model = tiny()
    pictures = [noise(size=size) for size in ((128, 128), (250, 64))]
    alone = [codec.encode(picture, model, quality=60) for picture in pictures]
    expected = [np.asarray(codec.decode(data, model)).astype(int) for data in alone]
    monkeypatch.setattr(codec, "codes_on_gpu", lambda device: True)
    monkeypatch.setattr(LALIC, "coder", lambda self, graph=None: GpuCoder(self, graph))
    with interpreted() as double:
        for picture, data, pixels in zip(pictures, alone, expected, strict=True):
            assert codec.encode(picture, model, quality=60, graph=True) == data
            assert abs(np.asarray(codec.decode(data, model, graph=True)).astype(int) - pixels).max() <= 1
        # latents of 4 windows, the symbols of a tile; 4 tiles, 4 windows
        assert (double.captures, double.replays) == (4, 2 * (1 + 4 + 1 + 1))


def test_latents_of_a_batch_and_a_damaged_one() -> None:
    model = tiny()
    with torch.inference_mode():
        streams = [model.encode(torch.rand(1, 3, 64, 64), 50.0) for _ in range(2)]
        expected = model.read(streams[0], 64, 64).y_hat
        streams[1] = Stream(damaged(streams[1].data), streams[1].checksum)
        with interpreted():
            found = GpuCoder(model, True).read_latents(streams, (1, 1))
    assert torch.equal(found[0], expected) and isinstance(found[1], BitstreamError)
