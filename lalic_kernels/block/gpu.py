"""The block in inference on a GPU: eight launches, or nine. What is computed from parameters is cached."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from lalic_kernels.biwkv import gpu as biwkv
from lalic_kernels.launch import architecture
from lalic_kernels.mix import gpu as mix
from lalic_kernels.mix import torch_path
from lalic_kernels.shift import gpu as shift

if TYPE_CHECKING:
    from lalic_kernels.block.op import BlockParameters


class Weights(NamedTuple):
    """A block's parameters for the kernels, contiguous: matrices in x's dtype; norms, taps and gammas in float32."""

    norm1: tuple[Tensor, Tensor]
    taps1: Tensor
    kvr: Tensor
    output: Tensor
    gamma1: Tensor
    norm2: tuple[Tensor, Tensor]
    taps2: Tensor
    channel: tuple[Tensor, Tensor, Tensor]
    gamma2: Tensor


@torch.no_grad()
def weights(p: BlockParameters, dtype: torch.dtype) -> Weights:
    """The parameters in the kernels' layout, for a dtype of x."""

    def plain(x: Tensor, to: torch.dtype = torch.float32) -> Tensor:
        return x.detach().to(to).contiguous()

    return Weights(
        shift.plain(p.norm1_weight, p.norm1_bias),
        shift.taps(p.shift1),
        torch.cat([plain(x, dtype) for x in (p.key, p.value, p.receptance)]),
        plain(p.output, dtype),
        plain(p.gamma1),
        shift.plain(p.norm2_weight, p.norm2_bias),
        shift.taps(p.shift2),
        (plain(p.channel_key, dtype), plain(p.channel_receptance, dtype), plain(p.channel_value, dtype)),
        plain(p.gamma2),
    )


@torch.no_grad()
def powers(p: BlockParameters, tokens: int, itemsize: int) -> tuple[Tensor, Tensor, Tensor]:
    """decay / T, boost / T, and BiWKV's table of their powers, for T tokens."""
    w, u = (x.detach().float() / tokens for x in (p.decay, p.boost))
    choice = biwkv.choose("forward", architecture(w.device), tokens, w.shape[0], itemsize)
    return w, u, biwkv.make_factors(w, u, choice.chunk)


def rwkv_block(x: Tensor, p: BlockParameters) -> Tensor:
    """The block without gradients. x (B, H, W, C): contiguous, at least two tokens, not float64."""
    batch, height, width, channels = x.shape
    tokens, dtype = height * width, x.dtype
    w: Weights = p.cache.get(("weights", dtype), p.tensors(), lambda: weights(p, dtype))
    made = p.cache.get(("powers", dtype, tokens), (p.decay, p.boost), lambda: powers(p, tokens, x.element_size()))
    decay, boost, factors = made
    s = torch.empty_like(x)
    shift.shift(x, w.taps1, s, w.norm1, p.eps)
    k, v, r = mix.linear(s.view(batch, tokens, channels), w.kvr, 3)
    y = biwkv.forward(decay, boost, k, v, r, factors)
    x = mix.linear(y, w.output, 1, x, w.gamma1).view_as(x)
    shift.shift(x, w.taps2, s, w.norm2, p.eps)
    flat, residual = s.view(-1, channels), x.view(-1, channels)
    result = mix.channel_mix(flat, *w.channel, residual, w.gamma2)
    if result is None:  # no launch configuration for so many channels
        result = torch_path.channel_forward(flat, *w.channel, residual, w.gamma2)
    return result.view_as(x)
