"""The likelihood on CPUs through compiled code (`cpu_loops.py`): arguments to flat float32 arrays, threads.

16-bit arguments go through a float32 copy. Every element is on its own, so threads change no bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lalic_kernels.threads import run_ranges

_LEAST_ELEMENTS = 16384  # below some ten thousand a thread costs more than it saves


def forward(y: Tensor, scales: Tensor, means: Tensor) -> Tensor:
    """The likelihood, float32, of y's shape; arguments of one shape, any strides, not float64."""
    from lalic_kernels.gaussian import cpu_loops

    out = torch.empty(y.shape, dtype=torch.float32)
    arrays = [_flat(x) for x in (y, scales, means)]
    result = out.view(-1).numpy()
    run_ranges(
        lambda start, stop: cpu_loops.likelihoods(*arrays, start, stop, result), out.numel(), least=_LEAST_ELEMENTS
    )
    return out


def backward(y: Tensor, scales: Tensor, means: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of y, scales and means, contiguous, each in its argument's dtype."""
    from lalic_kernels.gaussian import cpu_loops

    arrays = [_flat(x) for x in (y, scales, means, grad)]
    found = [torch.empty(y.shape, dtype=torch.float32) for _ in range(3)]
    results = [x.view(-1).numpy() for x in found]
    run_ranges(
        lambda start, stop: cpu_loops.gradients(*arrays, start, stop, *results), y.numel(), least=_LEAST_ELEMENTS
    )
    a, b, c = (x.to(like.dtype) for x, like in zip(found, (y, scales, means), strict=True))
    return a, b, c


def _flat(x: Tensor):
    return x.detach().float().reshape(-1).numpy()
