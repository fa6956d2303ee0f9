"""Registration with torch.library: op, shape function for compilation, gradient, FLOP and byte formulas.

Ops live in the namespace torch.ops.lalic_kernels. The gradient of a forward op is a second op, so that torch.compile
and AOTAutograd see two opaque calls and need not trace into either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

NAMESPACE = "lalic_kernels"
_BYTES: dict[str, Callable[..., int]] = {}


def forward_op(name: str, schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Register a forward op and its shape function; `gradient` attaches a backward.

    Not a `torch.library.custom_op` either, which is the same but for two things: its first call imports the whole
    compiler, a second of a process that only wants to see a picture, and every call compares all storages.

    Args:
        name: without namespace.
        schema: e.g. "(Tensor x, Tensor weight, str backend) -> Tensor".
        implementation: runs on every device; must return fresh contiguous tensors.
        fake: same signature; returns empty tensors of the result's shape, dtype and device.
    """
    full = f"{NAMESPACE}::{name}"
    torch.library.define(full, schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(full, "default", implementation)
    torch.library.register_fake(full, fake)


def gradient(name: str, backward: Callable[..., Any], setup_context: Callable[..., None]) -> None:
    """Register the gradient of a forward op, in the form of `torch.library.register_autograd`."""
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context)


def backward_op(name: str, schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Register the op that computes a gradient; returns its callable.

    Such an op has no gradient of its own: its implementation may differentiate a torch function. torch would warn and
    go on with a wrong second derivative, so the callable raises where the first is asked for in a form to differentiate
    (create_graph=True).
    """
    full = f"{NAMESPACE}::{name}"
    torch.library.define(full, schema)
    torch.library.impl(full, ("cpu", "cuda"), implementation)
    torch.library.register_fake(full, fake)
    op = getattr(getattr(torch.ops, NAMESPACE), name).default

    def once(*arguments: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in arguments):
            refuse_second_derivative(name)
        return op(*arguments)

    return once


def refuse_second_derivative(name: str) -> NoReturn:
    """Raise what a second derivative through an op is answered with."""
    raise NotImplementedError(
        f"{name.removesuffix('_backward')}: there is no second derivative, so its gradient cannot be taken with "
        "create_graph=True; call it without, or use backend='reference', which is plain torch"
    )


def vmap(name: str, rule: Callable[..., Any]) -> None:
    """Register what `torch.vmap` does with an op: rule(info, in_dims, *arguments) -> (outputs, out_dims)."""
    torch.library.register_vmap(f"{NAMESPACE}::{name}", rule)


def recompute(function: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """Gradients of function(*inputs) for the upstream gradient `grad`, by running it again under autograd.

    Gradients come back contiguous and in their input's dtype; an input that does not take part gets zeros.
    """
    with torch.enable_grad(), no_autocast(grad.device):
        leaves = [x.detach().requires_grad_() for x in inputs]
        result = function(*leaves)
        grads = torch.autograd.grad(result, leaves, grad, allow_unused=True)
    return [
        torch.zeros_like(x, memory_format=torch.contiguous_format) if g is None else g.to(x.dtype).contiguous()
        for x, g in zip(inputs, grads, strict=True)
    ]


def no_autocast(device: torch.device) -> torch.autocast:
    """Inside an op the dtypes are settled; autocast would change a result's dtype behind the registered one's back."""
    return torch.autocast(device_type=device.type, enabled=False)


def flops(name: str, formula: Callable[..., int]) -> None:
    """Register the floating-point operations of an op for torch.utils.flop_counter; `formula` gets shapes."""
    register_flop_formula(getattr(getattr(torch.ops, NAMESPACE), name))(formula)


def moved_bytes(name: str, formula: Callable[..., int]) -> None:
    """Register the bytes that an op must move at least: inputs read once, outputs written once; it gets tensors."""
    _BYTES[name] = formula


def bytes_of(name: str, *tensors: Tensor, **options: Any) -> int:
    """The bytes that op `name` must move at least for these arguments (meta tensors do), e.g. dtype=torch.bfloat16."""
    return _BYTES[name](*tensors, **options)


def nbytes(*tensors: Tensor) -> int:
    """Bytes of the elements of tensors, whatever their strides."""
    return sum(x.numel() * x.element_size() for x in tensors)
