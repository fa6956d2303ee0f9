"""The channel mix on CPUs: torch's matrix products, and compiled code (`cpu_loops.py`) between them.

For float32 and bfloat16; float16 takes `torch_path.py`, because plain x86-64 cannot convert it. The bits do not depend
on the number of threads, if those of a row of torch's products depend neither on it nor on the number of rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lalic_kernels import installed
from lalic_kernels.mix import torch_path
from lalic_kernels.mix.torch_path import add_product_, dtype_of, over_tokens, token_chunks
from lalic_kernels.threads import flat_array, run_ranges

if installed.NUMBA:
    from lalic_kernels.mix import cpu_loops as loops

# With fewer elements a thread costs more than it saves.
_LEAST_ELEMENTS = 16384

Saved = tuple[Tensor, Tensor, Tensor]
"""For all tokens: K x (rows, F), V relu(K x)^2 (rows, C) and R x (rows, C)."""


def computes_in_torch(x: Tensor, residual: Tensor | None) -> bool:
    """Whether a dtype is not supported by the compiled code; then nothing is saved."""
    return torch.float16 in (x.dtype, x.dtype if residual is None else residual.dtype)


def forward(
    x: Tensor,
    key: Tensor,
    receptance: Tensor,
    value: Tensor,
    residual: Tensor | None,
    gamma: Tensor | None,
    saved: Saved | None = None,
) -> Tensor:
    """The channel mix of x (rows, C), shape (rows, C), in the residual's dtype or x's. Contiguous arguments.

    saved: tensors that get the backward's inputs, or None; must be None for float16.
    """
    if computes_in_torch(x, residual):
        return torch_path.channel_forward(x, key, receptance, value, residual, gamma)
    out = torch.empty(x.shape, dtype=dtype_of(x, residual), device="cpu")
    target, added = _array(out), None if residual is None else _array(residual)
    factor = None if gamma is None else gamma.detach().float().numpy()

    def mix(part: slice) -> None:
        tokens = x[part]
        if saved is None:
            hidden = torch.mm(tokens, key.t())
            _over_elements(loops.square_relu, hidden)
            mixed, gate = torch.mm(hidden, value.t()), torch.mm(tokens, receptance.t())
        else:
            before, mixed, gate = (t[part] for t in saved)
            torch.mm(tokens, key.t(), out=before)
            hidden = torch.empty_like(before)
            _over_elements(loops.squared, before, hidden)
            torch.mm(hidden, value.t(), out=mixed)
            torch.mm(tokens, receptance.t(), out=gate)
        arguments = (_array(mixed), _array(gate), None if added is None else added[part], factor)
        _over_rows(loops.finish, arguments, target[part])

    over_tokens(mix, x, key.shape[0])
    return out


def backward(
    x: Tensor, key: Tensor, receptance: Tensor, value: Tensor, gamma: Tensor | None, grad: Tensor, saved: Saved
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of x, key, receptance, value and gamma (None without gamma), from what `forward` saved.

    The same sums as in `torch_path.channel_backward`, with fewer roundings between them.
    """
    grad_x = torch.empty_like(x)
    sums = [torch.zeros(matrix.shape, dtype=torch.float32, device="cpu") for matrix in (key, receptance, value)]
    factor = torch.ones(x.shape[1], dtype=torch.float32, device="cpu") if gamma is None else gamma.detach().float()
    scaled = (factor[:, None] * value).to(x.dtype)
    for part in token_chunks(x, 2 * key.shape[0]):
        before, mixed, gate = (t[part] for t in saved)
        hidden, gated, grad_gate = torch.empty_like(before), torch.empty_like(gate), torch.empty_like(gate)
        _over_elements(loops.squared, before, hidden)
        arguments = (_array(grad[part]), _array(mixed), _array(gate), factor.numpy())
        _over_rows(loops.gate_gradient, arguments, _array(gated), _array(grad_gate))
        # gated^T h: times gamma it is the gradient of value; times value and summed, that of gamma.
        add_product_(sums[2], gated, hidden)
        grad_hidden = torch.mm(gated, scaled)
        _over_elements(loops.hidden_gradient, before, grad_hidden)
        add_product_(sums[0], grad_hidden, x[part])
        add_product_(sums[1], grad_gate, x[part])
        torch.mm(grad_hidden, key, out=grad_x[part])
        grad_x[part].addmm_(grad_gate, receptance)
    grad_gamma = None
    if gamma is not None:
        grad_gamma = (sums[2] * value).sum(1).to(gamma.dtype)
        sums[2] *= factor[:, None]
    grads = [total.to(x.dtype) for total in sums]
    return grad_x, grads[0], grads[1], grads[2], grad_gamma


def _array(x: Tensor) -> np.ndarray:
    return flat_array(x).reshape(x.shape)


def _over_elements(loop: Any, x: Tensor, *outputs: Tensor) -> None:
    """Call loop(x, start, stop, *outputs) for ranges that cover all elements."""
    flat, targets = flat_array(x), [flat_array(t) for t in outputs]
    run_ranges(lambda i, j: loop(flat, i, j, *targets), flat.size, least=_LEAST_ELEMENTS)


def _over_rows(loop: Any, arguments: tuple[Any, ...], *outputs: np.ndarray) -> None:
    """Call loop(*arguments, start, stop, *outputs) for ranges that cover all rows."""
    rows, channels = outputs[0].shape
    run_ranges(lambda i, j: loop(*arguments, i, j, *outputs), rows, least=-(-_LEAST_ELEMENTS // channels))
