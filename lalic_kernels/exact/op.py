"""The public functions of exact arithmetic: Triton kernels on CUDA tensors, compiled loops on CPU tensors, or torch.

All backends give the same bits, so the choice affects only the time; `backend=` ("reference", "cpu", "triton") is for
tests. `reference.py` is the definition, docs/exact-arithmetic.md its text.

Raises of every function:
    TypeError: an activation is not float32.
    NotFinite: an activation is not finite.
    BackendUnavailable: the requested backend cannot run on these tensors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lalic_kernels import installed
from lalic_kernels.dispatch import BackendUnavailable
from lalic_kernels.exact import reference
from lalic_kernels.exact.weights import ExactBlock, ExactConv, ExactEntropyParams, ExactLinear

if TYPE_CHECKING:
    from lalic_kernels.exact.gpu_slices import SliceKernels

BACKENDS = ("reference", "cpu", "triton")


def backend_of(device: str) -> str:
    """The backend for tensors on a device type: "triton", "cpu" (compiled loops) or "reference" (eager torch)."""
    if device == "cuda" and installed.TRITON:
        return "triton"
    return "cpu" if device == "cpu" and installed.NUMBA else "reference"


def describe(device: str) -> str:
    """`backend_of`, in words for `lalic_kernels.info`."""
    name = backend_of(device)
    return "cpu, int16 products" if name == "cpu" else name


def _implementation(x: Tensor, backend: str | None) -> ModuleType:
    """The file that computes with x: that of the requested backend, or of its device's."""
    backend = backend_of(x.device.type) if backend is None else _checked(backend, x)
    if backend == "triton":
        from lalic_kernels.exact import gpu

        return gpu
    if backend == "cpu":
        from lalic_kernels.exact import cpu

        return cpu
    return reference


def _checked(backend: str, x: Tensor) -> str:
    """`backend`, if it can run on x."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS} or None, but is {backend!r}")
    if backend == "triton" and not (
        installed.TRITON and (x.device.type == "cuda" or (x.is_cpu and installed.interpreting()))
    ):
        raise BackendUnavailable(
            f"backend='triton' needs triton and CUDA tensors, or its interpreter and CPU tensors; "
            f"triton: {installed.TRITON}, device: {x.device}"
        )
    if backend == "cpu" and not (installed.NUMBA and x.is_cpu):
        raise BackendUnavailable(
            f"backend='cpu' needs numba and CPU tensors; numba: {installed.NUMBA}, device: {x.device}"
        )
    return backend


def linear(x: Tensor, weights: ExactLinear, *, backend: str | None = None) -> Tensor:
    """x (..., K) -> x w^T + bias (..., O), float32. Each row of K values has one scale."""
    return _implementation(x, backend).linear(x, weights)


def conv(x: Tensor, weights: ExactConv, *, backend: str | None = None) -> Tensor:
    """Convolution, plain or transposed, of images x (B, H, W, C) -> (B, H', W', O). Each image has one scale."""
    return _implementation(x, backend).conv(x, weights)


def rwkv_block(x: Tensor, block: ExactBlock, *, backend: str | None = None) -> Tensor:
    """x (B, H, W, C) -> (B, H, W, C): x + gamma1 SpatialMix(shift(LN x)), then x + gamma2 ChannelMix(shift(LN x))."""
    return rwkv_blocks(x, (block,), backend=backend)


def rwkv_blocks(x: Tensor, sequence: Sequence[ExactBlock], *, backend: str | None = None) -> Tensor:
    """x (B, H, W, C) -> (B, H, W, C), float32: `rwkv_block` with one block after the other."""
    return _implementation(x, backend).rwkv_blocks(x, sequence)


def entropy_params(
    x: Tensor, block: ExactEntropyParams, *, partial: Tensor | None = None, backend: str | None = None
) -> Tensor:
    """x (..., Cin) -> (..., Cout): m = mix x + partial; m + sigmoid(R n) V relu(K n)^2 with n = LayerNorm(m).

    `partial` (..., Cout) is added to the first product in float32. With Cin = 0 the mix is its bias alone.
    """
    return _implementation(x, backend).entropy_params(x, block, partial)


def gaussian_head(parameters: Tensor, *, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """parameters (..., 2 g), g scales, then g means -> (scale indexes 0..63 int32, means float32), each (..., g)."""
    return _implementation(parameters, backend).gaussian_head(parameters)


def slice_kernels(device: torch.device, *, backend: str | None = None) -> SliceKernels | None:
    """Kernels that code slices on a GPU, if Triton runs; else None."""
    if (backend or backend_of(device.type)) != "triton":
        return None
    from lalic_kernels.exact.gpu_slices import SliceKernels

    return SliceKernels(device)


def one_check(device: torch.device, *, backend: str | None = None) -> contextlib.AbstractContextManager[None]:
    """A context with one check at its end whether inputs are finite: a check of each call would wait for the GPU.

    Results are meaningless if the check fails. On CPUs each call checks its inputs.

    Raises:
        NotFinite: at the end, if an input was not finite.
    """
    if (backend or backend_of(device.type)) != "triton":
        return contextlib.nullcontext()
    from lalic_kernels.exact import gpu_state

    return gpu_state.one_check()


def statuses(device: torch.device) -> contextlib.AbstractContextManager[list[Tensor]]:
    """A context in which calls check their inputs for the caller, who reads the status: for captured launches.

    At its end the list has one status (1,) int32, which is not zero if an input was not finite, once the launches have
    run. On CPUs the list is empty, and each call checks its inputs.
    """
    if backend_of(device.type) != "triton":
        return contextlib.nullcontext([])
    from lalic_kernels.exact import gpu_state

    return gpu_state.statuses()
