"""The Gaussian likelihood on a GPU: the launches of its Triton kernels, forward and backward."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from lalic_kernels.gaussian.reference import LIKELIHOOD_MIN, SCALE_MIN
from lalic_kernels.launch import Launch, blocks, on

# 1024 elements per program, 8 per thread; 16-byte vectors of float32 if columns and strides are multiples of 4.
VECTORS = Launch((("GROUPS", 256), ("VEC", 4)), num_warps=4)
SINGLE = Launch((("GROUPS", 1024), ("VEC", 1)), num_warps=4)
BOUNDS = {"SCALE_MIN": SCALE_MIN, "MASS_MIN": LIKELIHOOD_MIN}


def forward(y: Tensor, scales: Tensor, means: Tensor) -> Tensor:
    """The likelihood, float32, in y's shape. Arguments: one shape, any strides, not float64, not empty."""
    from lalic_kernels.gaussian import kernels

    out = torch.empty(y.shape, dtype=torch.float32, device=y.device)
    _launch(kernels.likelihood_kernel, (y, scales, means), (out,))
    return out


def backward(y: Tensor, scales: Tensor, means: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of y, scales and means, contiguous, each in its argument's dtype; grad is float32 in y's shape."""
    from lalic_kernels.gaussian import kernels

    grad_y, grad_scales, grad_means = (
        torch.empty_like(x, memory_format=torch.contiguous_format) for x in (y, scales, means)
    )
    _launch(kernels.grad_likelihood_kernel, (y, scales, means, grad), (grad_y, grad_scales, grad_means))
    return grad_y, grad_scales, grad_means


def _launch(kernel: Any, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
    """Launch a kernel on inputs of one shape, without a copy if their strides allow, and contiguous outputs."""
    if all(x.is_contiguous() for x in inputs):
        inputs = tuple(x.view(1, -1) for x in inputs)
    else:
        inputs = tuple(as_rows(x) for x in inputs)
    rows, columns = inputs[0].shape
    strides = [x.stride(0) if rows > 1 else columns for x in inputs]
    launch = VECTORS
    if any(n % launch["VEC"] for n in (columns, *strides)):
        launch = SINGLE
    vec, groups = launch["VEC"], launch["GROUPS"]
    with on(outputs[0].device):
        kernel[(blocks(rows * columns // vec, groups),)](
            *inputs, *outputs, rows, columns, *(stride // vec for stride in strides), **BOUNDS, **launch.options()
        )


def as_rows(x: Tensor) -> Tensor:
    """x as (rows, columns), where columns is its last dimension: a view if its strides allow, else a copy."""
    columns = x.shape[-1]
    steps = [(size, stride) for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True) if size > 1]
    nested = all(a[1] == b[0] * b[1] for a, b in itertools.pairwise(steps))
    if not (nested and (x.stride(-1) == 1 or columns == 1)):
        return x.contiguous().view(-1, columns)
    return x.as_strided((x.numel() // columns, columns), (steps[-1][1] if steps else columns, 1))
