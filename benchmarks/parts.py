"""Where the time of a codec goes, part by part, and how far each part is from what the machine allows.

Times are exclusive: while a part calls another, its own clock stands. On a GPU the marks are events in the stream, so
launches must be plain ones (no CUDA graph); on a CPU they are readings of the clock. What no part claims is "rest".

A part's floor is the larger of its operations over the rate of the unit that does them and its bytes over the
bandwidth of a copy. Operations are multiply-adds of layers (`benchmarks.counting.operations`), bytes what each
operation reads and writes once, weights included; both are counted on a forward pass without memory. Rates are measured
beside the times, on matrix products large enough to be at the machine's best. Entropy decoding is a chain and has no
floor of this kind.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.counting import Parts, labelled
from benchmarks.counting.operations import Operations, RealNumbers, without_memory
from benchmarks.measure import WrongResult, copy_bandwidth, keep_busy, product_rate
from lalic.coder.schedule import SliceState
from lalic.config import Config
from lalic.model import LALIC
from lalic_kernels import installed

INT8_PRODUCTS = 4  # of digits, for one product of the exact arithmetic (docs/exact-arithmetic.md)
EXACT = ("h_s", "contexts", "aggregation")  # what decides symbols
NEEDED = {
    "encode": {"g_a", "h_a", "h_s", "contexts", "aggregation", "entropy encoding"},
    "decode": {"h_s", "contexts", "aggregation", "entropy decoding", "g_s"},
}
# (module, owner in it or "" for the module itself, function, part). The second ones need Triton.
PLACES = (
    ("lalic.model", "LALIC", "latents", "g_a"),
    ("lalic.model", "LALIC", "hyper_latents", "h_a"),
    ("lalic.model", "LALIC", "synthesise", "g_s"),
    ("lalic.coder.engines", "ExactEntropy", "_hyper_parameters", "h_s"),
    ("lalic.coder.schedule", "SliceState", "channel_context", "contexts"),
    ("lalic.coder.schedule", "SliceState", "spatial_context", "contexts"),
    ("lalic.coder.schedule", "SliceState", "aggregation", "aggregation"),
    ("lalic_kernels.rans", "", "encode", "entropy encoding"),
    ("lalic_kernels.rans", "Decoder", "decode", "entropy decoding"),
)
GPU_PLACES = (
    ("lalic.coder.gpu_slices", "GpuSliceState", "hyper_and_channel", "contexts"),
    ("lalic.coder.gpu_slices", "GpuSliceState", "network", "aggregation"),
    ("lalic_kernels.rans.gpu", "", "encode", "entropy encoding"),
    ("lalic_kernels.rans.gpu", "DeviceDecoder", "decode_channels", "entropy decoding"),
    ("lalic_kernels.rans.gpu", "DeviceDecoder", "decode_parameters", "entropy decoding"),
)


class Clock:
    """Of a CPU."""

    def mark(self) -> Any:
        """A point in time, to be read later."""
        return time.perf_counter()

    def between(self, first: Any, second: Any) -> float:
        """Seconds between two marks; what was launched before them is done."""
        return second - first

    def wait(self, seconds: float) -> None:
        """Let a device wait, so that the host launches ahead of it and its own time does not show."""


class Events(Clock):
    """Of the current CUDA stream."""

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, first: torch.cuda.Event, second: torch.cuda.Event) -> float:
        second.synchronize()
        return 1e-3 * first.elapsed_time(second)

    def wait(self, seconds: float) -> None:
        keep_busy(seconds)


class Stretches(Parts):
    """Stretches of time between marks, each of the part that was innermost in it."""

    def __init__(self, clock: Clock):
        super().__init__()
        self.clock = clock
        self._marks: list[tuple[Any, str]] = []  # when, and whose time begins

    def __enter__(self) -> Stretches:
        self._marks = [(self.clock.mark(), self.current)]
        return self

    def __exit__(self, *_: object) -> None:
        self._marks.append((self.clock.mark(), "end"))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        with super().part(name):
            self._marks.append((self.clock.mark(), name))
            yield
        self._marks.append((self.clock.mark(), self.current))

    def seconds(self) -> dict[str, float]:
        found: dict[str, float] = defaultdict(float)
        for (first, name), (second, _) in zip(self._marks, self._marks[1:], strict=False):
            found[name] += self.clock.between(first, second)
        return dict(found)


def places() -> Iterator[tuple[Any, str, str]]:
    """Objects, their functions and the parts that these are, from `PLACES`."""
    for place, owner, function, name in (*PLACES, *(GPU_PLACES if installed.TRITON else ())):
        module = importlib.import_module(place)
        yield (getattr(module, owner) if owner else module), function, name


def times(call: Callable[[], Any], direction: str, clock: Clock, repeats: int) -> dict[str, float]:
    """Median seconds of each part of a call; the parts of one repetition add up to all its time.

    Raises ``WrongResult`` if a part of `NEEDED` was not seen: then its time would hide in another's.
    """
    found: list[dict[str, float]] = []
    for _ in range(2):  # the first warms up
        start = time.perf_counter()
        call()
        launching = time.perf_counter() - start  # and the device's time after it
    for _ in range(repeats):
        clock.wait(launching)
        stretches = Stretches(clock)
        with labelled(stretches.part, places()), stretches:
            call()
        found.append(stretches.seconds())
    missing = NEEDED[direction] - set(found[-1])
    if missing:
        raise WrongResult(f"{direction}: no time was seen of {', '.join(sorted(missing))}")
    return {name: statistics.median(one.get(name, 0.0) for one in found) for name in found[-1]}


# What the parts compute


def counts(config: Config, height: int, width: int) -> dict[str, dict[str, int]]:
    """{"macs", "bytes"} of each part for one picture: float32, what is cached of weights made already."""
    model = LALIC.from_config(config).eval()
    with FakeTensorMode(allow_non_fake_inputs=True), RealNumbers(), torch.no_grad():
        without_memory(model)
        model(torch.empty(1, 3, 128, 128))
        seen = Operations()
        modules = [(getattr(model, name), "forward", name) for name in ("g_a", "h_a", "h_s", "g_s")]
        steps = (("channel_context", "contexts"), ("spatial_context", "contexts"), ("aggregation", "aggregation"))
        slices = [(SliceState, function, name) for function, name in steps]
        with labelled(seen.part, [*modules, *slices]), seen:
            model(torch.empty(1, 3, height, width))
    return {name: {"macs": found.layers, "bytes": found.bytes} for name, found in seen.parts.items()}


# What the machine allows


def ceilings(device: torch.device, quick: bool = False) -> dict[str, float]:
    """Multiply-adds a second of products in float32, bfloat16 and, on CUDA, int8; bytes a second of a copy."""
    size = 256 if quick else 8192 if device.type == "cuda" else 1024
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if device.type == "cuda":
        dtypes["int8"] = torch.int8
    found = {name: product_rate(device, dtype, size) for name, dtype in dtypes.items()}
    return found | {
        "copy": copy_bandwidth(device, (1 << 22) if quick else (1 << 30) if device.type == "cuda" else 1 << 28)
    }


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
