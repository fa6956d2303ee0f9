"""The Gaussian likelihood: the public function, its checks, choice of implementation and registration."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lalic_kernels import checks, dispatch
from lalic_kernels.gaussian import cpu, gpu, reference
from lalic_kernels.op import nbytes, recompute, register

# (r0, r1): the float32 error is at most (r0 + r1 b^2) 2^-23 times the upper tail Q(a); for gradients, times the sum of
# the two densities. README.md, "Numerical bounds".
ROUNDINGS = (8.0, 2.0)


def gaussian_likelihood(y: Tensor, scales: Tensor, means: Tensor, *, backend: str | None = None) -> Tensor:
    """Probability mass of the unit interval around y under a normal distribution, at least 1e-9.

    v = |y - mean|, s = max(scale, 0.11), p = max(Phi((0.5 - v) / s) - Phi((-0.5 - v) / s), 1e-9). Both maxima pass a
    gradient if the value is at least the bound, or if the gradient is negative, so that a descent step raises the
    value. Forward and backward are one pass over memory each. For training only the three arguments are saved.

    Args:
        y: the value that the decoder will have: rounded (round(y - mean) + mean) or, in training, with additive noise.
            Any shape and strides, float16, bfloat16, float32 or float64.
        scales, means: y's shape, each in any of these dtypes.
        backend: None for the rule in `lalic_kernels.dispatch`, or "triton", "cpu", "torch", "reference".

    Returns:
        The likelihood, y's shape, contiguous: float64 if an argument is, else float32, because 1e-9 is zero in float16.
        Gradients are in their argument's dtype. Only the reference has a second derivative.

    Raises:
        TypeError: an argument is not a tensor, or its dtype is not floating.
        ValueError: a shape, layout or device does not fit, or there is no backend of that name.
        BackendUnavailable: the requested backend cannot run on this machine.

    Source: Balle et al., 2018; constants and gradients of the bounds as in CompressAI's GaussianConditional.

    Example:
        >>> gaussian_likelihood(torch.zeros(2), torch.tensor([0.5, 1.0]), torch.zeros(2))
        tensor([0.6827, 0.3829])
    """
    named = {"y": y, "scales": scales, "means": means}
    checks.same_shape("gaussian_likelihood", *named.items())
    for name, value in named.items():
        checks.floating("gaussian_likelihood", name, value)
    checks.same_device("gaussian_likelihood", *named.items())
    chosen = dispatch.resolve(OP, backend, y.device.type, _wide(y, scales, means))
    if chosen == "reference":
        return reference.gaussian_likelihood(y, scales, means)
    return OP.call(y, scales, means, chosen)


def _wide(*arguments: Tensor) -> torch.dtype:
    """The result's dtype."""
    return torch.float64 if any(x.dtype == torch.float64 for x in arguments) else torch.float32


def _forward(y: Tensor, scales: Tensor, means: Tensor, backend: str | None) -> Tensor:
    wide = _wide(y, scales, means)
    chosen = dispatch.resolve(OP, backend, y.device.type, wide)
    if y.numel() == 0:
        return torch.empty(y.shape, dtype=wide, device=y.device)
    if chosen == "triton":
        return gpu.forward(y, scales, means)
    if chosen == "cpu":
        return cpu.forward(y, scales, means)
    return reference.gaussian_likelihood(y, scales, means).contiguous()


def _backward(y: Tensor, scales: Tensor, means: Tensor, grad: Tensor, backend: str | None) -> tuple[Tensor, ...]:
    chosen = dispatch.resolve(OP, backend, y.device.type, grad.dtype)
    if grad.numel() == 0:
        return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (y, scales, means))
    if chosen == "triton":
        return gpu.backward(y, scales, means, grad)
    if chosen == "cpu":
        return cpu.backward(y, scales, means, grad)
    return tuple(recompute(reference.gaussian_likelihood, (y, scales, means), grad))


OP = register(
    "gaussian_likelihood",
    "(Tensor y, Tensor scales, Tensor means, str? backend) -> Tensor",
    forward=_forward,
    backward=_backward,
    saves=("y", "scales", "means", "backend"),
    like=lambda y, scales, means, backend: torch.empty(y.shape, dtype=_wide(y, scales, means), device=y.device),
    # As in the kernel. Each of two tails: 18 for the polynomial, 7 around it, 1 for the exponential, 2 before it. 13
    # for all else. A division counts as 1.
    flops=lambda y, *_, **__: 69 * math.prod(y),
    bytes=lambda y, scales, means: nbytes(y, scales, means) + y.numel() * _wide(y, scales, means).itemsize,
    gradient="like the forward for triton and cpu; otherwise autograd through the reference, recomputed",
    cpu=True,
)
