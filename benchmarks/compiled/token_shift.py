"""Token shift's kernels, as its launch table has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.compiled.core import Job
from lalic_kernels.token_shift import kernels, op

FLOAT32 = frozenset({"weight_ptr"})


def jobs(dtypes: Sequence[str], target: str) -> Iterator[Job]:
    """Every kernel and launch configuration."""
    for dtype in dtypes:
        for name, launch in op.LAUNCHES.items():
            yield Job(f"token_shift {name} {dtype}", kernels.token_shift_kernel, launch, dtype, float32=FLOAT32)
