"""The two mixes by their definition: the halves of an RWKV block after LayerNorm and shift."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lalic_kernels.biwkv import reference as _biwkv


def spatial_mix(
    x: Tensor,
    decay: Tensor,
    boost: Tensor,
    key: Tensor,
    value: Tensor,
    receptance: Tensor,
    output: Tensor,
    residual: Tensor | None = None,
    gamma: Tensor | None = None,
) -> Tensor:
    """o = O (sigmoid(R x) * BiWKV(decay / T, boost / T, K x, V x)), T = H * W; returns o, or residual + gamma * o.

    Args:
        x: shifted image, shape (B, H, W, C); tokens are its pixels in row-major order.
        decay, boost: parameters of the model, shape (C,), not yet divided by T.
        key, value, receptance, output: matrices of shape (C, C), rows are outputs, no biases.
        residual: shape (B, H, W, C), or None.
        gamma: shape (C,), or None.

    Returns:
        Shape (B, H, W, C). Memory is quadratic in T: small images only.

    Source: LALIC (Feng et al., 2025), RWKV block, spatial half.
    """
    tokens = x.shape[1] * x.shape[2]
    s = x.flatten(1, 2)
    divisor = max(tokens, 1)
    y = _biwkv.biwkv(decay / divisor, boost / divisor, F.linear(s, key), F.linear(s, value))
    mixed = F.linear(torch.sigmoid(F.linear(s, receptance)) * y, output).reshape(x.shape)
    return mixed if residual is None or gamma is None else residual + gamma * mixed


def channel_mix(
    x: Tensor,
    key: Tensor,
    receptance: Tensor,
    value: Tensor,
    residual: Tensor | None = None,
    gamma: Tensor | None = None,
) -> Tensor:
    """m = sigmoid(R x) * (V relu(K x)^2); returns m, or residual + gamma * m.

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
