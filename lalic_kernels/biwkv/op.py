"""BiWKV: the public function, its checks, choice of implementation and registration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lalic_kernels import checks, dispatch
from lalic_kernels.biwkv import cpu, gpu, reference, torch_path
from lalic_kernels.op import nbytes, recompute, register

CPU_RANGE = (
    f"w or u is outside its range (about |w| <= {cpu.RANGE / 4:g}, |u| <= {cpu.RANGE:g}); the torch path has no limit"
)
_Rule = Callable[..., tuple[Any, Any]]


def biwkv(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, *, gate: Tensor | None = None, backend: str | None = None
) -> Tensor:
    """Linear attention in both directions with a decay per channel.

    For each batch item and channel y_t = sum_i exp(L(t, i)) v_i / sum_i exp(L(t, i)) with
    L(t, i) = k_i - (|t - i| - 1) w for i != t and L(t, t) = u + k_t. Time and memory are linear in T.

    Args:
        w: decay per step, shape (C,), any sign, in k's dtype or float32. A model that learns a decay divides it by T.
        u: bonus of a token for itself, shape (C,), any sign, in k's dtype or float32.
        k: keys, shape (B, T, C), float16, bfloat16, float32 or float64, any strides.
        v: values, k's shape and dtype, any strides.
        gate: k's shape and dtype, any strides, or None. With it the result is sigmoid(gate) * y, in one pass.
        backend: None for the rule in `lalic_kernels.dispatch`, or "triton", "cpu", "torch", "reference".

    Returns:
        y, or sigmoid(gate) * y, shape (B, T, C), contiguous, in k's dtype. float16 and bfloat16 are computed in float32
        and rounded once. Keep w and u in float32: decay / T is subnormal in float16.

    Inside `torch.autocast` nothing is narrowed: k, v and gate of different dtypes are promoted to the widest, and w and
    u may have any floating dtype. Outside, different dtypes are an error.

    Raises:
        TypeError: an argument is not a tensor, or its dtype does not fit.
        ValueError: a shape, layout or device does not fit, or there is no backend of that name.
        BackendUnavailable: the requested backend cannot run on this machine.

    Source: Bi-WKV of Vision-RWKV (Duan et al., 2024), as used by LALIC.

    Example:
        >>> w, u = torch.rand(96) / 64, torch.rand(96) / 64
        >>> k, v = torch.randn(2, 64, 96), torch.randn(2, 64, 96)
        >>> biwkv(w, u, k, v).shape
        torch.Size([2, 64, 96])
    """
    checks.shapes("biwkv", ("k", k, "B T C"), ("v", v, "B T C"), ("w", w, "C"), ("u", u, "C"), ("gate", gate, "B T C?"))
    if checks.autocast_enabled(k.device):
        k, v, gate = checks.widest(k, v, gate)
        w, u = checks.beside(k, w), checks.beside(k, u)
    dtype = checks.floating("biwkv", "k", k)
    checks.dtype_in("biwkv", (dtype,), "as k is", ("v", v), ("gate", gate))
    checks.dtype_in("biwkv", (dtype, torch.float32), "beside k", ("w", w), ("u", u))
    checks.same_device("biwkv", ("k", k), ("v", v), ("w", w), ("u", u), ("gate", gate))
    if backend == "reference":
        return reference.biwkv(w.to(dtype), u.to(dtype), k, v, gate)
    saving = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (w, u, k, v, gate))
    return OP.call(w, u, k, v, gate, saving, backend)[0]


def _choose(w: Tensor, u: Tensor, k: Tensor, backend: str | None) -> str:
    """The rule of `dispatch`; but "torch" if w or u is outside the range of the compiled CPU code."""
    chosen = dispatch.resolve(OP, backend, k.device.type, k.dtype)
    if chosen == "cpu" and not cpu.supports(w, u, k.shape[1]):
        if backend == "cpu":
            raise dispatch.BackendUnavailable(f"biwkv: backend='cpu' cannot be used: {CPU_RANGE}")
        return "torch"
    return chosen


def gated_over(w: Tensor, u: Tensor, k: Tensor, v: Tensor, gate: Tensor, backend: str | None) -> Tensor:
    """sigmoid(gate) * y without gradients. The gate's values are lost: compiled CPU code writes the result there.

    k, v and gate are contiguous.
    """
    if _choose(w, u, k, backend) == "cpu":
        return cpu.forward(w.float().contiguous(), u.float().contiguous(), k, v, gate, out=gate)
    return _forward(w, u, k, v, gate, False, backend)[0]


def _nothing(k: Tensor) -> list[Tensor]:
    """In place of the three tensors of `gpu.States`."""
    return [k.new_empty(0, dtype=torch.float32) for _ in range(3)]


def _forward(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, saving: bool, backend: str | None
) -> tuple[Tensor, ...]:
    """The result; with `saving` on a GPU also `gpu.States`, else three empty tensors."""
    chosen, nothing = _choose(w, u, k, backend), _nothing(k)
    if k.numel() == 0:
        return torch.empty_like(k, memory_format=torch.contiguous_format), *nothing
    if k.shape[1] == 1:  # the only weight cancels exactly
        y = v.clone(memory_format=torch.contiguous_format) if gate is None else _gated(v, gate).contiguous()
        return y, *nothing
    if chosen == "triton" and saving:
        y, states = gpu.forward_for_backward(w, u, k, v, gate)
        return y, *states
    if chosen == "triton":
        return gpu.forward(w, u, k, v, gate), *nothing
    if chosen == "cpu":
        y = cpu.forward(*_for_cpu(w, u, k, v, *(() if gate is None else (gate,)))).to(k.dtype)
        return y, *nothing
    return torch_path.biwkv(w, u, k, v, gate).contiguous(), *nothing


def _forward_fake(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, saving: bool, backend: str | None
) -> tuple[Tensor, ...]:
    y = torch.empty_like(k, memory_format=torch.contiguous_format)
    chosen = backend or dispatch.resolve(OP, None, k.device.type, k.dtype)  # meta tensors fit every backend
    if chosen != "triton" or not saving or k.numel() == 0 or k.shape[1] == 1:
        return y, *_nothing(k)
    return y, *(k.new_empty(shape, dtype=torch.float32) for shape in gpu.shapes_of_states(k))


def _gated(y: Tensor, gate: Tensor) -> Tensor:
    return torch.sigmoid(gate) * y


def _for_cpu(w: Tensor, u: Tensor, *data: Tensor) -> list[Tensor]:
    """Contiguous tensors as the compiled code reads them: data in bfloat16 or float32, w and u in float32."""
    dtype = torch.bfloat16 if data[0].dtype == torch.bfloat16 else torch.float32
    return [*(x.float().contiguous() for x in (w, u)), *(x.to(dtype).contiguous() for x in data)]


def _backward(
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor | None,
    factors: Tensor,
    entering: Tensor,
    centre: Tensor,
    grad: Tensor,
    backend: str | None,
) -> list[Tensor | None]:
    """Gradients of w, u, k, v and gate, each in its argument's dtype; the last is None without a gate."""
    given = () if gate is None else (gate,)
    inputs = (w, u, k, v, *given)
    chosen = _choose(w, u, k, backend)
    grads: list[Any]
    if k.numel() == 0:
        grads = [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in inputs]
    elif k.shape[1] == 1:
        grads = [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (w, u, k)]
        if gate is None:
            grads.append(grad.clone(memory_format=torch.contiguous_format))
        else:
            grads += recompute(_gated, (v, gate), grad)
    elif chosen == "cpu":
        grads = list(cpu.backward(*_for_cpu(w, u, k, v, grad, *given)))
    elif chosen == "triton":
        states = gpu.States(factors, entering, centre) if entering.numel() else None
        grads = list(gpu.backward(w, u, k, v, grad, gate, states))
    else:
        wide = torch.promote_types(k.dtype, torch.float32)
        grads = recompute(torch_path.centred, inputs, grad.to(wide))
    results: list[Tensor | None] = [g.to(x.dtype) for g, x in zip(grads, inputs, strict=False)]
    return results if gate is not None else [*results, None]


# torch.vmap: the mapped dimension is folded into the batch or into the channels, and one call is made.
#
# If w and u are not mapped, the mapped dimension becomes part of the batch, without a copy. Otherwise it becomes part
# of the channels, which are independent and each have a w and u; this may copy k and v. The gradients of w and u are
# sums over the batch, and vmap needs one sum per slice: the backward always folds into the channels.


def _folded(x: Tensor | None, dim: int | None, size: int, axis: int) -> Tensor | None:
    """x with its mapped dimension `dim` as a part of `axis`; repeated along it if x is not mapped."""
    if x is None:
        return None
    x = x.unsqueeze(axis).expand(*x.shape[:axis], size, *x.shape[axis:]) if dim is None else x.movedim(dim, axis)
    return x.flatten(axis, axis + 1)


def _into_channels(tensors: Sequence[Any], in_dims: Sequence[int | None], size: int) -> list[Tensor | None]:
    """w, u (C,) and tensors (B, T, C) with the mapped dimension as a part of C."""
    return [_folded(x, in_dims[i], size, 0 if i < 2 else 2) for i, x in enumerate(tensors)]


def _forward_rule(op: Callable[..., tuple[Tensor, ...]]) -> _Rule:
    """The torch.vmap rule of op(w, u, k, v, gate, saving, backend) -> y and what is saved: here nothing.

    The backward folds another dimension, so it would have no use for it.
    """

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        size, (*tensors, _, backend) = info.batch_size, arguments
        if in_dims[0] is None and in_dims[1] is None:
            axis, inputs = 0, [*tensors[:2], *(_folded(tensors[i], in_dims[i], size, 0) for i in (2, 3, 4))]
        else:
            axis, inputs = 2, _into_channels(tensors, in_dims, size)
        y, *nothing = op(*inputs, False, backend)
        return (y.unflatten(axis, (size, y.shape[axis] // size)), *nothing), (axis, None, None, None)

    return rule


def _backward_rule(op: Callable[..., tuple[Tensor, ...]]) -> _Rule:
    """The torch.vmap rule of op(w, u, k, v, gate, what is saved, grad, backend) -> gradients of the first five."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        size, (*tensors, grad, backend) = info.batch_size, arguments
        inputs = _into_channels((*tensors[:5], grad), (*in_dims[:5], in_dims[8]), size)
        grads = op(*inputs[:5], *_nothing(grad), inputs[5], backend)
        axes = (0, 0, 2, 2, None if tensors[4] is None else 2)
        unfolded = (g if d is None else g.unflatten(d, (size, -1)) for g, d in zip(grads, axes, strict=True))
        return tuple(unfolded), axes

    return rule


OP = register(
    "biwkv",
    "(Tensor w, Tensor u, Tensor k, Tensor v, Tensor? gate, bool saving, str? backend) "
    "-> (Tensor y, Tensor factors, Tensor entering, Tensor centre)",
    forward=_forward,
    backward=_backward,
    saves=("w", "u", "k", "v", "gate", "factors", "entering", "centre", "backend"),
    like=_forward_fake,
    # As in the paper's supplement: 29 operations per element; an exponential or a division counts as one. The gate adds
    # an exponential, an addition, a division and a product.
    flops=lambda w, u, k, v, gate, *_, **__: (29 if gate is None else 33) * k[0] * k[1] * k[2],
    bytes=lambda w, u, k, v, gate=None: nbytes(w, u, k, v, gate, k),
    gradient="like the forward for triton and cpu; otherwise autograd through the linear-time torch path, recomputed",
    cpu=True,
    vmap=(_forward_rule, _backward_rule),
)
