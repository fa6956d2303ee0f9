"""Coding slices on a GPU: the same numbers as `lalic.coder.schedule`, in the launches that exact arithmetic fuses.

Latents lie in one image (B, h, w, M) from the beginning. A slice's values are written to their channels and places, and
what reads them, spatial contexts and later slices' convolutions, reads them there: nothing is packed or joined.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from lalic.coder.schedule import GpuRead, SliceState
from lalic.coder.weights import Engine, StackWeights
from lalic.nn.context import CHECKERBOARD_TAPS
from lalic_kernels import exact
from lalic_kernels.rans import OutputView


@functools.lru_cache(maxsize=16)
def _taps(device: torch.device) -> Tensor:
    """Offsets of the checkerboard convolution's live taps, (12, 2) int32."""
    return (torch.tensor(CHECKERBOARD_TAPS, dtype=torch.int32) - 2).to(device)


class GpuSliceState(SliceState):
    """Where coding stands, of weights prepared by `ExactEngine`, where `exact.slice_kernels` gives what computes.

    A coder that reads symbols on the device writes values into the image (`take`); `parameters` and `add` serve others.
    """

    def __init__(self, weights: StackWeights, params: Tensor, engine: Engine, kernels: exact.SliceKernels):
        self.engine, self.weights, self.kernels = engine, weights, kernels
        self.batch, self.channels, self.height, self.width = params.shape
        self.k = self.parity = 0
        self._expects_values = False
        self._starts = [0]
        for part in weights.slices:
            self._starts.append(self._starts[-1] + part.taps.weight.shape[0] // 2)
        self._image = params.new_empty(self.batch, self.height, self.width, self._starts[-1])
        self._later: Tensor | None = None
        widths = [part.width for part in weights.slices]
        self._hyper = kernels.linear_by_colour(params.permute(0, 2, 3, 1), weights.hyper).split(widths, dim=3)

    def joint_parameters(self) -> Tensor:
        """What scales and means are made of: (B, P, 2 g), at each position g scales and then g means."""
        if self._expects_values or self.k == len(self.weights.slices):
            raise RuntimeError("parameters: add() has to come first, or all slices are coded")
        if self.parity == 0:
            self._known = self.known_part()
            self._absmax_bits = self.kernels.zero_bits(self.batch)
        self._expects_values = True
        return self.network(self._known[self.parity])

    def slot(self) -> Tensor:
        """Where the slice's values belong: (B, h, w, g) of the image, of both colours."""
        return self._image[..., self._starts[self.k] : self._starts[self.k + 1]]

    def add(self, values: Tensor) -> None:
        """Take y_hat at the positions that `parameters` answered for, shape (B, h, w / 2, g)."""
        if not self._expects_values:
            raise RuntimeError("add: parameters() has to come first")
        for line in (0, 1):
            self.slot()[:, line::2, (line + self.parity) % 2 :: 2] = values[:, line::2]
        if self.parity:
            self.kernels.raise_absmax(self._absmax_bits, self.slot())
        self._arrive()

    def take(self, coder: GpuRead) -> None:
        """`parameters` and `add` in one, with a coder on the device."""
        coder.read(self.joint_parameters(), OutputView(self.slot(), self.parity, self._absmax_bits))
        self._arrive()

    def _arrive(self) -> None:
        """The values of the colour that `joint_parameters` answered for are in their slot, and their maxima known."""
        self._expects_values = False
        if self.parity == 0:
            self.parity = 1
            return
        self.parity = 0
        self.arrived()
        self.k += 1

    def y_hat(self) -> Tensor:
        """All latents, (B, M, h, w), channels last."""
        if self.k != len(self.weights.slices):
            raise RuntimeError(f"y_hat: {self.k} of {len(self.weights.slices)} slices are coded")
        return self._image.permute(0, 3, 1, 2)

    def channel_context(self) -> Tensor:
        """Of this slice, before its last product: (B, h, w, M)."""
        return exact.rwkv_blocks(self.context_input(), self.weights.slices[self.k].blocks, backend="triton")

    def known_part(self) -> Tensor:
        """All of the first product but the spatial context, of both colours: (2, B, P, width)."""
        if self.k == 0:
            return self._hyper[0]
        weights = self.weights.slices[self.k]
        return self.kernels.two_products(self.channel_context(), weights.context, weights.channel, self._hyper[self.k])

    def network(self, known: Tensor) -> Tensor:
        """The aggregation network, with the spatial context in front: (B, h w / 2, 2 g)."""
        weights = self.weights.slices[self.k]
        network = weights.first, *weights.rest
        if self.parity == 0:
            return self.kernels.anchors(network, known)
        return self.kernels.others(network, known, self.slot(), _taps(known.device), weights.taps)

    def arrived(self) -> None:
        """Slice k is complete: its part goes to all later contexts."""
        spread = self.weights.slices[self.k].spread
        if spread is None:
            self._later = None
            return
        previous = None if self._later is None else self._later[..., self.channels :]
        self._later = self.kernels.conv(self.slot(), spread, previous=previous, absmax_bits=self._absmax_bits)
