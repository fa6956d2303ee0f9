"""BiWKV's kernels, as its launch table has them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.compiled.core import Job, itemsize
from lalic_kernels.biwkv import gpu as launches
from lalic_kernels.biwkv import kernels, kernels_backward, kernels_log
from lalic_kernels.launch import Launch

FLOAT32 = frozenset(
    {
        *("w_ptr", "u_ptr", "factors_ptr", "sums_ptr", "entering_ptr", "states_ptr", "centre_ptr", "running_ptr"),
        *("log_den_ptr", "parts_ptr"),
    }
)
# Without a gate its pointers are None, and so is the centre's outside of training.
_PLAIN: dict[str, Any] = {"GATED": False, "gate_ptr": None}
_GATED: dict[str, Any] = {"GATED": True}
_UNCENTRED: dict[str, Any] = {"CENTRED": False, "centre_ptr": None}


def variants(row: launches.Row) -> Iterator[tuple[Any, Launch, str, dict[str, Any]]]:
    """(kernel, launch, what the label ends in, constants) of all that a row of the table launches chunk by chunk."""
    if row.use == "forward":
        yield kernels.chunk_sums_kernel, row.launch, "", {"CENTRED": False}
        for fold in (launches.folds(row.launch), 0):
            for ending, gate in (("", _PLAIN), (" gated", _GATED)):
                words = f" folds {fold}{ending}" if fold else ending
                yield kernels.rows_kernel, row.launch, words, gate | _UNCENTRED | {"FOLD": fold}
    elif row.use == "backward":  # the forward's kernels with the backward's blocks too
        launch = launches.sums_of(row.launch)
        yield kernels.chunk_sums_kernel, launch, " centred", {"CENTRED": True}
        for ending, gate in (("", _PLAIN), (" gated", _GATED)):
            yield kernels.rows_kernel, launch, " centred" + ending, gate | {"CENTRED": True, "FOLD": 0}
        for ending, gate in (("", _PLAIN), (" gated", _GATED)):
            yield kernels_backward.grad_sums_kernel, row.launch, ending, gate
            more = gate if gate["GATED"] else gate | {"grad_gate_ptr": None}
            yield kernels_backward.grad_rows_kernel, row.launch, ending, more


def by_chunk(kernel: Any, launch: Launch, dtype: str, label: str, more: Mapping[str, Any], vec: int) -> Job:
    """A job of a kernel whose programs take a chunk of tokens each; VEC channels are one vector."""
    name = kernel.__name__.removesuffix("_kernel")
    return Job(
        f"{name} {label} {dtype} vectors of {vec}", kernel, launch, dtype, {"VEC": vec, **more}, FLOAT32, minor=vec == 1
    )


def scans(launch: Launch) -> Iterator[Job]:
    """The jobs of the running sums."""
    for ending, more in (("", {"CENTRED": False, "centre_ptr": None}), (" centred", {"CENTRED": True})):
        yield Job(f"chunk_scan {launch['PIECE']}{ending}", kernels.chunk_scan_kernel, launch, "fp32", more, FLOAT32)
    yield Job(f"grad_scan {launch['PIECE']}", kernels_backward.grad_scan_kernel, launch, "fp32", {}, FLOAT32)


def logarithmic(launch: Launch, dtype: str, kernels: Iterable[Any]) -> Iterator[Job]:
    """The jobs of the logarithmic form."""
    for kernel in kernels:
        gated = "GATED" in kernel.arg_names
        for ending, gate in (("", _PLAIN), (" gated", _GATED)) if gated else (("", {}),):
            more = dict(gate)
            if kernel is kernels_log.log_grads_kernel and not gate["GATED"]:
                more["grad_gate_ptr"] = None
            fixed = FLOAT32 if kernel is kernels_log.log_rows_kernel else FLOAT32 | {"y_ptr"}
            name = kernel.__name__.removesuffix("_kernel")
            yield Job(
                f"{name} {launch['LENGTH']}{ending} {dtype}", kernel, launch, dtype, more, fixed, minor=gate is _PLAIN
            )


def jobs(dtypes: Sequence[str], target: str) -> Iterator[Job]:
    """Every kernel and launch configuration."""
    table = [row for row in launches.TABLE if row in launches.rows_of(row.use, target, row.itemsize)]
    for dtype in dtypes:
        for row in table:
            if row.itemsize == itemsize(dtype):
                for kernel, launch, ending, more in variants(row):
                    for vec in (16 // itemsize(dtype), 1):
                        yield by_chunk(kernel, launch, dtype, f"from {row.start}{ending}", more, vec)
        yield from logarithmic(launches.LOG, dtype, (kernels_log.log_rows_kernel,))
        for launch in {row.launch for row in table if row.use == "backward" and row.itemsize == itemsize(dtype)}:
            yield from logarithmic(launch, dtype, (kernels_log.log_denominators_kernel, kernels_log.log_grads_kernel))
    for row in table:
        if row.use == "scan":
            yield from scans(row.launch)
    yield Job("factors", kernels.factors_kernel, launches.FACTORS, "fp32", {}, FLOAT32)
