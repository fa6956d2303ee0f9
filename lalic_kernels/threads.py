"""Run work that releases the GIL over independent items, on as many threads as torch uses.

`run_ranges` is for compiled kernels, `run_each` for several operations of torch on each item. An operation of torch on
several threads ends with a wait in which they spin. On cores that another process uses too, the last thread is often
not running then, so each operation may take a time slice or two, however small it is. In `run_each` an operation has
one thread, and the only wait is at the end, without spinning.

numba's own ``parallel=True`` is not used: it multiplies compile time, loads a second OpenMP runtime into a process that
forks data-loader workers, and one of its threading layers aborts when two Python threads call it at once.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch

T = TypeVar("T")

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def _executor(threads: int) -> ThreadPoolExecutor:
    """The shared pool, replaced by a larger one if it has too few threads."""
    global _pool, _pool_size
    with _lock:
        if _pool is None or _pool_size < threads:
            # A smaller old pool finishes its work; then it is garbage-collected.
            _pool, _pool_size = ThreadPoolExecutor(threads, "lalic-kernels", initializer=_limit_this_thread), threads
        return _pool


def _forget_pool() -> None:
    """Start without a pool in a forked child, which has the pool's state but none of its threads."""
    global _pool, _pool_size, _lock
    _lock, _pool, _pool_size = threading.Lock(), None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _limit_this_thread() -> None:
    """Let torch's operations use no other thread when this one calls them.

    `torch.set_num_threads` would also change the number for all threads that the program starts later.
    """
    torch.get_num_threads()  # at its first need in a thread, torch sets the numbers
    for setter in _setters():
        setter(1)


@functools.cache
def _setters() -> tuple[Callable[[int], Any], ...]:
    """The functions of OpenMP and MKL that set the calling thread's number of threads; none if one is missing."""
    names = ["omp_set_num_threads"]
    if torch.backends.mkl.is_available():
        names.append("MKL_Set_Num_Threads_Local")
    try:
        library = ctypes.CDLL(torch._C.__file__)  # finds the names in the libraries that torch is linked with
        return tuple(getattr(library, name) for name in names)
    except (OSError, AttributeError):
        return ()


@functools.cache
def _can_limit() -> bool:
    """Whether `_limit_this_thread` has an effect with this build of torch."""
    with ThreadPoolExecutor(1, initializer=_limit_this_thread) as pool:
        return bool(submit(pool, torch.get_num_threads).result() == 1)


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


def workers() -> int:
    """The number of threads of `run_each`: as many as torch uses.

    1 where operations cannot be kept to one thread, and under a mode or a tracer, which would not see other threads.
    """
    threads = torch.get_num_threads()
    followed = torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack()
    if threads == 1 or followed or torch._C._get_tracing_state() is not None or not _can_limit():
        return 1
    return threads


def run_each(function: Callable[[T], object], items: Sequence[T]) -> None:
    """Call ``function(item)`` for each item, on `workers()` threads, in which torch's operations use one thread each.

    A thread takes the next item when it has done one. No gradients are recorded. With one worker or one item the caller
    does all, and torch uses its threads. An exception is raised again by this function.
    """
    threads = min(workers(), len(items))
    if threads <= 1:
        for item in items:
            function(item)
        return
    rest = iter(items)
    mode = torch.inference_mode if torch.is_inference_mode_enabled() else torch.no_grad

    def work() -> None:
        with mode():
            for item in rest:
                function(item)

    executor = _executor(threads)
    for future in [submit(executor, work) for _ in range(threads)]:
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
