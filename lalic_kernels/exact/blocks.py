"""The two blocks of an entropy model in exact arithmetic: the RWKV block and the entropy-parameter block.

Each is a composition of the exact primitives in the order written here, which is part of the definition.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from lalic_kernels.exact import op
from lalic_kernels.exact.numbers import VERSION
from lalic_kernels.exact.quantise import settle
from lalic_kernels.exact.weights import (
    ExactDepthwise,
    ExactLinear,
    Prepared,
    prepare_depthwise,
    prepare_linear,
)

_KINDS: dict[str, type[Prepared]] = {"ExactLinear": ExactLinear, "ExactDepthwise": ExactDepthwise}


class _Block:
    """Prepared weights and float32 vectors under names; `state` joins theirs with a dot."""

    @cached_property
    def kept(self) -> dict[Any, Any]:
        """What a fast path derives from the weights, under a name of its own; never part of state or digest."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Tensors that say everything, for a file."""
        found: dict[str, Tensor] = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                found[field.name] = value.cpu().contiguous()
            else:
                found |= {f"{field.name}.{name}": tensor for name, tensor in value.state().items()}
        return found

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """Inverse of `state`. Raises ValueError where the tensors are not such a state."""
        found: dict[str, Any] = {}
        for field in fields(cls):  # type: ignore[arg-type]
            kind = _KINDS.get(str(field.type))
            if kind is not None:
                prefix = field.name + "."
                part = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
                found[field.name] = kind.from_state(part)
            elif field.name in state:
                found[field.name] = state[field.name]
            else:
                raise ValueError(f"{cls.__name__}: state lacks {field.name}")
        return cls(**found)

    def digest(self) -> str:
        """Hex SHA-256 of the version and of all entries' names and digests, in the order of the fields."""
        found = hashlib.sha256(f"exact {VERSION} {type(self).__name__}".encode())
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            raw = value.cpu().numpy().astype("<f4").tobytes() if isinstance(value, Tensor) else value.digest().encode()
            found.update(field.name.encode() + raw)
        return found.hexdigest()

    def to(self, device: torch.device | str) -> Self:
        """The same block with its tensors on a device."""
        return type(self)(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class ExactBlock(_Block):
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


@dataclass(frozen=True, eq=False)
class ExactEntropyParams(_Block):
    """An entropy-parameter block."""

    mix: ExactLinear
    norm_weight: Tensor
    norm_bias: Tensor
    key: ExactLinear
    receptance: ExactLinear
    value: ExactLinear


def _vector(x: Tensor) -> Tensor:
    x = x.detach().to(torch.float32)
    if not bool(torch.isfinite(x).all()):
        raise ValueError("a block's vectors must be finite")
    return settle(x)


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
    """An RWKV block's weights, quantised.

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
    return ExactBlock(
        _vector(norm1[0]), _vector(norm1[1]), prepare_depthwise(shift1), _vector(decay), _vector(boost),
        prepare_linear(torch.cat(attention[:3])), prepare_linear(attention[3]), _vector(gamma1),
        _vector(norm2[0]), _vector(norm2[1]), prepare_depthwise(shift2),
        prepare_linear(feed_forward[0]), prepare_linear(feed_forward[1]), prepare_linear(feed_forward[2]),
        _vector(gamma2),
    )  # fmt: skip


def rwkv_block(x: Tensor, block: ExactBlock, *, eps: float = 1e-5, backend: str | None = None) -> Tensor:
    """x (B, H, W, C) -> (B, H, W, C): x + gamma1 SpatialMix(shift(LN x)), then x + gamma2 ChannelMix(shift(LN x))."""
    if (whole := op.fused(x, backend)) is not None:
        return whole.rwkv_block(x, block, eps)
    batch, height, width, channels = x.shape
    tokens = height * width
    normal = op.layer_norm(x, block.norm1_weight, block.norm1_bias, eps, backend=backend)
    s = op.depthwise(normal, block.shift1, backend=backend)
    k, v, r = op.linear(s, block.mix, backend=backend).reshape(batch, tokens, 3 * channels).split(channels, dim=2)
    # By a tensor: torch may divide by a number as a product with its reciprocal, which is rounded twice.
    count = torch.full_like(block.decay, tokens)
    decay, boost = settle(block.decay / count), settle(block.boost / count)
    mixed = op.biwkv(decay, boost, k, v, r, backend=backend).reshape(x.shape)
    x = op.residual(x, op.linear(mixed, block.output, backend=backend), block.gamma1, backend=backend)
    normal = op.layer_norm(x, block.norm2_weight, block.norm2_bias, eps, backend=backend)
    s = op.depthwise(normal, block.shift2, backend=backend)
    hidden = op.linear_squared_relu(s, block.key, backend=backend)
    value = op.linear(hidden, block.value, backend=backend)
    gated = op.gate(op.linear(s, block.receptance, backend=backend), value, backend=backend)
    return op.residual(x, gated, block.gamma2, backend=backend)


def rwkv_blocks(x: Tensor, sequence: Sequence[ExactBlock], *, eps: float = 1e-5, backend: str | None = None) -> Tensor:
    """`rwkv_block` of x (B, H, W, C) with one block after the other."""
    if (whole := op.fused(x, backend)) is not None and hasattr(whole, "rwkv_blocks"):
        return whole.rwkv_blocks(x, sequence, eps)
    for block in sequence:
        x = rwkv_block(x, block, eps=eps, backend=backend)
    return x


def prepare_entropy_params(
    mix: tuple[Tensor, Tensor], norm: tuple[Tensor, Tensor], key: Tensor, receptance: Tensor, value: Tensor
) -> ExactEntropyParams:
    """An entropy-parameter block's weights, quantised; as `lalic_kernels.entropy_params` names them."""
    return ExactEntropyParams(
        prepare_linear(*mix), _vector(norm[0]), _vector(norm[1]),
        prepare_linear(key), prepare_linear(receptance), prepare_linear(value),
    )  # fmt: skip


def entropy_params(
    x: Tensor,
    block: ExactEntropyParams,
    *,
    partial: Tensor | None = None,
    eps: float = 1e-5,
    backend: str | None = None,
) -> Tensor:
    """x (..., Cin) -> (..., Cout): m = mix x + partial; m + sigmoid(R n) V relu(K n)^2 with n = LayerNorm(m).

    `partial` (..., Cout) is what is known of the first product from elsewhere, one float addition. With Cin = 0 the
    mix's bias is all that the mix gives.
    """
    if (whole := op.fused(x, backend)) is not None:
        return whole.entropy_params(x, block, eps, partial)
    return entropy_params_tail(first_product(x, block, partial, backend), block, eps=eps, backend=backend)


def first_product(x: Tensor, block: ExactEntropyParams, partial: Tensor | None, backend: str | None) -> Tensor:
    """The m of `entropy_params`, contiguous."""
    if x.shape[-1]:
        m = op.linear(x, block.mix, backend=backend)
    else:
        bias = block.mix.bias
        m = x.new_zeros(*x.shape[:-1], block.norm_weight.shape[0])
        m = m if bias is None else m + bias
    return (m if partial is None else m + partial).contiguous()


def entropy_params_tail(
    m: Tensor, block: ExactEntropyParams, *, eps: float = 1e-5, backend: str | None = None
) -> Tensor:
    """What follows the mix: for a caller that has m (..., Cout) as a sum of parts."""
    if (whole := op.fused(m, backend)) is not None:
        return whole.entropy_params_tail(m, block, eps)
    normal = op.layer_norm(m, block.norm_weight, block.norm_bias, eps, backend=backend)
    hidden = op.linear_squared_relu(normal, block.key, backend=backend)
    value = op.linear(hidden, block.value, backend=backend)
    gated = op.gate(op.linear(normal, block.receptance, backend=backend), value, backend=backend)
    return op.residual(m, gated, backend=backend)
