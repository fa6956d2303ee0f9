"""The normalised shift in torch's own operations, differentiable: other devices, float64, machines without numba."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lalic_kernels._core.registration import no_autocast
from lalic_kernels.token_shift import torch_path


def norm_shift(x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (B, H, W, C), norm_weight and norm_bias (C,), weight (C, 5, 5), one dtype; (B, H, W, C), contiguous."""
    with no_autocast(x.device):
        normed = F.layer_norm(x, (x.shape[3],), norm_weight, norm_bias, eps)
    return torch_path.token_shift(normed, weight)
