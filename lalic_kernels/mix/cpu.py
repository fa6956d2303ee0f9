"""The channel mix on CPUs: torch's matrix products, and compiled code (`cpu_loops.py`) for what stands between them.

float32 and bfloat16; plain x86-64 cannot convert float16, which takes `torch_path.py`. The same bits on any number of
threads, as far as torch's products give them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lalic_kernels.mix import torch_path
from lalic_kernels.mix.torch_path import add_product_, dtype_of, stretches
from lalic_kernels.threads import flat_array, run_ranges

# Below some ten thousand elements a thread costs more than it saves.
_LEAST_ELEMENTS = 16384

Saved = tuple[Tensor, Tensor, Tensor]
"""Of all tokens: K x (rows, F), V relu(K x)^2 and R x (rows, C)."""


def computes_in_torch(x: Tensor, residual: Tensor | None) -> bool:
    """Whether a dtype is one that the compiled code does not know; nothing is saved then."""
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
    """x (rows, C) -> (rows, C) in the residual's dtype or x's. Contiguous arguments, as in `reference.py`.

    saved: where a backward's inputs go, or None for nowhere; never with float16.
    """
    if computes_in_torch(x, residual):
        return torch_path.channel_forward(x, key, receptance, value, residual, gamma)
    from lalic_kernels.mix import cpu_loops

    out = torch.empty(x.shape, dtype=dtype_of(x, residual))
    target, rest = _array(out), None if residual is None else _array(residual)
    factor = None if gamma is None else gamma.detach().float().numpy()
    for part in stretches(x, key.shape[0]):
        tokens = x[part]
        if saved is None:
            hidden = torch.mm(tokens, key.t())
            _over_elements(cpu_loops.square_relu, hidden)
            mixed, gate = torch.mm(hidden, value.t()), torch.mm(tokens, receptance.t())
        else:
            before, mixed, gate = (t[part] for t in saved)
            torch.mm(tokens, key.t(), out=before)
            hidden = torch.empty_like(before)
            _over_elements(cpu_loops.squared, before, hidden)
            torch.mm(hidden, value.t(), out=mixed)
            torch.mm(tokens, receptance.t(), out=gate)
        arguments = (_array(mixed), _array(gate), None if rest is None else rest[part], factor)
        _over_rows(cpu_loops.finish, arguments, target[part])
    return out


def backward(
    x: Tensor, key: Tensor, receptance: Tensor, value: Tensor, gamma: Tensor | None, grad: Tensor, saved: Saved
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """`torch_path.channel_backward` from what `forward` saved: the same sums, with fewer roundings between them."""
    from lalic_kernels.mix import cpu_loops

    grad_x = torch.empty_like(x)
    sums = [torch.zeros(matrix.shape, dtype=torch.float32) for matrix in (key, receptance, value)]
    factor = torch.ones(x.shape[1]) if gamma is None else gamma.detach().float()
    scaled = (factor[:, None] * value).to(x.dtype)
    for part in stretches(x, 2 * key.shape[0]):
        before, mixed, gate = (t[part] for t in saved)
        hidden, gated, of_gate = torch.empty_like(before), torch.empty_like(gate), torch.empty_like(gate)
        _over_elements(cpu_loops.squared, before, hidden)
        arguments = (_array(grad[part]), _array(mixed), _array(gate), factor.numpy())
        _over_rows(cpu_loops.gate_gradient, arguments, _array(gated), _array(of_gate))
        # gated^T h is the gradient of value but for gamma, and all that gamma's own needs.
        add_product_(sums[2], gated, hidden)
        of_hidden = torch.mm(gated, scaled)
        _over_elements(cpu_loops.hidden_gradient, before, of_hidden)
        add_product_(sums[0], of_hidden, x[part])
        add_product_(sums[1], of_gate, x[part])
        torch.mm(of_hidden, key, out=grad_x[part])
        grad_x[part].addmm_(of_gate, receptance)
    grad_gamma = None
    if gamma is not None:
        grad_gamma = (sums[2] * value).sum(1).to(gamma.dtype)
        sums[2] *= factor[:, None]
    grads = [total.to(x.dtype) for total in sums]
    return grad_x, grads[0], grads[1], grads[2], grad_gamma


def _array(x: Tensor) -> np.ndarray:
    return flat_array(x).reshape(x.shape)


def _over_elements(loop: Any, x: Tensor, *to: Tensor) -> None:
    """loop(x, start, stop, *to) over all elements."""
    flat, targets = flat_array(x), [flat_array(t) for t in to]
    run_ranges(lambda i, j: loop(flat, i, j, *targets), flat.size, least=_LEAST_ELEMENTS)


def _over_rows(loop: Any, arguments: tuple[Any, ...], *to: np.ndarray) -> None:
    """loop(*arguments, start, stop, *to) over all rows."""
    rows, channels = to[0].shape
    run_ranges(lambda i, j: loop(*arguments, i, j, *to), rows, least=-(-_LEAST_ELEMENTS // channels))
