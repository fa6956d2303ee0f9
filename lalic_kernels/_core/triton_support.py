"""Whether Triton is there, without importing it: the CPU path must work on machines that do not have it."""

from __future__ import annotations

import importlib.util
import os

INSTALLED = importlib.util.find_spec("triton") is not None


def interpreting() -> bool:
    """Whether Triton runs kernels in its Python interpreter, on CPU tensors: TRITON_INTERPRET, read at its import."""
    return INSTALLED and os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")
