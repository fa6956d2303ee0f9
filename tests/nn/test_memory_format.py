"""Channels stay last throughout a transform: no step copies an image to another layout."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lalic.config import SLIM
from lalic.model import LALIC

COPIES = ("aten::clone", "aten::copy_", "aten::_to_copy", "aten::contiguous")


class Copies(TorchDispatchMode):
    """Records every copy of at least `least` elements, and its layout."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least = least
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.name().split(".")[0] in COPIES and result.numel() >= self.least:
            self.found.append(f"{func.name()} {tuple(args[0].shape)} {args[0].stride()} -> {result.stride()}")
        return result


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
    watch, seen = Copies(min(x.numel(), 8 * 12 * 16)), []
    for module in transform.children():
        module.register_forward_hook(lambda module, inputs, y: seen.append(y))
    with torch.no_grad():
        transform(x)  # once before, to fill the weight caches
        seen.clear()
        with watch:
            y = transform(x)
    assert seen and all(t.is_contiguous(memory_format=torch.channels_last) for t in seen)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert watch.found == []
    with torch.no_grad(), watch:
        y.contiguous()
    assert watch.found  # the recorder does record one
