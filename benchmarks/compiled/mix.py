"""Kernels of the spatial and the channel mix, as their launch tables have them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.compiled.core import Job, itemsize
from lalic_kernels.mix import gpu, kernels

# Channels: the models', and the most that each row of a table may get; 255 takes one element at a time.
SPATIAL = {"fp32": (96, 144, 255), "bf16": (48, 64, 96, 144, 160, 256, 320, 255), "fp16": (96, 144, 256)}
CHANNEL = {"fp32": (96, 144, 256, 512, 255), "bf16": (48, 64, 96, 128, 144, 192, 256, 512, 255), "fp16": (96, 144, 256)}
GAMMA = frozenset({"gamma_ptr"})
NO_RESIDUAL = {"residual_ptr": None, "gamma_ptr": None}


def jobs(dtypes: Sequence[str], target: str) -> Iterator[Job]:
    """Every kernel at widths that meet every row of its table."""
    for dtype in dtypes:
        for channels in SPATIAL[dtype]:
            for label, planes, residual in (("kvr", 3, False), ("output", 1, True)):
                linear = gpu.choose_linear(target, channels, itemsize(dtype))
                more = {"PLANES": planes, **linear.constants(), **({} if residual else NO_RESIDUAL)}
                name = f"{label} {channels} {dtype}"
                yield Job(name, kernels.rows_linear_kernel, linear.launch, dtype, more, GAMMA)
        for channels in CHANNEL[dtype]:
            choice = gpu.choose_channel(target, channels, 4 * channels, itemsize(dtype))
            assert choice is not None
            name = f"channel_mix {channels} {dtype}"
            yield Job(name, kernels.channel_mix_kernel, choice.launch, dtype, choice.constants(), GAMMA)
