"""The Gaussian likelihood on CPUs: calls of the compiled code in `cpu_loops.py`.

16-bit arguments are copied to float32. Elements are independent, so the number of threads does not change the bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lalic_kernels import installed
from lalic_kernels.threads import run_ranges

if installed.NUMBA:
    from lalic_kernels.gaussian import cpu_loops as loops

_LEAST_ELEMENTS = 16384  # with fewer elements a thread costs more than it saves


def forward(y: Tensor, scales: Tensor, means: Tensor) -> Tensor:
    """The likelihood, float32, in y's shape. Arguments: one shape, any strides, not float64."""
    out = torch.empty(y.shape, dtype=torch.float32, device="cpu")
    arrays = [_flat(x) for x in (y, scales, means)]
    result = out.view(-1).numpy()
    run_ranges(lambda start, stop: loops.likelihoods(*arrays, start, stop, result), out.numel(), least=_LEAST_ELEMENTS)
    return out


def backward(y: Tensor, scales: Tensor, means: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of y, scales and means, contiguous, each in its argument's dtype."""
    arrays = [_flat(x) for x in (y, scales, means, grad)]
    grads = [torch.empty(y.shape, dtype=torch.float32, device="cpu") for _ in range(3)]
    results = [x.view(-1).numpy() for x in grads]
    run_ranges(lambda start, stop: loops.gradients(*arrays, start, stop, *results), y.numel(), least=_LEAST_ELEMENTS)
    grad_y, grad_scales, grad_means = (x.to(like.dtype) for x, like in zip(grads, (y, scales, means), strict=True))
    return grad_y, grad_scales, grad_means


def _flat(x: Tensor):
    return x.detach().float().reshape(-1).numpy()
