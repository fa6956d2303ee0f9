"""Channels stay last throughout a transform: no step copies an image to another layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from calls import Calls

from lalic.config import SLIM
from lalic.model import LALIC

COPIES = ("aten::clone", "aten::copy_", "aten::_to_copy", "aten::contiguous")


# Slim's shape, and the published one, narrow.
MODELS = {"patches": LALIC.from_config(SLIM), "published": LALIC(4, 24, (16, 20, 24, 24, 20, 16), (1,) * 4, (24,))}


@pytest.mark.parametrize("shape", MODELS)
@pytest.mark.parametrize(
    ("name", "downsampled", "height", "width"),
    [("g_a", 0, 128, 192), ("g_s", 3, 8, 12), ("h_a", 3, 32, 48), ("h_s", 5, 8, 12)],
)
def test_no_copy_between_layouts(shape: str, name: str, downsampled: int, height: int, width: int) -> None:
    model = MODELS[shape].eval()
    transform = getattr(model, name)
    x = torch.rand(1, model.config.dims[downsampled] if downsampled else 3, height, width)
    x = x.contiguous(memory_format=torch.channels_last)
    copies, seen, least = [], [], min(x.numel(), 8 * 12 * 16)

    def note(func: Any, args: tuple[Any, ...], result: Any) -> None:
        if func._schema.name in COPIES and result.numel() >= least:
            copies.append(f"{func.name()} {tuple(args[0].shape)} {args[0].stride()} -> {result.stride()}")

    for module in transform.children():
        module.register_forward_hook(lambda module, inputs, y: seen.append(y))
    with torch.no_grad():
        transform(x)  # once before, to fill the weight caches
        seen.clear()
        with Calls(note):
            y = transform(x)
    assert seen and all(t.is_contiguous(memory_format=torch.channels_last) for t in seen)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert copies == []
    with torch.no_grad(), Calls(note):
        y.contiguous()
    assert copies  # the recorder does record one
