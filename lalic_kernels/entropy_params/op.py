"""The entropy-parameter block: the public function, its checks, choice of implementation and registration."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lalic_kernels import checks, dispatch
from lalic_kernels.entropy_params import gpu, reference
from lalic_kernels.op import nbytes, recompute, register


def entropy_params(
    x: Tensor,
    mix_weight: Tensor,
    mix_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    key: Tensor,
    receptance: Tensor,
    value: Tensor,
    *,
    partial: Tensor | None = None,
    eps: float = 1e-5,
    backend: str | None = None,
) -> Tensor:
    """m = M x + b + partial; n = LayerNorm(m); result m + sigmoid(R n) * (V relu(K n)^2), for each position.

    Args:
        x: features, shape (B, P, Cin), P positions, float16, bfloat16, float32 or float64, any strides. Cin may be 0.
        mix_weight, mix_bias: shapes (Cout, Cin) and (Cout,). All weights are in x's dtype, or in float32 (then they are
            rounded to x's dtype first, as autocast would do).
        norm_weight, norm_bias: LayerNorm's scale and shift, shapes (Cout,).
        key: shape (2 Cout, Cout).
        receptance: shape (Cout, Cout).
        value: shape (Cout, 2 Cout).
        partial: the first product's part from inputs that are not in x; shape (B, P, Cout), in x's dtype or float32.
            None for nothing.
        eps: added to LayerNorm's variance.
        backend: None for the rule in `lalic_kernels.dispatch`, or "triton", "torch", "reference".

    Returns:
        Shape (B, P, Cout), contiguous, in x's dtype. The Triton kernels accumulate in float32 and keep m in float32; n
        and the hidden layer are stored in x's dtype. float32 products are as exact as float32.

    Raises:
        TypeError: an argument is not a tensor, or its dtype does not fit.
        ValueError: a shape, layout or device does not fit, or there is no backend of that name.
        BackendUnavailable: the requested backend cannot run on this machine.

    Source: LALIC (Feng et al., 2025), entropy-parameter aggregation.

    Example:
        >>> i, o = 40, 24
        >>> x, mix, key = torch.randn(1, 6, i), torch.randn(o, i), torch.randn(2 * o, o)
        >>> one, zero = torch.ones(o), torch.zeros(o)
        >>> entropy_params(x, mix, zero, one, zero, key, torch.randn(o, o), torch.randn(o, 2 * o)).shape
        torch.Size([1, 6, 24])
    """
    weights = {
        "mix_weight": mix_weight, "mix_bias": mix_bias, "norm_weight": norm_weight, "norm_bias": norm_bias,
        "key": key, "receptance": receptance, "value": value,
    }  # fmt: skip
    patterns = ("Cout Cin", "Cout", "Cout", "Cout", "2*Cout Cout", "Cout Cout", "Cout 2*Cout")
    checks.shapes(
        "entropy_params", ("x", x, "B P Cin"),
        *((name, weight, pattern) for (name, weight), pattern in zip(weights.items(), patterns, strict=True)),
        ("partial", partial, "B P Cout?"),
    )  # fmt: skip
    dtype = checks.floating("entropy_params", "x", x)
    others = (*weights.items(), ("partial", partial))
    checks.dtype_in("entropy_params", (dtype, torch.float32), "beside x", *others)
    checks.same_device("entropy_params", ("x", x), *others)
    chosen = dispatch.resolve(OP, backend, x.device.type, dtype)
    cast: dict[str, Any] = {name: weight.to(dtype) for name, weight in weights.items()}
    if chosen == "reference":
        return reference.entropy_params(x, **cast, partial=None if partial is None else partial.to(dtype), eps=eps)
    if chosen == "torch":
        return _by_torch(x, **cast, partial=partial, eps=eps)
    return OP.call(x, *cast.values(), partial, eps, chosen)


def _by_torch(
    x: Tensor,
    mix_weight: Tensor,
    mix_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    key: Tensor,
    receptance: Tensor,
    value: Tensor,
    partial: Tensor | None = None,
    *,
    eps: float,
) -> Tensor:
    """The block by torch operations, differentiable: for CPUs and float64. One dtype, except partial; contiguous."""
    with checks.no_autocast(x.device):
        m = F.linear(x, mix_weight, mix_bias)
        if partial is not None:
            m = (m + partial).to(m.dtype)
        n = F.layer_norm(m, (m.shape[-1],), norm_weight, norm_bias, eps)
        hidden = torch.relu(F.linear(n, key)).square()
        return (m + torch.sigmoid(F.linear(n, receptance)) * F.linear(hidden, value)).contiguous()


def _forward(*arguments: Any) -> Tensor:
    """The block. Arguments: x, the weights, partial, eps and backend, as registered."""
    *tensors, eps, backend = arguments
    x, shape = tensors[0], (*tensors[0].shape[:2], tensors[1].shape[0])
    chosen = dispatch.resolve(OP, backend, x.device.type, x.dtype)
    if 0 in shape:
        return x.new_empty(shape)
    return (gpu.entropy_params if chosen == "triton" else _by_torch)(*tensors, eps=eps)


def _backward(*arguments: Any) -> list[Tensor | None]:
    """Gradients of x, the weights and partial (None without it). Arguments: these, the result's gradient, and eps."""
    *inputs, partial, grad, eps = arguments
    inputs = inputs if partial is None else [*inputs, partial]
    grads = recompute(lambda *tensors: _by_torch(*tensors, eps=eps), inputs, grad)
    return [*grads, *([None] if partial is None else [])]


OP = register(
    "entropy_params",
    "(Tensor x, Tensor mix_weight, Tensor mix_bias, Tensor norm_weight, Tensor norm_bias, Tensor key, "
    "Tensor receptance, Tensor value, Tensor? partial, float eps, str? backend) -> Tensor",
    forward=_forward,
    backward=_backward,
    saves=(
        "x", "mix_weight", "mix_bias", "norm_weight", "norm_bias", "key", "receptance", "value", "partial", "eps"
    ),
    like=lambda x, mix_weight, *_: x.new_empty((x.shape[0], x.shape[1], mix_weight.shape[0])),
    flops=lambda x, mix_weight, *_, **__: 2 * x[0] * x[1] * mix_weight[0] * (x[2] + 5 * mix_weight[0]),
    bytes=lambda x, mix_weight, *rest: (
        nbytes(x, mix_weight, *rest) + x.shape[0] * x.shape[1] * mix_weight.shape[0] * x.element_size()
    ),
    gradient="autograd through the torch path, which recomputes the forward (CUDA too)",
)  # fmt: skip
