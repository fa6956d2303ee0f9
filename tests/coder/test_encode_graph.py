"""Encoding as on a GPU gives the CPU's bytes and checksum, plain and captured; recorded and replayed on the CPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("the interpreter stands in for a GPU", allow_module_level=True)

from graph_double import QUALITIES, interpreted, picture, tiny

from lalic.coder import gpu_encode
from lalic.errors import LalicError


def test_replays_give_the_bytes_of_a_cpu() -> None:
    model = tiny()
    with torch.inference_mode():
        files = [model.encode_sections(picture(i), q) for i, q in enumerate(QUALITIES)]
        with interpreted() as double:
            for i, (file, quality) in enumerate(zip(files, QUALITIES, strict=True)):
                found = gpu_encode.encode(model, picture(i), True, quality, True)
                assert found == (file.streams, file.checksum)
            with pytest.raises(LalicError, match=r"latents of magnitude nan cannot be coded"):
                gpu_encode.encode(model, picture(0) * torch.nan, True, 50.0, True)
            assert (double.captures, double.replays) == (1, 4)
            found = gpu_encode.encode(model, model.latents(picture(1)), False, QUALITIES[1], False)
            assert found == (files[1].streams, files[1].checksum) and double.captures == 1
