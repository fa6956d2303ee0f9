"""`python -m lalic_kernels.info`: installed packages, devices, and the implementation of each op, for a bug report."""

from __future__ import annotations

import importlib.metadata
import platform
import sys

import torch

import lalic_kernels  # noqa: F401  (the import registers every op in OPS)
from lalic_kernels import code_cache, dispatch, installed, rans
from lalic_kernels.biwkv.op import CPU_RANGE
from lalic_kernels.exact import op as exact_op
from lalic_kernels.op import OPS

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_PACKAGES = ("lalic", "torch", "triton", "numba", "numpy")


def versions() -> dict[str, str]:
    """The version of Python and of each package that is used; "not installed" for a missing package."""
    result = {"python": sys.version.split()[0]}
    for name in _PACKAGES:
        try:
            result[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            result[name] = "not installed"
    return result | {"torch": str(torch.__version__)}  # with the build, such as +cpu, which the package's may lack


def devices() -> list[str]:
    """One line for the processor and one for each CUDA device."""
    lines = [f"cpu: {platform.machine()}, {torch.get_num_threads()} torch threads"]
    for index in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(index)
        runtime = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
        lines.append(
            f"cuda:{index}: {p.name}, capability {p.major}.{p.minor}, {p.total_memory / 2**30:.0f} GiB, {runtime}"
        )
    if not torch.cuda.is_available():
        lines.append(
            "cuda: none"
            if torch.version.cuda or torch.version.hip
            else "cuda: none, this torch is built for the CPU only"
        )
    return lines


def missing() -> list[str]:
    """What is missing, and the consequence."""
    lines = []
    if not installed.TRITON:
        lines.append("triton: no kernels on CUDA tensors; plain torch is used instead")
    if not installed.NUMBA:
        lines.append(
            f"numba: no compiled code for the CPU ({installed.WHY_NO_NUMBA}); plain torch is used instead, several "
            "times slower for biwkv"
        )
    elif code_cache.kept_in() is None:
        lines.append(
            "a folder for compiled code: each process compiles for the CPU anew, which may take a minute; "
            "NUMBA_CACHE_DIR names one"
        )
    if installed.TRITON:
        lines += [f"{reason}: no kernels on CUDA tensors"] if (reason := installed.too_old()) else []
        lines += [f"{tool}: no kernels on CUDA tensors before it is installed" for tool in installed.missing_to_start()]
    if not torch.cuda.is_available():
        lines.append("a CUDA device: the Triton kernels cannot run (except in Triton's interpreter, for tests)")
    return lines


def choices() -> list[tuple[str, str, str, str, str]]:
    """(op, device type, dtypes, implementation, reason) of every op, by the rule of `lalic_kernels.dispatch`.

    All implementations of the entropy coder and of the exact arithmetic give the same bytes. Their rule is: compiled
    code if possible.
    """
    rows = []
    for op in OPS.values():
        for device in ("cuda", "cpu"):
            groups: dict[tuple[str, str], list[str]] = {}
            for dtype in _DTYPES:
                groups.setdefault(dispatch.choose(op, device, dtype), []).append(str(dtype).removeprefix("torch."))
            rows += [(op.name, device, " ".join(names), *choice) for choice, names in groups.items()]
    host = rans.available_backends()[0]
    coders = {"cuda": "triton" if installed.TRITON else host, "cpu": host}
    for device, coder in coders.items():
        rows.append(("rans", device, "int32", coder, "the same bytes either way"))
    same = "exact arithmetic, the same bits either way"
    rows += [("exact", device, "float32", exact_op.describe(device), same) for device in ("cuda", "cpu")]
    return rows


def backwards() -> dict[str, str]:
    """How each op computes its gradient."""
    return {name: op.gradient for name, op in OPS.items()}


def report() -> str:
    """The whole report as text."""
    lines = ["versions", *(f"  {name} {version}" for name, version in versions().items())]
    lines += ["devices", *(f"  {line}" for line in devices())]
    lines.append("forward, when no backend= is given")
    rows = choices()
    width = [max(len(row[column]) for row in rows) for column in range(4)]
    lines += ["  " + "  ".join(row[i].ljust(width[i]) for i in range(4)) + f"  ({row[4]})" for row in rows]
    lines.append(f"  biwkv on the CPU takes torch instead of cpu where {CPU_RANGE}")
    if installed.NUMBA and (folder := code_cache.kept_in()):
        lines.append(f"compiled code for the CPU is kept in\n  {folder}")
    lines.append("backward")
    lines += [f"  {name}: {how}" for name, how in backwards().items()]
    missing_lines = missing()
    lines += ["missing", *(f"  {line}" for line in missing_lines)] if missing_lines else ["missing: nothing"]
    return "\n".join(lines)


if __name__ == "__main__":
    print(report())
