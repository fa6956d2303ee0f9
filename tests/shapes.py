"""Small models of both shapes that a model can have, as published and in patches as slim has it; the golden one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lalic.model import LALIC

# What the tests' small models are given beside their own sizes, whose N is 3.
SHAPES: dict[str, dict[str, Any]] = {
    "published": {},
    "patches": {"kernels": (4, 2, 2, 1), "aggregation_widths": (6,), "context_width": 9},
}
EACH_SHAPE = pytest.mark.parametrize("shape", SHAPES)


def small(shape: str = "published", depths: tuple[int, ...] = (1, 0, 1, 1), **options: Any) -> LALIC:
    """A model of a few thousand weights, three slices of odd sizes, ready to code."""
    torch.manual_seed(0)
    model = LALIC(3, 11, (4, 6, 8, 11, 6, 5), depths, (3, 1, 7), **SHAPES[shape], **options)
    model.update()
    return model.eval()


def golden() -> dict[str, torch.Tensor]:
    """A small checkpoint of the published implementation ("sd/..."), its inputs and outputs (golden/model.md)."""
    return load_file(Path(__file__).parent / "golden" / "model.safetensors")


def published_weights() -> dict[str, torch.Tensor]:
    return {name[3:]: value for name, value in golden().items() if name.startswith("sd/")}


def published_model() -> LALIC:
    return LALIC.from_state_dict(published_weights())
