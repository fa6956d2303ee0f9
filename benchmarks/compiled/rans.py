"""The grouped coder's kernels and the checksum's: they know integers alone, and each has one launch configuration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.compiled.core import Job
from lalic_kernels.rans import checksum, kernels_checksum
from lalic_kernels.rans.grouped import gpu, kernels

TYPES = {"words_ptr": "*i16", "quiet_ptr": "*i8", "raw_ptr": "*i64", "totals_ptr": "*i64"}


def jobs(dtypes: Sequence[str], target: str) -> Iterator[Job]:
    """Every kernel; all pointers that TYPES does not name are to int32."""
    if "fp32" not in dtypes:
        return
    launches = [(name, getattr(kernels, f"rans_{name}_kernel"), launch) for name, launch in gpu.LAUNCHES.items()]
    for name, kernel, launch in [*launches, ("checksum", kernels_checksum.checksum_kernel, checksum.LAUNCH)]:
        types = {argument: "*i32" for argument in kernel.arg_names if argument.endswith("_ptr")} | TYPES
        yield Job(f"rans {name}", kernel, launch, "fp32", types=types)
