"""The Gaussian likelihood's two kernels, with and without whole vectors; results and their gradients are float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.compiled.core import Job
from lalic_kernels.gaussian import gpu, kernels

FLOAT32 = frozenset({"out_ptr", "grad_ptr"})


def jobs(dtypes: Sequence[str], target: str) -> Iterator[Job]:
    """Both kernels in both launch configurations."""
    for dtype in dtypes:
        for launch in (gpu.VECTORS, gpu.SINGLE):
            for kernel in (kernels.likelihood_kernel, kernels.grad_likelihood_kernel):
                name = kernel.__name__.removesuffix("_kernel")
                label = f"gaussian {name} VEC={launch['VEC']} {dtype}"
                yield Job(label, kernel, launch, dtype, gpu.BOUNDS, FLOAT32)
