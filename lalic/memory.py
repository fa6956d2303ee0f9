"""One setting of the C library's allocator, for processes that are ours: the command line's."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from malloc.h


def keep_memory() -> bool:
    """Let freed memory be used again instead of going back to the system; true where that could be set (glibc).

    By default glibc asks the system for each tensor above 32 MiB and gives it back when it is freed; the pages are
    cleared on first touch every time, which takes longer than most element-wise operations on them. The process then
    keeps its peak for as long as it lives, so a library must not decide this for its host; a command may.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
