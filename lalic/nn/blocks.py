"""The RWKV block of LALIC: modules with its parameters under the published names. `lalic_kernels` computes it.

Blocks take and return NCHW tensors, as the published modules do, and compute in NHWC. In ``torch.channels_last`` memory
the change between the two only swaps strides and copies nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import lalic_kernels
from lalic_kernels import BlockParameters
from lalic_kernels.cache import WeightCache


class _DepthwiseWeight(nn.Module):
    """One depth-wise kernel under the published name ``<branch>.weight``, shape (C, 1, K, K)."""

    def __init__(self, dim: int, kernel: int, trained: bool = True):
        super().__init__()
        # The published model leaves these to Conv2d's default initialisation; fan-in is K * K.
        conv = nn.Conv2d(dim, dim, kernel, groups=dim, bias=False)
        self.weight = nn.Parameter(conv.weight.detach().clone(), requires_grad=trained)


class OmniShift(nn.Module):
    """5x5 depth-wise token shift: four branches (identity, 1x1, 3x3, 5x5) folded into one kernel.

    The fold is differentiable and made at every call, so training runs one convolution in place of three, and the
    result never depends on ``conv5x5_reparam.weight``. That key is only there because the published state dict has it:
    loading ignores it, and a state dict has the folded kernel under it.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.randn(4))
        self.conv1x1 = _DepthwiseWeight(dim, 1)
        self.conv3x3 = _DepthwiseWeight(dim, 3)
        self.conv5x5 = _DepthwiseWeight(dim, 5)
        self.conv5x5_reparam = _DepthwiseWeight(dim, 5, trained=False)
        self.register_state_dict_pre_hook(_store_folded_kernel)

    def kernel(self) -> Tensor:
        """The folded kernel, shape (C, 5, 5)."""
        return lalic_kernels.fold_token_shift(self.alpha, self.conv1x1.weight, self.conv3x3.weight, self.conv5x5.weight)


def _store_folded_kernel(module: OmniShift, prefix: str, keep_vars: bool) -> None:
    with torch.no_grad():
        module.conv5x5_reparam.weight.copy_(module.kernel().unsqueeze(1))


class SpatialMix(nn.Module):
    """Attention half of a block: shift, key, value and receptance, bidirectional WKV, output product."""

    def __init__(self, dim: int):
        super().__init__()
        self.decay = nn.Parameter(torch.randn(dim))
        self.boost = nn.Parameter(torch.randn(dim))
        self.omni_shift = OmniShift(dim)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.receptance = nn.Linear(dim, dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)


class ChannelMix(nn.Module):
    """Feed-forward half of a block: shift, squared ReLU, gate."""

    def __init__(self, dim: int, rate: int):
        super().__init__()
        self.omni_shift = OmniShift(dim)
        self.key = nn.Linear(dim, rate * dim, bias=False)
        self.receptance = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(rate * dim, dim, bias=False)


class RWKVBlock(nn.Module):
    """x + gamma1 * SpatialMix(LN(x)), then x + gamma2 * ChannelMix(LN(x)).

    Args:
        dim: channels C.
        rate: hidden width of the channel mix in multiples of C (4 in the transforms, 8 in the channel contexts).
    """

    def __init__(self, dim: int, rate: int = 4):
        super().__init__()
        self.gamma1 = nn.Parameter(torch.ones(dim))
        self.gamma2 = nn.Parameter(torch.ones(dim))
        self.ln1 = nn.LayerNorm(dim)
        self.ln2 = nn.LayerNorm(dim)
        self.att = SpatialMix(dim)
        self.ffn = ChannelMix(dim, rate)
        self._cache = WeightCache()

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, C, H, W), both best in channels-last memory."""
        return lalic_kernels.rwkv_block(x.permute(0, 2, 3, 1), self.block_parameters()).permute(0, 3, 1, 2)

    def block_parameters(self) -> BlockParameters:
        """The parameters as `lalic_kernels.rwkv_block` takes them.

        With gradients the shifts are folded at every call. Without, they are folded once and cached until a parameter
        changes.
        """
        parameters = list(self.parameters())
        differentiable = torch.is_grad_enabled() and any(p.requires_grad for p in parameters)
        if differentiable or torch.compiler.is_compiling():
            return self._gather()
        return self._cache.get("parameters", parameters, self._gather)

    def _gather(self) -> BlockParameters:
        att, ffn = self.att, self.ffn
        return BlockParameters(
            norm1_weight=self.ln1.weight, norm1_bias=self.ln1.bias, shift1=att.omni_shift.kernel(),
            decay=att.decay, boost=att.boost, key=att.key.weight, value=att.value.weight,
            receptance=att.receptance.weight, output=att.output.weight, gamma1=self.gamma1,
            norm2_weight=self.ln2.weight, norm2_bias=self.ln2.bias, shift2=ffn.omni_shift.kernel(),
            channel_key=ffn.key.weight, channel_receptance=ffn.receptance.weight, channel_value=ffn.value.weight,
            gamma2=self.gamma2, eps=self.ln1.eps,
        )  # fmt: skip
