"""Whether Triton and numba are installed, and let compile. Every op also works without both.

Code that needs Triton is imported inside the function that calls it.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Callable
from typing import Any

from lalic_kernels import code_cache

TRITON = importlib.util.find_spec("triton") is not None
TRITON_FROM = (3, 3)  # older ones do not compile named tuples


def _why_no_numba() -> str:
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed"
    from numba import config

    return "NUMBA_DISABLE_JIT is set, so numba compiles nothing" if config.DISABLE_JIT else ""  # type: ignore[attr-defined]


WHY_NO_NUMBA = _why_no_numba()
NUMBA = not WHY_NO_NUMBA


def interpreting() -> bool:
    """Whether Triton interprets kernels in Python, on CPU tensors. Triton reads TRITON_INTERPRET at its import."""
    return TRITON and os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def missing_to_start() -> list[str]:
    """What Triton lacks to start on a GPU: for its first launch it builds a module in C, once for each user."""
    lacking = []
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        lacking.append("a C compiler (gcc or clang in PATH, or another one in CC)")
    if not os.path.isfile(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
        lacking.append("Python's headers (the package python3-dev)")
    return lacking


def too_old() -> str:
    """The sentence about a Triton that is older than the kernels need; empty if it is not."""
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:  # not installed, or under another name, as AMD's
        return ""
    if tuple(map(int, version.split(".")[:2])) >= TRITON_FROM:
        return ""
    return f"triton: expected {'.'.join(map(str, TRITON_FROM))} or later, got {version}"


@functools.cache
def start_triton() -> None:
    """Let Triton find the GPU, before the first launch.

    Raises:
        RuntimeError: it cannot start; one sentence with what is missing.
    """
    from triton.runtime import driver

    if reason := too_old():
        raise RuntimeError(reason)
    if folder := code_cache.triton_folder():
        os.environ["TRITON_CACHE_DIR"] = str(folder)
    try:
        driver.active.get_current_device()
    except Exception as error:
        reason = " and ".join(missing_to_start()) or " ".join(str(error).split())
        raise RuntimeError(f"Triton cannot start on this GPU, because this is missing or fails: {reason}") from error


def on_compiling(warn: Callable[[], None], every: bool = False) -> None:
    """Call `warn` once, when numba first compiles in this process; with `every` at each function that it compiles.

    numba compiles, which takes long, only if no cached code fits this processor. Imports numba; without it, does
    nothing.
    """
    if not NUMBA:
        return
    from numba.core import event

    class FirstCompilation(event.Listener):
        def __init__(self) -> None:
            self.warned = False

        def on_start(self, event: Any) -> None:
            if every or not self.warned:
                self.warned = True
                warn()

        def on_end(self, event: Any) -> None:
            pass

    event.register("numba:compile", FirstCompilation())
