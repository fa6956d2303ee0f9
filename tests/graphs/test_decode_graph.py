"""A captured decode is the plain one, whatever stream it is given: recorded and replayed on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("the interpreter stands in for a GPU", allow_module_level=True)

from graph_double import QUALITIES, damaged, interpreted, picture, tiny

from lalic.coding import EncodedSections
from lalic.errors import BitstreamError
from lalic.model import LALIC

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> LALIC:
    return tiny()


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
