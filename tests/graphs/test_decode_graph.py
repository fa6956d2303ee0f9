"""A captured decode is the plain one, whatever stream it is given: recorded and replayed on the CPU."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("the interpreter stands in for a GPU", allow_module_level=True)
os.environ["TRITON_INTERPRET"] = "1"

from graph_double import damaged, interpreted

from lalic import graphs
from lalic.coding import EncodedSections
from lalic.errors import BitstreamError
from lalic.model import LALIC

CPU = torch.device("cpu")


def tiny(groups: tuple[int, ...] = (11,)) -> LALIC:
    """One slice and nothing more, as the interpreter takes about a second a kernel."""
    torch.manual_seed(0)
    made = LALIC(3, 11, (4, 4, 4, 11, 4, 4), (0, 0, 0, 0), groups, context_depth=1, context_rate=2, qualities=3)
    with torch.no_grad():
        made.gains.start(torch.tensor([1.0, 8.0, 32.0]))
    made.update()
    return made.eval()


@pytest.fixture(scope="module")
def model() -> LALIC:
    return tiny()


def picture(seed: int) -> Tensor:
    torch.manual_seed(seed)
    return torch.rand(1, 3, 64, 64)


QUALITIES = (90.0, 40.0, 100.0)


@pytest.fixture(scope="module")
def files(model: LALIC) -> list[EncodedSections]:
    """Three pictures of one size at three qualities, coded on the CPU."""
    return [model.encode_sections(picture(i), q) for i, q in enumerate(QUALITIES)]


def decode(model: LALIC, file: EncodedSections, quality: float, graph: bool | None) -> Tensor:
    with torch.inference_mode():
        (found,) = model._pictures_there(file.streams, (1, 1), CPU, [file.checksum], [quality], graph)
    if isinstance(found, BitstreamError):
        raise found
    return found


def here(model: LALIC, file: EncodedSections, quality: float) -> Tensor:
    """As the CPU decodes it: the same bits, as the transforms of these models are torch's convolutions alone."""
    return model.decode_sections(file.streams, 64, 64, file.checksum, quality)


def test_replays_are_decodes(model: LALIC, files: list[EncodedSections]) -> None:
    """Streams of other pictures, lengths and qualities than the one that was there at the capture; a damaged one."""
    assert len({len(file.streams[0]) for file in files}) == 3
    with interpreted() as double:
        for file, quality in zip(files, QUALITIES, strict=True):
            assert torch.equal(decode(model, file, quality, True), here(model, file, quality))
        bad = EncodedSections((damaged(files[0].streams[0]),), files[0].checksum)
        with pytest.raises(BitstreamError, match=r"damaged"):
            decode(model, bad, QUALITIES[0], True)
        assert torch.equal(decode(model, files[0], QUALITIES[0], True), here(model, files[0], QUALITIES[0]))
        assert (double.captures, double.replays) == (1, 5)
