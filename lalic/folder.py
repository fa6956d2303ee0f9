"""Many files in a row: reading, coding and writing overlap, and what is printed comes in the order of the jobs.

A thread reads and opens what comes next, the caller's thread codes, and others pack and write what is done. Few files
are under way at once, so memory does not grow with their number. Files are written whole or not at all
(`lalic.files.write_atomic`); an interrupt lets those that are being written be finished, and begins no other.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from lalic.errors import LalicError
from lalic.files import STREAM, Job, write_atomic

__all__ = ["Steps", "read", "run"]

AHEAD = 2  # files that are read before their turn, beyond those that are coded together
WRITERS = 2
BEHIND = 3  # files that wait to be written


@dataclass(frozen=True)
class Steps:
    """What is done to each job.

    open: bytes of the source -> what is coded, in a thread of its own. code: some of those -> as many results, or the
    error that one met, in the caller's thread. pack: a result -> the bytes to write and words about them, in any
    thread. together: how many `code` is given at most.
    """

    open: Callable[[Job, bytes], Any]
    code: Callable[[list[Any]], list[Any]]
    pack: Callable[[Job, Any], tuple[bytes, str]]
    together: int = 1


@dataclass
class _State:
    """How far a job is."""

    job: Job
    value: Any = None
    error: Exception | None = None
    seconds: float = 0.0
    warned: list[str] = field(default_factory=list)

    def do(self, step: Callable[[], Any]) -> None:
        """One step, if none has failed; its time and its warnings are the job's."""
        if self.error is not None:
            return
        start = time.perf_counter()
        _thread.warned = self.warned
        try:
            self.value = step()
        except Exception as error:  # one bad file does not stop the rest
            self.error, self.value = error, None
        finally:
            _thread.warned = None
            self.seconds += time.perf_counter() - start


_thread = threading.local()


def run(
    jobs: Sequence[Job], steps: Steps, say: Callable[[Job, Exception], str], *, force: bool = False, quiet: bool = False
) -> int:
    """Do every job; one that fails is reported and the rest go on. Returns how many failed.

    say: the line about an error. force: files that exist are overwritten. quiet: nothing is said but errors and
    warnings; as soon as one target is standard output, that is so too.
    """
    from tqdm import tqdm

    failed = 0
    silent = quiet or any(job.target == STREAM for job in jobs)
    show_bar = len(jobs) > 1 and sys.stderr.isatty() and not quiet
    start = time.perf_counter()
    with _warnings_by_thread(), tqdm(total=len(jobs), unit="file", file=sys.stderr, disable=not show_bar) as bar:
        for state in _results(jobs, steps, force):
            if state.error is not None:
                failed += 1
                bar.write(f"lalic: {say(state.job, state.error)}", file=sys.stderr)
            for warning in state.warned:
                bar.write(f"lalic: {state.job.source}: warning: {warning}", file=sys.stderr)
            if state.error is None and not silent:
                line = f"{state.job.source} -> {state.job.target}: {state.value}, {state.seconds:.2f} s"
                bar.write(line, file=sys.stdout)
            bar.update()
    done, seconds = len(jobs) - failed, time.perf_counter() - start
    if len(jobs) > 1 and done and not silent:
        print(f"{done} pictures in {seconds:.2f} s, {done / seconds:.2f} a second")
    return failed


def _results(jobs: Sequence[Job], steps: Steps, force: bool) -> Iterator[_State]:
    """Every job when it is done, in order."""
    if len(jobs) == 1:
        state = _opened(jobs[0], steps, force)
        _code([state], steps)
        yield _written(state, steps, force)
        return
    readers = ThreadPoolExecutor(1, "lalic-read")
    writers = ThreadPoolExecutor(WRITERS, "lalic-write")
    coming: deque[Future[_State]] = deque()
    going: deque[Future[_State]] = deque()
    rest = iter(jobs)

    def read_on() -> None:
        while len(coming) < steps.together + AHEAD and (job := next(rest, None)) is not None:
            coming.append(readers.submit(_opened, job, steps, force))

    try:
        read_on()
        while coming:
            states = [coming.popleft().result() for _ in range(min(steps.together, len(coming)))]
            read_on()
            _code(states, steps)
            for state in states:
                going.append(writers.submit(_written, state, steps, force))
            while going and (len(going) > BEHIND or going[0].done()):
                yield going.popleft().result()
        while going:
            yield going.popleft().result()
    finally:  # also where the caller was interrupted: what is being written is finished, nothing else begun
        readers.shutdown(wait=True, cancel_futures=True)
        writers.shutdown(wait=True, cancel_futures=True)


def _opened(job: Job, steps: Steps, force: bool) -> _State:
    state = _State(job)

    def step() -> Any:
        if not force and os.path.isfile(job.target):
            raise LalicError(f"{job.target} exists already, --force overwrites it")
        return steps.open(job, read(job.source))

    state.do(step)
    return state


def _code(states: list[_State], steps: Steps) -> None:
    good = [state for state in states if state.error is None]
    if not good:
        return
    start, shared = time.perf_counter(), _State(good[0].job)
    shared.do(lambda: steps.code([state.value for state in good]))
    results = [shared.error] * len(good) if shared.error is not None else shared.value
    for state, result in zip(good, results, strict=True):
        state.warned += shared.warned if state is good[0] else []
        state.error, state.value = (result, None) if isinstance(result, Exception) else (None, result)
        state.seconds += (time.perf_counter() - start) / len(good)


def _written(state: _State, steps: Steps, force: bool) -> _State:
    def step() -> str:
        data, what = steps.pack(state.job, state.value)
        _write(state.job.target, data, force)
        return what

    state.do(step)
    return state


class _warnings_by_thread(warnings.catch_warnings):
    """Libraries' own warnings are for programmers; those about a picture go to the job that a thread works at."""

    def __enter__(self) -> None:
        from lalic.images import ImageWarning

        super().__enter__()
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ImageWarning)

        def note(message: Warning | str, *_: Any, **__: Any) -> None:
            warned = getattr(_thread, "warned", None)
            if warned is not None:
                warned.append(str(message))

        warnings.showwarning = note


def read(source: str) -> bytes:
    """The bytes of a file, or of standard input."""
    if source == STREAM:
        return sys.stdin.buffer.read()
    with open(source, "rb") as stream:
        return stream.read()


def _write(target: str, data: bytes, force: bool) -> None:
    if target == STREAM:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
    write_atomic(target, data, overwrite=force)
