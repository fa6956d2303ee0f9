"""The host's work round a graph of the full model, on a double of the device, counted: times depend on the machine."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("the interpreter stands in for a GPU", allow_module_level=True)

from graph_double import interpreted

import lalic
import lalic.coder
from lalic import images
from lalic.coder import gpu
from lalic.coder.graphs import Graph
from lalic.config import FULL
from lalic.container import Container, Tile
from lalic.model import LALIC
from lalic.tiles import Grid
from lalic_kernels import rans
from lalic_kernels.cache import ModuleWeights
from lalic_kernels.rans.gpu import DeviceDecoder

WIDTH, HEIGHT = 768, 512
CALLS = 600  # of functions, in Python and in C, in a decode; nearly 100 000 when Python looked at each weight


def calls(run: Callable[[], Any]) -> int:
    """Functions that `run` calls."""
    count = 0

    def note(_: Any, event: str, __: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return count


@pytest.fixture(scope="module")
def replays() -> Iterator[tuple[LALIC, Callable[[], Any]]]:
    """The full model, and a decode of 768x512 pixels by a graph whose launches are left out."""
    torch.manual_seed(0)
    model = LALIC.from_config(FULL).eval()
    model.update()
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 64, 40_000).astype(np.int32)
    stream = rans.encode([(rng.integers(-1, 2, rows.size).astype(np.int32), rows)], model.tables())
    data = Container(FULL.name, model.weights_hash(), Grid(WIDTH, HEIGHT), (Tile(stream, 0),)).pack()

    def capture(self: Graph, device: torch.device, *_: object) -> None:
        self.device, self.bytes, self.lock = device, 0, threading.Lock()
        self.results = torch.zeros(1, 3, HEIGHT, WIDTH), [torch.zeros(1, dtype=torch.int32)]

    faults = DeviceDecoder.faults

    def none(self: DeviceDecoder) -> list[None]:
        return [None for _ in faults(self)]

    with interpreted(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(lalic.coder, "codes_on_gpu", lambda _: True)
        patch.setattr(Graph, "capture", capture)
        patch.setattr(Graph, "run", lambda self: None)
        patch.setattr(DeviceDecoder, "faults", none)
        patch.setattr(gpu, "check_symbols", lambda *_: None)
        pixels = images.pixels_of(torch.zeros(1, 3, HEIGHT, WIDTH))
        patch.setattr(images, "pixels_of", lambda _: pixels)

        def replay() -> Any:
            return lalic.decode(data, model, graph=True)

        assert replay().size == (WIDTH, HEIGHT)
        yield model, replay


def test_a_replay_makes_few_calls(replays: tuple[LALIC, Callable[[], Any]]) -> None:
    _, replay = replays
    assert calls(replay) < CALLS


def test_a_replay_looks_at_the_weights_once(
    replays: tuple[LALIC, Callable[[], Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is one call in C for each property of all weights, so the calls above do not show it."""
    looks: list[int] = []
    changed = ModuleWeights.changed
    monkeypatch.setattr(ModuleWeights, "changed", lambda self: looks.append(1) or changed(self))
    replays[1]()
    assert len(looks) == 1


def test_a_hash_makes_few_calls(replays: tuple[LALIC, Callable[[], Any]]) -> None:
    model, _ = replays
    assert calls(model.weights_hash) < 40
