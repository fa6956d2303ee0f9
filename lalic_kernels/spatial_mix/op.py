"""Spatial mix: the public function, its checks, launches and registration."""

from __future__ import annotations

import torch
from torch import Tensor

from lalic_kernels._core import checks, dispatch, numba_support, registration
from lalic_kernels._core import residual as _residual
from lalic_kernels._core.launch import on
from lalic_kernels.biwkv.launches import architecture
from lalic_kernels.spatial_mix import launches, reference, torch_path

OP = dispatch.add(dispatch.Op("spatial_mix", cpu_available=numba_support.available))
BACKWARD = "BiWKV's own backward, and torch's matrix products; k, v, r, y kept for cpu, else computed again (CUDA too)"


def spatial_mix(
    x: Tensor,
    decay: Tensor,
    boost: Tensor,
    key: Tensor,
    value: Tensor,
    receptance: Tensor,
    output: Tensor,
    *,
    residual: Tensor | None = None,
    gamma: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """o = O (sigmoid(R x) * BiWKV(decay / T, boost / T, K x, V x)), T = H * W; o itself, or residual + gamma * o.

    On a GPU one product makes k, v and r, BiWKV applies the gate as it writes, and the output's product adds the
    residual as it writes. For training x, the parameters and gamma are saved; compiled CPU code also keeps k, v, r and
    the gated result, where these are small enough (`lalic_kernels._core.residual.keeps`).

    Args:
        x: image, shifted already, shape (B, H, W, C), float16, bfloat16, float32 or float64, any strides; tokens are
            its pixels in row-major order.
        decay, boost: parameters of the model, shape (C,), in x's dtype or float32. They are divided by T here, in
            float32.
        key, value, receptance, output: shape (C, C), rows are outputs. In x's dtype, or in float32 (then they are
            rounded to x's dtype first).
        residual: shape (B, H, W, C), in x's dtype or float32, or None.
        gamma: shape (C,), in x's dtype or float32; with residual, and only with it.
        backend: None for the rule in `lalic_kernels._core.dispatch`, or "triton", "cpu" (BiWKV compiled by numba,
            products by torch), "torch", "reference". BiWKV gets the same.

    Returns:
        Shape (B, H, W, C), contiguous, in the residual's dtype, or x's without one. k, v, r and y are rounded to x's
        dtype; sums are float32. float32 products are IEEE float32. Inside `torch.autocast` x and the matrices are cast
        as for F.linear, the rest is not.

    Raises:
        TypeError: an argument is no tensor, or its dtype does not fit.
        ValueError: a shape, layout or device does not fit, residual comes without gamma or gamma without residual, or
            there is no backend of that name.
        dispatch.BackendUnavailable: the backend asked for cannot run here.

    Example:
        >>> x, m = torch.randn(1, 4, 6, 16), torch.randn(4, 16, 16)
        >>> spatial_mix(x, torch.rand(16), torch.rand(16), *m, residual=x, gamma=torch.ones(16)).shape
        torch.Size([1, 4, 6, 16])
    """
    matrices = {"key": key, "value": value, "receptance": receptance, "output": output}
    named = (("decay", decay), ("boost", boost))
    checks.shapes(
        "spatial_mix",
        ("x", x, "B H W C"),
        *((name, vector, "C") for name, vector in named),
        *((name, matrix, "C C") for name, matrix in matrices.items()),
        *_residual.patterns(residual, gamma),
    )
    x, (key, value, receptance, output) = _residual.settle("spatial_mix", x, matrices, residual, gamma)
    checks.same_device("spatial_mix", ("x", x), *named)
    for name, vector in named:
        checks.dtype_in("spatial_mix", name, vector, (x.dtype, torch.float32), "beside x")
    chosen = dispatch.resolve(OP, backend, x.device.type, x.dtype)
    if backend == "reference":
        vectors = decay.to(x.dtype), boost.to(x.dtype)
        return reference.spatial_mix(x, *vectors, key, value, receptance, output, residual, gamma)
    parameters = (decay, boost, key, value, receptance, output)
    keep = _residual.keeps(chosen, x, 4 * x.shape[3], *parameters, gamma)
    return torch.ops.lalic_kernels.spatial_mix(x, *parameters, residual, gamma, keep, _residual.auto(backend))[0]


def _forward(
    x: Tensor,
    decay: Tensor,
    boost: Tensor,
    key: Tensor,
    value: Tensor,
    receptance: Tensor,
    output: Tensor,
    residual: Tensor | None,
    gamma: Tensor | None,
    keep: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The result; with `keep` also k, v, r (3, B, T, C) and the gated y (B, T, C), else two empty tensors."""
    nothing = x.new_empty(0), x.new_empty(0)
    if x.numel() == 0:
        return torch.empty(x.shape, dtype=_residual.dtype_of(x, residual), device=x.device), *nothing
    tokens = x.flatten(1, 2).contiguous()
    rest = None if residual is None else residual.flatten(1, 2).contiguous()
    if dispatch.resolve(OP, backend, x.device.type, x.dtype) == "triton":
        kvr = linear(tokens, torch.cat((key, value, receptance)), 3)
        y = torch_path.biwkv(decay, boost, kvr, backend)
        scale = None if gamma is None else gamma.float().contiguous()
        result = linear(y, output.contiguous(), 1, rest, scale).view(x.shape)
    else:
        with registration.no_autocast(x.device):
            # BiWKV's compiled code widens float16 as a whole: better a stretch, while it is in the cache.
            wide = torch.float32 if x.device.type == "cpu" and x.dtype == torch.float16 else None
            kvr = torch_path.planes(tokens, (key, value, receptance, output), wide)
            y = torch_path.biwkv(decay, boost, kvr, backend)
            result = torch_path.project(y, output, rest, gamma).view(x.shape)
    return result, *((kvr, y) if keep else nothing)


def linear(
    x: Tensor, matrix: Tensor, planes: int, residual: Tensor | None = None, gamma: Tensor | None = None
) -> Tensor:
    """The kernel: x (B, T, C) @ matrix^T as (planes, B, T, C); for one plane (B, T, C), or residual + gamma * it.

    Contiguous arguments; matrix (planes * C, C) in x's dtype, gamma float32.
    """
    from lalic_kernels.spatial_mix import kernels

    rows, channels = x.shape[0] * x.shape[1], x.shape[2]
    choice = launches.choose(architecture(x.device), rows, channels, planes, x.element_size())
    shape = x.shape if planes == 1 else (planes, *x.shape)
    y = torch.empty(shape, dtype=_residual.dtype_of(x, residual), device=x.device)
    with on(x.device):
        kernels.rows_linear_kernel[choice.grid](
            x, matrix, x if residual is None else residual, x if gamma is None else gamma, y, rows, channels,
            choice.per, VEC=choice.vec, PLANES=planes, RESIDUAL=residual is not None,
            MAIN=choice.main, REST=choice.rest, **choice.launch.options(),
        )  # fmt: skip
    return y


def _backward(
    x: Tensor,
    decay: Tensor,
    boost: Tensor,
    key: Tensor,
    value: Tensor,
    receptance: Tensor,
    output: Tensor,
    gamma: Tensor | None,
    kvr: Tensor,
    y: Tensor,
    grad: Tensor,
    backend: str,
) -> tuple[Tensor, ...]:
    """Gradients of all but the residual; that of gamma is empty without gamma. kvr, y: as kept, or empty."""
    given = (x, decay, boost, key, value, receptance, output)
    if x.numel() == 0:
        zeros = [torch.zeros_like(t, memory_format=torch.contiguous_format) for t in given]
        return *zeros, x.new_empty(0) if gamma is None else torch.zeros_like(gamma)
    matrices = (key.contiguous(), value.contiguous(), receptance.contiguous(), output.contiguous())
    tokens, upstream = x.flatten(1, 2).contiguous(), grad.flatten(1, 2).contiguous()
    with torch.no_grad(), registration.no_autocast(x.device):
        kept = (kvr, y) if kvr.numel() else None
        *grads, grad_gamma = torch_path.backward(tokens, decay, boost, matrices, gamma, upstream, backend, kept)
    grads[0] = grads[0].view(x.shape)
    return *grads, x.new_empty(0) if grad_gamma is None else grad_gamma


def _forward_fake(x, decay, boost, key, value, receptance, output, residual, gamma, keep, backend):
    result = torch.empty(x.shape, dtype=_residual.dtype_of(x, residual), device=x.device)
    if not keep or x.numel() == 0:
        return result, x.new_empty(0), x.new_empty(0)
    batch, height, width, channels = x.shape
    return result, x.new_empty((3, batch, height * width, channels)), x.new_empty((batch, height * width, channels))


def _backward_fake(x, decay, boost, key, value, receptance, output, gamma, kvr, y, grad, backend) -> tuple[Tensor, ...]:
    given = (x, decay, boost, key, value, receptance, output, *(() if gamma is None else (gamma,)))
    grads = tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in given)
    return grads if gamma is not None else (*grads, x.new_empty(0))


def _setup_context(ctx, inputs, output) -> None:
    *given, residual, gamma, _, backend = inputs
    ctx.set_materialize_grads(False)  # what is kept has no gradient, and zeros of its size would cost time
    ctx.save_for_backward(*given, gamma, *output[1:])
    ctx.residual, ctx.backend = residual is not None, backend


def _gradient(ctx, grad: Tensor | None, *_):
    if grad is None:  # what stands behind the result has none
        return (None,) * 11
    *grads, grad_gamma = _BACKWARD_OP(*ctx.saved_tensors, grad, ctx.backend)
    return *grads, grad if ctx.residual else None, grad_gamma if ctx.residual else None, None, None


_TENSORS = "Tensor x, Tensor decay, Tensor boost, Tensor key, Tensor value, Tensor receptance, Tensor output, "
registration.forward_op(
    "spatial_mix",
    f"({_TENSORS}Tensor? residual, Tensor? gamma, bool keep, str backend) -> (Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
)
_BACKWARD_OP = registration.backward_op(
    "spatial_mix_backward",
    f"({_TENSORS}Tensor? gamma, Tensor kvr, Tensor y, Tensor grad, str backend) -> ({', '.join(['Tensor'] * 8)})",
    _backward,
    _backward_fake,
)
registration.gradient("spatial_mix", _gradient, _setup_context)
# Four products, and BiWKV with its gate as that op counts.
registration.flops("spatial_mix", lambda x, *_, **__: x[0] * x[1] * x[2] * x[3] * (8 * x[3] + 33))
registration.moved_bytes(
    "spatial_mix",
    lambda x, decay, boost, key, value, receptance, output, residual=None, gamma=None: (
        registration.nbytes(x, decay, boost, key, value, receptance, output)
        + registration.nbytes(*(t for t in (residual, gamma) if t is not None))
        + x.numel() * (x if residual is None else residual).element_size()
    ),
)
