"""Channel mix's kernel, as its launch table has it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.compiled.core import Job, itemsize
from lalic_kernels.mix import gpu, kernels

# Channels: the model's, and the most that each row of the table may get; 255 takes one element at a time.
CHANNELS = {"fp32": (96, 144, 256, 512, 255), "bf16": (96, 128, 144, 192, 256, 512, 255), "fp16": (96, 144, 256)}


def jobs(dtypes: Sequence[str], target: str) -> Iterator[Job]:
    """The kernel at widths that meet every row of its table."""
    for dtype in dtypes:
        for channels in CHANNELS[dtype]:
            choice = gpu.choose_channel(target, channels, 4 * channels, itemsize(dtype))
            assert choice is not None
            more = {"VEC": choice.vec, "RESIDUAL": True, "MAIN": choice.main, "REST": choice.rest}
            label = f"channel_mix {channels} {dtype}"
            yield Job(label, kernels.channel_mix_kernel, choice.launch, dtype, more, frozenset({"gamma_ptr"}))
