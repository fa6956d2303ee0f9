"""The entropy-parameter block in torch's own operations: the path for CPUs and for float64, differentiable."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lalic_kernels._core.registration import no_autocast


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
    eps: float,
) -> Tensor:
    """Shapes as `reference.entropy_params`; one dtype, but for `partial`; returns (B, P, Cout), contiguous."""
    with no_autocast(x.device):
        m = F.linear(x, mix_weight, mix_bias)
        if partial is not None:
            m = (m + partial).to(m.dtype)
        n = F.layer_norm(m, (m.shape[-1],), norm_weight, norm_bias, eps)
        hidden = torch.relu(F.linear(n, key)).square()
        return (m + torch.sigmoid(F.linear(n, receptance)) * F.linear(hidden, value)).contiguous()
