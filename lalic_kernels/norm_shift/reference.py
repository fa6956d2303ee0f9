"""The normalised shift by its definition: a LayerNorm over channels, then the token shift."""

from __future__ import annotations

from torch import Tensor

from lalic_kernels.token_shift import reference


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

    Source: the head of a Bi-RWKV block in LALIC: LayerNorm, then Omni-Shift (Restore-RWKV, Yang et al., 2024).
    """
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred * centred).mean(-1, keepdim=True)
    normed = centred / (variance + eps).sqrt() * norm_weight + norm_bias
    return reference.token_shift(normed, weight)
