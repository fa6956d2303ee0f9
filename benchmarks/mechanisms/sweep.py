"""The points of the sweep: counted, guarded, verified, timed, and their memory measured."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import quiet
from benchmarks.measure import MEMORY, Call, Case, Row, Setting, WrongResult, measure
from benchmarks.mechanisms.modules import MECHANISMS, Mechanism, Parts
from benchmarks.operations import Counted, count

LENGTHS = tuple(1 << n for n in range(10, 21))
WIDTHS = (96, 192, 320)
SMALL = 256  # tokens at which the definition is affordable
FLOOR = 8 << 20  # bytes that any call may need besides
# Of the largest value. Longest sums: 10^6 terms of mean one, added pairwise or chunk by chunk in float32.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Sweep(Setting):
    """As `Setting`, with fewer rounds: a point can take a minute.

    Attributes:
        longest: seconds that a call may take, by the length before; longer ones are left out.
    """

    longest: float = 60.0

    @property
    def rounds(self) -> tuple[int, int, float]:
        return (2, 2, 0.0) if self.quick else (3, 25, 1.0)


def operations_of(name: str, length: int, width: int, device: torch.device) -> Counted:
    """What `mix` executes on float32 on a device, counted on tensors without memory."""
    with FakeTensorMode(), device:
        mechanism = MECHANISMS[name](width).requires_grad_(False)
        parts = tuple(part.to(device) for part in mechanism.sample(length, torch.Generator()))
        return count(lambda: mechanism.mix(*parts))[0]


def needed_bytes(mechanism: Mechanism, length: int) -> int:
    """An estimate of what a call and its arguments hold at the peak, float32."""
    return int(4 * mechanism.copies * length * mechanism.width) + FLOOR


def _within(what: str, got: torch.Tensor, want: torch.Tensor) -> None:
    error, largest = float((got.double() - want).abs().max()), float(want.abs().max())
    if got.shape != want.shape or not error <= TOLERANCE * largest:
        raise WrongResult(f"{what}: the largest error is {error:.3g} of {largest:.3g}, more than {TOLERANCE:g} of it")


def _check_small(name: str, mechanism: Mechanism, device: torch.device) -> None:
    """Against the definition in float64."""
    parts = mechanism.sample(SMALL, torch.Generator(device).manual_seed(1))
    got = mechanism.mix(*parts)
    double = MECHANISMS[name](mechanism.width).double().requires_grad_(False)
    double.load_state_dict(mechanism.state_dict())
    _within(name, got.cpu(), double.definition(*(part.cpu().double() for part in parts)))


def _check_here(name: str, mechanism: Mechanism, parts: Parts, y: torch.Tensor) -> None:
    """The first and the last channels at all positions against the same mechanism in float64, which runs other code."""
    for channels in (slice(mechanism.unit), slice(mechanism.width - mechanism.unit, None)):
        few = tuple(part.double() for part in mechanism.narrowed_parts(parts, channels))
        want = mechanism.narrowed(channels).double().mix(*few)
        _within(f"{name}, {len(y)} tokens", y[:, channels], want)


@torch.no_grad()
def points(name: str, width: int, lengths: Sequence[int], setting: Sweep) -> Iterator[Row]:
    """Rows of one mechanism and width, shortest first. Raises `WrongResult` before a wrong one is timed."""
    device = setting.device
    torch.manual_seed(0)
    mechanism = MECHANISMS[name](width).to(device).requires_grad_(False)
    _check_small(name, mechanism, device)
    before: tuple[int, float] | None = None
    for length in sorted(lengths):
        counted = operations_of(name, length, width, device)
        row: Row = {
            "mechanism": name,
            "length": length,
            "width": width,
            "dtype": "float32",
            "runs": mechanism.runs(device, torch.float32),
            "theoretical": mechanism.coefficient * length * width,
            "theoretical an element": mechanism.coefficient,
            "operations": {
                "formula": counted.formula, "elementwise": counted.elementwise, "total": counted.total,
                "an element": counted.total / (length * width),
            },
        }  # fmt: skip
        expected = 0.0 if before is None else before[1] * length / before[0]
        reason = quiet.too_large(needed_bytes(mechanism, length), device)
        if reason is None and expected > setting.longest:
            reason = f"would take about {expected:.3g} s a call by the length before, more than {setting.longest:g} s"
        if reason is None:
            row |= _measured(name, mechanism, length, setting)
            before = length, row["seconds"]
        else:
            row["skipped"] = reason
        yield row


def _measured(name: str, mechanism: Mechanism, length: int, setting: Sweep) -> dict[str, Any]:
    parts = mechanism.sample(length, torch.Generator(setting.device).manual_seed(2))
    call = Call(name, lambda: mechanism.mix(*parts), lambda y: _check_here(name, mechanism, parts, y))
    (row,) = measure("mechanisms", Case(f"{length} x {mechanism.width}", (call,)), setting)
    found = {key: row[key] for key in ("memory", "seconds", "quartiles", "repeats")}
    found["seconds an element"] = found["seconds"] / (length * mechanism.width)
    found["peak bytes"] = quiet.peak_bytes(call.run, setting.device)
    found["argument bytes"] = sum(part.numel() * part.element_size() for part in parts)
    return found


def rows(name: str, width: int, lengths: Sequence[int], setting: Sweep) -> list[Row]:
    """All points of one mechanism and width."""
    return list(points(name, width, lengths, setting))


def in_fresh_process(name: str, width: int, lengths: Sequence[int], setting: Sweep) -> list[Row]:
    """`rows` in a process of its own, whose allocator is in the state that the setting names."""
    with (
        mock.patch.dict(os.environ, MEMORY[setting.memory]),  # the new process inherits it
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        return pool.submit(_run, torch.get_num_threads(), name, width, lengths, setting).result()


def _run(threads: int, name: str, width: int, lengths: Sequence[int], setting: Sweep) -> list[Row]:
    torch.set_num_threads(threads)
    return rows(name, width, lengths, setting)
