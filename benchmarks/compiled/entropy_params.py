"""The entropy-parameter block's kernels, as its launch table has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.compiled.core import Job
from lalic_kernels.entropy_params import gpu, kernels
from lalic_kernels.launch import precision

FLOAT32 = frozenset({"m_ptr"})


def jobs(dtypes: Sequence[str], target: str) -> Iterator[Job]:
    """Every kernel and launch configuration."""
    for dtype in dtypes:
        launch = gpu.LAUNCHES["float32" if dtype == "fp32" else "float16"]
        products = {"PRECISION": precision(target)}
        mix = {"partial_ptr": None, "SQUARED_RELU": False, **products}
        added = {"SQUARED_RELU": False, **products}
        hidden = {"bias_ptr": None, "partial_ptr": None, "SQUARED_RELU": True, **products}
        yield Job(f"linear mix {dtype}", kernels.linear_kernel, launch, dtype, mix, FLOAT32 | {"y_ptr"})
        yield Job(f"linear mix partial {dtype}", kernels.linear_kernel, launch, dtype, added, FLOAT32 | {"y_ptr"})
        yield Job(f"linear hidden {dtype}", kernels.linear_kernel, launch, dtype, hidden, FLOAT32)
        yield Job(f"layer_norm {dtype}", kernels.layer_norm_kernel, gpu.NORM_LAUNCH, dtype, float32=FLOAT32)
        yield Job(f"gated_sum {dtype}", kernels.gated_sum_kernel, launch, dtype, products, FLOAT32)
