"""BiWKV's kernels, as its launch table has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.compiled.core import Job, itemsize
from lalic_kernels._core.launch import Launch
from lalic_kernels.biwkv import kernels, kernels_backward, launches

FORWARD_FLOAT32 = frozenset({"w_ptr", "u_ptr", "factors_ptr", "sums_ptr", "entering_ptr", "own_ptr"})
BACKWARD_FLOAT32 = frozenset(
    {
        *("w_ptr", "u_ptr", "factors_ptr", "entering_ptr", "sums_ptr", "x_sums_ptr", "x_own_ptr", "constants_ptr"),
        *("running_ptr", "log_den_ptr", "y_ptr", "parts_ptr"),
    }
)
# Compile-time constants of a kernel besides its launch's and VEC: variants, each with what its label ends in.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "chunk_sums_kernel": {"": {"FAST_ONLY": False}},
    "rows_kernel": {"": {"FAST_ONLY": False, "GATED": False}, " gated": {"FAST_ONLY": False, "GATED": True}},
    "grad_sums_kernel": {"": {"FAST_ONLY": False}},
    "grad_rows_kernel": {"": {"FAST_ONLY": False}},
    "chunk_scan_kernel": {
        "": {"FOLDED": launches.PER_GROUP, "KEEP_OWN": False},
        " backward": {"FOLDED": 1, "KEEP_OWN": True},
    },
}


def by_chunk(kernel: Any, launch: Launch, dtype: str, label: str, variants: Mapping[str, Any]) -> Iterator[Job]:
    """A kernel whose programs take a chunk of tokens each: with whole vectors of channels, and without."""
    name = kernel.__name__.removesuffix("_kernel")
    fixed = FORWARD_FLOAT32 if kernel in (kernels.chunk_sums_kernel, kernels.rows_kernel) else BACKWARD_FLOAT32
    for vec in (16 // itemsize(dtype), 1):
        for ending, more in variants.items():
            facts = {"size": label, "vec": vec}
            words = f"{name} {label} {dtype} vectors of {vec}{ending}"
            yield Job(words, kernel, launch, dtype, {"VEC": vec, **more}, fixed, facts)


def jobs(dtypes: Sequence[str], target: str) -> Iterator[Job]:
    """Every kernel and launch configuration."""
    for dtype in dtypes:
        for table, found in (
            (launches.TABLE, (kernels.chunk_sums_kernel, kernels.rows_kernel)),
            # chunk_sums is the forward's, of which the table above has wider blocks on as many threads.
            (launches.BACKWARD, (kernels_backward.grad_sums_kernel, kernels_backward.grad_rows_kernel)),
        ):
            for (architecture, size, width), launch in table.items():
                if width == itemsize(dtype) and architecture in ("any", target):
                    for kernel in found:
                        yield from by_chunk(kernel, launch, dtype, size, VARIANTS[kernel.__name__])
    for length in sorted({launch["LENGTH"] for launch in launches.BACKWARD.values()}):
        more = {"LENGTH": length}
        yield Job("grad_join", kernels_backward.grad_join_kernel, launches.JOIN, "fp32", more, BACKWARD_FLOAT32)
        for name, launch in launches.SCANS.items():
            kernel = kernels_backward.grad_scan_kernel
            yield Job(f"grad_scan {name} {length}", kernel, launch, "fp32", more, BACKWARD_FLOAT32)
    for groups, block_c in sorted({(launch["GROUPS"], launch["BLOCK_C"]) for launch in launches.TABLE.values()}):
        more = {"GROUPS": groups, "PER_GROUP": launches.PER_GROUP}
        for name, launch in launches.SCANS.items():
            for ending, variant in VARIANTS["chunk_scan_kernel"].items():
                words = f"chunk_scan {name} {groups}{ending}"
                yield Job(words, kernels.chunk_scan_kernel, launch, "fp32", more | variant, FORWARD_FLOAT32)
        launch = Launch((("BLOCK_C", block_c),), num_warps=4)  # as op.py has it
        yield Job(f"factors {groups}", kernels.factors_kernel, launch, "fp32", more, FORWARD_FLOAT32)
