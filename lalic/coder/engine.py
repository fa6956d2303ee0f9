"""The arithmetic that coding a slice is made of, behind one small interface.

`lalic.coder.decoder` says what is computed, in which order and what is kept; an engine says how a product, a
convolution, an RWKV block, an aggregation block and what coders get of the last one are evaluated. An engine first
turns weights into what it computes with, once per model, and those are opaque to everybody else.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch.nn.functional as F
from torch import Tensor

import lalic_kernels
from lalic.nn.blocks import RWKVBlock
from lalic.nn.context import full_precision


class Engine(Protocol):
    """Images are (B, h, w, C), positions (B, P, C). The caller adds parts up itself, in an order it states."""

    name: str

    def prepare_linear(self, weight: Tensor, bias: Tensor | None) -> Any:
        """weight (O, K), bias (O,) or None -> what `linear` takes."""

    def prepare_conv(self, weight: Tensor, bias: Tensor | None) -> Any:
        """weight (O, C, 3, 3), bias (O,) or None -> what `conv` takes."""

    def prepare_block(self, block: RWKVBlock) -> Any:
        """An RWKV block -> what `block` takes."""

    def prepare_aggregation(self, tensors: tuple[Tensor, ...]) -> Any:
        """mix (O, K), its bias, norm's weight and bias, key, receptance, value -> what `aggregation` takes."""

    def without_inputs(self, aggregation: Any) -> Any:
        """What `prepare_aggregation` gave, for inputs of no columns: m = bias + partial."""

    def linear(self, x: Tensor, weights: Any) -> Tensor:
        """x (..., K) -> (..., O)."""

    def conv(self, x: Tensor, weights: Any) -> Tensor:
        """3x3, padded by zeros. x (B, h, w, C) -> (B, h, w, O)."""

    def block(self, x: Tensor, weights: Any) -> Tensor:
        """x (B, h, w, C) -> the same shape."""

    def aggregation(self, x: Tensor, weights: Any, partial: Tensor | None) -> Tensor:
        """m = mix x + bias + partial, then LayerNorm, gated network, residual. x (B, P, K), K may be 0 -> (B, P, O)."""

    def head(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """The last aggregation's (B, P, 2 g): scales, or the table rows that they select (int32), and means."""


class _Affine(NamedTuple):
    weight: Tensor
    bias: Tensor | None


class FloatEngine:
    """torch and `lalic_kernels` in floating point, differentiable; what it takes of weights is the weights."""

    name = "float"

    def prepare_linear(self, weight: Tensor, bias: Tensor | None) -> _Affine:
        return _Affine(weight, bias)

    def prepare_conv(self, weight: Tensor, bias: Tensor | None) -> _Affine:
        return _Affine(weight, bias)

    def prepare_block(self, block: RWKVBlock) -> RWKVBlock:
        return block  # it keeps what it derives itself

    def prepare_aggregation(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tensors

    def without_inputs(self, aggregation: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return aggregation[0][:, :0], *aggregation[1:]

    def linear(self, x: Tensor, weights: _Affine) -> Tensor:
        return F.linear(x, weights.weight, weights.bias)

    def conv(self, x: Tensor, weights: _Affine) -> Tensor:
        return F.conv2d(x.permute(0, 3, 1, 2), weights.weight, weights.bias, padding=1).permute(0, 2, 3, 1)

    def block(self, x: Tensor, weights: RWKVBlock) -> Tensor:
        return weights(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def aggregation(self, x: Tensor, weights: tuple[Tensor, ...], partial: Tensor | None) -> Tensor:
        return lalic_kernels.entropy_params(x, *weights, partial=partial)  # type: ignore[misc]

    def head(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        scales, means = full_precision(parameters).chunk(2, dim=2)
        return scales, means


FLOAT = FloatEngine()
