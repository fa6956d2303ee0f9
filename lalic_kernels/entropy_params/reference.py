"""The entropy-parameter block by its definition."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def entropy_params(
    x: Tensor,
    mix_weight: Tensor,
    mix_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    key: Tensor,
    receptance: Tensor,
    value: Tensor,
    partial: Tensor | None = None,
    *,
    eps: float = 1e-5,
) -> Tensor:
    """m = M x + b + partial; n = LayerNorm(m); out = m + sigmoid(R n) * (V relu(K n)^2), for each position.

    Args:
        x: features, shape (B, P, Cin), P positions, any floating dtype.
        mix_weight, mix_bias: the 1x1 convolution, shapes (Cout, Cin) and (Cout,).
        norm_weight, norm_bias: LayerNorm over the Cout channels of a position, shapes (Cout,).
        key: shape (2 Cout, Cout).
        receptance: shape (Cout, Cout).
        value: shape (Cout, 2 Cout).
        partial: the contribution of other inputs to m, shape (B, P, Cout); None for nothing.
        eps: added to the variance (the mean of squared deviations) before the square root.

    Returns:
        Shape (B, P, Cout).

    Source: LALIC (Feng et al., 2025), entropy-parameter aggregation.
    """
    m = F.linear(x, mix_weight, mix_bias)
    if partial is not None:
        m = m + partial
    centred = m - m.mean(dim=-1, keepdim=True)
    n = centred * torch.rsqrt(centred.square().mean(dim=-1, keepdim=True) + eps) * norm_weight + norm_bias
    hidden = torch.relu(F.linear(n, key)).square()
    return m + torch.sigmoid(F.linear(n, receptance)) * F.linear(hidden, value)
