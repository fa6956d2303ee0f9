"""Spatial mix by its definition: the attention half of an RWKV block, between its LayerNorm and its residual."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lalic_kernels.biwkv import reference as _biwkv
from lalic_kernels.token_shift import reference as _token_shift


def spatial_mix(
    n: Tensor,
    shift_weight: Tensor,
    key: Tensor,
    value: Tensor,
    receptance: Tensor,
    output: Tensor,
    decay: Tensor,
    boost: Tensor,
) -> Tensor:
    """s = TokenShift(n); result = O (sigmoid(R s) * BiWKV(decay / T, boost / T, K s, V s)), T = H * W tokens.

    Args:
        n: normalised image, shape (B, H, W, C); tokens are its pixels in row-major order.
        shift_weight: folded 5x5 kernels, shape (C, 5, 5).
        key, value, receptance, output: matrices of shape (C, C), rows are outputs, no biases.
        decay, boost: parameters of the model, shape (C,); they are divided by T here.

    Returns:
        Shape (B, H, W, C). Memory is quadratic in T: small images only.

    Source: LALIC (Feng et al., 2025), RWKV block, spatial half.
    """
    batch, height, width, channels = n.shape
    tokens = height * width
    s = _token_shift.token_shift(n, shift_weight).reshape(batch, tokens, channels)
    divisor = max(tokens, 1)
    mixed = _biwkv.biwkv(decay / divisor, boost / divisor, F.linear(s, key), F.linear(s, value))
    out = F.linear(torch.sigmoid(F.linear(s, receptance)) * mixed, output)
    return out.reshape(batch, height, width, channels)
