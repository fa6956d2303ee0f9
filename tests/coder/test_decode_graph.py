"""A captured decode equals the plain one for any stream; recorded and replayed on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("the interpreter stands in for a GPU", allow_module_level=True)

from graph_double import QUALITIES, Freed, damaged, interpreted, picture, tiny

from lalic.coder import Stream
from lalic.coder.gpu import GpuCoder
from lalic.coder.graphs import GraphError
from lalic.errors import BitstreamError
from lalic.model import LALIC


@pytest.fixture(scope="module")
def model() -> LALIC:
    return tiny()


@pytest.fixture(scope="module")
def files(model: LALIC) -> list[Stream]:
    """Three pictures of one size at three qualities, coded on the CPU."""
    return [model.encode(picture(i), q) for i, q in enumerate(QUALITIES)]


def decode(model: LALIC, file: Stream, quality: float, graph: bool | None) -> Tensor:
    with torch.inference_mode():
        (found,) = GpuCoder(model, graph).decode([file], (1, 1), [quality])
    if isinstance(found, BitstreamError):
        raise found
    return found


def here(model: LALIC, file: Stream, quality: float) -> Tensor:
    """The picture decoded on the CPU: equal to the last bit, as these models' transforms are convolutions only."""
    return model.decode(file, 64, 64, quality)


def test_replays_are_decodes(model: LALIC, files: list[Stream]) -> None:
    """Streams of other pictures, lengths and qualities than at the capture; a damaged one."""
    assert len({len(file.data) for file in files}) == 3
    with interpreted() as double:
        for file, quality in zip(files, QUALITIES, strict=True):
            assert torch.equal(decode(model, file, quality, True), here(model, file, quality))
        bad = Stream(damaged(files[0].data), files[0].checksum)
        with pytest.raises(BitstreamError, match=r"damaged"):
            decode(model, bad, QUALITIES[0], True)
        assert torch.equal(decode(model, files[0], QUALITIES[0], True), here(model, files[0], QUALITIES[0]))
        assert (double.captures, double.replays) == (1, 5)


def test_a_batch_and_what_is_wrong_with_its_files(model: LALIC, files: list[Stream]) -> None:
    """Pictures of one size are decoded together; a damaged stream, in its words or its header, affects no other.

    The convolutions of a batch may round differently; symbols are compared by checksums, to the last bit.
    """
    streams = [files[0], Stream(damaged(files[1].data), files[1].checksum), Stream(b"\xff\xff", 0), files[2]]
    qualities = [QUALITIES[0], QUALITIES[1], 50.0, QUALITIES[2]]
    with interpreted() as double, torch.inference_mode():
        found = GpuCoder(model, True).decode(streams, (1, 1), qualities)
        assert (double.captures, double.replays) == (1, 1)
    assert [isinstance(x, BitstreamError) for x in found] == [False, True, True, False]
    assert (found[0] - here(model, files[0], QUALITIES[0])).abs().max() < 1e-5
    assert (found[3] - here(model, files[2], QUALITIES[2])).abs().max() < 1e-5
    assert "groups of 2^255 lanes" in str(found[2])


def test_slices_that_see_each_other() -> None:
    """RWKV blocks and what they cache for one size of picture."""
    model = tiny((4, 7), "patches")
    with torch.inference_mode():
        one, two = (model.encode(picture(i), 70.0) for i in (5, 6))
    with interpreted() as double:
        assert torch.equal(decode(model, one, 70.0, None), here(model, one, 70.0)) and double.captures == 0
        for file in (one, two):
            assert torch.equal(decode(model, file, 70.0, None), here(model, file, 70.0))
        assert (double.captures, double.replays) == (1, 2)


def test_a_look_in_a_capture_is_refused(files: list[Stream], monkeypatch: pytest.MonkeyPatch) -> None:
    """The double refuses what a GPU refuses, with one sentence."""
    honest = LALIC.synthesise
    monkeypatch.setattr(LALIC, "synthesise", lambda self, y, q: honest(self, y, q if bool(q.sum() > 0) else None))
    with interpreted(), pytest.raises(GraphError, match=r"cannot be captured as a CUDA graph .*not permitted"):
        decode(tiny(), files[0], QUALITIES[0], True)


def test_no_graph_reads_what_autocast_frees(files: list[Stream]) -> None:
    """Autocast keeps copies of weights in its dtype until it ends. Under it launches are made one by one."""
    model = tiny()
    with interpreted() as double:
        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16), torch.inference_mode(False), torch.no_grad():
                (found,) = GpuCoder(model).decode([files[0]], (1, 1), [QUALITIES[0]])
            assert not isinstance(found, BitstreamError)
        assert double.captures == 0
        with torch.autocast("cpu"), pytest.raises(ValueError, match=r"graph: .*autocast is on"):
            decode(model, files[0], QUALITIES[0], True)


def test_a_replay_that_reads_freed_memory_is_refused(files: list[Stream], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the double: so the test above fails if graphs are captured under autocast."""
    honest = LALIC.synthesise
    weights = [torch.ones(1)]
    monkeypatch.setattr(LALIC, "synthesise", lambda self, y, q: honest(self, y * weights[0], q))
    with interpreted():
        model = tiny()
        decode(model, files[0], QUALITIES[0], True)
        weights.clear()
        with pytest.raises(Freed):
            decode(model, files[0], QUALITIES[0], True)


def test_another_quality_is_another_picture(files: list[Stream], monkeypatch: pytest.MonkeyPatch) -> None:
    """So the replays above would detect a quality that was captured as a constant."""
    model = tiny()
    wanted, honest = here(model, files[1], QUALITIES[1]), LALIC.synthesise
    first = torch.full((1,), QUALITIES[0])
    monkeypatch.setattr(LALIC, "synthesise", lambda self, y, q: honest(self, y, first))
    with interpreted():
        assert not torch.equal(decode(model, files[1], QUALITIES[1], True), wanted)
