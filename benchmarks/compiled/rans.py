"""The coder's kernels and the checksum's: integers, but for scales and means where they come and values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.compiled.core import Job
from lalic_kernels.rans import checksum, gpu, kernels

TYPES = {
    "words_ptr": "*i16",
    "raw_ptr": "*i64",
    "totals_ptr": "*i64",
    "sums_ptr": "*i64",
    "thresholds_ptr": "*fp32",
    "parameters_ptr": "*fp32",
    "values_ptr": "*fp32",
}


def jobs(dtypes: Sequence[str], target: str) -> Iterator[Job]:
    """Every kernel, with parameters and without; all pointers that TYPES does not name are to int32."""
    if "fp32" not in dtypes:
        return
    for label, kernel, launch in (
        ("rows", kernels.rans_rows_kernel, gpu.LAUNCHES["rows"]),
        ("symbols", kernels.rans_symbols_kernel, gpu.LAUNCHES["symbols"]),
        ("values", kernels.rans_values_kernel, gpu.LAUNCHES["values"]),
        ("push", kernels.rans_push_kernel, gpu.LAUNCHES["push"]),
        ("checksum", kernels.checksum_kernel, checksum.LAUNCH),
    ):
        types = {argument: "*i32" for argument in kernel.arg_names if argument.endswith("_ptr")} | TYPES
        if "PARAMETERS" not in kernel.arg_names:
            variants = (("", False), ("medians", True), ("means", True)) if label == "values" else (None,)
            for variant in variants:
                constants = {} if variant is None else dict(zip(("OFFSETS", "ABSMAX"), variant, strict=True))
                yield Job(f"rans {label} {variant or ''}".strip(), kernel, launch, "fp32", constants, types=types)
            continue
        for given in (False, True):
            own = types | ({"source_ptr": "*fp32"} if given else {})
            yield Job(f"rans {label} {given}", kernel, launch, "fp32", {"PARAMETERS": given}, types=own)
