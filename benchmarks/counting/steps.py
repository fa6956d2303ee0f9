"""Serial steps of a decode on a GPU, counted without one: `python -m benchmarks.counting.steps`.

A launch takes as long as its longest program. A small one is bound neither by bytes nor by multiply-adds but by that
program's steps: rounds of a loop, each of which waits for its loads. So steps are a third roof. Counted are the steps
of the longest program of each launch of the exact kernels and of the entropy decoder, as Triton's JIT makes them
(`benchmarks.counting.jit`). Launches come one after the other, so the decode has their sum. A step of a product has
BLOCK_K terms, one of another loop a block of a row, or 16 tokens, one of the entropy decoder a symbol a lane.

The entropy decoder cannot take fewer steps than a section's symbols divided by the stream's lanes, which the encoder
chose: a state follows from the one before. Only what a step costs is for the kernel to change.

Kernels of the transforms have many programs, and are not counted.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from benchmarks import records
from benchmarks.counting import Parts, labelled
from benchmarks.counting.launches import parser_of_a_decode, random_model
from lalic_kernels.exact.numbers import CHUNK
from lalic_kernels.launch import blocks

GROUP = 16  # of lalic_kernels/exact/kernels_wkv.py, which is for Triton alone to read
BITS_PER_PIXEL = 0.29  # of the stream, whose length decides how many lanes it has
Arguments = Mapping[str, Any]


def _conv(a: Arguments, phases: int) -> int:
    """Taps of the largest phase, each with all channels; taps are a square, and phases divide both its sides."""
    return math.ceil(math.sqrt(a["taps"] / phases)) ** 2 * blocks(a["depth"], a["BLOCK_K"])


def _chunk(a: Arguments) -> int:
    return min(CHUNK, a["tokens"])


# Steps of the longest program, from a launch's arguments.
PRODUCTS: dict[str, Callable[[Arguments, int], int]] = {
    "exact_linear_kernel": lambda a, _: blocks(a["depth"], a["BLOCK_K"]),
    "exact_conv_kernel": _conv,
}
OTHERS: dict[str, Callable[[Arguments], int]] = {
    "exact_absmax_kernel": lambda a: blocks(a["width"], a["BLOCK_N"]),
    "exact_digits_kernel": lambda a: (
        (a["SOURCE"] != "image") * (blocks(a["width"], a["BLOCK_N"]) - 1) + blocks(a["depth"], a["BLOCK_N"])
    ),
    "exact_layer_norm_kernel": lambda _: 1,  # no loop
    "exact_norm_digits_kernel": lambda _: 1,
    "exact_shift_digits_kernel": lambda a: 2 * blocks(a["depth"], a["BLOCK_C"]) - 1,
    # Weights of BLOCK_T tokens a step; then sums of tokens, both sides at once; at last of chunks, in the last program.
    "exact_wkv_sums_kernel": lambda a: (
        blocks(_chunk(a), a["BLOCK_T"]) + blocks(_chunk(a), GROUP) + blocks(blocks(a["tokens"], CHUNK), GROUP)
    ),
    "exact_wkv_states_kernel": lambda a: blocks(_chunk(a), GROUP),
    "exact_wkv_digits_kernel": lambda a: 2 * blocks(a["depth"], a["BLOCK_C"]) - 1,
}
ENTROPY: dict[str, Callable[[Arguments, int], int]] = {
    "rans_symbols_kernel": lambda a, lanes: blocks(a["count"], lanes),
    "rans_rows_kernel": lambda *_: 1,  # no loop
    "rans_values_kernel": lambda *_: 1,
}


class Steps(Parts):
    """Serial steps and launches of one run, by kernel, of `KINDS`; those of exact kernels by part of the decoder."""

    KINDS = ("products", "other loops", "entropy decoding")

    def __init__(self) -> None:
        super().__init__()
        self.parts: Counter[str] = Counter()
        self.steps: dict[str, Counter[str]] = {kind: Counter() for kind in self.KINDS}
        self.launches: Counter[str] = Counter()

    def add(self, kernel: str, grid: tuple[int, int, int], arguments: Arguments, lanes: int) -> None:
        """Count a launch. Raises KeyError for an exact kernel or one of the entropy decoder without a formula."""
        if not kernel.startswith(("exact_", "rans_")):
            return
        if kernel in PRODUCTS:
            kind, count = "products", PRODUCTS[kernel](arguments, grid[2])
        elif kernel in OTHERS:
            kind, count = "other loops", OTHERS[kernel](arguments)
        elif kernel in ENTROPY:
            kind, count = "entropy decoding", ENTROPY[kernel](arguments, lanes)
        else:
            raise KeyError(f"{kernel}: expected its steps in benchmarks/counting/steps.py")
        self.steps[kind][kernel] += count
        if kernel not in ENTROPY:
            self.parts[self.current] += count
        self.launches[kernel] += 1

    def totals(self) -> dict[str, int]:
        """Steps by kind."""
        return {kind: sum(self.steps[kind].values()) for kind in self.KINDS}


def decode(model: Any, width: int, height: int, bits_per_pixel: float = BITS_PER_PIXEL) -> Steps:
    """The steps of a decode of one picture. model: `LALIC` in eval mode with coding tables, on the CPU.

    Raises RuntimeError if Triton interprets in this process.
    """
    from benchmarks.counting import jit
    from benchmarks.counting.launches import some_stream
    from lalic.coder.engines import ExactEntropy
    from lalic.coder.gpu import GpuCoder
    from lalic.coder.gpu_slices import GpuSliceState
    from lalic_kernels.rans.layout import COST_UNIT, choose_lanes

    found = Steps()
    places = (
        (ExactEntropy, "_hyper_parameters", "h_s"), (GpuSliceState, "hyper_and_channel", "contexts"),
        (GpuSliceState, "network", "aggregation"),
    )  # fmt: skip
    lanes = math.prod(choose_lanes(int(bits_per_pixel * width * height) << COST_UNIT))
    size = (height // model.downsampling, width // model.downsampling)
    with torch.no_grad(), jit.recording(compile="none") as record:

        def taken() -> None:
            for launch in record.launches:
                found.add(launch.kernel, launch.grid, launch.arguments, lanes)
            record.clear()

        @contextlib.contextmanager
        def part(name: str) -> Iterator[None]:
            taken()
            with found.part(name):
                yield
                taken()

        with labelled(part, places):
            GpuCoder(model, False).decode([some_stream(model)], size, [None])
        taken()
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Print the steps by kernel. Returns 0; usage errors exit with 2."""
    options = parser_of_a_decode("counting.steps", "Serial steps of a decode.").parse_args(argv)
    found = decode(random_model(options.model), *options.size)
    print(f"{options.model}, {options.size[0]}x{options.size[1]}, one picture, {BITS_PER_PIXEL} bits per pixel")
    for kind, steps in found.steps.items():
        print(f"{steps.total():6d}  {kind}")
        for kernel, count in steps.most_common():
            print(f"        {count:6d}  {kernel}, {found.launches[kernel]} launches")
    what = {"model": options.model, "size": list(options.size), "bits per pixel": BITS_PER_PIXEL}
    what |= {"parts": dict(found.parts.most_common())}
    what |= {"kernels": {kind: dict(steps.most_common()) for kind, steps in found.steps.items()}}
    print(f"exact kernels by part: {dict(found.parts.most_common())}")
    records.keep(records.counted(steps=what | found.totals()), options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
