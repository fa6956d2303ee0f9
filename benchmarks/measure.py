"""Verify, then time: the one place where a clock is read.

A `Case` is a handful of calls on the same inputs. Each call's result is checked first; a wrong one raises
`WrongResult` and nothing of the case is timed. Then all calls run in turn, round after round, in one process, so that
whatever disturbs the machine disturbs the measured call and its yardstick alike. A ratio is one median over another.

On the CPU a time is the wall clock round one call, the release of its result included. On CUDA it is the time between
two events in the stream, after the L2 cache was overwritten; calls that wait for the host themselves (`wall_clock`) are
timed by the clock between two synchronisations.

What a large result costs on a CPU depends on where its memory comes from: pages fresh from the system are zeroed one by
one at first touch, which can take longer than the arithmetic. `MEMORY` names the states of the allocator to measure in.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

Row = dict[str, Any]

# Environment of the measuring process, read by glibc when it starts. Real processes lie between "fresh" and "reused";
# a short one, and anything above 32 MiB in most, is close to "fresh".
MEMORY = {
    "default": {},
    "fresh": {"MALLOC_MMAP_THRESHOLD_": str(1 << 17)},  # all above 128 KiB is mapped anew, and unmapped when released
    "reused": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)},  # nothing goes back to the system
}

FLUSH_BYTES = 256 << 20  # more than the L2 cache of any present GPU
CYCLES = 2e9  # a second, of a GPU's clock: few are faster
COPY_BYTES = 1 << 30


def can_set_memory(device: str) -> bool:
    """Whether the state of the allocator can be chosen: only glibc's, and only for the CPU."""
    return device == "cpu" and platform.libc_ver()[0] == "glibc"


def memory_to_read(device: torch.device) -> str:
    """The state in which a call's peak memory shows: what is freed goes back at once, where that can be set."""
    return "fresh" if can_set_memory(device.type) else "default"


def in_fresh_process(call: Callable[..., Any], *arguments: Any, memory: str = "default") -> Any:
    """A call's result, from a new process with as many threads, whose allocator starts in that state."""
    threads = torch.get_num_threads()
    with (
        mock.patch.dict(os.environ, MEMORY[memory]),  # the new process inherits it
        ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), initializer=torch.set_num_threads, initargs=(threads,)
        ) as pool,
    ):
        return pool.submit(call, *arguments).result()


class WrongResult(Exception):
    """A result that is not the reference's: the call is not timed."""


@dataclass(frozen=True)
class Setting:
    """Where and how thoroughly to measure.

    Attributes:
        device: of the inputs.
        quick: tiny inputs, two rounds, to see that everything runs.
        memory: the key of `MEMORY` under whose environment this process was started; a label here.
        full_rounds: of a measurement that is not quick.
    """

    device: torch.device
    quick: bool = False
    memory: str = "default"
    full_rounds: tuple[int, int, float] = (9, 101, 4.0)

    @property
    def rounds(self) -> tuple[int, int, float]:
        """Least and most rounds, and the seconds after which the least is enough."""
        return (2, 2, 0.0) if self.quick else self.full_rounds


@dataclass(frozen=True)
class Call:
    """Something to time.

    Attributes:
        name: as it stands in the table.
        run: the call; its result goes to `check`.
        check: raises `WrongResult` for a wrong result. None for yardsticks only, which are torch's or a peer's.
        metrics: more figures from the median, in seconds.
    """

    name: str
    run: Callable[[], Any]
    check: Callable[[Any], None] | None = None
    metrics: Callable[[float], dict[str, float]] | None = None

    @property
    def is_yardstick(self) -> bool:
        return self.check is None


@dataclass(frozen=True)
class Case:
    """Calls on the same inputs, timed together; every call that is no yardstick gets a ratio to each that is."""

    name: str
    calls: tuple[Call, ...]
    wall_clock: bool = False


@dataclass(frozen=True)
class Entry:
    """A line of the registry.

    Attributes:
        name, about: for the command line.
        cases: builds inputs one case after the other, so that each can be freed in between.
        devices: where it runs.
        memory: states of the allocator to measure in on a CPU.
        by_name: measured only if it is named.
    """

    name: str
    about: str
    cases: Callable[[Setting], Iterator[Case]]
    devices: tuple[str, ...] = ("cpu", "cuda")
    memory: tuple[str, ...] = ("default",)
    by_name: bool = False


def within(what: str, got: Tensor, want: Tensor, tolerance: float) -> None:
    """Raise `WrongResult` unless shapes agree and no element is further than `tolerance` (absolute) from `want`."""
    error = _difference(what, got, want).abs().max().item() if want.numel() else 0.0
    if not error <= tolerance:  # also when it is not a number
        raise WrongResult(f"{what}: the largest error is {error:.3g}, expected at most {tolerance:.3g}")


def within_norm(what: str, got: Tensor, want: Tensor, tolerance: float) -> None:
    """Raise `WrongResult` unless shapes agree and ||got - want|| is at most `tolerance` times ||want||."""
    error = (_difference(what, got, want).norm() / want.double().norm()).item()
    if not error <= tolerance:  # also when it is not a number
        raise WrongResult(f"{what}: the relative error is {error:.3g}, expected at most {tolerance:.3g}")


def _difference(what: str, got: Tensor, want: Tensor) -> Tensor:
    if got.shape != want.shape:
        raise WrongResult(f"{what}: the shape is {tuple(got.shape)}, expected {tuple(want.shape)}")
    return got.double() - want.double()


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """No TF32 in torch's own products and convolutions: float32 is what its name says, also where torch allows TF32."""
    flags: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [flag.allow_tf32 for flag in flags]
    try:
        for flag in flags:
            flag.allow_tf32 = False
        yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value


def measure(entry: str, case: Case, setting: Setting) -> list[Row]:
    """Rows of one case, its yardsticks included. Raises `WrongResult` before anything is timed."""
    for call in case.calls:
        if call.check is not None:
            call.check(call.run())
    rounds = _cuda_rounds if setting.device.type == "cuda" and not case.wall_clock else _clock_rounds
    times, peaks = rounds(case.calls, setting)
    medians = {call.name: statistics.median(times[call.name]) for call in case.calls}
    rows = []
    for call in case.calls:
        seconds = medians[call.name]
        low, _, high = statistics.quantiles(times[call.name], n=4)
        rows.append(
            {
                "entry": entry,
                "memory": setting.memory,
                "case": case.name,
                "call": call.name,
                "yardstick": call.is_yardstick,
                "seconds": seconds,
                "quartiles": [low, high],
                "repeats": len(times[call.name]),
                "ratios": {}
                if call.is_yardstick
                else {other.name: seconds / medians[other.name] for other in case.calls if other.is_yardstick},
                "metrics": (call.metrics(seconds) if call.metrics else {}) | peaks.get(call.name, {}),
            }
        )
    return rows


Times = tuple[dict[str, list[float]], dict[str, dict[str, float]]]


def _clock_rounds(calls: Sequence[Call], setting: Setting) -> Times:
    wait = torch.cuda.synchronize if setting.device.type == "cuda" else lambda: None
    for call in calls:
        call.run()
    times: dict[str, list[float]] = {call.name: [] for call in calls}
    least, most, enough = setting.rounds
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        for done in range(most):
            if done >= least and time.perf_counter() - start > enough:
                break
            for call in calls:
                wait()
                begin = time.perf_counter()
                call.run()
                wait()
                times[call.name].append(time.perf_counter() - begin)
    finally:
        gc.enable()
    return times, {}


def _cuda_rounds(calls: Sequence[Call], setting: Setting) -> Times:
    """Events are read after all rounds, and before each call the device waits for as long as the host takes to launch
    it. So the host runs ahead, and its own time does not show.
    """
    peaks = {}
    one_round = 0.0
    lead: dict[str, float] = {}  # seconds that the device waits before a call
    for call in calls:
        call.run()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        call.run()
        lead[call.name] = 1.5 * (time.perf_counter() - start)
        torch.cuda.synchronize()
        one_round += time.perf_counter() - start + lead[call.name]
        peaks[call.name] = {"peak MiB": (torch.cuda.max_memory_allocated() - before) / 2**20}
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=setting.device)
    pairs: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {call.name: [] for call in calls}
    least, most, enough = setting.rounds
    for _ in range(max(least, min(most, int(enough / one_round)))):
        for call in calls:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            flush.zero_()
            keep_busy(lead[call.name])
            begin.record()
            call.run()
            end.record()
            pairs[call.name].append((begin, end))
    torch.cuda.synchronize()
    return {name: [1e-3 * a.elapsed_time(b) for a, b in found] for name, found in pairs.items()}, peaks


def keep_busy(seconds: float) -> None:
    """Let the current CUDA stream wait about so long, or longer where its clock is slow."""
    torch.cuda._sleep(int(CYCLES * seconds))


@functools.cache
def copy_bandwidth(device: torch.device, size: int = COPY_BYTES) -> float:
    """Bytes a second, read and written together, of copying `size` bytes, the best of five; once in a process."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _best_of_five(lambda: target.copy_(source), device)


@functools.cache
def product_rate(device: torch.device, dtype: torch.dtype, size: int = 8192) -> float:
    """Multiply-adds a second of a product of two (size, size) matrices, the best of five; once in a process."""
    matrix = torch.randn(size, size, device=device).to(dtype)
    product = torch._int_mm if dtype == torch.int8 else torch.mm
    return size**3 / _best_of_five(lambda: product(matrix, matrix.t()), device)


def _best_of_five(run: Callable[[], Any], device: torch.device) -> float:
    rounds = _cuda_rounds if device.type == "cuda" else _clock_rounds
    times, _ = rounds((Call("", run),), Setting(device, full_rounds=(5, 5, 0.0)))
    return min(times[""])


def bandwidth_metrics(moved: int, device: torch.device) -> Callable[[float], dict[str, float]] | None:
    """On CUDA: GB/s counting the bytes an op must move at least, and their share of the copy's. None elsewhere."""
    if device.type != "cuda":
        return None
    peak = copy_bandwidth(device)
    return lambda seconds: {"GB/s": 1e-9 * moved / seconds, "of copy bandwidth": moved / seconds / peak}
