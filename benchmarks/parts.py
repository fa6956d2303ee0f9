"""Where the time of a codec goes, part by part, and how far each part is from what the machine allows.

Times are exclusive: while a part calls another, its own clock stands. On a GPU the marks are events in the stream, so
launches must be plain ones (no CUDA graph); on a CPU they are readings of the clock. What no part claims is "rest".

A part's floor is the larger of its operations over the rate of the unit that does them and its bytes over the
bandwidth of a copy. Operations are multiply-adds of layers (`benchmarks.counted`), bytes what each operation reads and
writes once, weights included; both are counted on a forward pass without memory. Rates are measured beside the times,
on matrix products large enough to be at the machine's best. Entropy decoding is a chain and has no floor of this kind.
"""

from __future__ import annotations

import contextlib
import importlib
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, Protocol
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from benchmarks.counted import Passes, RealNumbers, without_memory
from benchmarks.measure import WrongResult, copy_bandwidth
from lalic.coder.decoder import SliceDecoder
from lalic.config import Config
from lalic.model import LALIC
from lalic_kernels import installed

INT8_PRODUCTS = 4  # of digits, for one product of the exact arithmetic (docs/portable-arithmetic.md)
EXACT = ("h_s", "contexts", "aggregation")  # what decides symbols
NEEDED = {
    "encode": {"g_a", "h_a", "h_s", "contexts", "aggregation", "entropy encoding"},
    "decode": {"h_s", "contexts", "aggregation", "entropy decoding", "g_s"},
}
# (module, owner in it or "" for the module itself, function, part). The second ones need Triton.
PLACES = (
    ("lalic.model", "LALIC", "latents", "g_a"),
    ("lalic.model", "LALIC", "_hyper_latents", "h_a"),
    ("lalic.model", "LALIC", "_synthesise_at", "g_s"),
    ("lalic.coder.exact", "ExactEntropy", "_hyper_parameters", "h_s"),
    ("lalic.coder.decoder", "SliceDecoder", "channel_context", "contexts"),
    ("lalic.coder.decoder", "SliceDecoder", "spatial_context", "contexts"),
    ("lalic.coder.decoder", "SliceDecoder", "aggregation", "aggregation"),
    ("lalic_kernels.rans.grouped", "", "encode", "entropy encoding"),
    ("lalic_kernels.rans.grouped", "Decoder", "decode", "entropy decoding"),
)
PLACES_THERE = (
    ("lalic.coder.device", "DeviceSlices", "known_part", "contexts"),
    ("lalic.coder.device", "DeviceSlices", "network", "aggregation"),
    ("lalic_kernels.rans.grouped.gpu_encode", "", "encode", "entropy encoding"),
    ("lalic_kernels.rans.grouped.gpu", "DeviceDecoder", "decode_channels", "entropy decoding"),
    ("lalic_kernels.rans.grouped.gpu", "DeviceDecoder", "decode_parameters", "entropy decoding"),
)


class Clock(Protocol):
    def mark(self) -> Any:
        """A point in time, to be read later."""

    def between(self, first: Any, second: Any) -> float:
        """Seconds between two marks; what was launched before them is done."""


class WallClock:
    """Of a CPU."""

    def mark(self) -> float:
        return time.perf_counter()

    def between(self, first: float, second: float) -> float:
        return second - first


class Events:
    """Of the current CUDA stream."""

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, first: torch.cuda.Event, second: torch.cuda.Event) -> float:
        second.synchronize()
        return 1e-3 * first.elapsed_time(second)


class Stretches:
    """Stretches of time between marks, each of the part that was innermost in it."""

    def __init__(self, clock: Clock):
        self.clock = clock
        self._open = ["rest"]
        self._marks: list[tuple[Any, str]] = []  # when, and whose time begins

    def __enter__(self) -> Stretches:
        self._marks = [(self.clock.mark(), "rest")]
        return self

    def __exit__(self, *_: object) -> None:
        self._marks.append((self.clock.mark(), "end"))

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._open.append(name)
        self._marks.append((self.clock.mark(), name))
        try:
            yield
        finally:
            self._open.pop()
            self._marks.append((self.clock.mark(), self._open[-1]))

    def seconds(self) -> dict[str, float]:
        found: dict[str, float] = defaultdict(float)
        for (first, name), (second, _) in zip(self._marks, self._marks[1:], strict=False):
            found[name] += self.clock.between(first, second)
        return dict(found)


@contextlib.contextmanager
def labelled(part: Callable[[str], Any]) -> Iterator[None]:
    """Inside, each function of `PLACES` runs in the context that `part` gives for its part."""

    def around(function: Any, name: str) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            with part(name):
                return function(*args, **kwargs)

        return run

    with contextlib.ExitStack() as stack:
        for place, owner_name, function, name in (*PLACES, *(PLACES_THERE if installed.TRITON else ())):
            module = importlib.import_module(place)
            owner = getattr(module, owner_name) if owner_name else module
            stack.enter_context(mock.patch.object(owner, function, around(getattr(owner, function), name)))
        yield


def times(call: Callable[[], Any], direction: str, clock: Clock, repeats: int) -> dict[str, float]:
    """Median seconds of each part of a call; the parts of one repetition add up to all its time.

    Raises ``WrongResult`` if a part of `NEEDED` was not seen: then its time would hide in another's.
    """
    found: list[dict[str, float]] = []
    for _ in range(repeats + 1):  # the first warms up
        stretches = Stretches(clock)
        with labelled(stretches.part), stretches:
            call()
        found.append(stretches.seconds())
    missing = NEEDED[direction] - set(found[-1])
    if missing:
        raise WrongResult(f"{direction}: no time was seen of {', '.join(sorted(missing))}")
    return {name: statistics.median(one.get(name, 0.0) for one in found[1:]) for name in found[-1]}


# What the parts compute


class _Counting(Passes):
    """`Passes`, and by part multiply-adds of layers and bytes read and written."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, dict[str, int]] = defaultdict(lambda: {"macs": 0, "bytes": 0})
        self._part = ["rest"]

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._part.append(name)
        try:
            yield
        finally:
            self._part.pop()

    def _add(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        before = self.layers, self.calls
        super()._add(func, args, kwargs, result)
        if self.calls != before[1]:  # no view
            of_part = self.found[self._part[-1]]
            of_part["macs"] += self.layers - before[0]
            tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
            of_part["bytes"] += sum(x.numel() * x.element_size() for x in tensors)


def counts(config: Config, height: int, width: int) -> dict[str, dict[str, int]]:
    """{"macs", "bytes"} of each part for one picture: float32, what is kept of weights made already."""
    model = LALIC.from_config(config).eval()

    def whole(quiet_model: LALIC, x: Tensor) -> None:
        quiet_model(x)

    with FakeTensorMode(allow_non_fake_inputs=True), RealNumbers(), torch.no_grad():
        without_memory(model)
        whole(model, torch.empty(1, 3, 128, 128))
        seen = _Counting()
        with contextlib.ExitStack() as stack:
            for name, module in (("g_a", model.g_a), ("h_a", model.h_a), ("h_s", model.h_s), ("g_s", model.g_s)):
                stack.enter_context(mock.patch.object(module, "forward", _within(seen, module.forward, name)))
            for function, name in (
                ("channel_context", "contexts"), ("spatial_context", "contexts"), ("aggregation", "aggregation")
            ):  # fmt: skip
                original = getattr(SliceDecoder, function)
                stack.enter_context(mock.patch.object(SliceDecoder, function, _within(seen, original, name)))
            stack.enter_context(seen)
            whole(model, torch.empty(1, 3, height, width))
    return {name: dict(found) for name, found in seen.found.items()}


def _within(seen: _Counting, function: Any, name: str) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        with seen.part(name):
            return function(*args, **kwargs)

    return run


# What the machine allows


def ceilings(device: torch.device, quick: bool = False) -> dict[str, float]:
    """Multiply-adds a second of products in float32, bfloat16 and, on CUDA, int8; bytes a second of a copy."""
    n = 256 if quick else 8192 if device.type == "cuda" else 1024
    found = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a = torch.randn(n, n, device=device).to(dtype)
        found[name] = n**3 / _best(lambda a=a: a @ a, device)  # type: ignore[misc]
    if device.type == "cuda":
        a = torch.ones(n, n, dtype=torch.int8, device=device)
        found["int8"] = n**3 / _best(lambda: torch._int_mm(a, a.t()), device)
        found["copy"] = copy_bandwidth(device)
    else:
        source = torch.ones(1 << (20 if quick else 26))
        target = torch.empty_like(source)
        found["copy"] = 2 * source.nbytes / _best(lambda: target.copy_(source), device)
    return found


def _best(call: Callable[[], Any], device: torch.device) -> float:
    clock: Clock = Events() if device.type == "cuda" else WallClock()
    found = []
    for _ in range(6):
        first = clock.mark()
        call()
        found.append(clock.between(first, clock.mark()))
    return min(found[1:])


def beside_floors(
    seconds: dict[str, float],
    counted: dict[str, dict[str, int]],
    rates: dict[str, float],
    precision: str,
    pictures: int,
) -> dict[str, dict[str, Any]]:
    """For each part its seconds and share, and where something was counted its floor and the floor's share of them."""
    whole = sum(seconds.values())
    rows: dict[str, dict[str, Any]] = {}
    for name, taken in sorted(seconds.items(), key=lambda item: -item[1]):
        row: dict[str, Any] = {"seconds": taken, "share": taken / whole}
        rows[name] = row
        if name not in counted or name == "rest":
            continue
        macs, moved = pictures * counted[name]["macs"], pictures * counted[name]["bytes"]
        exact = name in EXACT
        unit = ("int8" if "int8" in rates else "float32") if exact else precision
        products = INT8_PRODUCTS if unit == "int8" else 1
        moved //= 2 if unit in ("bfloat16", "float16") else 1
        by_unit, by_copy = macs * products / rates[unit], moved / rates["copy"]
        floor = max(by_unit, by_copy)
        row |= {
            "macs": macs,
            "bytes": moved,
            "unit": unit,
            "floor": floor,
            "bound": "unit" if by_unit >= by_copy else "copy",
        }
        row["of floor"] = floor / taken
    return rows
