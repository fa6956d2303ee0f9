"""What test_jit.py asks of Triton's JIT, in a process of its own: `python tests/kernels/jit_cases.py PART` prints JSON.

Triton reads at its import whether it interprets, and the tests' own process does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import torch
from op_specs import SPECS
from tiny import tiny  # noqa: F401
from torch import Tensor

import lalic_kernels
from benchmarks.counting import jit
from benchmarks.counting.launches import some_stream
from lalic.coder.gpu import GpuCoder
from lalic.config import FULL, SLIM
from lalic.model import LALIC

# (H, W, pictures): sizes of one block of hyper latents and of many, divisible by high powers of two and not.
SIZES = ((64, 64, 1), (64, 128, 1), (128, 64, 1), (192, 256, 1), (256, 256, 1), (256, 320, 1), (320, 448, 1),
         (448, 512, 1), (512, 384, 1), (512, 512, 1), (256, 256, 2), (192, 256, 3), (64, 1088, 1))  # fmt: skip


def failure(run: Callable[[], Any]) -> str:
    """The error of a call in one line; empty if there is none."""
    try:
        run()
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}"
    return ""


def both_ways(public: Callable[..., Tensor], arguments: dict[str, Tensor]) -> None:
    """Forward and backward. No value is computed, so nothing is asked of them."""
    leaves = {name: value.requires_grad_() for name, value in arguments.items()}
    result = public(**leaves, backend="triton")
    torch.autograd.grad(result, list(leaves.values()), torch.empty_like(result))


def contract() -> dict[str, str]:
    """Failures of all contract cases in two dtypes, by case."""
    found = {}
    with jit.recording():
        for spec in SPECS:
            for case, sizes in spec.cases.items():
                for dtype in (torch.float32, torch.bfloat16):
                    made = spec.make(sizes, torch.Generator().manual_seed(0))
                    arguments = {name: value.to(dtype) for name, value in made.items()}
                    found[f"{spec.id}, {case}, {dtype}"] = failure(lambda a=arguments, s=spec: both_ways(s.public, a))
    return found


def large() -> dict[str, str]:
    """Failures of tensors whose number of elements, batches or tokens is large. They are reserved and never touched."""
    found = {}
    with jit.recording(compile="none"):
        for batch, tokens, channels in ((8, 1 << 20, 96), (300, 128 * 128, 96), (70000, 16, 8), (1, 1 << 24, 32)):
            arguments = {name: torch.empty(batch, tokens, channels, dtype=torch.bfloat16) for name in "kv"}
            arguments = {name: torch.zeros(channels, dtype=torch.bfloat16) for name in "wu"} | arguments
            found[f"biwkv {batch, tokens, channels}"] = failure(
                lambda a=arguments: both_ways(lalic_kernels.biwkv, a)  # type: ignore[misc]
            )
        for shape in ((70000, 4, 4, 8), (1, 70000, 8, 16), (1, 8, 70000, 16), (8, 1024, 1024, 96)):
            arguments = {
                "x": torch.empty(shape, dtype=torch.bfloat16),
                "weight": torch.zeros(shape[-1], 5, 5, dtype=torch.bfloat16),
            }
            found[f"token_shift {shape}"] = failure(
                lambda a=arguments: both_ways(lalic_kernels.token_shift, a)  # type: ignore[misc]
            )
        for size in ((1 << 28,), (1 << 18, 3)):
            made = {name: torch.empty(size, dtype=torch.bfloat16) for name in ("y", "scales", "means")}
            found[f"gaussian_likelihood {size}"] = failure(
                lambda a=made: both_ways(lalic_kernels.gaussian_likelihood, a)  # type: ignore[misc]
            )
    return found


def model_of(name: str, precision: str = "float32") -> LALIC:
    torch.manual_seed(1)
    model = LALIC.from_config(SLIM if name == "slim" else FULL).eval()
    model.update()
    model.set_precision(precision)
    return model


def sizes(name: str, compile: str) -> list[dict[str, Any]]:
    """Launches and compilations of a decode of each size, and of the launches of an encode, the first size first."""
    model, found = model_of(name), []
    stream, decoder = some_stream(model), GpuCoder(model, False)
    with torch.no_grad(), jit.recording(compile=compile) as record:
        for height, width, batch in SIZES:
            record.clear()
            size = (height // model.downsampling, width // model.downsampling)
            decoder.decode([stream] * batch, size, [None] * batch)
            found.append(
                {
                    "size": [height, width, batch],
                    "launches": len(record.launches),
                    "compiled": dict(record.compiled_kernels()),
                    "fusion": sorted({str(each.options.get("enable_fp_fusion")) for each in record.compilations}),
                }
            )
    return found


PARTS: dict[str, Callable[[], Any]] = {
    "contract": contract,
    "large": large,
    "slim": lambda: sizes("slim", "front"),
    "full": lambda: sizes("full", "none"),
}

if __name__ == "__main__":
    print(json.dumps(PARTS[sys.argv[1]]()))
