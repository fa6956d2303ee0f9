"""BiWKV by its definition, the quadratic closed form. Every other path is tested against it."""

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
        w: decay per step, shape (C,); with a negative decay weights grow with distance.
        u: bonus of a token for itself, shape (C,).
        k: keys, shape (B, T, C).
        v: values, shape (B, T, C).
        gate: shape (B, T, C), or None. With it the result is sigmoid(gate) * y.

    Returns:
        y, or sigmoid(gate) * y, shape (B, T, C), in the dtype that the arguments promote to. Any floating dtype works.
        Needs memory of order B * T * T * C.

    Source: closed form of Bi-WKV in Vision-RWKV (Duan et al., 2024), as used by LALIC. The published CUDA kernel
    differs from it by O(w) (README.md in this folder). The denominator needs no epsilon: it is at least one, because
    the largest exponent of each row is subtracted.
    """
    t = torch.arange(k.shape[1], device=k.device, dtype=torch.int64)
    gap = (t[:, None] - t[None, :]).abs()
    steps = (gap - 1).to(k.dtype)
    logits = k[:, None, :, :] - steps[None, :, :, None] * w
    same = (gap == 0)[None, :, :, None]
    logits = torch.where(same, u + k[:, None, :, :], logits)
    if k.numel() == 0:
        return torch.zeros_like(logits.sum(dim=2)) * (v if gate is None else gate * v)
    # A value subtracted from a whole row cancels, so it needs no gradient.
    row_max = logits.detach().amax(dim=2, keepdim=True)
    weights = torch.exp(logits - row_max)
    y = (weights * v[:, None, :, :]).sum(dim=2) / weights.sum(dim=2)
    return y if gate is None else torch.sigmoid(gate) * y
