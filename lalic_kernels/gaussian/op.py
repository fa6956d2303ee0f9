"""The Gaussian likelihood: the public function, its checks, choice of implementation and registration."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lalic_kernels import checks, dispatch
from lalic_kernels.gaussian import cpu, gpu, reference
from lalic_kernels.op import nbytes, recompute, register

# float32's error is at most (r0 + r1 b^2) 2^-23 of the upper tail Q(a), for gradients of the two densities' sum:
# README.md, "Numerical bounds".
ROUNDINGS = (8.0, 2.0)


def gaussian_likelihood(y: Tensor, scales: Tensor, means: Tensor, *, backend: str | None = None) -> Tensor:
    """Probability mass of the unit interval round y under a normal distribution, at least 1e-9.

    v = |y - mean|, s = max(scale, 0.11), p = max(Phi((0.5 - v) / s) - Phi((-0.5 - v) / s), 1e-9). Both maxima pass a
    gradient where the value is at least the bound or where the gradient is negative, i.e. a step of descent would raise
    it. One pass over memory forward and one backward; for training the three arguments are saved, nothing else.

    Args:
        y: the value as the decoder will have it, i.e. already rounded (round(y - mean) + mean) or, in training, with
            additive noise. Any shape and strides, float16, bfloat16, float32 or float64.
        scales, means: of y's shape, each of any of these dtypes.
        backend: None for the rule in `lalic_kernels.dispatch`, or one of its names.

    Returns:
        The likelihood, of y's shape, contiguous: float64 if an argument is, else float32, because 1e-9 is zero in
        float16. Gradients are in their argument's dtype. There is no second derivative, but of the reference's.

    Raises:
        TypeError: an argument is not a tensor, or not of a floating dtype.
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
    # As in the kernel: for each of two tails a polynomial of 18 operations and 7 round it, an exponential counting as
    # one and 2 before it; 13 for the rest, a division counting as one.
    flops=lambda y, *_, **__: 69 * math.prod(y),
    bytes=lambda y, scales, means: nbytes(y, scales, means) + y.numel() * _wide(y, scales, means).itemsize,
    gradient="like the forward for triton and cpu; otherwise autograd through the reference, recomputed",
    cpu=True,
)
