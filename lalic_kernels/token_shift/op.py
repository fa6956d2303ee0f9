"""Token shift: the public functions, their checks, launches and registration."""

from __future__ import annotations

import torch
from torch import Tensor

from lalic_kernels._core import checks, dispatch, numba_support, registration
from lalic_kernels.token_shift import cpu, launches, reference, torch_path

OP = dispatch.add(dispatch.Op("token_shift", cpu_available=numba_support.available))
BACKWARD = "like the forward for triton and cpu; otherwise autograd through the torch path"


def token_shift(x: Tensor, weight: Tensor, *, backend: str | None = None) -> Tensor:
    """Depth-wise 5x5 correlation with zero padding over an image whose channels come last.

    Args:
        x: image, shape (B, H, W, C), float16, bfloat16, float32 or float64, any strides.
        weight: one kernel per channel, shape (C, 5, 5), in x's dtype or float32; see `fold_token_shift`.
        backend: None for the rule in `lalic_kernels._core.dispatch`, or "triton", "cpu", "torch", "reference".

    Returns:
        Shape (B, H, W, C), contiguous, in x's dtype. Triton and compiled CPU code compute in float32 and
        round once.

    Raises:
        TypeError: an argument is no tensor, or its dtype does not fit.
        ValueError: a shape, layout or device does not fit, or there is no backend of that name.
        dispatch.BackendUnavailable: the backend asked for cannot run here.

    Example:
        >>> token_shift(torch.randn(1, 8, 12, 96), torch.randn(96, 5, 5)).shape
        torch.Size([1, 8, 12, 96])
    """
    checks.shapes("token_shift", ("x", x, "B H W C"), ("weight", weight, "C 5 5"))
    dtype = checks.floating("token_shift", "x", x)
    checks.dtype_in("token_shift", "weight", weight, (dtype, torch.float32), "beside x")
    checks.same_device("token_shift", ("x", x), ("weight", weight))
    chosen = dispatch.resolve(OP, backend, x.device.type, dtype)
    if chosen == "reference":
        return reference.token_shift(x, weight.to(dtype))
    if chosen == "torch" and x.numel():
        return torch_path.token_shift(x, weight.to(dtype))
    return torch.ops.lalic_kernels.token_shift(x, weight, chosen)


def fold_token_shift(alpha: Tensor, w1: Tensor, w3: Tensor, w5: Tensor) -> Tensor:
    """Fold Omni-Shift's branches, alpha[0] identity + alpha[1] 1x1 + alpha[2] 3x3 + alpha[3] 5x5, into one 5x5 kernel.

    Args:
        alpha: shape (4,).
        w1, w3, w5: depth-wise kernels, shapes (C, n, n) or (C, 1, n, n) for n = 1, 3, 5.

    Returns:
        Shape (C, 5, 5). Differentiable in every argument.

    Raises:
        TypeError, ValueError: as `token_shift`.
    """

    def pattern(kernel: Tensor, size: int) -> str:
        middle = " 1" if isinstance(kernel, Tensor) and kernel.dim() == 4 else ""
        return f"C{middle} {size} {size}"

    kernels = (("w5", w5, 5), ("w3", w3, 3), ("w1", w1, 1))
    checks.shapes(
        "fold_token_shift",
        *((name, kernel, pattern(kernel, size)) for name, kernel, size in kernels),
        ("alpha", alpha, "4"),
    )
    dtype = checks.floating("fold_token_shift", "w5", w5)
    for name, value in (("w3", w3), ("w1", w1), ("alpha", alpha)):
        checks.dtype_in("fold_token_shift", name, value, (dtype,), "as w5 is")
    checks.same_device("fold_token_shift", ("w5", w5), ("w3", w3), ("w1", w1), ("alpha", alpha))
    return reference.fold_token_shift(alpha, w1, w3, w5)


def _forward(x: Tensor, weight: Tensor, backend: str) -> Tensor:
    chosen = dispatch.resolve(OP, backend, x.device.type, x.dtype)
    if x.numel() == 0:
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    if chosen == "cpu":
        return cpu.forward(x, weight)
    if chosen == "triton":
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        launches.shift(x.contiguous(), launches.taps(weight), y)
        return y
    return torch_path.token_shift(x, weight.to(x.dtype))


def _backward(x: Tensor, weight: Tensor, grad: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    if x.numel() == 0:
        return tuple(torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (x, weight))  # type: ignore[return-value]
    chosen = dispatch.resolve(OP, backend, x.device.type, x.dtype)
    if chosen == "cpu":
        of_image, of_weight = cpu.backward(x, weight, grad)
        return of_image, of_weight.to(weight.dtype)
    if chosen == "triton":
        x, grad, grad_x = x.contiguous(), grad.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
        launches.shift(grad, launches.taps(weight), grad_x, turned=True)
        return grad_x, launches.grad_weight(x, grad).to(weight.dtype)

    def shifted(image: Tensor, kernel: Tensor) -> Tensor:
        return torch_path.token_shift(image, kernel.to(image.dtype))

    return tuple(registration.recompute(shifted, (x, weight), grad))  # type: ignore[return-value]


def _forward_fake(x: Tensor, weight: Tensor, backend: str) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _backward_fake(x: Tensor, weight: Tensor, grad: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, weight))  # type: ignore[return-value]


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.backend = inputs[2]


def _gradient(ctx, grad: Tensor):
    return *_BACKWARD_OP(*ctx.saved_tensors, grad, ctx.backend), None


registration.forward_op("token_shift", "(Tensor x, Tensor weight, str backend) -> Tensor", _forward, _forward_fake)
_BACKWARD_OP = registration.backward_op(
    "token_shift_backward",
    "(Tensor x, Tensor weight, Tensor grad, str backend) -> (Tensor, Tensor)",
    _backward,
    _backward_fake,
)
registration.gradient("token_shift", _gradient, _setup_context)
registration.flops("token_shift", lambda x, weight, backend, **_: 50 * x[0] * x[1] * x[2] * x[3])
registration.moved_bytes("token_shift", lambda x, weight: registration.nbytes(x, weight, x))
