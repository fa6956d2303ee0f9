"""Values that are kept up to a limit; and settings of the C library's memory allocator, for the command line."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

KEEP_MIB = 1024  # of decoded pictures

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Kept(Generic[K, V]):
    """Values by key, of which the first stay in memory, `limit` bytes in all; the others are made whenever asked for.

    Nothing is replaced: where every value is asked for as often, as in training, the last ones used are no better to
    keep than others. It may be used from several threads. size: bytes of a value.
    """

    def __init__(self, limit: int, size: Callable[[V], int]) -> None:
        self._limit, self._size = limit, size
        self._values: dict[K, V] = {}
        self._lock = threading.Lock()

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value of a key, from `make` if it is not kept."""
        if (value := self._values.get(key)) is not None:
            return value
        value = make()
        size = self._size(value)
        with self._lock:
            if key not in self._values and size <= self._limit:
                self._values[key] = value
                self._limit -= size
        return value


# The allocator

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # from malloc.h
_MMAP_MAX = 65536  # glibc's default
_APART = 1 << 22  # bytes: with less, the system clears pages for more arrays than it is worth
_keeps = False
_apart = 0  # blocks of `apart` that run now
_apart_lock = threading.Lock()


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
    settings = (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_MMAP_THRESHOLD, _APART)
    _keeps = all(mallopt(*setting) for setting in settings)
    return _keeps


def give_back() -> None:
    """Return what is free now to the system, once, if the process keeps memory: before work that needs other sizes."""
    if _keeps:
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Inside, arrays from 4 MiB get memory outside of the heap, if the process keeps memory: for what stays long, or
    where little memory matters more than time.

    It goes back to the system when such an array is freed. In the heap, arrays that stay would lie between those that
    come and go, and the heap would grow, as gaps between them are too small. The setting is one for all threads.
    """
    if not _keeps:
        yield
        return
    _count_apart(1)
    try:
        yield
    finally:
        _count_apart(-1)


def _count_apart(change: int) -> None:
    global _apart
    with _apart_lock:
        _apart += change
        ctypes.CDLL(None).mallopt(_M_MMAP_MAX, _MMAP_MAX if _apart else 0)
