"""Coding slices on a GPU: the numbers of `lalic.coder.schedule`, computed by fused launches in exact arithmetic.

All latents are in one image (B, h, w, M). Values of a slice are written to its channels; spatial contexts and the
convolutions of later slices read them from there, so nothing is packed or concatenated.
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
    """Offsets (row, column) of the checkerboard convolution's 12 taps, (12, 2) int32."""
    return (torch.tensor(CHECKERBOARD_TAPS, dtype=torch.int32) - 2).to(device)


class GpuSliceState(SliceState):
    """`SliceState` on a GPU. weights: prepared by `ExactEngine`. kernels: from `exact.slice_kernels`.

    `take` is for a coder on the device, which writes values into the image; `parameters` and `add` are for the others.
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
        """Output of the aggregation network: (B, P, 2 g), at each position g scales and then g means."""
        if self._expects_values or self.k == len(self.weights.slices):
            raise RuntimeError("parameters: add() has to come first, or all slices are coded")
        if self.parity == 0:
            self._hyper_and_channel = self.hyper_and_channel()
            self._absmax_bits = self.kernels.zero_bits(self.batch)
        self._expects_values = True
        return self.network(self._hyper_and_channel[self.parity])

    def slice_view(self) -> Tensor:
        """The channels of this slice in the image, anchors and others: (B, h, w, g)."""
        return self._image[..., self._starts[self.k] : self._starts[self.k + 1]]

    def add(self, values: Tensor) -> None:
        """Take y_hat at the positions of the last `parameters`, shape (B, h, w / 2, g)."""
        if not self._expects_values:
            raise RuntimeError("add: parameters() has to come first")
        for row in (0, 1):
            self.slice_view()[:, row::2, (row + self.parity) % 2 :: 2] = values[:, row::2]
        if self.parity:
            self.kernels.raise_absmax(self._absmax_bits, self.slice_view())
        self._next_pass()

    def take(self, coder: GpuRead) -> None:
        """`parameters` and `add` in one step, with a coder on the device."""
        coder.read(self.joint_parameters(), OutputView(self.slice_view(), self.parity, self._absmax_bits))
        self._next_pass()

    def _next_pass(self) -> None:
        """The values of this pass and their maxima have been written."""
        self._expects_values = False
        if self.parity == 0:
            self.parity = 1
            return
        self.parity = 0
        self.add_to_later_contexts()
        self.k += 1

    def y_hat(self) -> Tensor:
        """All latents, (B, M, h, w), channels last."""
        if self.k != len(self.weights.slices):
            raise RuntimeError(f"y_hat: {self.k} of {len(self.weights.slices)} slices are coded")
        return self._image.permute(0, 3, 1, 2)

    def channel_context(self) -> Tensor:
        """The channel context of this slice before its last product: (B, h, w, M)."""
        return exact.rwkv_blocks(self.context_input(), self.weights.slices[self.k].blocks, backend="triton")

    def hyper_and_channel(self) -> Tensor:
        """All of the first product but the spatial context's part, anchors and others: (2, B, P, width)."""
        if self.k == 0:
            return self._hyper[0]
        weights = self.weights.slices[self.k]
        return self.kernels.two_products(self.channel_context(), weights.context, weights.channel, self._hyper[self.k])

    def network(self, hyper_and_channel: Tensor) -> Tensor:
        """Spatial context and aggregation network: (B, h w / 2, 2 g)."""
        weights, image = self.weights.slices[self.k], self.slice_view()
        network = weights.first_block, *weights.other_blocks
        if self.parity == 0:
            return self.kernels.anchors(network, hyper_and_channel)
        return self.kernels.others(network, hyper_and_channel, image, _taps(image.device), weights.taps)

    def add_to_later_contexts(self) -> None:
        """Add slice k, now complete, to the first convolution of all later contexts."""
        weights = self.weights.slices[self.k].to_later_contexts
        if weights is None:
            self._later = None
            return
        previous = None if self._later is None else self._later[..., self.channels :]
        self._later = self.kernels.conv(self.slice_view(), weights, previous=previous, absmax_bits=self._absmax_bits)
