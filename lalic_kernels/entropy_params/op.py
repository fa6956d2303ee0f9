"""The entropy-parameter block: the public function, its checks, launches and registration."""

from __future__ import annotations

import torch
from torch import Tensor

from lalic_kernels._core import checks, dispatch, registration
from lalic_kernels._core.launch import Launch, blocks, on
from lalic_kernels.entropy_params import reference, torch_path

OP = dispatch.add(dispatch.Op("entropy_params"))
BACKWARD = "autograd through the torch path, which recomputes the forward (CUDA too)"

# Products of float32 run on the ordinary units and need more registers an element than those of 16-bit types.
LAUNCHES = {
    "float32": Launch((("BLOCK_M", 32), ("BLOCK_N", 32), ("BLOCK_K", 32)), num_warps=4),
    "float16": Launch((("BLOCK_M", 64), ("BLOCK_N", 64), ("BLOCK_K", 32)), num_warps=8, num_stages=2),
}
NORM_LAUNCH = Launch((("BLOCK_M", 4), ("BLOCK_N", 256)), num_warps=4)


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
    """m = M x + b + partial; n = LayerNorm(m); result m + sigmoid(R n) * (V relu(K n)^2), each position on its own.

    Args:
        x: features, shape (B, P, Cin), float16, bfloat16, float32 or float64, any strides. Cin may be 0.
        mix_weight, mix_bias: shapes (Cout, Cin) and (Cout,). This and the following in x's dtype, or in float32 (then
            they are rounded to x's dtype first, as autocast would do).
        norm_weight, norm_bias: LayerNorm's scale and shift, shapes (Cout,).
        key: shape (2 Cout, Cout).
        receptance: shape (Cout, Cout).
        value: shape (Cout, 2 Cout).
        partial: the part of the first product that is known already, of inputs that x leaves out; shape (B, P, Cout),
            in x's dtype or float32. None for nothing.
        eps: added to LayerNorm's variance.
        backend: None for the rule in `lalic_kernels._core.dispatch`, or "triton", "torch", "reference".

    Returns:
        Shape (B, P, Cout), contiguous, in x's dtype. The Triton kernels accumulate in float32 and keep m in float32; n
        and the hidden layer are stored in x's dtype. float32 products are IEEE float32, not TF32.

    Raises:
        TypeError: an argument is no tensor, or its dtype does not fit.
        ValueError: a shape, layout or device does not fit, or there is no backend of that name.
        dispatch.BackendUnavailable: the backend asked for cannot run here.

    Example:
        >>> i, o = 40, 24
        >>> x, mix, key = torch.randn(1, 6, i), torch.randn(o, i), torch.randn(2 * o, o)
        >>> one, zero = torch.ones(o), torch.zeros(o)
        >>> entropy_params(x, mix, zero, one, zero, key, torch.randn(o, o), torch.randn(o, 2 * o)).shape
        torch.Size([1, 6, 24])
    """
    weights = {
        "mix_weight": mix_weight,
        "mix_bias": mix_bias,
        "norm_weight": norm_weight,
        "norm_bias": norm_bias,
        "key": key,
        "receptance": receptance,
        "value": value,
    }
    patterns = ("Cout Cin", "Cout", "Cout", "Cout", "2*Cout Cout", "Cout Cout", "Cout 2*Cout")
    checks.shapes(
        "entropy_params",
        ("x", x, "B P Cin"),
        *((name, weight, pattern) for (name, weight), pattern in zip(weights.items(), patterns, strict=True)),
        *(() if partial is None else (("partial", partial, "B P Cout"),)),
    )
    dtype = checks.floating("entropy_params", "x", x)
    others = weights if partial is None else weights | {"partial": partial}
    for name, other in others.items():
        checks.dtype_in("entropy_params", name, other, (dtype, torch.float32), "beside x")
    checks.same_device("entropy_params", ("x", x), *others.items())
    chosen = dispatch.resolve(OP, backend, x.device.type, dtype)
    cast = {name: weight.to(dtype) for name, weight in weights.items()}
    if chosen == "reference":
        return reference.entropy_params(x, **cast, partial=None if partial is None else partial.to(dtype), eps=eps)
    if chosen == "torch":
        return torch_path.entropy_params(x, **cast, partial=partial, eps=eps)
    return torch.ops.lalic_kernels.entropy_params(x, *cast.values(), partial, eps, chosen)


def _forward(
    x: Tensor,
    mix_weight: Tensor,
    mix_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    key: Tensor,
    receptance: Tensor,
    value: Tensor,
    partial: Tensor | None,
    eps: float,
    backend: str,
) -> Tensor:
    chosen = dispatch.resolve(OP, backend, x.device.type, x.dtype)
    weights = (mix_weight, mix_bias, norm_weight, norm_bias, key, receptance, value)
    if x.shape[0] * x.shape[1] * mix_weight.shape[0] == 0:
        return x.new_empty((x.shape[0], x.shape[1], mix_weight.shape[0]))
    if chosen == "triton":
        return _launch(x, *weights, partial, eps)
    return torch_path.entropy_params(x, *weights, partial, eps=eps)


def _launch(
    x: Tensor,
    mix_weight: Tensor,
    mix_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    key: Tensor,
    receptance: Tensor,
    value: Tensor,
    partial: Tensor | None,
    eps: float,
) -> Tensor:
    from lalic_kernels.entropy_params import kernels

    rows, n_in, n_out = x.shape[0] * x.shape[1], x.shape[2], mix_weight.shape[0]
    launch = LAUNCHES["float32" if x.dtype == torch.float32 else "float16"]
    x, mix_weight, key, receptance, value = (t.contiguous() for t in (x, mix_weight, key, receptance, value))
    mix_bias, norm_weight, norm_bias = mix_bias.contiguous(), norm_weight.contiguous(), norm_bias.contiguous()
    known = mix_bias if partial is None else partial.contiguous()
    m = torch.empty((rows, n_out), dtype=torch.float32, device=x.device)
    n = torch.empty((rows, n_out), dtype=x.dtype, device=x.device)
    hidden = torch.empty((rows, 2 * n_out), dtype=x.dtype, device=x.device)
    y = x.new_empty((x.shape[0], x.shape[1], n_out))
    down, across = blocks(rows, launch["BLOCK_M"]), blocks(n_out, launch["BLOCK_N"])
    with on(x.device):
        kernels.linear_kernel[(down, across)](
            x, mix_weight, mix_bias, known, m, rows, n_in, n_out,
            HAS_BIAS=True, HAS_PARTIAL=partial is not None, SQUARED_RELU=False, **launch.options(),
        )  # fmt: skip
        kernels.layer_norm_kernel[(blocks(rows, NORM_LAUNCH["BLOCK_M"]),)](
            m, norm_weight, norm_bias, n, rows, n_out, eps, **NORM_LAUNCH.options()
        )
        kernels.linear_kernel[(down, blocks(2 * n_out, launch["BLOCK_N"]))](
            n, key, mix_bias, mix_bias, hidden, rows, n_out, 2 * n_out,
            HAS_BIAS=False, HAS_PARTIAL=False, SQUARED_RELU=True, **launch.options(),
        )  # fmt: skip
        kernels.gated_sum_kernel[(down, across)](m, n, hidden, receptance, value, y, rows, n_out, **launch.options())
    return y


def _backward(
    x: Tensor,
    mix_weight: Tensor,
    mix_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    key: Tensor,
    receptance: Tensor,
    value: Tensor,
    partial: Tensor | None,
    grad: Tensor,
    eps: float,
) -> list[Tensor]:
    inputs = [x, mix_weight, mix_bias, norm_weight, norm_bias, key, receptance, value]
    inputs += [] if partial is None else [partial]
    return registration.recompute(lambda *tensors: torch_path.entropy_params(*tensors, eps=eps), inputs, grad)


def _forward_fake(
    x, mix_weight, mix_bias, norm_weight, norm_bias, key, receptance, value, partial, eps, backend
) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1], mix_weight.shape[0]))


def _backward_fake(
    x, mix_weight, mix_bias, norm_weight, norm_bias, key, receptance, value, partial, grad, eps
) -> list[Tensor]:
    inputs = [x, mix_weight, mix_bias, norm_weight, norm_bias, key, receptance, value]
    inputs += [] if partial is None else [partial]
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in inputs]


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:9])
    ctx.partial, ctx.eps = inputs[8] is not None, inputs[9]


def _gradient(ctx, grad: Tensor):
    grads = _BACKWARD_OP(*ctx.saved_tensors, grad, ctx.eps)
    return *grads, *(() if ctx.partial else (None,)), None, None


_TENSORS = (
    "Tensor x, Tensor mix_weight, Tensor mix_bias, Tensor norm_weight, Tensor norm_bias, "
    "Tensor key, Tensor receptance, Tensor value, Tensor? partial"
)
registration.forward_op("entropy_params", f"({_TENSORS}, float eps, str backend) -> Tensor", _forward, _forward_fake)
_BACKWARD_OP = registration.backward_op(
    "entropy_params_backward", f"({_TENSORS}, Tensor grad, float eps) -> Tensor[]", _backward, _backward_fake
)
registration.gradient("entropy_params", _gradient, _setup_context)
registration.flops(
    "entropy_params",
    lambda x, mix_weight, *_, **__: 2 * x[0] * x[1] * mix_weight[0] * (x[2] + 5 * mix_weight[0]),
)
registration.moved_bytes(
    "entropy_params",
    lambda x, mix_weight, *rest: (
        registration.nbytes(x, mix_weight, *(t for t in rest if t is not None))
        + x.shape[0] * x.shape[1] * mix_weight.shape[0] * x.element_size()
    ),
)
