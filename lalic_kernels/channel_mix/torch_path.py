"""Channel mix through torch's matrix products over stretches of tokens: no hidden layer of the whole image.

For float64, for float16 on CPUs and CPUs without numba, for widths beyond the kernel's table, and for the backward of
all. Rows are tokens; tensors are contiguous and of one dtype, but for residual and gamma.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lalic_kernels._core import residual as _residual
from lalic_kernels._core.products import add_product_


def forward(
    x: Tensor, key: Tensor, receptance: Tensor, value: Tensor, residual: Tensor | None, gamma: Tensor | None
) -> Tensor:
    """x (rows, C) -> (rows, C) in the residual's dtype or x's. Arguments as in `reference.py`."""
    out = torch.empty(x.shape, dtype=_residual.dtype_of(x, residual), device=x.device)
    for rows in _residual.stretches(x, key.shape[0]):
        part = x[rows]
        hidden = F.linear(part, key).relu_()
        mixed = F.linear(hidden.mul_(hidden), value).mul_(F.linear(part, receptance).sigmoid_())
        _residual.finish(mixed, None if residual is None else residual[rows], gamma, out[rows])
    return out


def backward(
    x: Tensor, key: Tensor, receptance: Tensor, value: Tensor, gamma: Tensor | None, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of x, key, receptance, value and gamma (None without gamma) for the result's gradient (rows, C).

    With m = g * z, g = sigmoid(R x), z = V h, h = p^2, p = relu(K x): all of it is computed again, a stretch at a time,
    and the gradients of the matrices are added up in float32, in one order.
    """
    wide = _residual.sums_dtype(x)
    grad_x = torch.empty_like(x)
    sums = [torch.zeros(matrix.shape, dtype=wide, device=x.device) for matrix in (key, receptance, value)]
    for rows in _residual.stretches(x, 2 * key.shape[0]):
        part, upstream = x[rows], grad[rows].to(x.dtype)
        p = F.linear(part, key).relu_()
        hidden = p.square()
        gate = F.linear(part, receptance).sigmoid_()
        # (gate * upstream)^T h is the gradient of value but for gamma, and all that gamma's own needs.
        add_product_(sums[2], upstream * gate, hidden)
        if gamma is not None:
            upstream = upstream * gamma.to(x.dtype)
        grad_gate = F.linear(hidden, value).mul_(upstream)
        grad_gate.mul_(gate).mul_(1 - gate)
        grad_hidden = torch.mm(upstream * gate, value).mul_(p).mul_(2)
        add_product_(sums[0], grad_hidden, part)
        add_product_(sums[1], grad_gate, part)
        torch.mm(grad_hidden, key, out=grad_x[rows])
        grad_x[rows].addmm_(grad_gate, receptance)
    grad_gamma = None
    if gamma is not None:
        grad_gamma = (sums[2] * value).sum(1).to(gamma.dtype)
        sums[2] *= gamma.to(wide)[:, None]
    grads = [total.to(x.dtype) for total in sums]
    return grad_x, grads[0], grads[1], grads[2], grad_gamma
