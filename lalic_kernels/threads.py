"""Run a compiled kernel that releases the GIL over independent work items, on as many threads as torch uses.

numba's own ``parallel=True`` is not used: it multiplies compile time, loads a second OpenMP runtime into a process that
forks data-loader workers, and one of its threading layers aborts when two Python threads call it at once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def _executor(threads: int) -> ThreadPoolExecutor:
    """The shared pool, replaced by a larger one if it has too few threads."""
    global _pool, _pool_size
    with _lock:
        if _pool is None or _pool_size < threads:
            # A smaller old pool finishes its work; then it is garbage-collected.
            _pool, _pool_size = ThreadPoolExecutor(threads, thread_name_prefix="lalic-kernels"), threads
        return _pool


def _forget_pool() -> None:
    """Start without a pool in a forked child, which has the pool's state but none of its threads."""
    global _pool, _pool_size, _lock
    _lock, _pool, _pool_size = threading.Lock(), None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def flat_array(x: torch.Tensor) -> np.ndarray:
    """All elements of a contiguous CPU tensor as a flat array, without a copy; bfloat16 as uint16."""
    flat = x.detach().view(-1)
    return flat.view(torch.int16).numpy().view(np.uint16) if x.dtype == torch.bfloat16 else flat.numpy()


def run_ranges(kernel: Callable[[int, int], None], items: int, *, least: int = 1) -> None:
    """Call ``kernel(start, stop)`` so that the ranges cover ``0 .. items``, one range per thread.

    ``least`` is the smallest range that is worth a thread. There are at most ``torch.get_num_threads()`` threads. An
    exception in any range is raised again by this function.
    """
    threads = max(1, min(torch.get_num_threads(), items // max(1, least)))
    if threads == 1:
        kernel(0, items)
        return
    edges = [items * i // threads for i in range(threads + 1)]
    executor = _executor(threads)
    futures = [submit(executor, kernel, edges[i], edges[i + 1]) for i in range(1, threads)]
    kernel(edges[0], edges[1])
    for i, future in enumerate(futures, 1):
        # What no thread has begun, this one does: on a busy machine it would wait for a time slice of the other.
        if future.cancel():
            kernel(edges[i], edges[i + 1])
        else:
            future.result()


def submit(executor: ThreadPoolExecutor, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """`executor.submit`; in this thread once the main thread has ended.

    Python ends all pools with the main thread, and then still waits for other threads and calls `atexit` functions.
    """
    try:
        return executor.submit(function, *arguments)
    except RuntimeError as error:
        if "cannot schedule new futures" not in str(error):  # another error leaves the work in the pool
            raise
        done: Future[Any] = Future()
        try:
            done.set_result(function(*arguments))
        except BaseException as failure:
            done.set_exception(failure)
        return done
