"""What a GPU holds of the kernels that a decode and an encode launch: `python -m benchmarks.counting.resources`.

For each architecture both models, in float32 and bfloat16, decode and encode a picture behind the driver of
`benchmarks.counting.jit`, and each specialisation that a launch asks for is compiled to machine code. Counted are
registers, bytes that spill, shared memory, and occupancy: the warps (of 64 lanes on AMD) that a multiprocessor holds at
once, by registers, shared and tensor memory, and the architecture's limits. Serial steps are those of
`benchmarks.counting.steps`. It takes some minutes an architecture; code in Triton's cache is not compiled again.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)  # before triton is imported

from benchmarks import records
from lalic_kernels.launch import blocks

MODELS, PRECISIONS = ("slim", "full"), ("float32", "bfloat16")


@dataclass(frozen=True)
class Processor:
    """Limits of a multiprocessor: warps, programs, KiB of shared memory. Registers are those of a lane, all warps'."""

    warps: int
    programs: int
    shared: int
    registers: int = 2048  # 64 K of 32 bits, over the 32 lanes of a warp
    reserved: int = 1  # KiB of shared memory that each program takes besides its own


# CUDA's programming guide, technical specifications by compute capability; AMD's CDNA3 manual (four SIMDs of 512 vector
# registers and 8 waves).
PROCESSORS = {
    "cuda 80": Processor(64, 32, 164), "cuda 90": Processor(64, 32, 228), "cuda 100": Processor(64, 32, 228),
    "cuda 120": Processor(48, 24, 100), "hip gfx942": Processor(32, 32, 64, reserved=0),
}  # fmt: skip
TENSOR_COLUMNS = 512  # of Blackwell's tensor memory


def occupancy(architecture: str, warps: int, registers: int, shared: int, columns: int = 0) -> int:
    """Warps that a multiprocessor holds at once. A program's: warps, registers a lane, bytes shared, tensor columns."""
    processor = PROCESSORS[architecture]
    # A lane's registers are given in eights, and a program's warps in fours: one to each of four schedulers.
    by_registers = 4 * (processor.registers // 4 // (8 * max(blocks(registers, 8), 1)))
    programs = [processor.programs, min(processor.warps, by_registers) // warps]
    if shared:
        programs.append((processor.shared << 10) // (shared + (processor.reserved << 10)))
    if columns:
        programs.append(TENSOR_COLUMNS // columns)
    return warps * min(programs)


def compiled(architecture: str, models: Sequence[str], size: tuple[int, int]) -> dict[str, Any]:
    """The record's line of an architecture. models: names; size: width and height of the picture.

    Raises RuntimeError if Triton interprets in this process, which must not have recorded another architecture.
    """
    import torch

    from benchmarks.compiled.core import resources
    from benchmarks.counting import jit
    from benchmarks.counting.launches import encode, random_model, some_stream
    from benchmarks.counting.steps import BITS_PER_PIXEL, Steps
    from lalic.coder.gpu import GpuCoder
    from lalic_kernels.rans.layout import COST_UNIT, choose_lanes

    width, height = size
    lanes = math.prod(choose_lanes(int(BITS_PER_PIXEL * width * height) << COST_UNIT))
    kernels, steps = [], {}
    with torch.no_grad(), jit.recording(architecture, compile="all") as record:
        for name in models:
            for precision in PRECISIONS:
                model = random_model(name).set_precision(precision)
                latents = (height // model.downsampling, width // model.downsampling)
                record.launches.clear()
                GpuCoder(model, False).decode([some_stream(model)], latents, [None])
                found = Steps()
                for launch in record.launches:
                    found.add(launch.kernel, launch.grid, launch.arguments, lanes)
                steps[name] = sum(found.totals().values())  # the same in each precision: transforms are not counted
                encode(model, height, width)
        for each in record.compilations:
            found_here, metadata = resources(each.compiled), each.compiled.metadata
            columns = getattr(metadata, "tmem_size", 0) or 0
            held = occupancy(architecture, metadata.num_warps, found_here["registers"], metadata.shared, columns)
            shown = {key: value for key, value in each.constants.items() if isinstance(value, int | str)}
            kernels.append({"kernel": each.kernel, "constants": shown, **found_here, "shared": metadata.shared,
                            "warps": metadata.num_warps, "warps a processor": held})  # fmt: skip
    return {"architecture": architecture, "size": list(size), **summary(kernels), "steps": steps, "kernels": kernels}


def summary(kernels: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Over all specialisations: their number, the most registers and shared bytes, the least occupancy, all spills."""
    fullest = max(kernels, key=lambda each: each["registers"])
    emptiest = min(kernels, key=lambda each: each["warps a processor"])
    return {
        "specialisations": len(kernels),
        "registers": fullest["registers"],
        "of": fullest["kernel"],
        "shared": max(each["shared"] for each in kernels),
        "warps a processor": emptiest["warps a processor"],
        "held by": emptiest["kernel"],
        "spills": sum(each["spills"] for each in kernels),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print and keep a line an architecture. Returns 1 if anything spills, else 0; usage errors exit with 2."""
    parser = records.parser("counting.resources", "Registers, occupancy and spills of what is launched.", where=False)
    parser.add_argument("--architecture", nargs="+", choices=PROCESSORS, default=list(PROCESSORS), metavar="'cuda 90'")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--size", nargs=2, type=int, default=(768, 512), metavar=("W", "H"), help="multiples of 64")
    parser.add_argument("--json", action="store_true", help="the whole line of one architecture, and nothing else")
    options = parser.parse_args(argv)
    size = (options.size[0], options.size[1])
    if options.json:
        print(json.dumps(compiled(options.architecture[0], options.models, size)))
        return 0
    spills = 0
    for architecture in options.architecture:  # in a process of its own: Triton keeps what it compiled for one
        command = [sys.executable, "-m", "benchmarks.counting.resources", "--json", "--architecture", architecture]
        command += ["--models", *options.models, "--size", *map(str, size)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=records.ROOT)
        line = json.loads(done.stdout.splitlines()[-1])
        print({key: value for key, value in line.items() if key != "kernels"}, flush=True)
        records.keep(records.counted(resources=line), options)
        spills += line["spills"]
    return 1 if spills else 0


if __name__ == "__main__":
    sys.exit(main())
