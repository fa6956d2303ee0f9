"""Four models of what a slice's probability is predicted from, behind one interface, selectable by name.

    name          channel context of slice k                               aggregation of the contexts
    "conv"        three 5x5 convolutions, ReLU between                      three 1x1 convolutions, ReLU between
    "conv-plus"   the same with a depth-wise convolution block after        the same
                  each of the first two in ReLU's place
    "rwkv"        3x3 convolution, RWKV blocks, 1x1 convolution             three blocks of `lalic.nn.context`
    "transformer" `ChannelTransformer` with its key-value cache             the same three blocks

"rwkv" is the published model and has its names. The first three are those of LALIC's supplement (figure 11: Conv SCCTX
and Conv Plus SCCTX, the baselines; the main paper: RWKV-SCCTX). The supplement gives kinds and kernels of layers; where
it gives no widths they are ours: 7/10 and 4/10 of M inside, which for M = 320 are the 224 and 128 of ELIC, from where
Conv SCCTX comes, and depth-wise layers of twice the block's width.

All share the checkerboard context (`CheckerboardConv`) and are used alike:

    state, previous = model.start(hyper), None
    for k, _ in enumerate(model.groups):
        context = model.channel(state, previous)      once, for both passes of slice k; None where there is none
        anchors = model.aggregate(k, [          context | hyper])   at one colour, coded first
        others  = model.aggregate(k, [spatial | context | hyper])   at the other, spatial = model.spatial(k, anchors)
        previous = slice k as decoded
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lalic_kernels
from benchmarks.paper.channel_transformer import ChannelTransformer, TransformerConfig, TransformerState
from lalic.config import Config
from lalic.nn.context import EntropyParametersBlock, Slice, channel_context, channel_ramp, parameter_aggregation


@dataclass
class Decoded:
    """State of a model that keeps the slices themselves: each (B, groups[j], h, w)."""

    slices: list[Tensor] = field(default_factory=list)
    next: int = 0


class ContextModel(nn.Module):
    """The interface, and what the convolutional models and the published one share.

    Attributes:
        groups: latent channels of each slice, in coding order.
        channel_context: modules y1, y2, ...: slices before k, (B, sum(groups[:k]), h, w) -> (B, 2 groups[k], h, w);
            none where one network makes all contexts.
        latent_codec: modules y0, y1, ..., each with ``context_prediction`` and ``entropy_parameters``.
    """

    groups: tuple[int, ...]

    def __init__(self, c: Config):
        super().__init__()
        self.groups = c.groups
        self.channel_context = nn.ModuleDict(self._channel_contexts(c))
        self.latent_codec = nn.ModuleDict()
        for k in range(len(c.groups)):
            part = self.latent_codec[f"y{k}"] = Slice(c, k)
            # Spatial context, channel context where there is one, hyper parameters.
            inputs = 2 * c.groups[k] + self.context_channels(k) + c.hyper_width
            part.entropy_parameters = self._aggregation(inputs, 2 * c.groups[k], 2 * c.N)

    def _channel_contexts(self, c: Config) -> dict[str, nn.Module]:
        return {f"y{k}": self._channel_context(c, k) for k in range(1, len(c.groups))}

    def _channel_context(self, c: Config, k: int) -> nn.Module:
        raise NotImplementedError

    def _aggregation(self, cin: int, cout: int, least: int) -> nn.Sequential:
        raise NotImplementedError

    def context_channels(self, k: int) -> int:
        """Channels of the channel context of slice k; 0 where there is none."""
        return 2 * self.groups[k] if k else 0

    def start(self, hyper: Tensor) -> Any:
        """Hyper parameters (B, M, h, w) -> the state before slice 0, for `channel`."""
        return Decoded()

    def channel(self, state: Any, previous: Tensor | None) -> Tensor | None:
        """Channel context of the next slice k, (B, context_channels(k), h, w), or None. Changes the state.

        Args:
            state: from `start`.
            previous: slice k - 1 as decoded, (B, groups[k - 1], h, w); None for slice 0.
        """
        k = state.next
        state.next = k + 1
        if previous is None:
            return None
        state.slices.append(previous)
        return self.channel_context[f"y{k}"](torch.cat(state.slices, dim=1))

    def spatial(self, k: int, anchors: Tensor) -> Tensor:
        """Slice k with zeros at the other colour (B, g, h, w) -> spatial context (B, 2 g, h, w), of use there."""
        return cast(Slice, self.latent_codec[f"y{k}"]).context_prediction(anchors)

    def aggregate(self, k: int, x: Tensor) -> Tensor:
        """Contexts and hyper parameters of slice k (B, P, n) -> scales | means (B, P, 2 groups[k]), raw.

        Inputs are in the order spatial, channel, hyper. Leading ones may be left out and count as zero, as the spatial
        context is at anchors.
        """
        return cast(Slice, self.latent_codec[f"y{k}"]).entropy_parameters(x)


class Pointwise(nn.Linear):
    """1x1 convolution on (B, P, n) -> (B, P, cout). With n < cin, x holds the last n inputs and the first are zero."""

    def forward(self, x: Tensor) -> Tensor:
        """x (B, P, n), n at most cin -> (B, P, cout)."""
        return F.linear(x, self.weight[:, self.in_features - x.shape[2] :], self.bias)


class DepthConvBlock(nn.Module):
    """x + 1x1(depth-wise k x k(leaky ReLU(1x1(x)))), then x + 1x1(leaky ReLU(1x1(x))); (B, C, h, w) -> the same.

    After the depth convolution block of DCVC (Li et al., 2023). Args: dim C, kernel k (odd), and the width between the
    1x1 convolutions of both pairs.
    """

    def __init__(self, dim: int, kernel: int, width: int):
        super().__init__()
        self.enter, self.leave = nn.Conv2d(dim, width, 1), nn.Conv2d(width, dim, 1)
        self.depth = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.expand, self.reduce = nn.Conv2d(dim, width, 1), nn.Conv2d(width, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, h, w) -> the same shape."""
        x = x + self.leave(self.depth(F.leaky_relu(self.enter(x))))
        return x + self.reduce(F.leaky_relu(self.expand(x)))


def _inner(c: Config) -> tuple[int, int]:
    return 7 * c.M // 10, 4 * c.M // 10


class ConvContext(ContextModel):
    """Conv SCCTX."""

    def _channel_context(self, c: Config, k: int) -> nn.Module:
        first, second = _inner(c)
        return nn.Sequential(
            nn.Conv2d(sum(c.groups[:k]), first, 5, padding=2), self._between(first),
            nn.Conv2d(first, second, 5, padding=2), self._between(second),
            nn.Conv2d(second, 2 * c.groups[k], 5, padding=2),
        )  # fmt: skip

    def _between(self, channels: int) -> nn.Module:
        return nn.ReLU()

    def _aggregation(self, cin: int, cout: int, least: int) -> nn.Sequential:
        w = channel_ramp(cin, cout, least)
        return nn.Sequential(
            Pointwise(w[0], w[1]), nn.ReLU(), Pointwise(w[1], w[2]), nn.ReLU(), Pointwise(w[2], w[3])
        )  # fmt: skip


class ConvPlusContext(ConvContext):
    """Conv Plus SCCTX. kernel: of the depth-wise layers, odd; the supplement has 3, 5, 7."""

    def __init__(self, c: Config, kernel: int = 3):
        self.kernel = kernel
        super().__init__(c)

    def _between(self, channels: int) -> nn.Module:
        return DepthConvBlock(channels, self.kernel, 2 * channels)


class _PublishedAggregation(ContextModel):
    """The published model's three blocks, whatever the channel context."""

    def _aggregation(self, cin: int, cout: int, least: int) -> nn.Sequential:
        return parameter_aggregation(channel_ramp(cin, cout, least))

    def aggregate(self, k: int, x: Tensor) -> Tensor:
        """Contexts and hyper parameters of slice k (B, P, n) -> scales | means (B, P, 2 groups[k]), raw."""
        network = cast(Slice, self.latent_codec[f"y{k}"]).entropy_parameters
        first = cast(EntropyParametersBlock, network[0])
        weight, bias = first.mix.weight.flatten(1), first.mix.bias
        assert bias is not None  # made with one; a Conv2d's type allows none
        x = lalic_kernels.entropy_params(
            x, weight[:, weight.shape[1] - x.shape[2] :], bias, first.norm.weight, first.norm.bias,
            first.key.weight, first.receptance.weight, first.value.weight,
        )  # fmt: skip
        for block in list(network)[1:]:
            x = block(x)
        return x


class RWKVContext(_PublishedAggregation):
    """RWKV-SCCTX, the published one; its state dict has the names of `lalic.nn.context.SliceStack`."""

    def _channel_context(self, c: Config, k: int) -> nn.Module:
        return channel_context(c, k)


class TransformerContext(_PublishedAggregation):
    """A `ChannelTransformer`'s scales and means as channel context, refined by what the spatial context adds.

    Slice 0 has a channel context too, made of the hyper parameters. Args: fields of `TransformerConfig`; the width is
    4 M over the number of slices if not given, in multiples of the heads (M = 320, five slices: 256, as published).
    """

    def __init__(self, c: Config, **options: int):
        super().__init__(c)
        heads = options.setdefault("heads", 16)
        options.setdefault("width", heads * max(1, 4 * c.M // (heads * len(c.groups))))
        self.transformer = ChannelTransformer(TransformerConfig(groups=c.groups, hyper=c.hyper_width, **options))

    def _channel_contexts(self, c: Config) -> dict[str, nn.Module]:
        return {}  # one transformer makes them all

    def context_channels(self, k: int) -> int:
        """Of slice 0 as of the others."""
        return 2 * self.groups[k]

    def start(self, hyper: Tensor) -> TransformerState:
        """Hyper parameters (B, M, h, w) -> the caches, empty."""
        return self.transformer.start(hyper)

    def channel(self, state: TransformerState, previous: Tensor | None) -> Tensor:
        """Channel context of the next slice k, (B, 2 groups[k], h, w). Changes the state."""
        return torch.cat(self.transformer.step(state, previous)[:2], dim=1)


# By name. Options: "conv-plus" has kernel, "transformer" width, heads, depth and window; the others none.
CONTEXT_MODELS: dict[str, Callable[..., ContextModel]] = {
    "conv": ConvContext,
    "conv-plus": ConvPlusContext,
    "rwkv": RWKVContext,
    "transformer": TransformerContext,
}
