"""Channel mix: the public function, its checks, launches and registration."""

from __future__ import annotations

import torch
from torch import Tensor

from lalic_kernels._core import checks, dispatch, numba_support, registration
from lalic_kernels._core import residual as _residual
from lalic_kernels._core.launch import blocks, on
from lalic_kernels.biwkv.launches import architecture
from lalic_kernels.channel_mix import cpu, launches, reference, torch_path

OP = dispatch.add(dispatch.Op("channel_mix", cpu_available=numba_support.available))
BACKWARD = "torch's matrix products over stretches of tokens, the forward kept for cpu, else computed again (CUDA too)"


def channel_mix(
    x: Tensor,
    key: Tensor,
    receptance: Tensor,
    value: Tensor,
    *,
    residual: Tensor | None = None,
    gamma: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """m = sigmoid(R x) * (V relu(K x)^2), each token on its own; m itself, or residual + gamma * m.

    The hidden layer relu(K x)^2 never goes to memory as a whole, neither forward nor backward: on a GPU it stays inside
    the one kernel, elsewhere it is made and used a stretch of tokens at a time. For training x, the matrices and gamma
    are saved; compiled CPU code also keeps K x, R x and V relu(K x)^2, where these are small enough
    (`lalic_kernels._core.residual.keeps`).

    Args:
        x: image, shifted already, shape (B, H, W, C), float16, bfloat16, float32 or float64, any strides.
        key: shape (F, C), F the width of the hidden layer. This and the following two in x's dtype, or in float32 (then
            they are rounded to x's dtype first).
        receptance: shape (C, C).
        value: shape (C, F).
        residual: shape (B, H, W, C), in x's dtype or float32, or None.
        gamma: shape (C,), in x's dtype or float32; with residual, and only with it.
        backend: None for the rule in `lalic_kernels._core.dispatch`, or "triton", "cpu", "torch", "reference".

    Returns:
        Shape (B, H, W, C), contiguous, in the residual's dtype, or x's without one. Sums are float32; the hidden layer
        is rounded to x's dtype, and in float16 overflows where relu(K x) exceeds 255. float32 products are IEEE
        float32. Inside `torch.autocast` x and the matrices are cast as for F.linear, residual and gamma are not.

    Raises:
        TypeError: an argument is no tensor, or its dtype does not fit.
        ValueError: a shape, layout or device does not fit, residual comes without gamma or gamma without residual, or
            there is no backend of that name.
        dispatch.BackendUnavailable: the backend asked for cannot run here.

    Example:
        >>> x, key, value = torch.randn(1, 4, 6, 16), torch.randn(64, 16), torch.randn(16, 64)
        >>> channel_mix(x, key, torch.randn(16, 16), value, residual=x, gamma=torch.ones(16)).shape
        torch.Size([1, 4, 6, 16])
    """
    matrices = {"key": key, "receptance": receptance, "value": value}
    checks.shapes(
        "channel_mix",
        ("x", x, "B H W C"), ("key", key, "F C"), ("receptance", receptance, "C C"), ("value", value, "C F"),
        *_residual.patterns(residual, gamma),
    )  # fmt: skip
    x, (key, receptance, value) = _residual.settle("channel_mix", x, matrices, residual, gamma)
    chosen = dispatch.resolve(OP, backend, x.device.type, x.dtype)
    if chosen == "reference":
        return reference.channel_mix(x, key, receptance, value, residual, gamma)
    keep = _residual.keeps(chosen, x, key.shape[0] + 2 * x.shape[3], key, receptance, value, gamma)
    return torch.ops.lalic_kernels.channel_mix(x, key, receptance, value, residual, gamma, keep, chosen)[0]


def _forward(
    x: Tensor,
    key: Tensor,
    receptance: Tensor,
    value: Tensor,
    residual: Tensor | None,
    gamma: Tensor | None,
    keep: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The result; with `keep` also what `cpu.backward` takes, else three empty tensors."""
    nothing = x.new_empty(0), x.new_empty(0), x.new_empty(0)
    chosen = dispatch.resolve(OP, backend, x.device.type, x.dtype)
    if x.numel() == 0:
        return torch.empty(x.shape, dtype=_residual.dtype_of(x, residual), device=x.device), *nothing
    flat = x.flatten(0, 2).contiguous()
    rest = None if residual is None else residual.flatten(0, 2).contiguous()
    key, receptance, value = key.contiguous(), receptance.contiguous(), value.contiguous()
    if chosen == "triton":
        scale = None if gamma is None else gamma.float().contiguous()
        if (found := launch(flat, key, receptance, value, rest, scale)) is not None:
            return found.view(x.shape), *nothing
    with registration.no_autocast(x.device):
        if chosen != "cpu":
            return torch_path.forward(flat, key, receptance, value, rest, gamma).view(x.shape), *nothing
        kept = None
        if keep and not cpu.computes_in_torch(flat, rest):
            kept = flat.new_empty((flat.shape[0], key.shape[0])), torch.empty_like(flat), torch.empty_like(flat)
        return cpu.forward(flat, key, receptance, value, rest, gamma, kept).view(x.shape), *(kept or nothing)


def launch(
    x: Tensor, key: Tensor, receptance: Tensor, value: Tensor, residual: Tensor | None, gamma: Tensor | None
) -> Tensor | None:
    """The kernel on contiguous x (rows, C), gamma float32; None where its table leaves the shape to torch."""
    from lalic_kernels.channel_mix import kernels

    (rows, channels), hidden = x.shape, key.shape[0]
    choice = launches.choose(architecture(x.device), channels, hidden, x.element_size())
    if choice is None:
        return None
    y = torch.empty(x.shape, dtype=_residual.dtype_of(x, residual), device=x.device)
    with on(x.device):
        kernels.channel_mix_kernel[(blocks(rows, choice.launch["BLOCK_M"]),)](
            x, key, receptance, value, x if residual is None else residual, x if gamma is None else gamma, y,
            rows, channels, hidden, VEC=choice.vec, RESIDUAL=residual is not None,
            MAIN=choice.main, REST=choice.rest, **choice.launch.options(),
        )  # fmt: skip
    return y


def _backward(
    x: Tensor,
    key: Tensor,
    receptance: Tensor,
    value: Tensor,
    gamma: Tensor | None,
    before: Tensor,
    mixed: Tensor,
    gate: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, key, receptance, value and gamma (empty without gamma); before, mixed, gate as kept, or empty."""
    flat, upstream = x.flatten(0, 2).contiguous(), grad.flatten(0, 2).contiguous()
    matrices = key.contiguous(), receptance.contiguous(), value.contiguous()
    with torch.no_grad(), registration.no_autocast(x.device):
        if before.numel():
            *grads, grad_gamma = cpu.backward(flat, *matrices, gamma, upstream, (before, mixed, gate))
        else:
            *grads, grad_gamma = torch_path.backward(flat, *matrices, gamma, upstream)
    grads[0] = grads[0].view(x.shape)
    return *grads, x.new_empty(0) if grad_gamma is None else grad_gamma  # type: ignore[return-value]


def _forward_fake(x, key, receptance, value, residual, gamma, keep, backend):
    result = torch.empty(x.shape, dtype=_residual.dtype_of(x, residual), device=x.device)
    if not keep or x.numel() == 0 or cpu.computes_in_torch(x, residual):
        return result, x.new_empty(0), x.new_empty(0), x.new_empty(0)
    rows = x.shape[:3].numel()
    return result, x.new_empty((rows, key.shape[0])), *(x.new_empty((rows, x.shape[3])) for _ in range(2))


def _backward_fake(x, key, receptance, value, gamma, before, mixed, gate, grad) -> tuple[Tensor, ...]:
    grads = tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, key, receptance, value))
    return *grads, x.new_empty(0) if gamma is None else torch.empty_like(gamma, memory_format=torch.contiguous_format)


def _setup_context(ctx, inputs, output) -> None:
    x, key, receptance, value, residual, gamma, *_ = inputs
    ctx.set_materialize_grads(False)  # what is kept has no gradient, and zeros of its size would cost time
    ctx.save_for_backward(x, key, receptance, value, gamma, *output[1:])
    ctx.residual = residual is not None


def _gradient(ctx, grad: Tensor | None, *_):
    if grad is None:  # what stands behind the result has none
        return (None,) * 8
    *grads, grad_gamma = _BACKWARD_OP(*ctx.saved_tensors, grad)
    return *grads, grad if ctx.residual else None, grad_gamma if ctx.residual else None, None, None


_MATRICES = "Tensor x, Tensor key, Tensor receptance, Tensor value"
registration.forward_op(
    "channel_mix",
    f"({_MATRICES}, Tensor? residual, Tensor? gamma, bool keep, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
)
_BACKWARD_OP = registration.backward_op(
    "channel_mix_backward",
    f"({_MATRICES}, Tensor? gamma, Tensor before, Tensor mixed, Tensor gate, Tensor grad) -> "
    f"({', '.join(['Tensor'] * 5)})",
    _backward,
    _backward_fake,
)
registration.gradient("channel_mix", _gradient, _setup_context)
registration.flops(
    "channel_mix",
    lambda x, key, *_, **__: 2 * x[0] * x[1] * x[2] * x[3] * (2 * key[0] + x[3]),
)
registration.moved_bytes(
    "channel_mix",
    lambda x, key, receptance, value, residual=None, gamma=None: (
        registration.nbytes(x, key, receptance, value, *(t for t in (residual, gamma) if t is not None))
        + x.numel() * (x if residual is None else residual).element_size()
    ),
)
