"""Channel mix by its definition: the feed-forward half of an RWKV block, after its LayerNorm and shift."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def channel_mix(
    x: Tensor,
    key: Tensor,
    receptance: Tensor,
    value: Tensor,
    residual: Tensor | None = None,
    gamma: Tensor | None = None,
) -> Tensor:
    """m = sigmoid(R x) * (V relu(K x)^2); the result is m, or residual + gamma * m.

    Args:
        x: shifted image, shape (B, H, W, C).
        key: shape (F, C), F the width of the hidden layer (4 C or 8 C in LALIC).
        receptance: shape (C, C).
        value: shape (C, F).
        residual: shape (B, H, W, C), or None.
        gamma: shape (C,), or None.

    Returns:
        Shape (B, H, W, C).

    Source: LALIC (Feng et al., 2025), RWKV block, channel half.
    """
    hidden = torch.relu(F.linear(x, key)).square()
    mixed = torch.sigmoid(F.linear(x, receptance)) * F.linear(hidden, value)
    return mixed if residual is None or gamma is None else residual + gamma * mixed
