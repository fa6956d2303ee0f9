"""The Gaussian likelihood: the public function, its checks, launches and registration."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from lalic_kernels._core import checks, dispatch, numba_support, registration
from lalic_kernels._core.launch import Launch, blocks, on
from lalic_kernels.gaussian import cpu, reference, torch_path
from lalic_kernels.gaussian.reference import LIKELIHOOD_MIN, SCALE_MIN

OP = dispatch.add(dispatch.Op("gaussian_likelihood", cpu_available=numba_support.available, folder="gaussian"))
BACKWARD = "as the forward: one Triton kernel on CUDA, compiled code on the CPU, else torch; the forward computed again"

# 1024 elements a program, eight a thread: 16-byte vectors of float32 where columns and strides allow.
VECTORS = Launch((("GROUPS", 256), ("VEC", 4)), num_warps=4)
SINGLE = Launch((("GROUPS", 1024), ("VEC", 1)), num_warps=4)
# float32's error is at most (r0 + r1 b^2) 2^-23 of the upper tail Q(a), for gradients of the two densities' sum:
# README.md, "Numerical bounds".
ROUNDINGS = (8.0, 2.0)
BOUNDS = {"SCALE_MIN": SCALE_MIN, "MASS_MIN": LIKELIHOOD_MIN}


def gaussian_likelihood(y: Tensor, scales: Tensor, means: Tensor, *, backend: str | None = None) -> Tensor:
    """Probability mass of the unit interval round y under a normal distribution, at least 1e-9.

    v = |y - mean|, s = max(scale, 0.11), p = max(Phi((0.5 - v) / s) - Phi((-0.5 - v) / s), 1e-9). Both maxima pass a
    gradient where the value is at least the bound or where the gradient is negative, i.e. a step of descent would raise
    it. One pass over memory forward and one backward; for training the three arguments are saved, nothing else.

    Args:
        y: the value as the decoder will have it, i.e. already rounded (round(y - mean) + mean) or, in training, with
            additive noise. Any shape and strides, float16, bfloat16, float32 or float64.
        scales, means: of y's shape, each of any of these dtypes.
        backend: None for the rule in `lalic_kernels._core.dispatch`, or one of its names.

    Returns:
        The likelihood, of y's shape, contiguous: float64 if an argument is, else float32, because 1e-9 is zero in
        float16. Gradients are in their argument's dtype. There is no second derivative, but of the reference's.

    Raises:
        TypeError: an argument is no tensor, or not of a floating dtype.
        ValueError: a shape, layout or device does not fit, or there is no backend of that name.
        dispatch.BackendUnavailable: the backend asked for cannot run here.

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
    return torch.ops.lalic_kernels.gaussian_likelihood(y, scales, means, chosen)


def _wide(*arguments: Tensor) -> torch.dtype:
    """The result's dtype."""
    return torch.float64 if any(x.dtype == torch.float64 for x in arguments) else torch.float32


def _forward(y: Tensor, scales: Tensor, means: Tensor, backend: str) -> Tensor:
    out = torch.empty(y.shape, dtype=_wide(y, scales, means), device=y.device)
    chosen = dispatch.resolve(OP, backend, y.device.type, out.dtype)
    if out.numel() == 0:
        return out
    if chosen == "triton":
        from lalic_kernels.gaussian import kernels

        _launch(kernels.likelihood_kernel, (y, scales, means), (out,))
    elif chosen == "cpu":
        return cpu.forward(y, scales, means)
    else:
        torch_path.forward(y.reshape(-1), scales.reshape(-1), means.reshape(-1), out.view(-1))
    return out


def _backward(y: Tensor, scales: Tensor, means: Tensor, grad: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    chosen = dispatch.resolve(OP, backend, y.device.type, grad.dtype)
    if chosen == "cpu" and grad.numel():
        return cpu.backward(y, scales, means, grad)
    found = _backward_fake(y, scales, means, grad, backend)
    if grad.numel() == 0:
        return found
    if chosen == "triton":
        from lalic_kernels.gaussian import kernels

        _launch(kernels.grad_likelihood_kernel, (y, scales, means, grad), found)
    else:
        flat = found[0].view(-1), found[1].view(-1), found[2].view(-1)
        torch_path.backward(y.reshape(-1), scales.reshape(-1), means.reshape(-1), grad.reshape(-1), flat)
    return found


def _launch(kernel: Any, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
    """A kernel on inputs of one shape, read in place where rows are; contiguous outputs."""
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
    """x as (rows, columns), its last dimension the columns: a view where its strides allow, else a copy."""
    columns = x.shape[-1]
    steps = [(size, stride) for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True) if size > 1]
    nested = all(a[1] == b[0] * b[1] for a, b in itertools.pairwise(steps))
    if not (nested and (x.stride(-1) == 1 or columns == 1)):
        return x.contiguous().view(-1, columns)
    return x.as_strided((x.numel() // columns, columns), (steps[-1][1] if steps else columns, 1))


def _forward_fake(y, scales, means, backend) -> Tensor:
    return torch.empty(y.shape, dtype=_wide(y, scales, means), device=y.device)


def _backward_fake(y, scales, means, grad, backend) -> tuple[Tensor, Tensor, Tensor]:
    a, b, c = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (y, scales, means))
    return a, b, c


def _setup_context(ctx, inputs, output) -> None:
    *arguments, ctx.backend = inputs
    ctx.save_for_backward(*arguments)


def _gradient(ctx, grad: Tensor):
    return *_BACKWARD_OP(*ctx.saved_tensors, grad, ctx.backend), None


_ARGUMENTS = "Tensor y, Tensor scales, Tensor means"
registration.forward_op("gaussian_likelihood", f"({_ARGUMENTS}, str backend) -> Tensor", _forward, _forward_fake)
_BACKWARD_OP = registration.backward_op(
    "gaussian_likelihood_backward",
    f"({_ARGUMENTS}, Tensor grad, str backend) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
registration.gradient("gaussian_likelihood", _gradient, _setup_context)
# As in the kernel: for each of two tails a polynomial of 18 operations and 7 round it, an exponential counting as one
# and 2 before it; 13 for the rest, a division counting as one.
registration.flops("gaussian_likelihood", lambda y, *_, **__: 69 * math.prod(y))
registration.moved_bytes(
    "gaussian_likelihood",
    lambda y, scales, means: registration.nbytes(y, scales, means) + y.numel() * _wide(y, scales, means).itemsize,
)
