"""The coding order, slice by slice, for training, encoder and decoder. Results that a later step needs are stored.

For slice k, where [x] W is a product and the sums run in this order (h_c: hyper_and_channel):

    once                      hyper      = [hyper parameters] W_hyper              all slices in one product
    after each slice j        later_k   += conv3x3(slice j)  for all k > j         all later contexts in one product
    once a slice              context    = [RWKV blocks(later_k)] W + b
                              h_c        = hyper_k + [context] W_channel           anchors and others
    anchors                   m          = b + h_c                                 no spatial context
    others                    m          = [spatial] W_spatial + b + h_c           spatial: 12 taps of 5x5
    both                      scales, means = aggregation network of m

This defines the model's numbers: each part is a product of its own, so an engine with exact arithmetic gives the same
bits whether a part is stored or computed again. `stack_weights` cuts and joins the model's weights for these products.

A pass coder decides what happens with scales and means: `Estimate` has y and gives likelihoods, `Collect` has y and
collects symbols, `Read` and `GpuRead` take symbols from streams. All of them run through the same loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

import lalic_kernels
from lalic.errors import BitstreamError, LalicError
from lalic.nn.blocks import RWKVBlock
from lalic.nn.context import CHECKERBOARD_TAPS, Slice, SliceStack, full_precision, interleave, pack, unpack
from lalic.nn.noise import ALL, Share, rounded, uniform_like
from lalic_kernels.cache import named_weights
from lalic_kernels.rans import OutputView


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

    def linear(self, x: Tensor, weights: Any) -> Tensor:
        """x (..., K) -> (..., O)."""

    def conv(self, x: Tensor, weights: Any) -> Tensor:
        """3x3 convolution, padded with zeros. x (B, h, w, C) -> (B, h, w, O)."""

    def block(self, x: Tensor, weights: Any) -> Tensor:
        """x (B, h, w, C) -> the same shape."""

    def aggregation(self, x: Tensor, weights: Any, partial: Tensor | None) -> Tensor:
        """m = mix x + bias + partial, then LayerNorm, gated network, residual. x (B, P, K) -> (B, P, O).

        With K = 0 the mix is its bias alone.
        """

    def head(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Output of the last aggregation (B, P, 2 g) -> scales, or their table rows (int32), and means: (B, P, g)."""


# Weights


@dataclass(frozen=True)
class SliceWeights:
    """Weights of one slice, prepared by an engine. None where the slice has no such part."""

    width: int  # outputs of the first mix
    taps: Any  # the checkerboard convolution at the 12 taps that are not zero, (2 g, 12 g)
    blocks: tuple[Any, ...]  # RWKV blocks of the channel context
    context: Any  # last product of the channel context, (2 g, M)
    channel: Any  # columns of the first mix for the channel context, (width, 2 g)
    first_block: Any  # of the aggregation; its mix has the columns for the spatial context, (width, 2 g)
    other_blocks: tuple[Any, ...]  # of the aggregation
    to_later_contexts: Any  # columns of the first convolution of all later contexts, (M * later slices, g, 3, 3)


@dataclass(frozen=True)
class StackWeights:
    """Weights of all slices, prepared by an engine. hyper: columns of all first mixes for the hyper parameters."""

    hyper: Any
    slices: tuple[SliceWeights, ...]


def stack_weights(stack: SliceStack | StackWeights, engine: Engine) -> StackWeights:
    """The weights prepared for an engine: cached in inference until one changes, made at each call for gradients.

    Prepared weights are returned unchanged.
    """
    if isinstance(stack, StackWeights):
        return stack
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return make_weights(stack, engine)
    # What `make_weights` reads, but for the RWKV blocks, which have caches of their own.
    contexts = [context[i] for context in stack.channel_context.values() for i in (0, -1)]  # type: ignore[index]
    sources = [p for module in (stack.latent_codec, *contexts) for _, p in named_weights(module)]
    if torch.is_grad_enabled() and any(t.requires_grad for t in sources):
        return make_weights(stack, engine)
    return stack.cache.get(engine.name, sources, lambda: make_weights(stack, engine))


def make_weights(stack: SliceStack, engine: Engine) -> StackWeights:
    """The stack's weights prepared by an engine, on the stack's device."""
    hyper, slices = [], []
    for k, g in enumerate(stack.groups):
        part = cast(Slice, stack.latent_codec[f"y{k}"])
        first, *others = cast(list[Any], part.entropy_parameters[::2])
        mix, bias, *tensors = first.tensors()
        spatial, channel, from_hyper = mix.tensor_split([2 * g, 4 * g if k else 2 * g], dim=1)
        hyper.append(from_hyper)
        blocks: tuple[Any, ...] = ()
        context = None
        if k:
            _, *body, last = cast(nn.Sequential, stack.channel_context[f"y{k}"])
            blocks = tuple(engine.prepare_block(cast(RWKVBlock, block)) for block in body)
            context = engine.prepare_linear(cast(Tensor, last.weight).flatten(1), cast(Tensor, last.bias))
        slices.append(
            SliceWeights(
                width=mix.shape[0],
                taps=engine.prepare_linear(part.context_prediction.live_taps(), part.context_prediction.bias),
                blocks=blocks,
                context=context,
                channel=engine.prepare_linear(channel, None) if k else None,
                first_block=engine.prepare_aggregation((spatial, bias, *tensors)),
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


# The schedule


class SliceState:
    """State of coding one batch of latents, slice by slice, anchors then others.

    Call `parameters` and `add` in turn, twice a slice, then `y_hat`. The caller decides what happens between the two:
    an encoder rounds latents, a decoder reads symbols.

    Args:
        stack: the model's slices, or their weights prepared by `engine`.
        params: hyper parameters from h_s, shape (B, M, h, w), h and w even.
        engine: the arithmetic.

    Attributes:
        k, parity: slice and pass of the next `parameters` (parity 0: anchors, 1: others).
    """

    def __init__(self, stack: SliceStack | StackWeights, params: Tensor, engine: Engine):
        self.engine = engine
        self.weights = stack_weights(stack, engine)
        self.count = len(self.weights.slices)
        self.batch, self.channels, self.height, self.width = params.shape
        self.k = self.parity = 0
        self._expects_values = False
        self._slices: list[Tensor] = []
        self._anchors = self._hyper_and_channel = params.new_empty(0)  # (B, h, w / 2, g), (2, B, P, width) of slice k
        self._later: Tensor | None = None  # (B, h, w, M * slices to come)
        self._begin(params.permute(0, 2, 3, 1))

    def _begin(self, params: Tensor) -> None:
        """Compute what all slices need of the hyper parameters (B, h, w, M)."""
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        find = neighbours if traced else _kept_neighbours
        rows = torch.as_tensor(find(self.batch, self.height, self.width), dtype=torch.int64, device="cpu")
        self._neighbours = rows.to(params.device)
        self._hyper = self.hyper_parts(self._by_parity(params))

    def parameters(self) -> tuple[Tensor, Tensor]:
        """Scales and means of the next pass, each (B, h, w / 2, g), positions in the order of `lalic.nn.context.pack`.

        `ExactEngine` gives rows of the Gaussian tables (int32) in place of scales.
        """
        joint = self.joint_parameters()
        scales, means = (x.unflatten(1, (self.height, self.width // 2)) for x in self.engine.head(joint))
        return scales, means

    def joint_parameters(self) -> Tensor:
        """Output of the aggregation network: (B, P, 2 g), at each position g scales and then g means."""
        if self._expects_values or self.k == len(self.weights.slices):
            raise RuntimeError("parameters: add() has to come first, or all slices are coded")
        self._expects_values = True
        if self.parity == 0:
            self._hyper_and_channel = self.hyper_and_channel()
        return self.network(self._hyper_and_channel[self.parity])

    def add(self, values: Tensor) -> None:
        """Take y_hat at the positions of the last `parameters`, shape (B, h, w / 2, g)."""
        if not self._expects_values:
            raise RuntimeError("add: parameters() has to come first")
        self._store(values)
        self._next_pass()

    def _store(self, values: Tensor) -> None:
        if self.parity == 0:
            self._anchors = values
        else:
            self._slices.append(interleave(self._anchors, values))

    def take(self, coder: GpuRead) -> None:
        """`parameters` and `add` in one step, with a coder on the device."""
        values = coder.read(full_precision(self.joint_parameters()), None)
        self.add(values.view(self.batch, self.height, self.width // 2, -1))

    def _next_pass(self) -> None:
        self._expects_values = False
        if self.parity:
            self.add_to_later_contexts()
            self.k += 1
        self.parity = 1 - self.parity

    def y_hat(self) -> Tensor:
        """All latents, (B, M, h, w), channels last."""
        if self.k != len(self.weights.slices):
            raise RuntimeError(f"y_hat: {self.k} of {len(self.weights.slices)} slices are coded")
        return self._latents().permute(0, 3, 1, 2)

    def _latents(self) -> Tensor:
        return torch.cat(self._slices, dim=3)

    # Steps, in a method each: benchmarks/slices.py replaces some to measure what storing results saves.

    def hyper_parts(self, hyper: Tensor) -> tuple[Tensor, ...]:
        """hyper parameters (2, B, P, M) -> for each slice their part of its first product, (2, B, P, width)."""
        widths = [weights.width for weights in self.weights.slices]
        return self.engine.linear(hyper, self.weights.hyper).split(widths, dim=3)

    def hyper_part(self) -> Tensor:
        """The hyper parameters' part of this slice's first product, (2, B, P, width)."""
        return self._hyper[self.k]

    def channel_context(self) -> Tensor:
        """The channel context of this slice, made from the earlier slices: (B, h, w, 2 g)."""
        weights = self.weights.slices[self.k]
        x = self.context_input()
        for block in weights.blocks:
            x = self.engine.block(x, block)
        return self.engine.linear(x, weights.context)

    def context_input(self) -> Tensor:
        """The first convolution of this slice's channel context: (B, h, w, M)."""
        assert self._later is not None
        return self._later[..., : self.channels]

    def hyper_and_channel(self) -> Tensor:
        """All of the first product but the spatial context's part, anchors and others: (2, B, P, width)."""
        hyper = self.hyper_part()
        if self.k == 0:
            return hyper
        context = self._by_parity(self.channel_context())
        return hyper + self.engine.linear(context, self.weights.slices[self.k].channel)

    def network(self, hyper_and_channel: Tensor) -> Tensor:
        """Spatial context and aggregation network of this pass: (B, P, 2 g)."""
        x = self.spatial_context() if self.parity else hyper_and_channel.new_empty((*hyper_and_channel.shape[:2], 0))
        return self.aggregation(x, hyper_and_channel)

    def spatial_context(self) -> Tensor:
        """The spatial context of the others, made from this slice's anchors: (B, P, 2 g)."""
        rows = F.pad(self._anchors.flatten(1, 2), (0, 0, 0, 1)).flatten(0, 1)
        # Rows by their numbers, as an embedding: its gradient is fast on CPUs and deterministic on GPUs.
        taps = F.embedding(self._neighbours, rows).flatten(2)
        return self.engine.linear(taps, self.weights.slices[self.k].taps)

    def aggregation(self, x: Tensor, hyper_and_channel: Tensor) -> Tensor:
        """The aggregation network of the spatial context x (B, P, 2 g or 0) and the other parts: (B, P, 2 g)."""
        weights = self.weights.slices[self.k]
        x = self.engine.aggregation(x, weights.first_block, hyper_and_channel)
        for block in weights.other_blocks:
            x = self.engine.aggregation(x, block, None)
        return x

    def add_to_later_contexts(self) -> None:
        """Add slice k, now complete, to the first convolution of all later contexts."""
        weights = self.weights.slices[self.k].to_later_contexts
        if weights is not None:
            part = self.engine.conv(self._slices[-1], weights)
            self._later = part if self._later is None else self._later[..., self.channels :] + part

    def _by_parity(self, x: Tensor) -> Tensor:
        """(B, h, w, C) -> (2, B, P, C), anchors first."""
        return torch.stack((pack(x, 0), pack(x, 1))).flatten(2, 3)


class LayerState:
    """`SliceState` in floating point that calls every layer: for hooks, adapters and others in place of plain layers.

    Args: the model's slices, and hyper parameters from h_s, shape (B, M, h, w), h and w even.
    """

    def __init__(self, stack: SliceStack, params: Tensor):
        self.stack, self._hyper, self.count = stack, params, len(stack.groups)
        self.k = self.parity = 0
        self._slices: list[Tensor] = []  # (B, g, h, w)
        self._anchors = self._context = params.new_empty(0)

    def parameters(self) -> tuple[Tensor, Tensor]:
        """Scales and means of the next pass, each (B, h, w / 2, g)."""
        part = cast(Slice, self.stack.latent_codec[f"y{self.k}"])
        (batch, _, height, width), g = self._hyper.shape, self.stack.groups[self.k]
        if self.parity == 0:
            spatial = self._hyper.new_zeros((batch, 2 * g, height, width))
            self._context = self._hyper.new_empty((batch, 0, height, width))
            if self.k:
                before = torch.cat(self._slices, dim=1).to(self._hyper.dtype)
                self._context = self.stack.channel_context[f"y{self.k}"](before)
        else:
            anchors = unpack(self._anchors, 0).permute(0, 3, 1, 2)
            spatial = part.context_prediction(anchors.to(self._hyper.dtype))
        joint = torch.cat((spatial, self._context, self._hyper), dim=1).permute(0, 2, 3, 1)
        joint = part.entropy_parameters(pack(joint, self.parity).flatten(1, 2))
        scales, means = full_precision(joint).unflatten(1, (height, width // 2)).chunk(2, dim=3)
        return scales, means

    def take(self, coder: GpuRead) -> None:
        """`parameters` and `add` in one step, with a coder on the device."""
        parameters = torch.cat(self.parameters(), dim=3).flatten(1, 2)
        self.add(
            coder.read(parameters, None).view(
                *self._hyper.shape[:1], *self._hyper.shape[2:3], -1, parameters.shape[2] // 2
            )
        )

    def add(self, values: Tensor) -> None:
        """Take y_hat at the positions of the last `parameters`, shape (B, h, w / 2, g)."""
        if self.parity:
            self._slices.append(interleave(self._anchors, values).permute(0, 3, 1, 2))
            self.k += 1
        self._anchors, self.parity = values, 1 - self.parity

    def y_hat(self) -> Tensor:
        """All latents, (B, M, h, w)."""
        return torch.cat(self._slices, dim=1)


def neighbours(batch: int, height: int, width: int) -> Tensor:
    """Rows of the anchors that each of the P others has at its 12 taps, int64 (B, P, 12), on the CPU.

    They are rows of (B (P + 1), g): for each picture its packed anchors and then one row of zeros, which stands for
    positions outside the picture. Sizes may be symbols of torch.export or numbers of torch.jit.trace.
    """

    def numbers(end: int) -> Tensor:
        return torch.arange(end, dtype=torch.int64, device="cpu")

    half = width // 2
    row = numbers(height)[:, None, None]
    column = 2 * numbers(half)[None, :, None] + 1 - row % 2
    taps = torch.tensor(CHECKERBOARD_TAPS, dtype=torch.int64, device="cpu") - 2
    y, x = row + taps[:, 0], column + taps[:, 1]
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    rows = torch.where(inside, y * half + x // 2, height * half).reshape(1, height * half, 12)
    return rows + numbers(batch)[:, None, None] * (height * half + 1)


@lru_cache(maxsize=32)
def _kept_neighbours(batch: int, height: int, width: int) -> np.ndarray:
    """`neighbours` as an array, because a tensor would belong to the mode of the call that made it."""
    with _disable_current_modes():
        return neighbours(batch, height, width).numpy()


def code_slices(state: SliceState | LayerState, coder: PassCoder | GpuRead) -> Tensor:
    """Code all slices of a new state -> y_hat (B, M, h, w), channels last."""
    for k in range(state.count):
        for parity in (0, 1):
            if isinstance(coder, GpuRead):
                state.take(coder)
            else:
                state.add(coder(k, parity, *state.parameters()))
    return state.y_hat()


# Pass coders


class PassCoder(Protocol):
    """Called once a pass: scales, means (B, h, w / 2, g) -> y_hat at those positions, same shape.

    `ExactEngine` gives rows of the Gaussian tables (int32) in place of scales.
    """

    def __call__(self, k: int, parity: int, scales: Tensor, means: Tensor) -> Tensor: ...


class GpuRead:
    """A pass coder on the model's device: ``read(parameters (B, P, 2 g) float32, view) -> values (B, P, g)``.

    view: the output to write the values to, or None. Nothing waits for the device, so `read` has to record a fault if
    scales or means are not finite.
    """

    def __init__(self, read: Callable[[Tensor, OutputView | None], Tensor]):
        self.read = read


class _HasLatents:
    def __init__(self, y: Tensor, groups: Sequence[int]):
        self.slices = full_precision(y).permute(0, 2, 3, 1).split(list(groups), dim=3)


class Estimate(_HasLatents):
    """A pass coder that rounds y and collects likelihoods: in training of values with noise, else of rounded values.

    Where gradients are on, they pass the rounding of y_hat. The likelihood of a rounded value has a gradient at its
    scale alone, as published.

    y: (B, M, h, w). groups: channels of each slice. share: this process's part of the batch (`lalic.nn.noise`).
    """

    def __init__(self, y: Tensor, groups: Sequence[int], training: bool, share: Share = ALL):
        super().__init__(y, groups)
        self.training, self.share = training, share
        self._likelihoods: list[Tensor] = []

    def __call__(self, k: int, parity: int, scales: Tensor, means: Tensor) -> Tensor:
        y = pack(self.slices[k], parity)
        symbols = rounded(y - means)
        y_hat = symbols + means
        values = y + uniform_like(y, self.share) if self.training else symbols.detach() + means
        self._likelihoods.append(lalic_kernels.gaussian_likelihood(values, scales, means))
        return y_hat

    def likelihoods(self) -> Tensor:
        """Probability of every latent, shape (B, M, h, w)."""
        pairs = zip(self._likelihoods[0::2], self._likelihoods[1::2], strict=True)
        return torch.cat([interleave(anchors, others) for anchors, others in pairs], dim=3).permute(0, 3, 1, 2)


def _rows(scales: Tensor) -> Tensor:
    """Rows of the Gaussian tables, int32; `scales` is that already if it is no floating point."""
    return lalic_kernels.scale_index(scales) if scales.is_floating_point() else scales


def _stream_order(x: Tensor) -> Tensor:
    """(B, h, w / 2, g) -> (B, g * h * w / 2) int32, in the order channel, row, column."""
    return x.permute(0, 3, 1, 2).flatten(1).to(torch.int32)


class Collect(_HasLatents):
    """A pass coder that rounds y minus the means and collects symbols. Nothing waits for the device before `passes`.

    sections: for each pass (symbols, rows of the Gaussian tables), each (B, n) int32 on the model's device. absmax: the
    largest magnitude of each pass; sections are valid only if `check_magnitudes` accepts it.
    """

    def __init__(self, y: Tensor, groups: Sequence[int]):
        super().__init__(y, groups)
        self.sections: list[tuple[Tensor, Tensor]] = []
        self.absmax: list[Tensor] = []

    def __call__(self, k: int, parity: int, scales: Tensor, means: Tensor) -> Tensor:
        symbols = torch.round(pack(self.slices[k], parity) - means)
        self.absmax.append(symbols.abs().amax())
        self.sections.append((_stream_order(symbols), _stream_order(_rows(scales))))
        return symbols.to(means) + means

    @cached_property
    def passes(self) -> list[tuple[Tensor, Tensor]]:
        """For each pass (symbols, rows), each (B, n) int32 on the CPU. Raises ``LalicError`` for values too large."""
        check_magnitudes("y", torch.stack(self.absmax))
        return [(symbols.cpu(), indexes.cpu()) for symbols, indexes in self.sections]


class Read:
    """A pass coder that takes symbols from ``read(pass number, rows (B, n) int32) -> symbols (B, n) int32`` on the CPU.

    Raises ``BitstreamError`` if a mean in floating point is not finite; `ExactEngine` checks its means itself.
    """

    def __init__(self, read: Callable[[int, Tensor], Tensor]):
        self.read = read

    def __call__(self, k: int, parity: int, scales: Tensor, means: Tensor) -> Tensor:
        B, h, half, g = means.shape
        rows = _rows(scales)
        if scales.is_floating_point():  # a mean that is not finite becomes a row that no table has
            rows = torch.where(torch.isfinite(means), rows, -1)
        indexes = _stream_order(rows).cpu()
        if scales.is_floating_point() and int(indexes.min()) < 0:
            raise BitstreamError("the file does not decode with these weights: a predicted mean is not finite")
        symbols = self.read(2 * k + parity, indexes)
        return symbols.reshape(B, g, h, half).permute(0, 2, 3, 1).to(means) + means


def check_magnitudes(name: str, symbols: Tensor) -> None:
    """Raise ``LalicError`` unless rounded values fit the coder; such a picture or such weights cannot be coded."""
    absmax = float(symbols.detach().abs().max()) if symbols.numel() else 0.0
    if not absmax < 2**24:  # also when not finite; floats count exactly up to here
        raise LalicError(f"{name}: latents of magnitude {absmax:g} cannot be coded; expected finite values below 2^24")
