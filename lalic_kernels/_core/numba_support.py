"""Whether numba is there, without importing it. What is compiled with it is imported where it is called."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

INSTALLED = importlib.util.find_spec("numba") is not None


def available() -> bool:
    """Whether compiled CPU code can run here: what an op tells `dispatch`."""
    return INSTALLED


def on_compiling(tell: Callable[[], None]) -> None:
    """Have `tell` called when numba compiles for the first time in this process, which takes long and happens only
    where no kept code fits this processor. Imports numba; does nothing where there is none."""
    if not INSTALLED:
        return
    from numba.core import event

    class FirstTime(event.Listener):
        def __init__(self) -> None:
            self.told = False

        def on_start(self, event: Any) -> None:
            if not self.told:
                self.told = True
                tell()

        def on_end(self, event: Any) -> None:
            pass

    event.register("numba:compile", FirstTime())
