"""The two shapes that a model can have, small: as published, and in patches as slim has it."""

from __future__ import annotations

from typing import Any

import pytest

# What the tests' small models are given beside their own sizes, whose N is 3.
SHAPES: dict[str, dict[str, Any]] = {
    "published": {},
    "patches": {"kernels": (4, 2, 2, 1), "aggregation_widths": (6,), "context_width": 9},
}
EACH_SHAPE = pytest.mark.parametrize("shape", SHAPES)
