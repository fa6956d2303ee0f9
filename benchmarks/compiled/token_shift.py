"""The shift's kernels, with and without the LayerNorm, forward and backward, as their launch table has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.compiled.core import Job, itemsize
from lalic_kernels.launch import vector
from lalic_kernels.shift import gpu as launches
from lalic_kernels.shift import kernels, kernels_backward

FLOAT32 = frozenset({"norm_weight_ptr", "norm_bias_ptr", "taps_ptr", "statistics_ptr", "parts_ptr"})
NO_NORM: dict[str, Any] = dict.fromkeys(("norm_weight_ptr", "norm_bias_ptr", "statistics_ptr"))
WIDTHS = (96, 256, 1024, 67)  # of the full model's stages, a wide one, and one without whole vectors


def jobs(dtypes: Sequence[str], target: str) -> Iterator[Job]:
    """Every kernel and launch configuration; where all channels are taken at once, at several widths."""
    for dtype in dtypes:
        constants: dict[str, Any]
        for width in WIDTHS:
            vec = vector(itemsize(dtype), width)
            typical = width in (96, 67)
            launch = launches.tile(vec)
            for norm, turned in ((True, False), (False, False), (False, True))[: 3 if typical else 1]:
                label = f"{'norm_' if norm else 'token_'}shift C={width}{' turned' if turned else ''} {dtype}"
                constants = launches.over_channels(width, launch, vec) | {"VEC": vec, "TURNED": turned}
                constants |= {} if norm else NO_NORM
                yield Job(label, kernels.shift_kernel, launch, dtype, constants, FLOAT32, minor=width == 1024)
            constants = launches.over_channels(width, launches.NORM, vec) | {"VEC": vec}
            label = f"grad_norm C={width} {dtype}"
            yield Job(label, kernels_backward.grad_norm_kernel, launches.NORM, dtype, constants, FLOAT32)
            for norm in (True, False) if typical else ():
                label = f"grad_taps{' normed' if norm else ''} C={width} {dtype}"
                constants = {"VEC": vec} | ({} if norm else NO_NORM)
                yield Job(label, kernels_backward.grad_taps_kernel, launches.TAPS, dtype, constants, FLOAT32)
