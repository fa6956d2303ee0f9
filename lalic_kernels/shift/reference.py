"""Token shift (Omni-Shift) by its definition: a depth-wise 5x5 correlation, with or without a LayerNorm; folding."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def token_shift(x: Tensor, weight: Tensor) -> Tensor:
    """Depth-wise 5x5 correlation with zero padding, channels last.

    y[b, i, j, c] = sum over a, d in 0..4 of weight[c, a, d] * x[b, i + a - 2, j + d - 2, c], where x is zero outside
    the image.

    Args:
        x: image, shape (B, H, W, C), any floating dtype.
        weight: one 5x5 kernel per channel, shape (C, 5, 5).

    Returns:
        y, shape (B, H, W, C).

    Source: Omni-Shift of Restore-RWKV (Yang et al., 2024) in its evaluation form, as used by LALIC.
    """
    height, width = x.shape[1], x.shape[2]
    y = x * weight[:, 2, 2]
    if x.numel() == 0:
        return y  # torch before 2.7 does not pad an empty tensor
    padded = F.pad(x, (0, 0, 2, 2, 2, 2))
    for a in range(5):
        for d in range(5):
            if (a, d) != (2, 2):
                y = y + padded[:, a : a + height, d : d + width, :] * weight[:, a, d]
    return y


def norm_shift(x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Depth-wise 5x5 correlation of the LayerNorm of an image, channels last.

    n = (x - mean) / sqrt(variance + eps) * norm_weight + norm_bias, mean and (biased) variance over the channels of a
    pixel; then the token shift of n. Outside the image n is zero, so the padding comes after the norm.

    Args:
        x: image, shape (B, H, W, C), any floating dtype.
        norm_weight, norm_bias: of the LayerNorm, shape (C,).
        weight: one 5x5 kernel per channel, shape (C, 5, 5).
        eps: added to the variance.

    Returns:
        Shape (B, H, W, C).

    Source: the first two layers of each half of a Bi-RWKV block in LALIC: LayerNorm, then Omni-Shift (Restore-RWKV,
    Yang et al., 2024).
    """
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred * centred).mean(-1, keepdim=True)
    normed = centred / (variance + eps).sqrt() * norm_weight + norm_bias
    return token_shift(normed, weight)


def fold_token_shift(alpha: Tensor, w1: Tensor, w3: Tensor, w5: Tensor) -> Tensor:
    """Fold the four training branches of Omni-Shift into one 5x5 kernel per channel.

    alpha[0] * identity + alpha[1] * 1x1 + alpha[2] * 3x3 + alpha[3] * 5x5, the smaller kernels centred in the 5x5.
    Differentiable in every argument, so a model may fold in training as well as in evaluation.

    Args:
        alpha: branch weights, shape (4,).
        w1: shape (C, 1, 1) or (C, 1, 1, 1).
        w3: shape (C, 3, 3) or (C, 1, 3, 3).
        w5: shape (C, 5, 5) or (C, 1, 5, 5).

    Returns:
        The folded kernels, shape (C, 5, 5).
    """
    channels = w5.shape[0]
    folded = alpha[3] * w5.reshape(channels, 5, 5)
    folded = folded + F.pad(alpha[2] * w3.reshape(channels, 3, 3), (1, 1, 1, 1))
    centre = alpha[0] + alpha[1] * w1.reshape(channels, 1, 1)
    return folded + F.pad(centre, (2, 2, 2, 2))
