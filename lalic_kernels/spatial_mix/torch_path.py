"""Spatial mix through torch's matrix products, and the backward of all paths. BiWKV is the op of that name.

Tensors are contiguous: x, y, residual, grad and the planes k, v, r of one tensor (3, B, T, C), which BiWKV takes as
they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lalic_kernels._core import residual as _residual
from lalic_kernels._core.products import add_product_

Matrices = tuple[Tensor, Tensor, Tensor, Tensor]  # key, value, receptance, output


def planes(x: Tensor, matrices: Matrices, dtype: torch.dtype | None = None) -> Tensor:
    """k, v, r: shape (3, B, T, C) from x (B, T, C), in its dtype, or rounded to it and kept in a wider one."""
    found = torch.empty((3, *x.shape), dtype=dtype or x.dtype, device=x.device)
    flat = x.flatten(0, 1)
    for matrix, plane in zip(matrices, found.flatten(1, 2), strict=False):
        if plane.dtype == x.dtype:
            torch.mm(flat, matrix.t(), out=plane)
        else:  # a stretch at a time, which is widened while it is in the cache
            for rows in _residual.stretches(flat, 2 * flat.shape[1]):
                plane[rows].copy_(torch.mm(flat[rows], matrix.t()))
    return found


def biwkv(decay: Tensor, boost: Tensor, kvr: Tensor, backend: str) -> Tensor:
    """sigmoid(r) * BiWKV(decay / T, boost / T, k, v), shape (B, T, C)."""
    k, v, r = kvr
    return torch.ops.lalic_kernels.biwkv(*by_tokens(decay, boost, k), k, v, r, backend)


def by_tokens(decay: Tensor, boost: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """decay / T and boost / T in float32 (float64 beside float64): in float16 they would be subnormal."""
    wide, tokens = _residual.sums_dtype(k), k.shape[1]
    return decay.to(wide) / tokens, boost.to(wide) / tokens


def project(y: Tensor, output: Tensor, residual: Tensor | None, gamma: Tensor | None) -> Tensor:
    """y @ output^T, or residual + gamma * (), shape (B, T, C). y is rounded to output's dtype if it is wider."""
    out = torch.empty(y.shape, dtype=_residual.dtype_of(output, residual), device=y.device)
    flat, flat_out = y.flatten(0, 1), out.flatten(0, 1)
    rest = None if residual is None else residual.flatten(0, 1)
    for rows in _residual.stretches(flat, 2 * flat.shape[1]):
        part = None if rest is None else rest[rows]
        _residual.finish(torch.mm(flat[rows].to(output.dtype), output.t()), part, gamma, flat_out[rows])
    return out


def backward(
    x: Tensor,
    decay: Tensor,
    boost: Tensor,
    matrices: Matrices,
    gamma: Tensor | None,
    grad: Tensor,
    backend: str,
    kept: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of x, decay, boost, key, value, receptance, output and gamma (None without gamma); x is (B, T, C).

    kept: k, v, r (3, B, T, C) and the gated y (B, T, C) of the forward, or None to compute them again. With
    A = grad^T y the gradient of output is gamma A, and that of gamma needs no more than A: the row sums of A * output.
    """
    wide = _residual.sums_dtype(x)
    output = matrices[3]
    kvr = planes(x, matrices) if kept is None else kept[0]
    y = biwkv(decay, boost, kvr, backend) if kept is None else kept[1]
    flat_x, upstream = x.flatten(0, 1), grad.to(x.dtype).flatten(0, 1)
    sums = [torch.zeros(matrix.shape, dtype=wide, device=x.device) for matrix in matrices]
    add_product_(sums[3], upstream, y.flatten(0, 1))
    del y
    grad_gamma, scaled = None, output
    if gamma is not None:
        grad_gamma = (sums[3] * output).sum(1).to(gamma.dtype)
        sums[3] *= gamma.to(wide)[:, None]
        scaled = gamma.to(wide)[:, None] * output
    grad_y = torch.mm(upstream, scaled.to(x.dtype)).view_as(x)
    by_t = by_tokens(decay, boost, kvr[0])
    grad_w, grad_u, *grads = torch.ops.lalic_kernels.biwkv_backward(*by_t, *kvr, grad_y, backend)
    del kvr, grad_y
    grad_x = torch.zeros_like(flat_x)
    for matrix, total, part in zip(matrices, sums, grads, strict=False):
        flat = part.flatten(0, 1)
        add_product_(total, flat, flat_x)
        grad_x.addmm_(flat, matrix)
    tokens = x.shape[1]
    found = [total.to(x.dtype) for total in sums]
    shares = (grad_w / tokens).to(decay.dtype), (grad_u / tokens).to(boost.dtype)
    return grad_x.view_as(x), *shares, found[0], found[1], found[2], found[3], grad_gamma
