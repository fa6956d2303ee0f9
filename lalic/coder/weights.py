"""The weights of all slices, cut and joined as cached coding wants them, and kept as long as the model's do not change.

The first product of a slice's aggregation is the sum of three parts, because its inputs come at three times: hyper
parameters before the first slice, channel context once for both passes, spatial context for the second pass alone. A
channel context's first convolution is the sum of a part for each earlier slice. So that a part is a product by itself:

    hyper      rows of all slices' first mix that see the hyper parameters        (sum of widths, M)
    channel    columns of one slice's first mix that see its channel context      (width, 2 g)
    spatial    columns that see its spatial context, with the mix's bias          (width, 2 g)
    taps       the checkerboard convolution at its 12 live taps                   (2 g, 12 g)
    spread     slice k's columns of all later contexts' first convolutions        (M * later slices, g, 3, 3)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from lalic.nn.blocks import RWKVBlock
from lalic.nn.context import EntropyParametersBlock, Slice, SliceStack


class Engine(Protocol):
    """How products, convolutions and blocks are evaluated: it first turns weights into what it computes with.

    Images are (B, h, w, C), positions (B, P, C). The caller adds parts up itself, in an order it states."""

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


@dataclass(frozen=True)
class SliceWeights:
    """What one slice needs, as an engine prepared it; see the module's text. None where the slice has no such part."""

    width: int  # outputs of the first mix
    taps: Any
    blocks: tuple[Any, ...]
    context: Any  # the channel context's last product, (2 g, M)
    channel: Any
    first: Any  # aggregation block whose mix sees the spatial context
    anchors: Any  # the same block where there is none: its mix has no inputs
    rest: tuple[Any, ...]
    spread: Any


@dataclass(frozen=True)
class StackWeights:
    """What all slices need."""

    hyper: Any
    slices: tuple[SliceWeights, ...]


def stack_weights(stack: SliceStack | StackWeights, engine: Engine) -> StackWeights:
    """The weights for an engine: kept in inference until one is written to or replaced; afresh where gradients pass.

    What is prepared already is returned as it is.
    """
    if isinstance(stack, StackWeights):
        return stack
    sources = _sources(stack)
    differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in sources)
    if differentiable or torch.compiler.is_compiling():
        return make_weights(stack, engine)
    return stack.cache.get(engine.name, sources, lambda: make_weights(stack, engine))


def _part(stack: SliceStack, k: int) -> tuple[Slice, list[EntropyParametersBlock]]:
    part = cast(Slice, stack.latent_codec[f"y{k}"])
    return part, [m for m in part.entropy_parameters if isinstance(m, EntropyParametersBlock)]


def _sources(stack: SliceStack) -> list[Tensor]:
    """Every tensor that `make_weights` reads. The RWKV blocks look after their own."""
    found: list[Tensor] = []
    for k in range(len(stack.groups)):
        found += stack.latent_codec[f"y{k}"].parameters()
        if k:
            context = cast(nn.Sequential, stack.channel_context[f"y{k}"])
            found += [*context[0].parameters(), *context[-1].parameters()]
    return found


def make_weights(stack: SliceStack, engine: Engine) -> StackWeights:
    """The weights as an engine prepares them from the stack's tensors, where they lie."""
    hyper, slices = [], []
    for k, g in enumerate(stack.groups):
        part, (first, *rest) = _part(stack, k)
        mix, bias, *others = first.tensors()
        spatial, channel, from_hyper = mix.tensor_split([2 * g, 4 * g if k else 2 * g], dim=1)
        hyper.append(from_hyper)
        blocks: tuple[Any, ...] = ()
        context = None
        if k:
            _, *body, last = cast(nn.Sequential, stack.channel_context[f"y{k}"])
            blocks = tuple(engine.prepare_block(cast(RWKVBlock, block)) for block in body)
            context = engine.prepare_linear(cast(Tensor, last.weight).flatten(1), cast(Tensor, last.bias))
        prepared = engine.prepare_aggregation((spatial, bias, *others))
        slices.append(
            SliceWeights(
                width=mix.shape[0],
                taps=engine.prepare_linear(part.context_prediction.live_taps(), part.context_prediction.bias),
                blocks=blocks,
                context=context,
                channel=engine.prepare_linear(channel, None) if k else None,
                first=prepared,
                anchors=engine.without_inputs(prepared),
                rest=tuple(engine.prepare_aggregation(block.tensors()) for block in rest),
                spread=_spread(stack, engine, k),
            )
        )
    return StackWeights(engine.prepare_linear(torch.cat(hyper), None), tuple(slices))


def _spread(stack: SliceStack, engine: Engine, k: int) -> Any:
    """Slice k's part of all later contexts' first convolutions; the first slice's brings their biases."""
    later = [cast(nn.Sequential, stack.channel_context[f"y{j}"])[0] for j in range(k + 1, len(stack.groups))]
    if not later:
        return None
    start = sum(stack.groups[:k])
    weight = torch.cat([cast(Tensor, conv.weight)[:, start : start + stack.groups[k]] for conv in later])
    return engine.prepare_conv(weight, torch.cat([cast(Tensor, conv.bias) for conv in later]) if k == 0 else None)
