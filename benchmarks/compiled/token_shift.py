"""The shift's kernels, with and without the LayerNorm, forward and backward, as their launch table has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.compiled.core import Job, itemsize
from lalic_kernels._core.launch import Launch
from lalic_kernels.token_shift import kernels, kernels_backward, launches

FLOAT32 = frozenset({"norm_weight_ptr", "norm_bias_ptr", "taps_ptr", "statistics_ptr", "parts_ptr"})
WIDTHS = (96, 144, 256, 1024, 67)  # of the full model's stages, a wide one, and one without whole vectors


def jobs(dtypes: Sequence[str], target: str) -> Iterator[Job]:
    """Every kernel and launch configuration; where all channels are taken at once, at several widths."""
    for dtype in dtypes:
        for name, pixels in (("many", launches.MANY_PIXELS), ("few", 1)):
            for width in WIDTHS:
                vec = launches.vector(width, itemsize(dtype))
                launch, _ = launches.tile(pixels, vec)
                shape = launches.over_channels(width, launch) | {"VEC": vec}
                for norm, turned in (
                    ((True, False), (False, False), (False, True)) if width in (96, 67) else ((True, False),)
                ):
                    label = (
                        f"{'norm_' if norm else 'token_'}shift {name} C={width}{' turned' if turned else ''} {dtype}"
                    )
                    constants = shape | {"NORM": norm, "TURNED": turned}
                    yield Job(label, kernels.shift_kernel, launch, dtype, constants, FLOAT32)
        for width in WIDTHS:
            vec = {"VEC": launches.vector(width, itemsize(dtype))}
            constants = launches.over_channels(width, launches.TAPS) | vec
            norm_launch = Launch((("STEPS", launches.NORM_STEPS),), num_warps=launches.TAPS.num_warps)
            label = f"grad_norm C={width} {dtype}"
            yield Job(label, kernels_backward.grad_norm_kernel, norm_launch, dtype, constants, FLOAT32)
            if width in (96, 67):
                for norm in (True, False):
                    label = f"grad_taps{' normed' if norm else ''} C={width} {dtype}"
                    constants = vec | {"NORM": norm}
                    yield Job(label, kernels_backward.grad_taps_kernel, launches.TAPS, dtype, constants, FLOAT32)
