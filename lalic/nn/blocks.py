"""The RWKV block of LALIC: `lalic_kernels.layers.RWKVBlock` for images whose channels come first.

In ``torch.channels_last`` memory the change between the two orders only swaps strides and copies nothing.
"""

from __future__ import annotations

from torch import Tensor

from lalic_kernels import layers
from lalic_kernels.layers import OmniShift

__all__ = ["OmniShift", "RWKVBlock"]


class RWKVBlock(layers.RWKVBlock):
    """The block between convolutions, with its parameters under the published names.

    Args:
        dim: channels C.
        hidden_rate: 4 in the transforms, 8 in the channel contexts.
    """

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """x (B, C, H, W) -> (B, C, H, W), both best in channels-last memory."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
