"""Spatial mix's products, as their launch table has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.compiled.core import Job, itemsize
from lalic_kernels.mix import gpu, kernels

# Channels: the model's, and the most that each row of the table may get; 255 takes one element at a time.
CHANNELS = {"fp32": (96, 144, 255), "bf16": (96, 144, 160, 256, 320, 255), "fp16": (96, 144, 256)}


def jobs(dtypes: Sequence[str], target: str) -> Iterator[Job]:
    """Both products at widths that meet every row of their table."""
    for dtype in dtypes:
        for channels in CHANNELS[dtype]:
            for label, planes, residual in (("kvr", 3, False), ("output", 1, True)):
                choice = gpu.choose_linear(target, channels, itemsize(dtype))
                more = {"PLANES": planes, "RESIDUAL": residual, "VEC": choice.vec, "MAIN": choice.main}
                more["REST"] = choice.rest
                name = f"{label} {channels} {dtype}"
                yield Job(name, kernels.rows_linear_kernel, choice.launch, dtype, more, frozenset({"gamma_ptr"}))
