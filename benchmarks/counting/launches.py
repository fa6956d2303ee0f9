"""What a decode on a GPU launches, counted without one: `python -m benchmarks.counting.launches`.

The code that runs on CUDA tensors is run on CPU tensors, behind the driver of `benchmarks.counting.jit`. Counted is
each launch and each ATen call that would start a kernel, by the part of the decoder that makes it. No kernel runs or is
compiled, so the picture is of any size and the result of none. A decoder whose course depended on a value would have to
look at it, and a look (`.item()`, a comparison in Python) is counted as a wait for the device, unless it is one of
those that end a picture.

ATen calls: one kernel each, allocations and views none. Some start two; a copy to the GPU is counted as one.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)  # before triton is imported

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import records
from benchmarks.counting import Parts, labelled

ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "detach", "lift_fresh"}
WAITS = {"_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero"}


class Launches(Parts):
    """The counter: launches by (part, kernel or call), and waits for the device by the call that makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.clear()

    def clear(self) -> None:
        self.launches: Counter[tuple[str, str]] = Counter()
        self.waits: Counter[str] = Counter()  # before the picture is done
        self.done = False

    def add(self, name: str) -> None:
        if name in WAITS:
            if not self.done:
                self.waits[name] += 1
        else:
            self.launches[self.current, name] += 1

    def total(self) -> int:
        return sum(self.launches.values())

    def by_part(self) -> dict[str, int]:
        found: Counter[str] = Counter()
        for (part, _), count in self.launches.items():
            found[part] += count
        return dict(found.most_common())


class _Calls(TorchDispatchMode):
    def __init__(self, counts: Launches):
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name.startswith("aten::"):
            view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
            if not view and name.removeprefix("aten::") not in ALLOCATIONS:
                self.counts.add(name.removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def counting() -> Iterator[Launches]:
    """Inside, CPU tensors take the path of CUDA tensors, and kernels are counted instead of run.

    Raises RuntimeError if Triton interprets in this process.
    """
    from benchmarks.counting import jit
    from lalic.coder.engines import ExactEngine, ExactEntropy
    from lalic.coder.gpu_slices import GpuSliceState
    from lalic.model import LALIC
    from lalic_kernels.rans.gpu import DeviceDecoder

    counts = Launches()

    def faults(self: Any) -> list[None]:  # what a decoder looks at when the picture is done
        counts.done = True
        return [None] * self.sums().shape[0]

    places = (
        (ExactEntropy, "_hyper_parameters", "hyper synthesis"),
        (GpuSliceState, "hyper_and_channel", "channel contexts"), (GpuSliceState, "network", "aggregation"),
        (ExactEngine, "head", "Gaussian head"),
        (DeviceDecoder, "decode_channels", "entropy decoding"),
        (DeviceDecoder, "decode_parameters", "entropy decoding"),
        (LALIC, "synthesise", "synthesis"),
    )  # fmt: skip
    with (
        jit.recording(compile="none", launched=counts.add),
        mock.patch.object(DeviceDecoder, "faults", faults),
        labelled(counts.part, places),
    ):
        yield counts


def some_stream(model: Any) -> Any:
    """A stream of any symbols: where nothing is computed, their values are never looked at."""
    from lalic.coder import Stream
    from lalic_kernels import rans

    some = torch.zeros(64, dtype=torch.int32)
    return Stream(rans.encode([(some, some)], model.tables()), 0)


def encode(model: Any, height: int, width: int) -> None:
    """The launches of an encode: from a picture to symbols, and the entropy coder's on symbols that are zeros."""
    from lalic.coder import gpu
    from lalic_kernels.rans import gpu as rans_gpu

    size = height // model.downsampling, width // model.downsampling
    rows = gpu.z_rows(model.config.dims[5], size[0] * size[1], torch.device("cpu"))
    x, qualities = torch.zeros(1, 3, height, width), model.as_qualities([None], 1)
    sections = gpu._launch_encoding(model, x, True, qualities, rows).sections
    zeros = [torch.zeros(symbols.shape, dtype=torch.int32) for symbols, _ in sections]
    rans_gpu.encode([(x, x) for x in zeros], model.tables())


@contextlib.contextmanager
def decoding(model: Any, width: int, height: int) -> Iterator[tuple[Callable[[], Any], Launches]]:
    """A decode from a stream on the host to a picture on the device, to be run inside, and the counter of its parts.

    model: `LALIC` in eval mode with coding tables, on the CPU. width, height: multiples of 64.
    """
    from lalic.coder.gpu import GpuCoder

    stream = some_stream(model)
    size = (height // model.downsampling, width // model.downsampling)
    coder = GpuCoder(model, False)
    with torch.no_grad(), counting() as counts:
        yield lambda: coder.decode([stream], size, [None]), counts


def decode(model: Any, width: int, height: int) -> Launches:
    """The launches of `decoding`, what is cached being there already."""
    with decoding(model, width, height) as (run, counts):
        run()  # makes what is cached: tables, weights' digits, factors
        counts.clear()
        with _Calls(counts):
            run()
    return counts


def random_model(name: str) -> Any:
    """The model "slim" or "full", ready to code, with the same random weights each time: a count needs no others."""
    from lalic.config import FULL, SLIM
    from lalic.model import LALIC

    torch.manual_seed(1)
    model = LALIC.from_config(SLIM if name == "slim" else FULL).eval()
    model.update()
    return model


def parser_of_a_decode(name: str, about: str) -> argparse.ArgumentParser:
    """Of a counter of one decode: --model and --size beside what `records.parser` declares."""
    parser = records.parser(name, about, where=False)
    parser.add_argument("--model", choices=("slim", "full"), default="full")
    parser.add_argument("--size", nargs=2, type=int, default=(768, 512), metavar=("W", "H"))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the launches by part. Returns 0; usage errors exit with 2."""
    parser = parser_of_a_decode("counting.launches", "Launches of a decode.")
    parser.add_argument("--kernels", action="store_true", help="every kernel and call, not the parts alone")
    options = parser.parse_args(argv)
    counts = decode(random_model(options.model), *options.size)
    print(f"{options.model}, {options.size[0]}x{options.size[1]}, one picture")
    for part, count in counts.by_part().items():
        print(f"{count:6d}  {part}")
        if options.kernels:
            rows = sorted(((n, k) for (p, k), n in counts.launches.items() if p == part), reverse=True)
            for number, kernel in rows:
                print(f"        {number:6d}  {kernel}")
    print(f"{counts.total():6d}  in all; waits for the device: {dict(counts.waits) or 'none'}")
    what = {"model": options.model, "size": list(options.size), "parts": counts.by_part()}
    what |= {"total": counts.total(), "waits": dict(counts.waits)}
    records.keep(records.counted(launches=what), options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
