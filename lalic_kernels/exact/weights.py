"""Weights prepared for exact products: quantised once, per output channel, with a hash that names them.

Decoding depends on these integers and settled floats. `digest()` is the SHA-256 of exactly them and of the definition's
version; docs/exact-arithmetic.md says over which bytes. Prepared weights are never written to.
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
from lalic_kernels.exact.numbers import EXPONENT, LARGEST, MOST_TERMS, VERSION
from lalic_kernels.exact.quantise import quantise, settle


class Prepared:
    """What all prepared weights and blocks share: a cache, and the move to a device."""

    @cached_property
    def cache(self) -> WeightCache:
        """What a back end makes of the weights, under a name of its own; no part of the digest."""
        return WeightCache()

    def to(self, device: torch.device | str) -> Self:
        """The same weights with their tensors on a device."""
        moved = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            moved[field.name] = value.to(device) if isinstance(value, Tensor | Prepared) else value
        return type(self)(**moved)


class PreparedWeight(Prepared):
    """Integers of one product."""

    def entries(self) -> dict[str, Tensor]:
        """What `digest` covers, on the CPU: tensors, and numbers of the geometry as int32 tensors; None is left out."""
        found = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                found[field.name] = value.cpu().contiguous()
            elif value is not None:
                found[field.name] = torch.tensor(value, dtype=torch.int32)
        return found

    def digest(self) -> str:
        """Hex SHA-256 of the definition's version, the kind of weight, and every entry's name, dtype, shape, bytes."""
        found = hashlib.sha256(f"exact {VERSION} {type(self).__name__}".encode())
        for name, value in sorted(self.entries().items()):
            array = value.numpy()
            found.update(f"{name} {array.dtype.name} {tuple(array.shape)}".encode())
            found.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
        return found.hexdigest()


class PreparedBlock(Prepared):
    """Prepared weights and settled float32 vectors, by name."""

    def digest(self) -> str:
        """Hex SHA-256 of the version and of all entries' names and digests, in the order of the fields."""
        found = hashlib.sha256(f"exact {VERSION} {type(self).__name__}".encode())
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            raw = value.cpu().numpy().astype("<f4").tobytes() if isinstance(value, Tensor) else value.digest().encode()
            found.update(field.name.encode() + raw)
        return found.hexdigest()


def _check(kind: str, weight: Tensor, exponent: Tensor, bias: Tensor | None) -> None:
    rows = (weight.shape[0],)
    if weight.dtype != torch.int16 or exponent.dtype != torch.int32 or tuple(exponent.shape) != rows:
        raise ValueError(
            f"{kind}: expected an int16 weight and int32 exponents of shape {rows}, "
            f"got {weight.dtype} and {exponent.dtype} of shape {tuple(exponent.shape)}"
        )
    if weight.numel() and (int(weight.max()) > LARGEST or int(weight.min()) < -LARGEST):
        raise ValueError(f"{kind}: weight must lie within +-{LARGEST}")
    if exponent.numel() and (int(exponent.max()) > EXPONENT or int(exponent.min()) < -EXPONENT):
        raise ValueError(f"{kind}: exponent must lie within +-{EXPONENT}")
    if bias is not None:
        if bias.dtype != torch.float32 or tuple(bias.shape) != rows:
            raise ValueError(f"{kind}: bias must be float32 of shape {rows}, got {bias.dtype} {tuple(bias.shape)}")
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
    """weight (O, K) int16 within +-8191, exponent (O,) int32: W is weight 2^(exponent - 12), about. bias (O,)."""

    weight: Tensor
    exponent: Tensor
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        if self.weight.dim() != 2 or not 0 < self.weight.shape[1] <= MOST_TERMS:
            raise ValueError(
                f"ExactLinear: weight must be (O, K), K up to {MOST_TERMS}, got {tuple(self.weight.shape)}"
            )
        _check("ExactLinear", self.weight, self.exponent, self.bias)


class Phase(NamedTuple):
    """Outputs at rows `row + step i`, columns `column + step j`, and what they read: x[i s + dy, j s + dx] by taps."""

    row: int
    column: int
    offsets: tuple[tuple[int, int], ...]
    taps: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class ExactConv(PreparedWeight):
    """weight (O, T, C) int16, T live taps in order; taps ((ky, kx), ...); the rest as torch's convolutions name it."""

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
            raise ValueError(f"ExactConv: weight must be (O, {len(self.taps)}, C), got {tuple(self.weight.shape)}")
        if not 0 < self.weight.shape[1] * self.weight.shape[2] <= MOST_TERMS:
            raise ValueError(f"ExactConv: taps times channels must be 1 to {MOST_TERMS}")
        if any(not (0 <= ky < self.kernel and 0 <= kx < self.kernel) for ky, kx in self.taps):
            raise ValueError(f"ExactConv: taps must lie in the kernel of {self.kernel}, got {self.taps}")
        if self.stride < 1 or self.padding < 0 or not 0 <= self.output_padding < self.stride:
            raise ValueError("ExactConv: expected stride >= 1, padding >= 0, 0 <= output_padding < stride")
        _check("ExactConv", self.weight, self.exponent, self.bias)

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """One for a convolution; stride * stride for a transposed one, which is so many convolutions of fewer taps."""
        if not self.transposed:
            offsets = tuple((ky - self.padding, kx - self.padding) for ky, kx in self.taps)
            return (Phase(0, 0, offsets, tuple(range(len(self.taps)))),)
        found = []
        s, p = self.stride, self.padding
        for row in range(s):
            for column in range(s):
                live = [i for i, (y, x) in enumerate(self.taps) if (row + p - y) % s == 0 and (column + p - x) % s == 0]
                offsets = tuple(((row + p - self.taps[i][0]) // s, (column + p - self.taps[i][1]) // s) for i in live)
                found.append(Phase(row, column, offsets, tuple(live)))
        return tuple(found)

    def output_size(self, size: int) -> int:
        """Height or width of the output for one of the input."""
        if self.transposed:
            return (size - 1) * self.stride - 2 * self.padding + self.kernel + self.output_padding
        return (size + 2 * self.padding - self.kernel) // self.stride + 1


@dataclass(frozen=True, eq=False)
class ExactDepthwise(PreparedWeight):
    """weight (C, k, k) int16, k odd, at most 5, so that sums of products are int32; exponent (C,) int32."""

    weight: Tensor
    exponent: Tensor

    def __post_init__(self) -> None:
        size = self.weight.shape[-1]
        if self.weight.dim() != 3 or self.weight.shape[1] != size or size not in (1, 3, 5):
            raise ValueError(f"ExactDepthwise: weight must be (C, k, k), k 1, 3 or 5, got {tuple(self.weight.shape)}")
        _check("ExactDepthwise", self.weight, self.exponent, None)


@dataclass(frozen=True, eq=False)
class ExactBlock(PreparedBlock):
    """An RWKV block of C channels. `mix` is key, value and receptance of the spatial mix as one product (3 C, C)."""

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
        # By a tensor: torch may divide by a number as a product with its reciprocal, which is rounded twice.
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
    """Quantise weight (O, K) per row; bias (O,) stays float32. Raises ValueError if they are not finite."""
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
    """Quantise a convolution's weight per output channel, over its live taps.

    Args:
        weight: (O, C, k, k), or (C, O, k, k) of a transposed convolution, as torch keeps them.
        bias: (O,) or None.
        stride, padding, transposed, output_padding: as torch's Conv2d and ConvTranspose2d have them.
        taps: the (row, column) positions of the kernel that are not masked, in the order of products; None for all.

    Raises:
        ValueError: weight or bias is not finite, or the shape or a tap does not fit.
    """
    if weight.dim() != 4 or weight.shape[2] != weight.shape[3]:
        raise ValueError(f"prepare_conv: weight must be (O, C, k, k), but has shape {tuple(weight.shape)}")
    kernel = weight.shape[2]
    live = tuple(taps) if taps is not None else tuple((y, x) for y in range(kernel) for x in range(kernel))
    if any(not (0 <= y < kernel and 0 <= x < kernel) for y, x in live) or not live:
        raise ValueError(f"prepare_conv: taps must lie in the kernel of {kernel}, got {live}")
    ordered = weight.transpose(0, 1) if transposed else weight
    ordered = torch.stack([ordered[:, :, y, x] for y, x in live], dim=1)  # (O, T, C)
    q, exponent = _quantised("prepare_conv", ordered, (1, 2))
    bias = None if bias is None else _vector("prepare_conv", bias)
    return ExactConv(q, exponent, live, kernel, stride, padding, int(transposed), output_padding, bias)


def prepare_depthwise(weight: Tensor) -> ExactDepthwise:
    """Quantise weight (C, k, k) or (C, 1, k, k) per channel, k 1, 3 or 5. Raises ValueError if it is not finite."""
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
        decay, boost: (C,), of the whole image; the block divides them by its tokens.
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
