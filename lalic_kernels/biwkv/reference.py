"""BiWKV by its definition: the quadratic closed form, the one truth every other path is tested against."""

from __future__ import annotations

import torch
from torch import Tensor


def biwkv(w: Tensor, u: Tensor, k: Tensor, v: Tensor, gate: Tensor | None = None) -> Tensor:
    """Bidirectional WKV, quadratic in the number of tokens.

    For each batch item and channel, with T tokens::

        L(t, i) = k_i - (|t - i| - 1) * w   for i != t
        L(t, t) = u + k_t
        y_t     = sum_i exp(L(t, i)) v_i / sum_i exp(L(t, i))

    Args:
        w: decay per step, shape (C,); may be negative, in which case weights grow with distance.
        u: bonus of a token for itself, shape (C,).
        k: keys, shape (B, T, C).
        v: values, shape (B, T, C).
        gate: shape (B, T, C), or None. With it the result is sigmoid(gate) * y.

    Returns:
        y, or sigmoid(gate) * y, shape (B, T, C), in the dtype that the arguments promote to. Any floating dtype works;
        use float64 for a reference. Memory grows as B * T * T * C.

    Source: closed form of Bi-WKV in Vision-RWKV (Duan et al., 2024), as used by LALIC. The published CUDA kernel
    computes something that differs from it by O(w); see this folder's README. No epsilon is added to the
    denominator: after the largest exponent of the row is taken out, the denominator is at least one.
    """
    t = torch.arange(k.shape[1], device=k.device)
    gap = (t[:, None] - t[None, :]).abs()
    steps = (gap - 1).to(k.dtype)
    logits = k[:, None, :, :] - steps[None, :, :, None] * w
    own = (gap == 0)[None, :, :, None]
    logits = torch.where(own, u + k[:, None, :, :], logits)
    if k.numel() == 0:
        return torch.zeros_like(logits.sum(dim=2)) * (v if gate is None else gate * v)
    # Any value subtracted from a whole row cancels, so it needs no gradient.
    top = logits.detach().amax(dim=2, keepdim=True)
    weights = torch.exp(logits - top)
    y = (weights * v[:, None, :, :]).sum(dim=2) / weights.sum(dim=2)
    return y if gate is None else torch.sigmoid(gate) * y
