"""The normalised shift: the public function, its checks, choice of backend and registration."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from lalic_kernels._core import checks, dispatch, numba_support, registration
from lalic_kernels.norm_shift import reference, torch_path
from lalic_kernels.token_shift import cpu, launches

OP = dispatch.add(dispatch.Op("norm_shift", cpu_available=numba_support.available))
BACKWARD = "like the forward for triton and cpu; otherwise torch, recomputed"
_TENSORS = "Tensor x, Tensor norm_weight, Tensor norm_bias, Tensor weight"
_Gradients = tuple[Tensor, Tensor, Tensor, Tensor]


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

    The normalised image is never written to memory. Zeros are padded after the norm, as a convolution behind a
    LayerNorm has it.

    Args:
        x: image, shape (B, H, W, C), float16, bfloat16, float32 or float64, any strides.
        norm_weight: scale of the norm, shape (C,), in x's dtype or float32.
        norm_bias: offset of the norm, likewise.
        weight: one kernel per channel, shape (C, 5, 5), in x's dtype or float32; see `fold_token_shift`.
        eps: added to the variance, at least 0.
        dtype: of the result. None is x's; beside a float32 x it may be float16 or bfloat16, which saves what follows
            a cast. The gradient of x stays in x's dtype.
        backend: None for the rule in `lalic_kernels._core.dispatch`, or "triton", "cpu", "torch", "reference".

    Returns:
        Shape (B, H, W, C), contiguous, in `dtype`. Triton and compiled CPU code compute in float32 and round once, so
        that a 16-bit result of a float32 x has the bits of the float32 result, cast.

    Raises:
        TypeError: an argument is no tensor, or its dtype or `dtype` does not fit.
        ValueError: a shape, layout or device does not fit, eps is negative, or there is no backend of that name.
        dispatch.BackendUnavailable: the backend asked for cannot run here.

    Example:
        >>> norm_shift(torch.randn(1, 8, 12, 96), torch.ones(96), torch.zeros(96), torch.randn(96, 5, 5)).shape
        torch.Size([1, 8, 12, 96])
    """
    vectors = (("norm_weight", norm_weight), ("norm_bias", norm_bias))
    checks.shapes(
        "norm_shift", ("x", x, "B H W C"), *((name, value, "C") for name, value in vectors), ("weight", weight, "C 5 5")
    )
    checks.floating("norm_shift", "x", x)
    for name, value in (*vectors, ("weight", weight)):
        checks.dtype_in("norm_shift", name, value, (x.dtype, torch.float32), "beside x")
    checks.result_dtype("norm_shift", dtype, "x", x)
    checks.same_device("norm_shift", ("x", x), *vectors, ("weight", weight))
    if not eps >= 0:
        raise ValueError(f"norm_shift: eps must be at least 0, but is {eps}")
    if backend == "reference":
        y = reference.norm_shift(x, norm_weight.to(x.dtype), norm_bias.to(x.dtype), weight.to(x.dtype), eps)
        return y if dtype is None else y.to(dtype)
    return torch.ops.lalic_kernels.norm_shift(
        x, norm_weight, norm_bias, weight, eps, dtype, dispatch.AUTO if backend is None else backend
    )


def _forward(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    eps: float,
    dtype: torch.dtype | None,
    backend: str,
) -> Tensor:
    chosen = dispatch.resolve(OP, backend, x.device.type, x.dtype)
    if x.numel() == 0:
        return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
    if chosen == "cpu":
        return cpu.forward(x, weight, norm_weight, norm_bias, eps, dtype)
    if chosen == "triton":
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        launches.norm_shift(
            x.contiguous(),
            norm_weight.float().contiguous(),
            norm_bias.float().contiguous(),
            launches.taps(weight),
            y,
            eps,
        )
    else:
        y = _by_torch(x, norm_weight, norm_bias, weight, eps)
    return y if dtype is None else y.to(dtype)


def _backward(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, grad: Tensor, eps: float, backend: str
) -> _Gradients:
    inputs = (x, norm_weight, norm_bias, weight)
    if x.numel() == 0:
        return tuple(torch.zeros_like(t, memory_format=torch.contiguous_format) for t in inputs)  # type: ignore[return-value]
    chosen = dispatch.resolve(OP, backend, x.device.type, x.dtype)
    if chosen == "cpu":
        of_x, of_weight, of_scale, of_offset = cpu.backward(x, weight, grad, norm_weight, norm_bias, eps)
        return of_x, of_scale.to(norm_weight.dtype), of_offset.to(norm_bias.dtype), of_weight.to(weight.dtype)
    grad = grad.to(x.dtype)  # only compiled code reads a gradient of another dtype as it is
    if chosen == "triton":
        x, grad, grad_x = x.contiguous(), grad.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
        scale, offset = norm_weight.float().contiguous(), norm_bias.float().contiguous()
        launches.shift(grad, launches.taps(weight), grad_x, turned=True)
        of_scale, of_offset, statistics = launches.grad_norm(x, scale, grad_x, eps)
        of_weight = launches.grad_weight(x, grad, (scale, offset, statistics))
        return (
            grad_x, of_scale.to(norm_weight.dtype), of_offset.to(norm_bias.dtype), of_weight.to(weight.dtype)
        )  # fmt: skip

    by_torch = functools.partial(_by_torch, eps=eps)
    return tuple(registration.recompute(by_torch, inputs, grad))  # type: ignore[return-value]


def _by_torch(x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, eps: float) -> Tensor:
    return torch_path.norm_shift(x, norm_weight.to(x.dtype), norm_bias.to(x.dtype), weight.to(x.dtype), eps)


def _forward_fake(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    eps: float,
    dtype: torch.dtype | None,
    backend: str,
) -> Tensor:
    return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)


def _backward_fake(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, grad: Tensor, eps: float, backend: str
) -> _Gradients:
    inputs = (x, norm_weight, norm_bias, weight)
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in inputs)  # type: ignore[return-value]


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.eps, _, ctx.backend = inputs[4:]


def _gradient(ctx, grad: Tensor):
    return *_BACKWARD_OP(*ctx.saved_tensors, grad, ctx.eps, ctx.backend), None, None, None


registration.forward_op(
    "norm_shift", f"({_TENSORS}, float eps, ScalarType? dtype, str backend) -> Tensor", _forward, _forward_fake
)
_BACKWARD_OP = registration.backward_op(
    "norm_shift_backward",
    f"({_TENSORS}, Tensor grad, float eps, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
registration.gradient("norm_shift", _gradient, _setup_context)
# The shift's 25 products and additions; 8 for the norm: mean, variance, centring, scaling, scale and offset.
registration.flops("norm_shift", lambda x, *_, **__: 58 * x[0] * x[1] * x[2] * x[3])
registration.moved_bytes(
    "norm_shift",
    lambda x, norm_weight, norm_bias, weight, dtype=None: (
        registration.nbytes(x, norm_weight, norm_bias, weight) + x.numel() * (dtype or x.dtype).itemsize
    ),
)
