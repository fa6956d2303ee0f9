"""The weights of all slices, cut into the parts that coding slice by slice computes one at a time.

The inputs of a slice's first product are known at three times: the hyper parameters before the first slice, the channel
context once for both passes, the spatial context for the second pass only. The first convolution of a channel context
is a sum over the earlier slices. Each part becomes a product of its own, so that its result can be reused:

    hyper               columns of all slices' first mix for the hyper parameters           (sum of widths, M)
    channel             columns of one slice's first mix for its channel context            (width, 2 g)
    first_block         columns for its spatial context, and the rest of that block         (width, 2 g)
    taps                the checkerboard convolution at the 12 taps that are not zero       (2 g, 12 g)
    to_later_contexts   slice k's columns of the first convolution of all later contexts    (M * later slices, g, 3, 3)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from lalic.nn.blocks import RWKVBlock
from lalic.nn.context import EntropyParametersBlock, Slice, SliceStack


class Engine(Protocol):
    """How products, convolutions and blocks are evaluated. `prepare_...` turns weights into what the others take.

    Images are (B, h, w, C), positions (B, P, C). The caller adds the parts, in a fixed order.
    """

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
        """The result of `prepare_aggregation` for inputs without columns: m = bias + partial."""

    def linear(self, x: Tensor, weights: Any) -> Tensor:
        """x (..., K) -> (..., O)."""

    def conv(self, x: Tensor, weights: Any) -> Tensor:
        """3x3 convolution, padded with zeros. x (B, h, w, C) -> (B, h, w, O)."""

    def block(self, x: Tensor, weights: Any) -> Tensor:
        """x (B, h, w, C) -> the same shape."""

    def aggregation(self, x: Tensor, weights: Any, partial: Tensor | None) -> Tensor:
        """m = mix x + bias + partial, then LayerNorm, gated network, residual. x (B, P, K), K may be 0 -> (B, P, O)."""

    def head(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Output of the last aggregation (B, P, 2 g) -> scales, or their table rows (int32), and means: (B, P, g)."""


@dataclass(frozen=True)
class SliceWeights:
    """Weights of one slice, prepared by an engine. None where the slice has no such part."""

    width: int  # outputs of the first mix
    taps: Any
    blocks: tuple[Any, ...]  # RWKV blocks of the channel context
    context: Any  # last product of the channel context, (2 g, M)
    channel: Any
    first_block: Any  # of the aggregation; its mix takes the spatial context
    anchor_block: Any  # the same block for anchors, which have no spatial context: its mix has no inputs
    other_blocks: tuple[Any, ...]  # of the aggregation
    to_later_contexts: Any


@dataclass(frozen=True)
class StackWeights:
    """Weights of all slices, prepared by an engine."""

    hyper: Any
    slices: tuple[SliceWeights, ...]


def stack_weights(stack: SliceStack | StackWeights, engine: Engine) -> StackWeights:
    """The weights prepared for an engine: cached in inference until one changes, made at each call for gradients.

    Prepared weights are returned unchanged.
    """
    if isinstance(stack, StackWeights):
        return stack
    sources = _sources(stack)
    differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in sources)
    if differentiable or torch.compiler.is_compiling():
        return make_weights(stack, engine)
    return stack.cache.get(engine.name, sources, lambda: make_weights(stack, engine))


def _part(stack: SliceStack, k: int) -> tuple[Slice, list[EntropyParametersBlock]]:
    """Slice k and the blocks of its aggregation network."""
    part = cast(Slice, stack.latent_codec[f"y{k}"])
    return part, [m for m in part.entropy_parameters if isinstance(m, EntropyParametersBlock)]


def _sources(stack: SliceStack) -> list[Tensor]:
    """Every tensor that `make_weights` reads, but for the RWKV blocks, which have caches of their own."""
    tensors: list[Tensor] = []
    for k in range(len(stack.groups)):
        tensors += stack.latent_codec[f"y{k}"].parameters()
        if k:
            context = cast(nn.Sequential, stack.channel_context[f"y{k}"])
            tensors += [*context[0].parameters(), *context[-1].parameters()]
    return tensors


def make_weights(stack: SliceStack, engine: Engine) -> StackWeights:
    """The stack's weights prepared by an engine, on the stack's device."""
    hyper, slices = [], []
    for k, g in enumerate(stack.groups):
        part, (first, *others) = _part(stack, k)
        mix, bias, *tensors = first.tensors()
        spatial, channel, from_hyper = mix.tensor_split([2 * g, 4 * g if k else 2 * g], dim=1)
        hyper.append(from_hyper)
        blocks: tuple[Any, ...] = ()
        context = None
        if k:
            _, *body, last = cast(nn.Sequential, stack.channel_context[f"y{k}"])
            blocks = tuple(engine.prepare_block(cast(RWKVBlock, block)) for block in body)
            context = engine.prepare_linear(cast(Tensor, last.weight).flatten(1), cast(Tensor, last.bias))
        prepared = engine.prepare_aggregation((spatial, bias, *tensors))
        slices.append(
            SliceWeights(
                width=mix.shape[0],
                taps=engine.prepare_linear(part.context_prediction.live_taps(), part.context_prediction.bias),
                blocks=blocks,
                context=context,
                channel=engine.prepare_linear(channel, None) if k else None,
                first_block=prepared,
                anchor_block=engine.without_inputs(prepared),
                other_blocks=tuple(engine.prepare_aggregation(block.tensors()) for block in others),
                to_later_contexts=_to_later_contexts(stack, engine, k),
            )
        )
    return StackWeights(engine.prepare_linear(torch.cat(hyper), None), tuple(slices))


def _to_later_contexts(stack: SliceStack, engine: Engine, k: int) -> Any:
    """Slice k's part of the first convolution of all later contexts; that of slice 0 has their biases."""
    later = [cast(nn.Sequential, stack.channel_context[f"y{j}"])[0] for j in range(k + 1, len(stack.groups))]
    if not later:
        return None
    start = sum(stack.groups[:k])
    weight = torch.cat([cast(Tensor, conv.weight)[:, start : start + stack.groups[k]] for conv in later])
    return engine.prepare_conv(weight, torch.cat([cast(Tensor, conv.bias) for conv in later]) if k == 0 else None)
