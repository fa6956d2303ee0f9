"""Channel mix by its definition: the feed-forward half of an RWKV block, between its LayerNorm and its residual."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lalic_kernels.token_shift import reference as _token_shift


def channel_mix(n: Tensor, shift_weight: Tensor, key: Tensor, receptance: Tensor, value: Tensor) -> Tensor:
    """s = TokenShift(n); result = sigmoid(R s) * (V relu(K s)^2).

    Args:
        n: normalised image, shape (B, H, W, C).
        shift_weight: folded 5x5 kernels, shape (C, 5, 5).
        key: shape (r C, C) for a hidden rate r.
        receptance: shape (C, C).
        value: shape (C, r C).

    Returns:
        Shape (B, H, W, C).

    Source: LALIC (Feng et al., 2025), RWKV block, channel half.
    """
    s = _token_shift.token_shift(n, shift_weight)
    hidden = torch.relu(F.linear(s, key)).square()
    return torch.sigmoid(F.linear(s, receptance)) * F.linear(hidden, value)
