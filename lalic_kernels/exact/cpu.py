"""Exact arithmetic on CPUs with compiled loops and integer products: the bits of `reference.py`, in less time.

This file checks arguments, allocates work space and starts threads; `cpu_loops.py` computes. Rows stay in the cache
from one product to the next. Only inputs are checked for infinities: all results of finite numbers are finite by
definition. Importing this file needs numba.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lalic_kernels.exact import cpu_loops as loops
from lalic_kernels.exact import cpu_product as products
from lalic_kernels.exact import numbers as n
from lalic_kernels.exact import reference
from lalic_kernels.exact.cpu_product import Factor
from lalic_kernels.exact.quantise import power_of_two, require_float32, settle
from lalic_kernels.exact.weights import ExactBlock, ExactConv, ExactDepthwise, ExactEntropyParams, ExactLinear
from lalic_kernels.threads import run_ranges

MIN_THREAD_NS = 60_000  # least work for a thread: starting one from Python takes about 30 us
_NO_GAMMA = np.empty(0, np.float32)
_THRESHOLDS = np.array(n.THRESHOLDS, np.float32)


def array(x: Tensor) -> np.ndarray:
    """A tensor as a contiguous array, without a copy if possible."""
    return x.detach().contiguous().numpy()


def require_finite(bits: np.ndarray) -> None:
    """Raise `NotFinite` unless these magnitude bits are those of finite numbers."""
    if bits.size and int(bits.max()) >= n.INFINITY:
        raise n.NotFinite


def over(kernel: Callable[[int, int], None], count: int, cost: float) -> None:
    """Run `kernel` over `count` rows that take about `cost` ns each, on several threads if that saves time.

    Costs are rough, from a processor with AVX-512; results do not depend on them.
    """
    run_ranges(kernel, count, least=max(1, int(MIN_THREAD_NS / max(cost, 1e-3))))


# Products


def _product_cost(*factors: Factor) -> float:
    """Nanoseconds for a row in these products, including quantisation and epilogue."""
    sizes = [(2 * w.shape[1], products.LANES * w.shape[0]) for w, *_ in factors]
    return sum(0.7 * terms + outputs + 0.012 * terms * outputs for terms, outputs in sizes)


def factor_of(weight: Tensor, exponent: Tensor, bias: Tensor | None) -> Factor:
    """A weight's integers (O, K), scales and bias in the layout of `cpu_loops`."""
    scales = array(power_of_two(exponent - (n.BITS - 1)))
    packed, chunk = products.pack(array(weight))
    return packed, scales, np.zeros(scales.shape, np.float32) if bias is None else array(bias), chunk


def _linear_factor(weights: ExactLinear) -> Factor:
    factor: Factor = weights.cache.get("cpu", (), lambda: factor_of(weights.weight, weights.exponent, weights.bias))
    return factor


def _hidden_factor(key: ExactLinear, receptance: ExactLinear) -> Factor:
    """key and receptance as one product; each output keeps its scale, so the bits stay the same."""
    weight = torch.cat((key.weight, receptance.weight))
    return factor_of(weight, torch.cat((key.exponent, receptance.exponent)), None)


def _multiply(x: np.ndarray, factor: Factor) -> tuple[Tensor, np.ndarray]:
    """The product (R, O) of x (R, K), and the magnitude bits (R,) of x's rows."""
    y, bits = (
        torch.empty(x.shape[0], factor[1].shape[0], dtype=torch.float32, device="cpu"),
        np.empty(x.shape[0], np.int32),
    )
    out = y.numpy()
    over(lambda i, j: loops.linear_rows(x, factor, i, j, bits, out), x.shape[0], _product_cost(factor))
    return y, bits


def linear(x: Tensor, weights: ExactLinear) -> Tensor:
    """x (..., K) -> (..., O)."""
    require_float32(x)
    shape = (*x.shape[:-1], weights.weight.shape[0])
    if 0 in shape:
        return torch.empty(shape, dtype=torch.float32, device="cpu")
    y, bits = _multiply(array(x).reshape(-1, x.shape[-1]), _linear_factor(weights))
    require_finite(bits)
    return y.reshape(shape)


# Convolution


class _Phase(NamedTuple):
    """A phase of a convolution: (row, column) of its first output, offsets of its taps, its weights."""

    corner: tuple[int, int]
    taps: np.ndarray
    factor: Factor


def _make_phases(weights: ExactConv) -> tuple[_Phase, ...]:
    return tuple(
        _Phase(
            (phase.row, phase.column),
            np.array(phase.offsets, np.int64).reshape(-1, 2),
            factor_of(weights.weight[:, list(phase.taps)].flatten(1), weights.exponent, weights.bias),
        )
        for phase in weights.phases
    )


def conv(x: Tensor, weights: ExactConv) -> Tensor:
    """x (B, H, W, C) -> (B, H', W', O)."""
    require_float32(x)
    phases: tuple[_Phase, ...] = weights.cache.get("cpu", (), lambda: _make_phases(weights))
    batch, height, width, channels = x.shape
    rows, columns = weights.output_size(height), weights.output_size(width)
    y = torch.empty(batch, rows, columns, weights.weight.shape[0], dtype=torch.float32, device="cpu")
    if y.numel() == 0:
        return y
    flat, size = array(x).reshape(-1, channels), height * width
    absmax_bits = _channel_absmax(flat, batch).max(axis=1)
    require_finite(absmax_bits)
    q, out = np.empty(flat.shape, np.int16), y.numpy()
    over(lambda i, j: loops.quantise_image(flat, absmax_bits, size, i, j, q), flat.shape[0], 0.4 * channels)
    out_step, in_step = (weights.stride, 1) if weights.transposed else (1, weights.stride)
    for corner, taps, factor in phases:
        shape = (-(-(rows - corner[0]) // out_step), -(-(columns - corner[1]) // out_step))

        def part(i: int, j: int) -> None:
            loops.conv_rows(
                q, absmax_bits, taps, (height, width), shape, in_step, out_step, corner, factor, i, j, out  # noqa: B023
            )  # fmt: skip

        over(part, batch * shape[0] * shape[1], _product_cost(factor))
    return y


# RWKV block


class _Block(NamedTuple):
    """A block's weights in the loops' layout: norms (weight, bias), shifts (taps (k k C), scales (C,)), factors."""

    norm1: tuple[np.ndarray, np.ndarray]
    shift1: tuple[np.ndarray, np.ndarray]
    mix: Factor
    output: Factor
    gamma1: np.ndarray
    norm2: tuple[np.ndarray, np.ndarray]
    shift2: tuple[np.ndarray, np.ndarray]
    hidden: Factor
    value: Factor
    gamma2: np.ndarray


def _make_block(block: ExactBlock) -> _Block:
    return _Block(
        (array(settle(block.norm1_weight)), array(settle(block.norm1_bias))),
        shift_taps(block.shift1),
        _linear_factor(block.mix),
        _linear_factor(block.output),
        array(settle(block.gamma1)),
        (array(settle(block.norm2_weight)), array(settle(block.norm2_bias))),
        shift_taps(block.shift2),
        _hidden_factor(block.key, block.receptance),
        _linear_factor(block.value),
        array(settle(block.gamma2)),
    )


def shift_taps(weights: ExactDepthwise) -> tuple[np.ndarray, np.ndarray]:
    """A shift's integers (k k C) int32, tap by tap, and its channels' scales (C,)."""
    taps = np.ascontiguousarray(array(weights.weight).astype(np.int32).transpose(1, 2, 0)).reshape(-1)
    return taps, array(power_of_two(weights.exponent - (n.BITS - 1)))


def shift(x: np.ndarray, taps: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Depth-wise convolution of finite x (B, H, W, C), not empty; taps and scales from `shift_taps`."""
    batch, height, width, channels = x.shape
    kernel, lines = math.isqrt(taps.shape[0] // channels), batch * height
    edge, flat = kernel // 2, x.reshape(-1)
    absmax_bits = _channel_absmax(flat.reshape(-1, channels), batch)
    q, y = np.empty(lines * (width + 2 * edge) * channels, np.int32), np.empty(x.shape, np.float32)
    size, out = width * channels, y.reshape(-1)
    over(lambda i, j: loops.integers_of_image(flat, absmax_bits, height, width, edge, i, j, q), lines, 0.5 * size)
    over(
        lambda i, j: loops.depthwise_lines(q, taps, kernel, absmax_bits, scales, height, width, i, j, out),
        lines,
        0.15 * size * kernel**2,
    )
    return y


def _channel_absmax(flat: np.ndarray, batch: int) -> np.ndarray:
    """Magnitude bits (B, C) of each channel of each image, from (B P, C)."""
    size, channels = flat.shape[0] // batch, flat.shape[1]
    images, absmax_bits = flat.view(np.int32).reshape(batch, size, channels), np.empty((batch, channels), np.int32)
    step = max(1, 16384 // channels)
    for b in range(batch):
        parts = np.empty((-(-size // step), channels), np.int32)
        image = images[b]
        over(lambda i, j: loops.absmax_of_channels(image, step, i, j, parts), parts.shape[0], 0.2 * step * channels)  # noqa: B023
        absmax_bits[b] = parts.max(axis=0)
    return absmax_bits


def norm_offset(channels: int) -> np.float32:
    """eps C^2 of the definition, one float32 product."""
    return np.float32(np.float32(n.NORM_EPS) * np.float32(channels**2))


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """LayerNorm of rows (R, C), which must be finite; weight and bias (C,) settled."""
    y, bits, offset = np.empty(x.shape, np.float32), np.zeros(x.shape[0], np.int32), norm_offset(x.shape[1])
    over(lambda i, j: loops.layer_norm_rows(x, weight, bias, offset, i, j, bits, y), x.shape[0], 1.5 * x.shape[1])
    require_finite(bits)
    return y


def wkv_factors(w: Tensor, u: Tensor, tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """decay, jump, boost (C,) float64 of w, u (C,), finite."""
    limit = n.DECAY_RANGE / tokens
    w64 = w.detach().double().clamp(-limit, limit)
    boosts = u.detach().double().clamp(-n.BOOST_RANGE, n.BOOST_RANGE)
    decay, jump, boost = reference.exp64(torch.stack((-w64, -w64 * min(n.CHUNK, tokens), boosts))).numpy()
    return decay, jump, boost


def wkv(kvr: np.ndarray, factors: tuple[np.ndarray, np.ndarray, np.ndarray], batch: int) -> np.ndarray:
    """The gated WKV (B T, C) of finite keys, values and gates, side by side in kvr (B T, 3 C)."""
    decay, jump, boost = factors
    channels, tokens = decay.shape[0], kvr.shape[0] // batch
    chunks, width = -(-tokens // n.CHUNK), n.CHUNK * channels
    max_key = kvr.reshape(batch, tokens, 3 * channels)[:, :, :channels].max(axis=1)
    weights, sums = np.empty((batch, tokens, 2, channels)), np.empty((batch * chunks, 4, channels))
    y = np.empty((batch * tokens, channels), np.float32)
    over(lambda i, j: loops.summaries(kvr, max_key, decay, i, j, weights, sums), batch * chunks, 5 * width)
    over(lambda i, j: loops.chain(jump, chunks, i, j, sums), batch, 4 * chunks * channels)
    over(lambda i, j: loops.values(kvr, weights, decay, boost, i, j, sums, y), batch * chunks, 7 * width)
    return y


def rwkv_blocks(x: Tensor, sequence: Sequence[ExactBlock]) -> Tensor:
    """x (B, H, W, C) through one block after the other."""
    for block in sequence:
        x = _rwkv_block(x, block)
    return x


def _rwkv_block(x: Tensor, block: ExactBlock) -> Tensor:
    require_float32(x)
    reference.check_norm(x)
    if x.numel() == 0:
        return torch.empty(x.shape, dtype=torch.float32, device="cpu")
    batch, height, width, channels = x.shape
    tokens, size = height * width, batch * height * width
    b: _Block = block.cache.get("cpu", (), lambda: _make_block(block))
    # Cached for the last number of tokens.
    factors = block.cache.get("cpu wkv", (), lambda: wkv_factors(*block.per_token(tokens), tokens), options=tokens)
    flat, offset = array(x).reshape(-1, channels), norm_offset(channels)
    s = shift(layer_norm(flat, *b.norm1).reshape(x.shape), *b.shift1).reshape(flat.shape)
    mixed = wkv(_multiply(s, b.mix)[0].numpy(), factors, batch)
    y, normal, bits = np.empty(flat.shape, np.float32), np.empty(flat.shape, np.float32), np.empty(size, np.int32)
    over(
        lambda i, j: loops.sum_norm_rows(mixed, b.output, flat, b.gamma1, *b.norm2, offset, i, j, bits, y, normal),
        size,
        _product_cost(b.output) + 4 * channels,
    )
    s = shift(normal.reshape(x.shape), *b.shift2).reshape(flat.shape)
    over(
        lambda i, j: loops.channel_mix_rows(s, b.hidden, b.value, b.gamma2, i, j, y),
        size,
        _product_cost(b.hidden, b.value) + 3 * channels,
    )
    return torch.from_numpy(y).reshape(x.shape)


# Entropy parameters and Gaussian head


class _Entropy(NamedTuple):
    """An entropy-parameter block's weights in the loops' layout."""

    mix: Factor
    norm: tuple[np.ndarray, np.ndarray]
    hidden: Factor
    value: Factor


def _make_entropy(block: ExactEntropyParams) -> _Entropy:
    return _Entropy(
        _linear_factor(block.mix),
        (array(settle(block.norm_weight)), array(settle(block.norm_bias))),
        _hidden_factor(block.key, block.receptance),
        _linear_factor(block.value),
    )


def entropy_params(x: Tensor, block: ExactEntropyParams, partial: Tensor | None = None) -> Tensor:
    """x (..., Cin), partial (..., Cout) -> (..., Cout)."""
    require_float32(x)
    b: _Entropy = block.cache.get("cpu", (), lambda: _make_entropy(block))
    channels = b.norm[0].shape[0]
    reference.check_norm(block.norm_weight)
    shape = (*x.shape[:-1], channels)
    if 0 in shape:
        return torch.empty(shape, dtype=torch.float32, device="cpu")
    rows = array(x).reshape(-1, x.shape[-1]) if x.shape[-1] else np.empty((x.shape[:-1].numel(), 0), np.float32)
    added = np.empty((0, channels), np.float32)
    if partial is not None:
        require_float32(partial)
        added = array(partial).reshape(-1, channels)
    count, offset = rows.shape[0], norm_offset(channels)
    y, normal = np.empty((count, channels), np.float32), np.empty((count, channels), np.float32)
    bits = np.empty(count, np.int32)

    def part(i: int, j: int) -> None:
        loops.sum_norm_rows(rows, b.mix, added, _NO_GAMMA, *b.norm, offset, i, j, bits, y, normal)
        loops.channel_mix_rows(normal, b.hidden, b.value, _NO_GAMMA, i, j, y)

    over(part, count, _product_cost(b.mix, b.hidden, b.value) + 5 * channels)
    require_finite(bits)
    return torch.from_numpy(y).reshape(shape)


def gaussian_head(parameters: Tensor) -> tuple[Tensor, Tensor]:
    """parameters (..., 2 g) -> (scale indexes int32, means), each (..., g), in one call of compiled code."""
    require_float32(parameters)
    width = parameters.shape[-1] // 2
    index, mean = (
        torch.empty((*parameters.shape[:-1], width), dtype=dtype, device="cpu")
        for dtype in (torch.int32, torch.float32)
    )
    if index.numel() == 0:
        return index, mean
    flat = array(parameters).reshape(-1, 2 * width)
    bits = np.empty(flat.shape[0], np.int32)
    indexes, means = index.numpy().reshape(-1, width), mean.numpy().reshape(-1, width)
    over(lambda i, j: loops.head_rows(flat, _THRESHOLDS, i, j, bits, indexes, means), flat.shape[0], 4 * width)
    require_finite(bits)
    return index, mean
