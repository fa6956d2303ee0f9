"""The coding order, slice by slice, with everything kept that a later step needs: for training, encoder and decoder.

For slice k, where [x] W is a product and the sums run in this order:

    kept from the start       hyper      = [hyper parameters] W_hyper              of all slices, one product
    kept as slices arrive     later_k   += conv3x3(slice j)  for j < k             of all later contexts, one product
    once a slice              context    = [RWKV blocks(later_k)] W + b
                              known      = hyper_k + [context] W_channel           both colours
    anchors                   m          = b + known                               no spatial context
    others                    m          = [spatial] W_spatial + b + known         spatial: 12 live taps of 5x5
    both                      scales, means = aggregation network of m

This is the definition of the model's numbers as well: an engine with exact arithmetic gives the same bits whatever is
kept, because each part is a product by itself.

What happens to scales and means is a pass coder's business: `Estimate` knows y and gives likelihoods, `Collect` knows y
and keeps symbols, `Read` and `GpuRead` take them from streams. As the loop is the same, so is every number in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import lalic_kernels
from lalic.coder.weights import Engine, StackWeights, stack_weights
from lalic.errors import BitstreamError, LalicError
from lalic.nn.context import CHECKERBOARD_TAPS, SliceStack, full_precision, interleave, pack
from lalic.nn.noise import ALL, Share, uniform_like
from lalic_kernels.rans import OutputView


class PassCoder(Protocol):
    """Called once a pass. scales, means (B, h, w / 2, g) -> y_hat at those positions, same shape.

    An engine whose head makes indexes of the scales gives those in their place, int32.
    """

    def __call__(self, k: int, parity: int, scales: Tensor, means: Tensor) -> Tensor: ...


class GpuRead:
    """Takes values from ``read(parameters (B, P, 2 g) float32, view) -> values (B, P, g)``, where the model computes.

    view: None, or where the values are to be written. Nothing waits for the device: `read` has to remember a fault of
    scales and means that are not finite.
    """

    def __init__(self, read: Callable[[Tensor, OutputView | None], Tensor]):
        self.read = read


class SliceState:
    """Where coding of one batch of latents stands, slice by slice, anchors then others.

    Call `parameters` and `add` in turn, twice a slice; then `y_hat` is there. Who calls decides what becomes of scales
    and means: an encoder rounds latents against them, a decoder reads symbols, training does both in one.

    Args:
        stack: the model's slices, or their weights as the engine prepared them.
        params: hyper parameters from h_s, shape (B, M, h, w), h and w even.
        engine: what computes.

    Attributes:
        k, parity: the slice and the colour that `parameters` answers for (0: anchors).
    """

    def __init__(self, stack: SliceStack | StackWeights, params: Tensor, engine: Engine):
        self.engine = engine
        self.weights = stack_weights(stack, engine)
        self.batch, self.channels, self.height, self.width = params.shape
        self.k = self.parity = 0
        self._expects_values = False
        self._slices: list[Tensor] = []
        self._anchors: Tensor | None = None
        self._known = params.new_empty(0)  # (2, B, P, width) of this slice
        self._later: Tensor | None = None  # (B, h, w, M * slices to come)
        places = neighbours(self.batch, self.height, self.width)
        self._neighbours = torch.as_tensor(places, device="cpu").to(params.device)
        self._hyper = self.hyper_parts(self._by_colour(params.permute(0, 2, 3, 1)))

    def parameters(self) -> tuple[Tensor, Tensor]:
        """Scales and means of the next colour, each (B, h, w / 2, g) as `lalic.nn.context.pack` orders positions.

        From an engine whose head says so, the scales' rows in the Gaussian tables (int32) in place of the scales.
        """
        joint = self.joint_parameters()
        scales, means = (x.unflatten(1, (self.height, self.width // 2)) for x in self.engine.head(joint))
        return scales, means

    def joint_parameters(self) -> Tensor:
        """What `parameters` makes scales and means of: (B, P, 2 g), at each position g scales and then g means."""
        if self._expects_values or self.k == len(self.weights.slices):
            raise RuntimeError("parameters: add() has to come first, or all slices are coded")
        weights = self.weights.slices[self.k]
        if self.parity == 0:
            self._known = self.known_part()
            x, first = self._known.new_empty((*self._known.shape[1:3], 0)), weights.anchors
        else:
            x, first = self.spatial_context(), weights.first
        out = self.aggregation(x, first, self._known[self.parity])
        self._expects_values = True
        return out

    def add(self, values: Tensor) -> None:
        """Take y_hat at the positions that `parameters` answered for, shape (B, h, w / 2, g)."""
        if not self._expects_values:
            raise RuntimeError("add: parameters() has to come first")
        self._expects_values = False
        if self.parity == 0:
            self._anchors, self.parity = values, 1
            return
        assert self._anchors is not None
        self._slices.append(interleave(self._anchors, values))
        self._anchors, self.parity = None, 0
        self.arrived()
        self.k += 1

    def take(self, coder: GpuRead) -> None:
        """`parameters` and `add` in one, with a coder on the device."""
        values = coder.read(full_precision(self.joint_parameters()), None)
        self.add(values.view(self.batch, self.height, self.width // 2, -1))

    def y_hat(self) -> Tensor:
        """All latents, (B, M, h, w), channels last."""
        if self.k != len(self.weights.slices):
            raise RuntimeError(f"y_hat: {self.k} of {len(self.weights.slices)} slices are coded")
        return torch.cat(self._slices, dim=3).permute(0, 3, 1, 2)

    # The steps; benchmarks/slices.py replaces one or the other to show what keeping is worth.

    def hyper_parts(self, hyper: Tensor) -> tuple[Tensor, ...]:
        """hyper (2, B, P, M) -> each slice's part of its first product, (2, B, P, width)."""
        widths = [weights.width for weights in self.weights.slices]
        return self.engine.linear(hyper, self.weights.hyper).split(widths, dim=3)

    def hyper_part(self) -> Tensor:
        """This slice's, (2, B, P, width)."""
        return self._hyper[self.k]

    def channel_context(self) -> Tensor:
        """Of this slice, from the earlier ones: (B, h, w, 2 g)."""
        weights = self.weights.slices[self.k]
        x = self.context_input()
        for block in weights.blocks:
            x = self.engine.block(x, block)
        return self.engine.linear(x, weights.context)

    def context_input(self) -> Tensor:
        """The first convolution of this slice's channel context, complete by now: (B, h, w, M)."""
        assert self._later is not None
        return self._later[..., : self.channels]

    def known_part(self) -> Tensor:
        """All of the first product but the spatial context, of both colours: (2, B, P, width)."""
        hyper = self.hyper_part()
        if self.k == 0:
            return hyper
        context = self._by_colour(self.channel_context())
        return hyper + self.engine.linear(context, self.weights.slices[self.k].channel)

    def spatial_context(self) -> Tensor:
        """Of the others, from this slice's anchors: (B, P, 2 g)."""
        assert self._anchors is not None
        rows = F.pad(self._anchors.flatten(1, 2), (0, 0, 0, 1)).flatten(0, 1)
        # An embedding: rows by their numbers, with a gradient that is fast on CPUs and deterministic on GPUs.
        seen = F.embedding(self._neighbours, rows).flatten(2)
        return self.engine.linear(seen, self.weights.slices[self.k].taps)

    def aggregation(self, x: Tensor, first: object, known: Tensor) -> Tensor:
        """The aggregation network of the context at hand and what is known: (B, P, 2 g)."""
        x = self.engine.aggregation(x, first, known)
        for block in self.weights.slices[self.k].rest:
            x = self.engine.aggregation(x, block, None)
        return x

    def arrived(self) -> None:
        """Slice k is complete: its part goes to all later contexts."""
        spread = self.weights.slices[self.k].spread
        if spread is None:
            self._later = None
            return
        part = self.engine.conv(self._slices[-1], spread)
        self._later = part if self._later is None else self._later[..., self.channels :] + part

    def _by_colour(self, x: Tensor) -> Tensor:
        """(B, h, w, C) -> (2, B, P, C), anchors first."""
        return torch.stack((pack(x, 0), pack(x, 1))).flatten(2, 3)


@lru_cache(maxsize=32)
def neighbours(batch: int, height: int, width: int) -> np.ndarray:
    """Which packed anchors each of the P others sees at its 12 live taps, int64 (B, P, 12).

    They count the rows of (B (P + 1), g), each picture's anchors and then one row of zeros, which stands for what is
    outside.
    """
    row = np.arange(height)[:, None, None]
    column = 2 * np.arange(width // 2)[None, :, None] + 1 - row % 2
    taps = np.array(CHECKERBOARD_TAPS) - 2
    there, across = row + taps[:, 0], column + taps[:, 1]
    inside = (there >= 0) & (there < height) & (across >= 0) & (across < width)
    count = height * width // 2
    places = np.where(inside, there * (width // 2) + across // 2, count).reshape(1, count, 12)
    return places + np.arange(batch)[:, None, None] * (count + 1)


def code_slices(state: SliceState, coder: PassCoder | GpuRead) -> Tensor:
    """All slices of a fresh state -> y_hat (B, M, h, w), channels last."""
    for k in range(len(state.weights.slices)):
        for parity in (0, 1):
            if isinstance(coder, GpuRead):
                state.take(coder)
            else:
                state.add(coder(k, parity, *state.parameters()))
    return state.y_hat()


class _KnowsLatents:
    def __init__(self, y: Tensor, groups: Sequence[int]):
        self.slices = full_precision(y).permute(0, 2, 3, 1).split(list(groups), dim=3)


class Estimate(_KnowsLatents):
    """Rounds y and keeps its likelihoods. In training the rate sees noise and rounding passes gradients."""

    def __init__(self, y: Tensor, groups: Sequence[int], training: bool, share: Share = ALL):
        super().__init__(y, groups)
        self.training, self.share = training, share
        self._likelihoods: list[Tensor] = []

    def __call__(self, k: int, parity: int, scales: Tensor, means: Tensor) -> Tensor:
        y = pack(self.slices[k], parity)
        t = y - means
        y_hat = ((torch.round(t) - t).detach() + t) + means if self.training else torch.round(t) + means
        seen = y + uniform_like(y, self.share) if self.training else y_hat
        self._likelihoods.append(lalic_kernels.gaussian_likelihood(seen, scales, means))
        return y_hat

    def likelihoods(self) -> Tensor:
        """Probability of every latent, shape (B, M, h, w)."""
        pairs = zip(self._likelihoods[0::2], self._likelihoods[1::2], strict=True)
        return torch.cat([interleave(anchors, others) for anchors, others in pairs], dim=3).permute(0, 3, 1, 2)


def _rows(scales: Tensor) -> Tensor:
    """Rows of the Gaussian tables, int32: of the scales, unless an engine has made them already."""
    return lalic_kernels.scale_index(scales) if scales.is_floating_point() else scales


def _stream_order(x: Tensor) -> Tensor:
    """(B, h, w / 2, g) -> (B, g * h * w / 2) int32, in the order channel, row, place in the row."""
    return x.permute(0, 3, 1, 2).flatten(1).to(torch.int32)


class Collect(_KnowsLatents):
    """Rounds y against the means and keeps symbols and indexes. Nothing waits for the device before `passes`.

    sections: (symbols, indexes) where the model computes, each (B, n) int32, a pair a pass. absmax: of each pass the
    largest magnitude, for `check_magnitudes`; sections mean something if that raises nothing.
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
        """(symbols, indexes) on the CPU, each (B, n) int32, a pair a pass. Raises as `check_magnitudes` does."""
        check_magnitudes("y", torch.stack(self.absmax))
        return [(symbols.cpu(), indexes.cpu()) for symbols, indexes in self.sections]


class Read:
    """Takes symbols from ``read(pass number, indexes (B, n) int32) -> symbols (B, n) int32``, both on the CPU.

    An engine that makes rows of the scales looks at the means itself.
    """

    def __init__(self, read: Callable[[int, Tensor], Tensor]):
        self.read = read

    def __call__(self, k: int, parity: int, scales: Tensor, means: Tensor) -> Tensor:
        B, h, half, g = means.shape
        rows = _rows(scales)
        if scales.is_floating_point():  # a mean that is not finite shows as an index that no table has
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
