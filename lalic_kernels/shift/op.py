"""The token shift and the normalised shift: public functions, their checks, choice of implementation, registration."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lalic_kernels import checks, dispatch
from lalic_kernels.op import nbytes, recompute, register
from lalic_kernels.shift import cpu, gpu, reference


def token_shift(x: Tensor, weight: Tensor, *, backend: str | None = None) -> Tensor:
    """Depth-wise 5x5 correlation with zero padding over an image whose channels come last.

    Args:
        x: image, shape (B, H, W, C), float16, bfloat16, float32 or float64, any strides.
        weight: one kernel per channel, shape (C, 5, 5), in x's dtype or float32, e.g. from `fold_token_shift`.
        backend: None for the rule in `lalic_kernels.dispatch`, or "triton", "cpu", "torch", "reference".

    Returns:
        Shape (B, H, W, C), contiguous, in x's dtype. Triton and compiled CPU code compute in float32 and round once.

    Raises:
        TypeError: an argument is not a tensor, or its dtype does not fit.
        ValueError: a shape, layout or device does not fit, or there is no backend of that name.
        BackendUnavailable: the requested backend cannot run on this machine.

    Source: Omni-Shift of Restore-RWKV (Yang et al., 2024), as used by LALIC.

    Example:
        >>> token_shift(torch.randn(1, 8, 12, 96), torch.randn(96, 5, 5)).shape
        torch.Size([1, 8, 12, 96])
    """
    checks.shapes("token_shift", ("x", x, "B H W C"), ("weight", weight, "C 5 5"))
    dtype = checks.floating("token_shift", "x", x)
    checks.dtype_in("token_shift", (dtype, torch.float32), "beside x", ("weight", weight))
    checks.same_device("token_shift", ("x", x), ("weight", weight))
    chosen = dispatch.resolve(TOKEN_SHIFT, backend, x.device.type, dtype)
    if chosen == "reference":
        return reference.token_shift(x, weight.to(dtype))
    if chosen == "torch" and x.numel():
        return _by_torch(x, weight)
    return TOKEN_SHIFT.call(x, weight, chosen)


def norm_shift(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    *,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Tensor:
    """LayerNorm over channels, then a depth-wise 5x5 correlation with zero padding; channels last.

    The normalised image is never written to memory. The padding's zeros come after the norm, like those of a
    convolution that follows a LayerNorm.

    Args:
        x: image, shape (B, H, W, C), float16, bfloat16, float32 or float64, any strides.
        norm_weight: scale of the norm, shape (C,), in x's dtype or float32.
        norm_bias: offset of the norm, shape (C,), in x's dtype or float32.
        weight: one kernel per channel, shape (C, 5, 5), in x's dtype or float32, e.g. from `fold_token_shift`.
        eps: added to the variance, at least 0.
        dtype: dtype of the result, None for x's. For a float32 x it may be float16 or bfloat16, which saves a cast
            later. The gradient of x is in x's dtype.
        backend: None for the rule in `lalic_kernels.dispatch`, or "triton", "cpu", "torch", "reference".

    Returns:
        Shape (B, H, W, C), contiguous, in `dtype`. Triton and compiled CPU code compute in float32 and round once: a
        16-bit result for a float32 x has the bits of the float32 result after a cast.

    Raises:
        TypeError: an argument is not a tensor, or its dtype or `dtype` does not fit.
        ValueError: a shape, layout or device does not fit, eps is negative, or there is no backend of that name.
        BackendUnavailable: the requested backend cannot run on this machine.

    Source: the first two layers of each half of a Bi-RWKV block in LALIC (Feng et al., 2025).

    Example:
        >>> norm_shift(torch.randn(1, 8, 12, 96), torch.ones(96), torch.zeros(96), torch.randn(96, 5, 5)).shape
        torch.Size([1, 8, 12, 96])
    """
    parameters = (("norm_weight", norm_weight), ("norm_bias", norm_bias), ("weight", weight))
    checks.shapes(
        "norm_shift", ("x", x, "B H W C"),
        ("norm_weight", norm_weight, "C"), ("norm_bias", norm_bias, "C"), ("weight", weight, "C 5 5"),
    )  # fmt: skip
    checks.floating("norm_shift", "x", x)
    checks.dtype_in("norm_shift", (x.dtype, torch.float32), "beside x", *parameters)
    checks.result_dtype("norm_shift", dtype, "x", x)
    checks.same_device("norm_shift", ("x", x), *parameters)
    if not eps >= 0:
        raise ValueError(f"norm_shift: eps must be at least 0, but is {eps}")
    if backend == "reference":
        y = reference.norm_shift(x, norm_weight.to(x.dtype), norm_bias.to(x.dtype), weight.to(x.dtype), eps)
        return y if dtype is None else y.to(dtype)
    return NORM_SHIFT.call(x, norm_weight, norm_bias, weight, eps, dtype, backend)


def fold_token_shift(alpha: Tensor, w1: Tensor, w3: Tensor, w5: Tensor) -> Tensor:
    """Fold Omni-Shift's branches, alpha[0] identity + alpha[1] 1x1 + alpha[2] 3x3 + alpha[3] 5x5, into one 5x5 kernel.

    Args:
        alpha: shape (4,), floating dtype; all arguments have one dtype.
        w1, w3, w5: depth-wise kernels, shapes (C, n, n) or (C, 1, n, n) for n = 1, 3, 5.

    Returns:
        Shape (C, 5, 5), in that dtype. Differentiable in every argument.

    Raises:
        TypeError: an argument is not a tensor, or its dtype does not fit.
        ValueError: a shape, layout or device does not fit.

    Source: Omni-Shift of Restore-RWKV (Yang et al., 2024).
    """

    def pattern(kernel: Tensor, size: int) -> str:
        inputs = " 1" if isinstance(kernel, Tensor) and kernel.dim() == 4 else ""
        return f"C{inputs} {size} {size}"

    checks.shapes(
        "fold_token_shift",
        ("w5", w5, pattern(w5, 5)), ("w3", w3, pattern(w3, 3)), ("w1", w1, pattern(w1, 1)), ("alpha", alpha, "4"),
    )  # fmt: skip
    dtype = checks.floating("fold_token_shift", "w5", w5)
    others = (("w3", w3), ("w1", w1), ("alpha", alpha))
    checks.dtype_in("fold_token_shift", (dtype,), "as w5 is", *others)
    checks.same_device("fold_token_shift", ("w5", w5), *others)
    return reference.fold_token_shift(alpha, w1, w3, w5)


def _by_torch(
    x: Tensor, weight: Tensor, norm_weight: Tensor | None = None, norm_bias: Tensor | None = None, eps: float = 0.0
) -> Tensor:
    """Either shift by torch's LayerNorm and depth-wise convolution, differentiable."""
    with checks.no_autocast(x.device):
        if norm_weight is not None and norm_bias is not None:
            x = F.layer_norm(x, (x.shape[3],), norm_weight.to(x.dtype), norm_bias.to(x.dtype), eps)
        y = F.conv2d(x.permute(0, 3, 1, 2), weight.to(x.dtype).unsqueeze(1), padding=2, groups=x.shape[3])
    return y.permute(0, 2, 3, 1).contiguous()


def _op(norm_weight: Tensor | None) -> dispatch.Op:
    return TOKEN_SHIFT if norm_weight is None else NORM_SHIFT


def _forward(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    weight: Tensor,
    eps: float,
    dtype: torch.dtype | None,
    backend: str | None,
) -> Tensor:
    """Either shift, the normalised one if norm_weight and norm_bias are given."""
    chosen = dispatch.resolve(_op(norm_weight), backend, x.device.type, x.dtype)
    if x.numel() == 0:
        return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
    if chosen == "cpu":
        return cpu.forward(x, weight, norm_weight, norm_bias, eps, dtype)
    shift = gpu.forward if chosen == "triton" else _by_torch
    y = shift(x, weight, norm_weight, norm_bias, eps)
    return y if dtype is None else y.to(dtype)


def _backward(
    x: Tensor,
    weight: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    grad: Tensor,
    eps: float,
    backend: str | None,
) -> tuple[Tensor, ...]:
    """Gradients of x and weight, and of norm_weight and norm_bias if they are given."""
    inputs = (x, weight, *(t for t in (norm_weight, norm_bias) if t is not None))
    if x.numel() == 0:
        return tuple(torch.zeros_like(t, memory_format=torch.contiguous_format) for t in inputs)
    chosen = dispatch.resolve(_op(norm_weight), backend, x.device.type, x.dtype)
    grads: Sequence[Tensor]
    if chosen == "cpu":
        grads = cpu.backward(x, weight, grad, norm_weight, norm_bias, eps)
    elif chosen == "triton":  # only compiled CPU code reads a gradient of another dtype
        grads = gpu.backward(x, weight, grad.to(x.dtype), norm_weight, norm_bias, eps)
    else:
        grads = recompute(functools.partial(_by_torch, eps=eps), inputs, grad.to(x.dtype))
    return tuple(g.to(t.dtype) for g, t in zip(grads, inputs, strict=True))


TOKEN_SHIFT = register(
    "token_shift",
    "(Tensor x, Tensor weight, str? backend) -> Tensor",
    forward=lambda x, weight, backend: _forward(x, None, None, weight, 0.0, None, backend),
    backward=lambda x, weight, grad, backend: _backward(x, weight, None, None, grad, 0.0, backend),
    saves=("x", "weight", "backend"),
    like="x",
    flops=lambda x, *_, **__: 50 * x[0] * x[1] * x[2] * x[3],
    bytes=lambda x, weight: nbytes(x, weight, x),
    gradient="like the forward for triton and cpu; otherwise autograd through torch's convolution, recomputed",
    cpu=True,
)
NORM_SHIFT = register(
    "norm_shift",
    "(Tensor x, Tensor norm_weight, Tensor norm_bias, Tensor weight, float eps, ScalarType? dtype, str? backend)"
    " -> Tensor",
    forward=_forward,
    backward=_backward,
    saves=("x", "weight", "norm_weight", "norm_bias", "eps", "backend"),
    like=lambda x, norm_weight, norm_bias, weight, eps, dtype, backend: torch.empty_like(
        x, dtype=dtype, memory_format=torch.contiguous_format
    ),
    # The shift's 25 products and additions; 8 for the norm: mean, variance, centring, scaling, scale and offset.
    flops=lambda x, *_, **__: 58 * x[0] * x[1] * x[2] * x[3],
    bytes=lambda x, norm_weight, norm_bias, weight, dtype=None: (
        nbytes(x, norm_weight, norm_bias, weight) + x.numel() * (dtype or x.dtype).itemsize
    ),
    gradient="like the forward for triton and cpu; otherwise autograd through torch's two functions, recomputed",
    cpu=True,
)
