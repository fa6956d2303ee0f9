"""Encoding on a GPU gives the CPU's bytes and checksum, plain and captured; recorded and replayed on the CPU."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("the interpreter stands in for a GPU", allow_module_level=True)

from graph_double import QUALITIES, interpreted, picture, tiny

from lalic.coder.gpu import GpuCoder
from lalic.errors import LalicError


def test_replays_give_the_bytes_of_a_cpu() -> None:
    model = tiny()
    with torch.inference_mode():
        files = [model.encode(picture(i), q) for i, q in enumerate(QUALITIES)]
        with interpreted() as double:
            for i, (file, quality) in enumerate(zip(files, QUALITIES, strict=True)):
                found = GpuCoder(model, True).encode(picture(i), quality)
                assert found == file
            with pytest.raises(LalicError, match=r"latents of magnitude nan cannot be coded"):
                GpuCoder(model, True).encode(picture(0) * torch.nan, 50.0)
            assert (double.captures, double.replays) == (1, 4)
            found = GpuCoder(model, False).encode_latents(model.latents(picture(1)), QUALITIES[1])
            assert found == files[1] and double.captures == 1


def test_a_model_that_is_dropped_takes_its_graphs_with_it() -> None:
    """At once, and not when Python's collector finds a circle: they hold memory of a device."""
    model = tiny()
    gone = weakref.ref(model)
    gc.collect()
    gc.disable()
    try:
        with interpreted() as double, torch.inference_mode():
            GpuCoder(model, True).encode(picture(0), 50.0)
            assert double.captures == 1
        del model
        assert gone() is None
    finally:
        gc.enable()
