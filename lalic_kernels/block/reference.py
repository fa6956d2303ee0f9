"""The RWKV block by its definition, composed of the references of its parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from lalic_kernels.mix.reference import channel_mix, spatial_mix
from lalic_kernels.shift.reference import norm_shift

if TYPE_CHECKING:
    from lalic_kernels.block.op import BlockParameters


def rwkv_block(x: Tensor, p: BlockParameters) -> Tensor:
    """One RWKV block: a = x + gamma1 * SpatialMix(Shift1(LN1(x))); result a + gamma2 * ChannelMix(Shift2(LN2(a))).

    Args:
        x: image, shape (B, H, W, C), in the parameters' dtype.
        p: the block's parameters, all in one dtype.

    Returns:
        Shape (B, H, W, C). Memory is quadratic in H * W: small images only.

    Source: LALIC (Feng et al., 2025).
    """
    s = norm_shift(x, p.norm1_weight, p.norm1_bias, p.shift1, p.eps)
    x = spatial_mix(s, p.decay, p.boost, p.key, p.value, p.receptance, p.output, x, p.gamma1)
    s = norm_shift(x, p.norm2_weight, p.norm2_bias, p.shift2, p.eps)
    return channel_mix(s, p.channel_key, p.channel_receptance, p.channel_value, x, p.gamma2)
