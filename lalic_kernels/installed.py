"""Whether Triton and numba are installed, without importing them: each op also works on machines without either.

What is compiled with one of them is imported where it is called.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any

TRITON = importlib.util.find_spec("triton") is not None
NUMBA = importlib.util.find_spec("numba") is not None


def interpreting() -> bool:
    """Whether Triton runs kernels in its Python interpreter, on CPU tensors: TRITON_INTERPRET, read at its import."""
    return TRITON and os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def on_compiling(warn: Callable[[], None]) -> None:
    """Have `warn` called when numba compiles for the first time in this process.

    Compiling takes long and happens only where no cached code fits this processor. Imports numba; does nothing where
    there is none.
    """
    if not NUMBA:
        return
    from numba.core import event

    class FirstTime(event.Listener):
        def __init__(self) -> None:
            self.warned = False

        def on_start(self, event: Any) -> None:
            if not self.warned:
                self.warned = True
                warn()

        def on_end(self, event: Any) -> None:
            pass

    event.register("numba:compile", FirstTime())
