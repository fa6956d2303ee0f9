"""Launch configurations: each op has a small frozen table. The size alone selects an entry, never a timing.

An encoder and a decoder must do the same arithmetic in the same order, so a choice must not depend on earlier calls.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch

from lalic_kernels import installed


@dataclass(frozen=True)
class Launch:
    """A launch configuration of a kernel: its compile-time constants, warps and pipeline stages."""

    constants: tuple[tuple[str, int], ...]
    num_warps: int = 4
    num_stages: int = 1

    def __getitem__(self, name: str) -> int:
        return dict(self.constants)[name]

    def compiler(self) -> dict[str, int]:
        """The compiler's options. A product and a sum become one operation, whatever the default of this Triton is."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}

    def options(self) -> dict[str, int]:
        """Keyword arguments for a Triton launch."""
        return dict(self.constants) | self.compiler()


def blocks(size: int, block: int) -> int:
    """Number of blocks that cover a size."""
    return -(-size // block)


def vector(itemsize: int, *sizes: int) -> int:
    """Number of elements in a 16-byte access; 1 if a size is not a multiple of it."""
    whole = 16 // itemsize
    return whole if all(size % whole == 0 for size in sizes) else 1


def on(device: torch.device) -> contextlib.AbstractContextManager:
    """Make a CUDA device current for a launch, so that a second GPU works; no effect for other devices."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    installed.start_triton()
    return torch.cuda.device(device)


def precision(arch: str) -> str:
    """How kernels multiply float32 matrices on an architecture, in Triton's words.

    "tf32x3" on NVIDIA's GPUs: each factor is a sum of two TF32 numbers, which tensor cores multiply in three products,
    as exact as float32 (`lalic_kernels/mix/README.md` has the bound). "ieee" on AMD's, which multiply float32 as it is.
    torch's settings for TF32 change neither: they are for torch's own products.
    """
    return "ieee" if arch.startswith("hip") else "tf32x3"


def architecture(device: torch.device) -> str:
    """The name of a device's architecture in launch tables: "cuda 90", "hip gfx942"; "any" in the interpreter.

    "cuda 100" is all of Blackwell for data centres, 103 too.
    """
    if device.type != "cuda":
        return "any"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return "hip " + properties.gcnArchName.split(":")[0]
    return f"cuda {properties.major}{0 if properties.major == 10 else properties.minor}"
