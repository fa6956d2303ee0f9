"""Weights prepared for exact products: quantised once, per output channel, with a hash.

Decoding depends on these integers and settled floats. `digest()` is their SHA-256, with the definition's version;
docs/exact-arithmetic.md defines the hashed bytes. Prepared weights are never written to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from lalic_kernels.cache import WeightCache
from lalic_kernels.exact.numbers import EXPONENT, LARGEST, MAX_TERMS, VERSION
from lalic_kernels.exact.quantise import quantise, settle


class Prepared:
    """The base of all prepared weights and blocks: a cache, and the move to a device."""

    @cached_property
    def cache(self) -> WeightCache:
        """The weights in the layouts of the backends, by name; not part of the digest."""
        return WeightCache()

    def to(self, device: torch.device | str) -> Self:
        """The same weights with their tensors on a device."""
        moved = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            moved[field.name] = value.to(device) if isinstance(value, Tensor | Prepared) else value
        return type(self)(**moved)


class PreparedWeight(Prepared):
    """The integers of one product."""

    def entries(self) -> dict[str, Tensor]:
        """The entries of `digest`, on the CPU: tensors, and sizes as int32 tensors, without None."""
        entries = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                entries[field.name] = value.cpu().contiguous()
            elif value is not None:
                entries[field.name] = torch.tensor(value, dtype=torch.int32, device="cpu")
        return entries

    def digest(self) -> str:
        """Hex SHA-256 of the definition's version, the class's name, and every entry's name, dtype, shape and bytes."""
        sha = hashlib.sha256(f"exact {VERSION} {type(self).__name__}".encode())
        for name, value in sorted(self.entries().items()):
            array = value.numpy()
            sha.update(f"{name} {array.dtype.name} {tuple(array.shape)}".encode())
            sha.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
        return sha.hexdigest()


class PreparedBlock(Prepared):
    """Prepared weights and settled float32 vectors, by name."""

    def digest(self) -> str:
        """Hex SHA-256 of the version, the class's name, and all fields' names and digests, in order."""
        sha = hashlib.sha256(f"exact {VERSION} {type(self).__name__}".encode())
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            raw = value.cpu().numpy().astype("<f4").tobytes() if isinstance(value, Tensor) else value.digest().encode()
            sha.update(field.name.encode() + raw)
        return sha.hexdigest()


def _check(kind: str, weight: Tensor, exponent: Tensor, bias: Tensor | None) -> None:
    rows = (weight.shape[0],)
    if weight.dtype != torch.int16 or exponent.dtype != torch.int32 or tuple(exponent.shape) != rows:
        raise ValueError(
            f"{kind}: weight must be int16 and exponent int32 of shape {rows}, "
            f"but they are {weight.dtype} and {exponent.dtype} of shape {tuple(exponent.shape)}"
        )
    if weight.numel() and (int(weight.max()) > LARGEST or int(weight.min()) < -LARGEST):
        raise ValueError(f"{kind}: weight must be within +-{LARGEST}")
    if exponent.numel() and (int(exponent.max()) > EXPONENT or int(exponent.min()) < -EXPONENT):
        raise ValueError(f"{kind}: exponent must be within +-{EXPONENT}")
    if bias is not None:
        if bias.dtype != torch.float32 or tuple(bias.shape) != rows:
            raise ValueError(f"{kind}: bias must be float32 of shape {rows}, but is {bias.dtype} {tuple(bias.shape)}")
        if not torch.equal(settle(bias), bias):
            raise ValueError(f"{kind}: bias must be 0 or of magnitude 2^-{EXPONENT} to 2^{EXPONENT}")


def _quantised(kind: str, weight: Tensor, dims: Sequence[int]) -> tuple[Tensor, Tensor]:
    weight = weight.detach().to(torch.float32)
    if not bool(torch.isfinite(weight).all()):
        raise ValueError(f"{kind}: weight must be finite")
    q, exponent = quantise(weight, dims)
    return q.to(torch.int16), exponent.reshape(-1)


def _vector(kind: str, x: Tensor) -> Tensor:
    x = x.detach().to(torch.float32)
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"{kind}: biases and other vectors must be finite")
    return settle(x)


@dataclass(frozen=True, eq=False)
class ExactLinear(PreparedWeight):
    """A linear layer: weight (O, K) int16 within +-8191, exponent (O,) int32, bias (O,) float32 or None.

    The float weight is about weight 2^(exponent - 12).
    """

    weight: Tensor
    exponent: Tensor
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        if self.weight.dim() != 2 or not 0 < self.weight.shape[1] <= MAX_TERMS:
            raise ValueError(
                f"ExactLinear: weight must be (O, K), K up to {MAX_TERMS}, but is {tuple(self.weight.shape)}"
            )
        _check("ExactLinear", self.weight, self.exponent, self.bias)


class Phase(NamedTuple):
    """The outputs (row + step i, column + step j); taps[n] reads x[i s + dy, j s + dx] with offsets[n] = (dy, dx)."""

    row: int
    column: int
    offsets: tuple[tuple[int, int], ...]
    taps: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class ExactConv(PreparedWeight):
    """A convolution: weight (O, T, C) int16 for the T taps ((ky, kx), ...), exponent (O,) int32, bias (O,) or None.

    kernel, stride, padding, transposed, output_padding: those of torch's Conv2d and ConvTranspose2d.
    """

    weight: Tensor
    exponent: Tensor
    taps: tuple[tuple[int, int], ...]
    kernel: int
    stride: int
    padding: int
    transposed: int
    output_padding: int
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        if self.weight.dim() != 3 or self.weight.shape[1] != len(self.taps) or not len(self.taps):
            raise ValueError(f"ExactConv: weight must be (O, {len(self.taps)}, C), but is {tuple(self.weight.shape)}")
        if not 0 < self.weight.shape[1] * self.weight.shape[2] <= MAX_TERMS:
            raise ValueError(f"ExactConv: taps times channels must be 1 to {MAX_TERMS}")
        if any(not (0 <= ky < self.kernel and 0 <= kx < self.kernel) for ky, kx in self.taps):
            raise ValueError(f"ExactConv: taps must lie in the kernel of {self.kernel}, but are {self.taps}")
        if self.stride < 1 or self.padding < 0 or not 0 <= self.output_padding < self.stride:
            raise ValueError(
                "ExactConv: stride must be >= 1, padding >= 0, 0 <= output_padding < stride, but they are "
                f"{self.stride}, {self.padding}, {self.output_padding}"
            )
        _check("ExactConv", self.weight, self.exponent, self.bias)

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """One phase for a convolution; stride * stride for a transposed one, each a convolution with fewer taps."""
        if not self.transposed:
            offsets = tuple((ky - self.padding, kx - self.padding) for ky, kx in self.taps)
            return (Phase(0, 0, offsets, tuple(range(len(self.taps)))),)
        phases = []
        s, p = self.stride, self.padding
        for row in range(s):
            for column in range(s):
                live = [i for i, (y, x) in enumerate(self.taps) if (row + p - y) % s == 0 and (column + p - x) % s == 0]
                offsets = tuple(((row + p - self.taps[i][0]) // s, (column + p - self.taps[i][1]) // s) for i in live)
                phases.append(Phase(row, column, offsets, tuple(live)))
        return tuple(phases)

    def output_size(self, size: int) -> int:
        """The output's height (or width) for an input height (or width)."""
        if self.transposed:
            return (size - 1) * self.stride - 2 * self.padding + self.kernel + self.output_padding
        return (size + 2 * self.padding - self.kernel) // self.stride + 1


@dataclass(frozen=True, eq=False)
class ExactDepthwise(PreparedWeight):
    """A depth-wise convolution: weight (C, k, k) int16, k = 1, 3 or 5 (sums must fit int32), exponent (C,) int32."""

    weight: Tensor
    exponent: Tensor

    def __post_init__(self) -> None:
        size = self.weight.shape[-1]
        if self.weight.dim() != 3 or self.weight.shape[1] != size or size not in (1, 3, 5):
            shape = tuple(self.weight.shape)
            raise ValueError(f"ExactDepthwise: weight must be (C, k, k), k 1, 3 or 5, but is {shape}")
        _check("ExactDepthwise", self.weight, self.exponent, None)


@dataclass(frozen=True, eq=False)
class ExactBlock(PreparedBlock):
    """An RWKV block of C channels. `mix` is one product (3 C, C): key, value and receptance of the spatial mix."""

    norm1_weight: Tensor
    norm1_bias: Tensor
    shift1: ExactDepthwise
    decay: Tensor
    boost: Tensor
    mix: ExactLinear
    output: ExactLinear
    gamma1: Tensor
    norm2_weight: Tensor
    norm2_bias: Tensor
    shift2: ExactDepthwise
    key: ExactLinear
    receptance: ExactLinear
    value: ExactLinear
    gamma2: Tensor

    def per_token(self, tokens: int) -> tuple[Tensor, Tensor]:
        """w and u of the WKV, each (C,), settled: decay / T and boost / T."""
        # A tensor as divisor: torch may divide by a number as a product with its reciprocal, which rounds twice.
        count = torch.full_like(self.decay, tokens)
        return settle(self.decay / count), settle(self.boost / count)


@dataclass(frozen=True, eq=False)
class ExactEntropyParams(PreparedBlock):
    """An entropy-parameter block: mix (Cout, Cin) with bias, key (R Cout, Cout), receptance, value (Cout, R Cout)."""

    mix: ExactLinear
    norm_weight: Tensor
    norm_bias: Tensor
    key: ExactLinear
    receptance: ExactLinear
    value: ExactLinear


def prepare_linear(weight: Tensor, bias: Tensor | None = None) -> ExactLinear:
    """Quantise weight (O, K) per row; bias (O,) stays float32.

    Raises:
        ValueError: weight or bias is not finite, or the shape does not fit.
    """
    q, exponent = _quantised("prepare_linear", weight, (1,))
    return ExactLinear(q, exponent, None if bias is None else _vector("prepare_linear", bias))


def prepare_conv(
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    transposed: bool = False,
    output_padding: int = 0,
    taps: Sequence[tuple[int, int]] | None = None,
) -> ExactConv:
    """Quantise a convolution's weight per output channel, over its taps.

    Args:
        weight: (O, C, k, k), or (C, O, k, k) for a transposed convolution, as in torch.
        bias: (O,) or None.
        stride, padding, transposed, output_padding: those of torch's Conv2d and ConvTranspose2d.
        taps: the (row, column) of the kernel's elements that are not masked, in the order of products; None for all.

    Raises:
        ValueError: weight or bias is not finite, or the shape or a tap does not fit.
    """
    if weight.dim() != 4 or weight.shape[2] != weight.shape[3]:
        raise ValueError(f"prepare_conv: weight must be (O, C, k, k), but has shape {tuple(weight.shape)}")
    kernel = weight.shape[2]
    live = tuple(taps) if taps is not None else tuple((y, x) for y in range(kernel) for x in range(kernel))
    if any(not (0 <= y < kernel and 0 <= x < kernel) for y, x in live) or not live:
        raise ValueError(f"prepare_conv: taps must lie in the kernel of {kernel}, but are {live}")
    ordered = weight.transpose(0, 1) if transposed else weight
    ordered = torch.stack([ordered[:, :, y, x] for y, x in live], dim=1)  # (O, T, C)
    q, exponent = _quantised("prepare_conv", ordered, (1, 2))
    bias = None if bias is None else _vector("prepare_conv", bias)
    return ExactConv(q, exponent, live, kernel, stride, padding, int(transposed), output_padding, bias)


def prepare_depthwise(weight: Tensor) -> ExactDepthwise:
    """Quantise weight (C, k, k) or (C, 1, k, k) per channel, k = 1, 3 or 5.

    Raises:
        ValueError: the weight is not finite, or its shape does not fit.
    """
    q, exponent = _quantised("prepare_depthwise", weight.flatten(0, -3), (1, 2))
    return ExactDepthwise(q, exponent)


def prepare_block(
    norm1: tuple[Tensor, Tensor],
    shift1: Tensor,
    decay: Tensor,
    boost: Tensor,
    attention: tuple[Tensor, Tensor, Tensor, Tensor],
    gamma1: Tensor,
    norm2: tuple[Tensor, Tensor],
    shift2: Tensor,
    feed_forward: tuple[Tensor, Tensor, Tensor],
    gamma2: Tensor,
) -> ExactBlock:
    """Quantise an RWKV block's weights.

    Args:
        norm1, norm2: LayerNorms' weight and bias (C,).
        shift1, shift2: folded shifts (C, 5, 5).
        decay, boost: (C,), not yet divided by the number of tokens.
        attention: key, value, receptance, output, each (C, C).
        gamma1, gamma2: (C,).
        feed_forward: key (R C, C), receptance (C, C), value (C, R C).

    Raises:
        ValueError: a weight is not finite.
    """
    kind = "prepare_block"
    return ExactBlock(
        _vector(kind, norm1[0]), _vector(kind, norm1[1]), prepare_depthwise(shift1),
        _vector(kind, decay), _vector(kind, boost),
        prepare_linear(torch.cat(attention[:3])), prepare_linear(attention[3]), _vector(kind, gamma1),
        _vector(kind, norm2[0]), _vector(kind, norm2[1]), prepare_depthwise(shift2),
        prepare_linear(feed_forward[0]), prepare_linear(feed_forward[1]), prepare_linear(feed_forward[2]),
        _vector(kind, gamma2),
    )  # fmt: skip


def prepare_entropy_params(
    mix: tuple[Tensor, Tensor], norm: tuple[Tensor, Tensor], key: Tensor, receptance: Tensor, value: Tensor
) -> ExactEntropyParams:
    """Quantise an entropy-parameter block's weights.

    Args:
        mix: weight (Cout, Cin) and bias (Cout,).
        norm: LayerNorm's weight and bias (Cout,).
        key, receptance, value: (R Cout, Cout), (Cout, Cout), (Cout, R Cout).

    Raises:
        ValueError: a weight is not finite.
    """
    kind = "prepare_entropy_params"
    return ExactEntropyParams(
        prepare_linear(*mix), _vector(kind, norm[0]), _vector(kind, norm[1]),
        prepare_linear(key), prepare_linear(receptance), prepare_linear(value),
    )  # fmt: skip
