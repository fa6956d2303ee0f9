"""BiWKV's kernels, as its launch table has them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.compiled.core import Job, itemsize
from lalic_kernels.biwkv import gpu as launches
from lalic_kernels.biwkv import kernels, kernels_backward
from lalic_kernels.launch import Launch

FORWARD_FLOAT32 = frozenset(
    {"w_ptr", "u_ptr", "factors_ptr", "sums_ptr", "entering_ptr", "own_ptr", "peaks_ptr", "centre_ptr"}
)
BACKWARD_FLOAT32 = frozenset(
    {
        *("w_ptr", "u_ptr", "factors_ptr", "entering_ptr", "sums_ptr", "x_sums_ptr", "x_own_ptr", "constants_ptr"),
        *("running_ptr", "log_den_ptr", "y_ptr", "parts_ptr", "centre_ptr", "centre_ptr"),
    }
)
# Compile-time constants of a kernel besides its launch's and VEC: variants, each with what its label ends in.
_SLOW_TOO: dict[str, Any] = {"FAST_ONLY": False}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "chunk_sums_kernel": {"": _SLOW_TOO | {"CENTRED": False}},
    "rows_kernel": {"": _SLOW_TOO | {"GATED": False}, " gated": _SLOW_TOO | {"GATED": True}},
    "grad_sums_kernel": {"": _SLOW_TOO | {"GATED": False}, " gated": _SLOW_TOO | {"GATED": True}},
    "grad_rows_kernel": {"": _SLOW_TOO | {"GATED": False}, " gated": _SLOW_TOO | {"GATED": True}},
    "chunk_scan_kernel": {"": {"BACKWARD": False}, " backward": {"BACKWARD": True}},
}
BY_CHUNK = {
    "forward": (kernels.chunk_sums_kernel, kernels.rows_kernel),
    "backward": (kernels_backward.grad_sums_kernel, kernels_backward.grad_rows_kernel),
}


def variants(row: launches.Row) -> Iterator[tuple[Any, Launch, str, dict[str, Any]]]:
    """(kernel, launch, what the label ends in, constants) of all that a row of the table launches chunk by chunk."""
    for kernel in BY_CHUNK.get(row.use, ()):
        for ending, more in VARIANTS[kernel.__name__].items():
            yield kernel, row.launch, ending, more
    if row.use == "backward":  # the forward's first kernel, with the backward's blocks
        launch = launches.sums_of(row.launch, row.itemsize or 4)
        yield kernels.chunk_sums_kernel, launch, " centred", _SLOW_TOO | {"CENTRED": True}


def by_chunk(kernel: Any, launch: Launch, dtype: str, label: str, more: Mapping[str, Any], vec: int) -> Job:
    """A job of a kernel whose programs take a chunk of tokens each; VEC channels are one vector."""
    name = kernel.__name__.removesuffix("_kernel")
    fixed = FORWARD_FLOAT32 if kernel in BY_CHUNK["forward"] else BACKWARD_FLOAT32
    constants = {"VEC": vec, **more}
    return Job(f"{name} {label} {dtype} vectors of {vec}", kernel, launch, dtype, constants, fixed, minor=vec == 1)


def scans(launch: Launch, lengths: Iterable[int]) -> Iterator[Job]:
    """The jobs of the running sums; `lengths` of the backward's chunks."""
    for ending, variant in VARIANTS["chunk_scan_kernel"].items():
        words = f"chunk_scan {launch['PIECE']}{ending}"
        yield Job(words, kernels.chunk_scan_kernel, launch, "fp32", variant, FORWARD_FLOAT32)
    for length in lengths:
        kernel, words = kernels_backward.grad_scan_kernel, f"grad_scan {launch['PIECE']} {length}"
        yield Job(words, kernel, launch, "fp32", {"LENGTH": length}, BACKWARD_FLOAT32)


def jobs(dtypes: Sequence[str], target: str) -> Iterator[Job]:
    """Every kernel and launch configuration."""
    table = [row for row in launches.TABLE if row.architecture in ("any", target)]
    for dtype in dtypes:
        for row in table:
            if row.itemsize == itemsize(dtype):
                for kernel, launch, ending, more in variants(row):
                    for vec in (16 // itemsize(dtype), 1):
                        yield by_chunk(kernel, launch, dtype, f"from {row.start}{ending}", more, vec)
    blocks = {
        (launches.PER_GROUP * row.launch["GROUPS"], row.launch["BLOCK_C"]) for row in table if row.use == "forward"
    }
    backward = {row.launch["LENGTH"] for row in table if row.use == "backward"}
    for row in table:
        if row.use == "scan":
            yield from scans(row.launch, sorted(backward))
    for length in sorted(backward):
        kernel = kernels_backward.grad_join_kernel
        yield Job(f"grad_join {length}", kernel, launches.JOIN, "fp32", {"LENGTH": length}, BACKWARD_FLOAT32)
    for length, block_c in sorted(blocks):
        launch = Launch((("BLOCK_C", block_c),), num_warps=4)  # as gpu.py has it
        for per_group in (launches.PER_GROUP, 1):  # the forward's, the backward's
            groups = length // per_group
            if per_group > 1 or length in backward:
                more = {"GROUPS": groups, "PER_GROUP": per_group}
                yield Job(f"factors {groups}", kernels.factors_kernel, launch, "fp32", more, FORWARD_FLOAT32)
