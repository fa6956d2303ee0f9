"""Compilation of Triton's kernels: said when it begins, and done ahead, in threads.

`lalic_kernels.installed.on_compiling` is the same for code that numba compiles.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from lalic_kernels.launch import on

THREADS = 16  # at most: more do not help, for a few large kernels take longest


def on_kernel_compiling(begins: Callable[[], None]) -> None:
    """Call `begins` before each kernel that Triton compiles from now on. Code in its cache on disk is not compiled.

    Imports Triton.
    """
    from triton.backends import backends

    for backend in backends.values():
        add_stages = backend.compiler.add_stages  # the first thing that a compilation asks a back end for

        @functools.wraps(add_stages)
        def told(*args: Any, add_stages: Callable[..., Any] = add_stages, **kwargs: Any) -> Any:
            begins()
            return add_stages(*args, **kwargs)

        backend.compiler.add_stages = told


@contextlib.contextmanager
def ahead(device: torch.device, threads: int | None = None) -> Iterator[None]:
    """Inside, Triton's kernels are compiled for launches in several threads, and no launch is made.

    So results have no values, and what is made of weights and cached has none either: use a copy of a model. Leaving
    waits for the threads. Raises what the compiler raises.

    threads: None for as many as there are processors, at most `THREADS`.
    """
    from triton.runtime.jit import JITFunction

    launch = JITFunction.run
    seen: set[Hashable] = set()
    jobs: list[Future[None]] = []

    def compile_one(kernel: Any, args: tuple[Any, ...], grid: Any, options: dict[str, Any]) -> None:
        with on(device):  # the current device is a thread's own
            kernel.warmup(*args, grid=grid, **options)

    def note(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        if warmup:
            return launch(kernel, *args, grid=grid, warmup=True, **options)
        key = (kernel, tuple(map(_kind, kernel.params, args)), tuple(sorted(options.items())))
        if key not in seen:
            seen.add(key)
            # A dtype stands for an aligned tensor, so that no memory is held.
            given = tuple(x.dtype if isinstance(x, Tensor) and x.data_ptr() % 16 == 0 else x for x in args)
            jobs.append(pool.submit(compile_one, kernel, given, grid, options))
        return None

    threads = threads or min(THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool, mock.patch.object(JITFunction, "run", note):
        yield
        for job in jobs:
            job.result()


def _kind(parameter: Any, value: Any) -> Hashable:
    """What Triton specialises a launch on: types, alignment, ones and multiples of 16 unless it is told not to."""
    if isinstance(value, Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    if isinstance(value, int) and not isinstance(value, bool) and not parameter.is_constexpr:
        wide = not -(2**31) <= value < 2**31
        return ("int", wide) if parameter.do_not_specialize else ("int", wide, value == 1, value % 16 == 0)
    return type(value), value if isinstance(value, Hashable) else repr(value)
