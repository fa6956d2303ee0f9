"""The exact blocks on CPUs in few calls: `blocks.py`'s bits, rows kept in the cache from one product to the next.

A block's input is looked at once: everything that follows from finite numbers is finite by definition.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lalic_kernels.exact import cpu, cpu_rows, reference
from lalic_kernels.exact.blocks import ExactBlock, ExactEntropyParams
from lalic_kernels.exact.cpu_product import Factor
from lalic_kernels.exact.quantise import settle
from lalic_kernels.exact.weights import ExactLinear


def _hidden(key: ExactLinear, receptance: ExactLinear) -> Factor:
    """key and receptance as one product: each output has a scale of its own, so that nothing changes."""
    weight = torch.cat((key.weight, receptance.weight))
    return cpu.factor_of(weight, torch.cat((key.exponent, receptance.exponent)), None)


class _Entropy(NamedTuple):
    mix: Factor
    norm: tuple[np.ndarray, np.ndarray]
    hidden: Factor
    value: Factor
    no_mix: Factor  # of no inputs and no bias, for a caller that has m


def _entropy(block: ExactEntropyParams) -> _Entropy:
    found: _Entropy | None = block.kept.get("cpu")
    if found is None:
        mix = cpu.linear_factor(block.mix)
        found = block.kept["cpu"] = _Entropy(
            mix,
            (cpu.array(settle(block.norm_weight)), cpu.array(settle(block.norm_bias))),
            _hidden(block.key, block.receptance),
            cpu.linear_factor(block.value),
            (mix[0][:, :0].copy(), mix[1], np.zeros_like(mix[2]), mix[3]),
        )
    return found


def _entropy_rows(x: np.ndarray, partial: np.ndarray, mix: Factor, own: _Entropy, eps: float) -> np.ndarray:
    count, channels = max(x.shape[0], partial.shape[0]), own.norm[0].shape[0]
    y, bits = np.empty((count, channels), np.float32), np.empty(count, np.int32)
    offset, nothing = cpu.norm_offset(channels, eps), cpu.NOTHING

    def part(i: int, j: int) -> None:
        cpu_rows.entropy_rows(x, partial, mix, *own.norm, offset, own.hidden, own.value, nothing, i, j, bits, y)

    cpu.over(part, count, cpu.product_cost(mix, own.hidden, own.value) + 5 * channels)
    cpu.finite(bits)
    return y


def entropy_params(x: Tensor, block: ExactEntropyParams, eps: float = 1e-5, partial: Tensor | None = None) -> Tensor:
    """As `blocks.entropy_params`, in one call."""
    cpu.require(x)
    own = _entropy(block)
    channels = own.norm[0].shape[0]
    reference.check_norm(block.norm_weight, eps)
    shape = (*x.shape[:-1], channels)
    if 0 in shape:
        return torch.empty(shape)
    rows = cpu.array(x).reshape(-1, x.shape[-1]) if x.shape[-1] else np.empty((x.shape[:-1].numel(), 0), np.float32)
    known = np.empty((0, channels), np.float32)
    if partial is not None:
        cpu.require(partial)
        known = cpu.array(partial).reshape(-1, channels)
    return torch.from_numpy(_entropy_rows(rows, known, own.mix, own, eps)).reshape(shape)


def entropy_params_tail(m: Tensor, block: ExactEntropyParams, eps: float = 1e-5) -> Tensor:
    """As `blocks.entropy_params_tail`, in one call."""
    cpu.require(m)
    reference.check_norm(m, eps)
    if m.numel() == 0:
        return torch.empty(m.shape)
    own, known = _entropy(block), cpu.array(m).reshape(-1, m.shape[-1])
    nothing = np.empty((known.shape[0], 0), np.float32)
    return torch.from_numpy(_entropy_rows(nothing, known, own.no_mix, own, eps)).reshape(m.shape)


class _Block(NamedTuple):
    norm1: tuple[np.ndarray, np.ndarray]
    mix: Factor
    output: Factor
    gamma1: np.ndarray
    norm2: tuple[np.ndarray, np.ndarray]
    hidden: Factor
    value: Factor
    gamma2: np.ndarray


def _block(block: ExactBlock) -> _Block:
    found: _Block | None = block.kept.get("cpu")
    if found is None:
        found = block.kept["cpu"] = _Block(
            (cpu.array(settle(block.norm1_weight)), cpu.array(settle(block.norm1_bias))),
            cpu.linear_factor(block.mix),
            cpu.linear_factor(block.output),
            cpu.array(settle(block.gamma1)),
            (cpu.array(settle(block.norm2_weight)), cpu.array(settle(block.norm2_bias))),
            _hidden(block.key, block.receptance),
            cpu.linear_factor(block.value),
            cpu.array(settle(block.gamma2)),
        )
    return found


def per_token(block: ExactBlock, tokens: int) -> tuple[Tensor, Tensor]:
    """decay / T and boost / T as the block's definition has them."""
    # By a tensor: torch may divide by a number as a product with its reciprocal, which is rounded twice.
    count = torch.full_like(block.decay, tokens)
    return settle(block.decay / count), settle(block.boost / count)


def _wkv_factors(block: ExactBlock, tokens: int) -> Any:
    """Those of the last number of tokens are kept."""
    found = block.kept.get("cpu wkv")
    if found is None or found[0] != tokens:
        found = block.kept["cpu wkv"] = tokens, cpu.wkv_factors(*per_token(block, tokens), tokens)
    return found[1]


def rwkv_block(x: Tensor, block: ExactBlock, eps: float = 1e-5) -> Tensor:
    """As `blocks.rwkv_block`."""
    cpu.require(x)
    reference.check_norm(x, eps)
    if x.numel() == 0:
        return torch.empty(x.shape)
    batch, height, width, channels = x.shape
    own, tokens, size = _block(block), height * width, batch * height * width
    flat, offset = cpu.array(x).reshape(-1, channels), cpu.norm_offset(channels, eps)
    normal = cpu.normalise(flat, *own.norm1, eps).reshape(x.shape)
    s = cpu.shift(normal, block.shift1, trusted=True).reshape(flat.shape)
    kvr = cpu.multiply(s, own.mix, trusted=True).numpy()
    places, factors = (0, channels, 2 * channels), _wkv_factors(block, tokens)
    mixed = cpu.mix_tokens(kvr, kvr, kvr, places, factors, batch)
    y, normal = np.empty(flat.shape, np.float32), np.empty(flat.shape, np.float32)

    def between(i: int, j: int) -> None:
        cpu_rows.residual_norm_rows(flat, mixed, own.output, own.gamma1, *own.norm2, offset, i, j, y, normal)

    cpu.over(between, size, cpu.product_cost(own.output) + 4 * channels)
    s = cpu.shift(normal.reshape(x.shape), block.shift2, trusted=True).reshape(flat.shape)
    cpu.over(
        lambda i, j: cpu_rows.channel_mix_rows(s, own.hidden, own.value, own.gamma2, i, j, y),
        size,
        cpu.product_cost(own.hidden, own.value) + 3 * channels,
    )
    return torch.from_numpy(y).reshape(x.shape)
