"""Coding slices with everything kept that a later step needs: one schedule for training, encoder and decoder.

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
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lalic.coder.engine import FLOAT, Engine
from lalic.coder.weights import StackWeights, stack_weights
from lalic.nn.context import CHECKERBOARD_TAPS, SliceStack, full_precision, interleave, pack
from lalic_kernels.rans.grouped import Place


class ReadThere:
    """Takes values from ``read(parameters (B, P, 2 g) float32, place) -> values (B, P, g)``, where the model computes.

    place: None, or where the values shall lie; see `DeviceDecoder.decode_parameters`. Nothing waits for the device:
    `read` has to make a fault of scales and means that are not finite.
    """

    def __init__(self, read: Callable[[Tensor, Place | None], Tensor]):
        self.read = read


class SliceDecoder:
    """State of coding one batch of latents, slice by slice, anchors then others.

    Call `parameters` and `add` in turn, twice a slice; then `y_hat` is there. Who calls decides what becomes of scales
    and means: an encoder rounds latents against them, a decoder reads symbols, training does both in one.

    Args:
        stack: the model's slices, or their weights as the engine prepared them.
        params: hyper parameters from h_s, shape (B, M, h, w), h and w even.
        engine: what computes; floating point unless another is given.

    Attributes:
        k, parity: the slice and the colour that `parameters` answers for (0: anchors).
    """

    def __init__(self, stack: SliceStack | StackWeights, params: Tensor, engine: Engine = FLOAT):
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
        own = self.weights.slices[self.k]
        if self.parity == 0:
            self._known = self.known_part()
            x, first = self._known.new_empty((*self._known.shape[1:3], 0)), own.anchors
        else:
            x, first = self.spatial_context(), own.first
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

    def take(self, coder: ReadThere) -> None:
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
        widths = [own.width for own in self.weights.slices]
        return self.engine.linear(hyper, self.weights.hyper).split(widths, dim=3)

    def hyper_part(self) -> Tensor:
        """This slice's, (2, B, P, width)."""
        return self._hyper[self.k]

    def channel_context(self) -> Tensor:
        """Of this slice, from the earlier ones: (B, h, w, 2 g)."""
        own = self.weights.slices[self.k]
        x = self.context_input()
        for block in own.blocks:
            x = self.engine.block(x, block)
        return self.engine.linear(x, own.context)

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
