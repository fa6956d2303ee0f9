"""The exact primitives as callers see them: Triton kernels on CUDA tensors, compiled loops on CPU ones, or eager torch.

All give the same bits, so the choice is of time alone and no result depends on it; `backend=` is for tests. Values are
float32 and finite (TypeError, ValueError otherwise); `reference.py` says what each function computes.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lalic_kernels import installed
from lalic_kernels.dispatch import BackendUnavailable
from lalic_kernels.exact import reference
from lalic_kernels.exact.weights import ExactConv, ExactDepthwise, ExactLinear

NUMBA = importlib.util.find_spec("numba") is not None
BACKENDS = ("reference", "cpu", "triton")


def backend_of(device: str) -> str:
    """What tensors on a device type get: "triton", "cpu" for the compiled loops, or "reference" for eager torch."""
    if device == "cuda" and installed.TRITON:
        return "triton"
    return "cpu" if device == "cpu" and NUMBA else "reference"


def describe(device: str) -> str:
    """`backend_of`, in words for `lalic_kernels.info`."""
    name = backend_of(device)
    return "cpu, int16 products" if name == "cpu" else name


_module = functools.cache(importlib.import_module)


def one_check(device: torch.device, *, backend: str | None = None) -> contextlib.AbstractContextManager[None]:
    """Calls inside look for inputs that are not finite together, at the end, where each look would wait for a GPU.

    Raises ValueError on leaving if one was not finite; what was computed from it is then without meaning. On CPUs there
    is nothing to wait for, and each call looks itself.
    """
    if (backend or backend_of(device.type)) == "triton":
        shared: contextlib.AbstractContextManager[None] = _module("lalic_kernels.exact.gpu").one_check()
        return shared
    return contextlib.nullcontext()


def statuses(device: torch.device) -> contextlib.AbstractContextManager[list[Tensor]]:
    """As `one_check`, but the look is the caller's: on leaving the list has a status (1,) int32, or none on a CPU.

    For launches that are captured, which run later: a status is not zero where an input was not finite.
    """
    if backend_of(device.type) == "triton":
        shared: contextlib.AbstractContextManager[list[Tensor]] = _module("lalic_kernels.exact.gpu_state").statuses()
        return shared
    return contextlib.nullcontext([])


def _path(x: Tensor, backend: str | None) -> Any:
    name = backend_of(x.device.type) if backend is None else backend
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS} or None, but is {backend!r}")
    if name == "reference":
        return reference
    if name == "triton":
        here = "cuda" if not installed.interpreting() else "cpu"
        if not installed.TRITON or x.device.type not in ("cuda", here):
            raise BackendUnavailable(
                f"backend='triton' needs triton and CUDA tensors, or its interpreter and CPU tensors; "
                f"triton: {installed.TRITON}, device: {x.device}"
            )
        return _module("lalic_kernels.exact.gpu")
    if not NUMBA or x.device.type != "cpu":
        raise BackendUnavailable(f"backend='cpu' needs numba and CPU tensors; numba: {NUMBA}, device: {x.device}")
    return _module("lalic_kernels.exact.cpu")


def fused(x: Tensor, backend: str | None) -> Any | None:
    """The module that has whole blocks in few launches or calls, `gpu_blocks` or `cpu_blocks`, or None."""
    path = _path(x, backend)
    return None if path is reference else _module(f"{path.__name__}_blocks")


def few_launches(device: torch.device, backend: str | None) -> Any | None:
    """`gpu_slices`, which has the steps of coding slices in few launches, where Triton runs; else None."""
    if (backend or backend_of(device.type)) != "triton":
        return None
    return _module("lalic_kernels.exact.gpu_slices")


def _described(function: Callable[..., Any]) -> Callable[..., Any]:
    function.__doc__ = getattr(reference, function.__name__).__doc__
    return function


@_described
def linear(x: Tensor, prepared: ExactLinear, *, backend: str | None = None) -> Tensor:
    return _path(x, backend).linear(x, prepared)


def linear_squared_relu(x: Tensor, prepared: ExactLinear, *, backend: str | None = None) -> Tensor:
    """squared_relu(linear(x)), where possible without a pass of its own."""
    path = _path(x, backend)
    if path is not reference:
        return path.linear(x, prepared, squared=True)
    return path.squared_relu(path.linear(x, prepared))


@_described
def conv(x: Tensor, prepared: ExactConv, parity: int | None = None, *, backend: str | None = None) -> Tensor:
    return _path(x, backend).conv(x, prepared, parity)


@_described
def depthwise(x: Tensor, prepared: ExactDepthwise, *, backend: str | None = None) -> Tensor:
    return _path(x, backend).depthwise(x, prepared)


@_described
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, *, backend: str | None = None) -> Tensor:
    return _path(x, backend).layer_norm(x, weight, bias, eps)


@_described
def exp(x: Tensor, *, backend: str | None = None) -> Tensor:
    return _path(x, backend).exp(x)


@_described
def sigmoid(x: Tensor, *, backend: str | None = None) -> Tensor:
    return _path(x, backend).sigmoid(x)


@_described
def squared_relu(x: Tensor, *, backend: str | None = None) -> Tensor:
    return _path(x, backend).squared_relu(x)


@_described
def gate(r: Tensor, x: Tensor, *, backend: str | None = None) -> Tensor:
    return _path(x, backend).gate(r, x)


@_described
def residual(x: Tensor, change: Tensor, gamma: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    return _path(x, backend).residual(x, change, gamma)


@_described
def biwkv(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, gate_by: Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    return _path(k, backend).biwkv(w, u, k, v, gate_by)


@_described
def scale_index(scales: Tensor, *, backend: str | None = None) -> Tensor:
    return _path(scales, backend).scale_index(scales)


@_described
def gaussian_head(parameters: Tensor, *, backend: str | None = None) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = _path(parameters, backend).gaussian_head(parameters)
    return found
