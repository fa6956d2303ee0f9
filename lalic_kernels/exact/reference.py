"""Exact arithmetic by its definition: eager torch, the same bits on every device. docs/exact-arithmetic.md.

First the steps, then the blocks, which are compositions of the steps in the order of this file. Activations are float32
and finite (TypeError, NotFinite otherwise). Results are settled (`quantise.settle`), and depend on one image only,
not on the batch. Products are computed in float64 on integers below 2^53, which is exact in any order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lalic_kernels.exact import numbers as n
from lalic_kernels.exact.quantise import (
    dequantise,
    leading_exponent,
    magnitude_bits,
    power_of_two,
    quantise,
    settle,
)  # fmt: skip
from lalic_kernels.exact.weights import ExactBlock, ExactConv, ExactDepthwise, ExactEntropyParams, ExactLinear


def check(x: Tensor) -> None:
    """Raise TypeError unless x is float32, ValueError unless it is finite."""
    if x.numel():
        magnitude_bits(x.reshape(-1), (0,))


def linear(x: Tensor, prepared: ExactLinear) -> Tensor:
    """x (..., K) -> (..., O). Each row of K values has one scale."""
    q, exponent = quantise(x, (-1,))
    sums = q.double() @ prepared.weight.double().t()
    return dequantise(sums, exponent, prepared.exponent, prepared.bias)


def conv(x: Tensor, prepared: ExactConv) -> Tensor:
    """x (B, H, W, C) -> (B, H', W', O). Each image has one scale."""
    q, exponent = quantise(x, (1, 2, 3))
    batch, height, width, _ = x.shape
    rows, columns = prepared.output_size(height), prepared.output_size(width)
    outputs = prepared.weight.shape[0]
    out_step, in_step = (prepared.stride, 1) if prepared.transposed else (1, prepared.stride)
    sums = torch.zeros(batch, rows, columns, outputs, dtype=torch.float64, device=x.device)
    for phase in prepared.phases:
        if not phase.taps:
            continue
        target = sums[:, phase.row :: out_step, phase.column :: out_step]
        count = target.shape[1:3]
        parts = [_window(q.double(), dy, dx, count, in_step) for dy, dx in phase.offsets]
        weight = prepared.weight[:, list(phase.taps)].double().flatten(1)
        target.copy_(torch.cat(parts, dim=3) @ weight.t())
    return dequantise(sums, exponent, prepared.exponent, prepared.bias)


def _window(x: Tensor, dy: int, dx: int, count: torch.Size, step: int) -> Tensor:
    """x[:, dy + step i, dx + step j] for i, j below count, zero outside."""
    last_row, last_column = dy + step * (count[0] - 1), dx + step * (count[1] - 1)
    top, left = max(0, -dy), max(0, -dx)
    bottom, right = max(0, last_row + 1 - x.shape[1]), max(0, last_column + 1 - x.shape[2])
    x = F.pad(x, (0, 0, left, right, top, bottom))
    return x[:, dy + top : last_row + top + 1 : step, dx + left : last_column + left + 1 : step]


def depthwise(x: Tensor, prepared: ExactDepthwise) -> Tensor:
    """x (B, H, W, C) -> (B, H, W, C), zero padding. Each channel of each image has one scale."""
    q, exponent = quantise(x, (1, 2))
    size = prepared.weight.shape[-1]
    sums = torch.zeros_like(q)
    for ky in range(size):
        for kx in range(size):
            window = _window(q, ky - size // 2, kx - size // 2, x.shape[1:3], 1)
            sums = sums + window * prepared.weight[:, ky, kx].to(torch.int32)
    return dequantise(sums, exponent, prepared.exponent, None)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = n.NORM_EPS) -> Tensor:
    """LayerNorm over the last dimension (C up to 4096) from integers of 17 bits, whose sums are exact in any order.

    weight, bias: (C,). eps: 2^-30 to 2^-10, rounded to float32, so that it stays a normal number for every scale of x.
    """
    channels = x.shape[-1]
    check_norm(x, eps)
    exponent = leading_exponent(magnitude_bits(x, (-1,)), n.NORM_MIN_EXPONENT)
    bound = 2.0**n.NORM_BITS
    scaled = (x * power_of_two(n.NORM_BITS - 1 - exponent)).clamp(-bound, bound)
    q = torch.round(scaled).to(torch.int64)
    total = q.sum(dim=-1, keepdim=True)
    variance = channels * (q * q).sum(dim=-1, keepdim=True) - total * total  # times C^2
    offset = torch.tensor(eps, dtype=torch.float32, device=x.device) * float(channels * channels)
    half = power_of_two(n.NORM_BITS - 1 - exponent)
    rstd = _reciprocal_root(variance.to(torch.float32) + (offset * half) * half)
    normal = (channels * q - total).to(torch.float32) * rstd
    return settle(normal * settle(weight) + settle(bias))


def _reciprocal_root(x: Tensor) -> Tensor:
    """1 / sqrt(x) of normal x > 0, from a first guess by its bits and three Newton steps; relative error 2e-7.

    torch's square root on CPUs may come from a vector library that does not round correctly.
    """
    y = (n.ROOT_GUESS - (x.view(torch.int32) >> 1)).view(torch.float32)
    half = 0.5 * x
    for _ in range(3):
        y = y * (1.5 - (half * y) * y)
    return y


def check_norm(x: Tensor, eps: float = n.NORM_EPS) -> None:
    """Raise ValueError unless `layer_norm` is defined for x (..., C) and eps."""
    if not 0 < x.shape[-1] <= n.NORM_MAX_CHANNELS:
        raise ValueError(f"layer_norm: x must have 1 to {n.NORM_MAX_CHANNELS} channels, but has {x.shape[-1]}")
    if not 2.0**-30 <= eps <= 2.0**-10:
        raise ValueError(f"layer_norm: eps must be in 2^-30 to 2^-10, but is {eps}")


def exp(x: Tensor) -> Tensor:
    """exp of x clipped to +-41.5, so that the result is in 2^-60..2^60; relative error about 1e-7."""
    check(x)
    return _exp(x)


def _exp(x: Tensor) -> Tensor:
    x = x.clamp(-n.EXP_RANGE, n.EXP_RANGE)
    turns = torch.round(x * n.LOG2E)
    r = x - turns * n.LN2_HIGH
    r = r - turns * n.LN2_LOW
    p = torch.full_like(r, n.EXP_POLYNOMIAL[0])
    for c in n.EXP_POLYNOMIAL[1:]:
        p = p * r
        p = p + c
    y = p * (r * r)
    y = y + r
    y = y + 1.0
    return y * power_of_two(turns.to(torch.int32))


def exp64(x: Tensor) -> Tensor:
    """exp in float64 for |x| up to 300; relative error about 1e-14."""
    turns = torch.round(x * n.LOG2E_64)
    r = x - turns * n.LN2_HIGH_64
    r = r - turns * n.LN2_LOW_64
    p = torch.full_like(r, n.EXP64_POLYNOMIAL[0])
    for c in n.EXP64_POLYNOMIAL[1:]:
        p = p * r
        p = p + c
    y = p * (r * r)
    y = y + r
    y = y + 1.0
    return y * ((turns.to(torch.int64) + 1023) << 52).view(torch.float64)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + z) where x >= 0, else z / (1 + z), with z = exp(-|x|)."""
    check(x)
    z = _exp(-x.abs())
    return torch.where(x >= 0, torch.ones_like(z), z) / (1.0 + z)


def squared_relu(x: Tensor) -> Tensor:
    """x x where x > 0, else +0; settled."""
    check(x)
    return settle(torch.where(x > 0, x * x, torch.zeros_like(x)))


def gate(r: Tensor, x: Tensor) -> Tensor:
    """sigmoid(r) x, settled."""
    check(x)
    return settle(sigmoid(r) * x)


def residual(x: Tensor, change: Tensor, gamma: Tensor | None = None) -> Tensor:
    """x + settle(gamma change), settled; gamma (C,) or None for x + change."""
    check(x)
    check(change)
    if gamma is not None:
        change = settle(settle(gamma) * change)
    return settle(x + change)


def biwkv(w: Tensor, u: Tensor, k: Tensor, v: Tensor, gate_by: Tensor | None = None) -> Tensor:
    """Bidirectional WKV (`lalic_kernels.biwkv`): w, u (C,), k, v (B, T, C) -> (B, T, C); with a gate sigmoid(gate) y.

    In float64, sequential inside chunks of 64 tokens and over chunks, in a fixed order. Clipped: |w| T to 256, |u| to
    80, k to at most 300 below its channel's maximum over the image. Then every number is normal, and no denominator is
    zero, so that every finite input has a finite result.
    """
    for x in (w, u, k, v, *(() if gate_by is None else (gate_by,))):
        check(x)
    batch, tokens, channels = k.shape
    if k.numel() == 0:
        return torch.empty_like(k)
    limit = n.DECAY_RANGE / tokens
    w64 = w.double().clamp(-limit, limit)
    decay, jump = exp64(-w64), exp64(-w64 * min(n.CHUNK, tokens))
    boost = exp64(u.double().clamp(-n.BOOST_RANGE, n.BOOST_RANGE))
    k64 = k.double()
    p = exp64((k64 - k64.amax(dim=1, keepdim=True)).clamp(min=n.EXP64_FLOOR))
    pv = p * settle(v).double()
    chunks = -(-tokens // n.CHUNK)
    missing = chunks * n.CHUNK - tokens  # padded with tokens of weight 0, which add exactly 0 to every sum
    terms = torch.stack((pv, p))  # (2, B, T, C)
    by_chunk = F.pad(terms, (0, 0, 0, missing)).reshape(2, batch, chunks, n.CHUNK, channels)
    sides = [_before(by_chunk, decay, jump), _before(by_chunk.flip(2, 3), decay, jump).flip(2, 3)]
    left, right = (side.reshape(2, batch, -1, channels)[:, :, :tokens] for side in sides)
    self_weight = boost * p
    num = (left[0] + right[0]) + self_weight * settle(v).double()
    y = settle((num / ((left[1] + right[1]) + self_weight)).to(torch.float32))
    return y if gate_by is None else gate(gate_by, y)


def _before(x: Tensor, decay: Tensor, jump: Tensor) -> Tensor:
    """For each token the decayed sum of the tokens before it. x (2, B, chunks, 64, C) -> the same shape."""
    chunk_sum = torch.zeros_like(x[:, :, :, 0])
    for i in range(n.CHUNK):
        chunk_sum = chunk_sum * decay + x[:, :, :, i]
    entering = [torch.zeros_like(chunk_sum[:, :, 0])]
    for j in range(x.shape[2] - 1):
        entering.append(entering[-1] * jump + chunk_sum[:, :, j])
    state = torch.stack(entering, dim=2)
    before = torch.empty_like(x)
    for i in range(n.CHUNK):
        before[:, :, :, i] = state
        state = state * decay + x[:, :, :, i]
    return before


def scale_index(scales: Tensor) -> Tensor:
    """The number of the 63 shipped thresholds that are below each scale: int32 of its shape, 0..63."""
    check(scales)
    thresholds = torch.tensor(n.THRESHOLDS, dtype=torch.float32, device=scales.device)
    return torch.bucketize(scales, thresholds).to(torch.int32)


def gaussian_head(parameters: Tensor) -> tuple[Tensor, Tensor]:
    """parameters (..., 2 g), g scales, then g means -> (scale indexes int32, means), each (..., g)."""
    scales, means = parameters.chunk(2, dim=-1)
    check(means)
    return scale_index(scales.contiguous()), means.contiguous()


def rwkv_block(x: Tensor, block: ExactBlock) -> Tensor:
    """x (B, H, W, C) -> (B, H, W, C): x + gamma1 SpatialMix(shift(LN x)), then x + gamma2 ChannelMix(shift(LN x))."""
    batch, height, width, channels = x.shape
    tokens = height * width
    s = depthwise(layer_norm(x, block.norm1_weight, block.norm1_bias), block.shift1)
    k, v, r = linear(s, block.mix).reshape(batch, tokens, 3 * channels).split(channels, dim=2)
    w, u = block.per_token(tokens)
    mixed = biwkv(w, u, k, v, r).reshape(x.shape)
    x = residual(x, linear(mixed, block.output), block.gamma1)
    s = depthwise(layer_norm(x, block.norm2_weight, block.norm2_bias), block.shift2)
    return residual(x, _channel_mix(s, block), block.gamma2)


def _channel_mix(x: Tensor, weights: ExactBlock | ExactEntropyParams) -> Tensor:
    """sigmoid(R x) V relu(K x)^2."""
    value = linear(squared_relu(linear(x, weights.key)), weights.value)
    return gate(linear(x, weights.receptance), value)


def rwkv_blocks(x: Tensor, sequence: Sequence[ExactBlock]) -> Tensor:
    """x (B, H, W, C) -> (B, H, W, C): `rwkv_block` with one block after the other."""
    for block in sequence:
        x = rwkv_block(x, block)
    return x


def entropy_params(x: Tensor, block: ExactEntropyParams, partial: Tensor | None = None) -> Tensor:
    """x (..., Cin) -> (..., Cout): m = mix x + partial; m + sigmoid(R n) V relu(K n)^2 with n = LayerNorm(m).

    `partial` (..., Cout) is added to the first product in float32. With Cin = 0 the mix is its bias alone.
    """
    if x.shape[-1]:
        m = linear(x, block.mix)
    else:
        m = x.new_zeros(*x.shape[:-1], block.norm_weight.shape[0])
        m = m if block.mix.bias is None else m + block.mix.bias
    m = m if partial is None else m + partial
    return residual(m, _channel_mix(layer_norm(m, block.norm_weight, block.norm_bias), block))
