"""The rule for which implementation (backend) runs. `python -m lalic_kernels.info` prints the choices on this machine.

1. `backend="..."` given: that implementation, or BackendUnavailable if it cannot run. Never another one.
       "triton"     Triton kernels. CUDA tensors (CPU tensors only in Triton's interpreter); not float64.
       "cpu"        code compiled for the CPU by numba. CPU tensors; not float64; only if the op has such code.
       "torch"      plain torch operations. Every device and floating dtype.
       "reference"  the definition. Every device and floating dtype; may need quadratic memory.
2. CUDA tensors: "triton"; but "torch" for float64, which the kernels do not support, or without Triton.
3. CPU tensors: "cpu" if the op has such code, numba can compile it, and the dtype is not float64; else "torch".
   biwkv also takes "torch" if w or u is outside the range of its compiled code (biwkv/cpu.py, supports()).
4. Other devices, and while torch.onnx exports: "torch".

The rule uses no timing, and no environment variable but NUMBA_DISABLE_JIT, with which numba counts as not installed. So
an encoder and a decoder on equal machines choose the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lalic_kernels import installed

BACKENDS = ("triton", "cpu", "torch", "reference")


class BackendUnavailable(RuntimeError):
    """The implementation requested with `backend=` cannot run on this machine or on these tensors."""


@dataclass(frozen=True)
class Op:
    """What the rule needs to know about an op: its name, and whether it has compiled CPU code."""

    name: str
    cpu: bool = False


def choose(op: Op, device_type: str, dtype: torch.dtype) -> tuple[str, str]:
    """The implementation chosen for a device type and dtype, and the reason in a few words."""
    if torch.onnx.is_in_onnx_export():
        return "torch", "torch.onnx exports"
    if device_type == "cuda":
        if dtype == torch.float64:
            return "torch", "float64 is not computed in kernels"
        if not installed.TRITON:
            return "torch", "triton is not installed"
        return "triton", "CUDA tensors"
    if device_type != "cpu":
        return "torch", f"no kernels for device type {device_type}"
    if not op.cpu:
        return "torch", "CPU tensors"
    if dtype == torch.float64:
        return "torch", "float64 is not computed in compiled CPU code"
    if not installed.NUMBA:
        return "torch", f"{installed.WHY_NO_NUMBA}: there is no compiled CPU code"
    return "cpu", "CPU tensors, compiled by numba"


def resolve(op: Op, backend: str | None, device_type: str, dtype: torch.dtype) -> str:
    """The implementation to use: the requested one, or that of the rule.

    Args:
        op: the op.
        backend: one of BACKENDS, or None to follow the rule.
        device_type: "cpu", "cuda", ... of the tensors.
        dtype: of the tensors.

    Raises:
        ValueError: backend is not a known name.
        BackendUnavailable: backend cannot run on these tensors; the message has the reason.
    """
    if backend is None:
        return choose(op, device_type, dtype)[0]
    if backend not in BACKENDS:
        raise ValueError(f"{op.name}: backend must be None or one of {', '.join(BACKENDS)}, but is {backend!r}")
    problem = _problem(op, backend, device_type, dtype)
    if problem:
        raise BackendUnavailable(f"{op.name}: backend={backend!r} cannot be used: {problem}")
    return backend


def _problem(op: Op, backend: str, device_type: str, dtype: torch.dtype) -> str:
    if backend == "triton":
        if not installed.TRITON:
            return "triton is not installed"
        if device_type != "cuda" and not (device_type == "cpu" and installed.interpreting()):
            return f"it needs tensors on a CUDA device, but they are on {device_type}"
        if dtype == torch.float64:
            return "its kernels compute in float32, but the tensors are float64"
    if backend == "cpu":
        if not op.cpu:
            return "this op has no compiled CPU code"
        if device_type != "cpu":
            return f"it needs tensors on the CPU, but they are on {device_type}"
        if dtype == torch.float64:
            return "it computes in float32, but the tensors are float64"
        if not installed.NUMBA:
            return installed.WHY_NO_NUMBA
    return ""
