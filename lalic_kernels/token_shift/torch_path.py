"""Token shift through torch's own depth-wise convolution: the path for CPUs and for float64, differentiable."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lalic_kernels._core.registration import no_autocast


def token_shift(x: Tensor, weight: Tensor) -> Tensor:
    """x (B, H, W, C), weight (C, 5, 5), one dtype; returns (B, H, W, C), contiguous."""
    with no_autocast(x.device):
        y = F.conv2d(x.permute(0, 3, 1, 2), weight.unsqueeze(1), padding=2, groups=x.shape[3])
    return y.permute(0, 2, 3, 1).contiguous()
