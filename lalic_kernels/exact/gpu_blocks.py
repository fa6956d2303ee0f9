"""The exact blocks in few launches: `blocks.py`, with what follows a product in the launch of the product."""

from __future__ import annotations

import torch
from torch import Tensor

from lalic_kernels.exact import gpu, reference
from lalic_kernels.exact.blocks import ExactBlock, ExactEntropyParams, first_product
from lalic_kernels.exact.quantise import settle
from lalic_kernels.exact.weights import ExactLinear


def _hidden(key: ExactLinear, receptance: ExactLinear) -> gpu.Factor:
    """key and receptance as one product: each output has a scale of its own, so that nothing changes."""
    name = "triton", id(receptance)
    if name not in key.kept:
        weight = torch.cat((key.weight, receptance.weight))
        exponent = torch.cat((key.exponent, receptance.exponent))
        key.kept[name] = receptance, gpu.Factor(weight, exponent, None)
    found: gpu.Factor = key.kept[name][1]
    return found


def _channel_mix(
    x: gpu.Rows, weights: ExactEntropyParams | ExactBlock, flat: Tensor, gamma: Tensor | None, status: Tensor
) -> Tensor:
    """flat + gamma (sigmoid(R x) V relu(K x)^2) in three launches; flat (rows, C)."""
    inner = weights.key.weight.shape[0]
    first = gpu.product(x, _hidden(weights.key, weights.receptance), squared=inner)  # (rows, inner + C)
    hidden = gpu.digits_of(first, status, inner)
    return gpu.product(hidden, gpu.factor_of(weights.value), gate=first[:, inner:], residual=flat, gamma=gamma)


def entropy_params(x: Tensor, block: ExactEntropyParams, eps: float = 1e-5, partial: Tensor | None = None) -> Tensor:
    """As `blocks.entropy_params`, in two launches and those of the tail."""
    return entropy_params_tail(first_product(x, block, partial, "triton"), block, eps)


def entropy_params_tail(m: Tensor, block: ExactEntropyParams, eps: float = 1e-5) -> Tensor:
    """As `blocks.entropy_params_tail`, in four launches: norm and digits, first products, digits, the rest."""
    gpu.require(m)
    reference.check_norm(m, eps)
    if m.numel() == 0:
        return torch.empty_like(m)
    flat = m.contiguous().reshape(-1, m.shape[-1])
    with gpu.checked(m.device) as status:
        normal = gpu.Rows(flat.shape[0], flat.shape[1], m.device)
        gpu.normalise(flat, block.norm_weight, block.norm_bias, eps, flat, normal, status)
        return _channel_mix(normal, block, flat, None, status).reshape(m.shape)


def rwkv_block(x: Tensor, block: ExactBlock, eps: float = 1e-5) -> Tensor:
    """As `blocks.rwkv_block`, with what follows a product in that product's launch."""
    gpu.require(x)
    reference.check_norm(x, eps)
    if x.numel() == 0:
        return torch.empty_like(x)
    images, height, width, channels = x.shape
    tokens = height * width
    decay, boost = _per_token(block, tokens)
    flat = x.contiguous().reshape(-1, channels)
    with gpu.one_check(), gpu.checked(x.device) as status:
        s = gpu.depthwise(gpu.layer_norm(x, block.norm1_weight, block.norm1_bias, eps), block.shift1)
        mixed = gpu.linear(s, block.mix).reshape(images, tokens, 3 * channels)
        mixed = gpu.biwkv(decay, boost, *mixed.split(channels, dim=2)).reshape(-1, channels)
        flat = gpu.product(
            gpu.digits_of(mixed, status, channels), gpu.factor_of(block.output), residual=flat, gamma=block.gamma1
        )
        s = gpu.depthwise(
            gpu.layer_norm(flat.reshape(x.shape), block.norm2_weight, block.norm2_bias, eps), block.shift2
        )
        return _channel_mix(
            gpu.digits_of(s.reshape(-1, channels), status, channels), block, flat, block.gamma2, status
        ).reshape(x.shape)


def _per_token(block: ExactBlock, tokens: int) -> tuple[Tensor, Tensor]:
    """decay / T and boost / T as the block's definition has them; those of the last T are kept."""
    found = block.mix.kept.get("triton per token")
    if found is None or found[0] != tokens:
        count = torch.full_like(block.decay, tokens)
        found = tokens, settle(block.decay / count), settle(block.boost / count)
        block.mix.kept["triton per token"] = found
    return found[1], found[2]
