"""A setting of the C library's memory allocator, for the command line."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from malloc.h
_keeps = False


def keep_memory() -> bool:
    """Keep freed memory in the process instead of returning it to the system. Returns whether it was set (glibc only).

    By default glibc gets memory for each tensor above 32 MiB from the system and returns it when the tensor is freed.
    The system clears the pages every time, which takes longer than most element-wise operations on them. With the
    setting a process keeps its peak of memory, so a library must not set it for its user; a command may.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    global _keeps
    _keeps = bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
    return _keeps


def give_back() -> None:
    """Return what is free now to the system, once, if the process keeps memory: before work that needs other sizes."""
    if _keeps:
        ctypes.CDLL(None).malloc_trim(0)
