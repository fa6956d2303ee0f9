"""The RWKV block of LALIC: Omni-Shift, spatial mix, channel mix.

Blocks take and return NCHW tensors, as the published modules do, and compute in NHWC: with
``torch.channels_last`` memory the change between the two is a change of strides, not a copy.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lalic_kernels

_STRETCH = 2048  # tokens; 2048 x 4 C floats are a few MiB at the widths in use


class _DepthwiseWeight(nn.Module):
    """Holds one depth-wise kernel under the published name ``<branch>.weight``, shape (C, 1, K, K)."""

    def __init__(self, dim: int, kernel: int, trained: bool = True):
        super().__init__()
        # The published model leaves these to Conv2d's default initialisation; fan-in is K * K.
        conv = nn.Conv2d(dim, dim, kernel, groups=dim, bias=False)
        self.weight = nn.Parameter(conv.weight.detach().clone(), requires_grad=trained)


class OmniShift(nn.Module):
    """5x5 depth-wise token shift with four branches (identity, 1x1, 3x3, 5x5) folded to one kernel.

    The fold is differentiable and made anew at every call, so training runs one convolution instead of three and the
    result never depends on ``conv5x5_reparam.weight``. That key exists for the published state dict's sake: it is
    ignored on loading and holds the folded kernel whenever a state dict is taken.
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

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, C) -> (B, H, W, C)."""
        return lalic_kernels.token_shift(x, self.kernel().to(x.dtype))


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

    def forward(self, n: Tensor) -> Tensor:
        """n (B, H, W, C), normalised -> (B, H, W, C)."""
        B, H, W, C = n.shape
        tokens = H * W
        s = self.omni_shift(n).reshape(B, tokens, C)
        k, v, r = self.key(s), self.value(s), self.receptance(s)
        mixed = lalic_kernels.biwkv(self.decay / tokens, self.boost / tokens, k, v)
        return self.output(torch.sigmoid(r) * mixed).reshape(B, H, W, C)


class ChannelMix(nn.Module):
    """Feed-forward half of a block: shift, squared ReLU, gate."""

    def __init__(self, dim: int, rate: int):
        super().__init__()
        self.omni_shift = OmniShift(dim)
        self.key = nn.Linear(dim, rate * dim, bias=False)
        self.receptance = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(rate * dim, dim, bias=False)

    def forward(self, n: Tensor) -> Tensor:
        """n (B, H, W, C), normalised -> (B, H, W, C)."""
        s = self.omni_shift(n)
        if torch.is_grad_enabled():
            return torch.sigmoid(self.receptance(s)) * self.value(torch.square(F.relu(self.key(s))))
        # The hidden layer is several times the size of the input: a stretch of tokens at a time it stays in the cache.
        flat = s.flatten(0, 2)
        out = torch.empty_like(flat)
        for part, result in zip(flat.split(_STRETCH), out.split(_STRETCH), strict=True):
            hidden = F.relu(self.key(part), inplace=True)
            torch.mul(torch.sigmoid(self.receptance(part)), self.value(hidden.mul_(hidden)), out=result)
        return out.view_as(s)


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

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, C, H, W), both best in channels-last memory."""
        x = x.permute(0, 2, 3, 1)
        x = x + self.gamma1 * self.att(self.ln1(x))
        x = x + self.gamma2 * self.ffn(self.ln2(x))
        return x.permute(0, 3, 1, 2)
