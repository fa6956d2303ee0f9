"""Whether numba is there, without importing it. What is compiled with it is imported where it is called."""

from __future__ import annotations

import importlib.util

INSTALLED = importlib.util.find_spec("numba") is not None


def available() -> bool:
    """Whether compiled CPU code can run here: what an op tells `dispatch`."""
    return INSTALLED
