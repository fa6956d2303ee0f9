"""Coding slices on a GPU: the numbers of `lalic.coder.schedule`, computed by fused launches in exact arithmetic.

All latents are in one image (B, h, w, M). Values of a slice are written to its channels; spatial contexts and the
convolutions of later slices read them from there, so nothing is packed or concatenated.
"""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor

from lalic.coder.schedule import Engine, GpuRead, SliceState, StackWeights
from lalic.nn.context import CHECKERBOARD_TAPS
from lalic_kernels import exact
from lalic_kernels.rans import OutputView


@functools.lru_cache(maxsize=16)
def _taps(device: torch.device) -> Tensor:
    """Offsets (row, column) of the checkerboard convolution's 12 taps, (12, 2) int32."""
    return (torch.tensor(CHECKERBOARD_TAPS, dtype=torch.int32, device="cpu") - 2).to(device)


class GpuSliceState(SliceState):
    """`SliceState` on a GPU. weights: prepared by `ExactEngine`. kernels: from `exact.slice_kernels`.

    `take` is for a coder on the device, which writes values into the image; `parameters` and `add` are for the others.
    """

    def __init__(self, weights: StackWeights, params: Tensor, engine: Engine, kernels: exact.SliceKernels):
        self.kernels = kernels
        super().__init__(weights, params, engine)

    def _begin(self, params: Tensor) -> None:
        slices = self.weights.slices
        self._starts = list(itertools.accumulate((part.taps.weight.shape[0] // 2 for part in slices), initial=0))
        self._image = params.new_empty(self.batch, self.height, self.width, self._starts[-1])
        hyper = self.kernels.linear_by_colour(params, self.weights.hyper)
        self._hyper = hyper.split([part.width for part in slices], dim=3)

    def slice_view(self) -> Tensor:
        """The channels of this slice in the image, anchors and others: (B, h, w, g)."""
        return self._image[..., self._starts[self.k] : self._starts[self.k + 1]]

    def _store(self, values: Tensor) -> None:
        for row in (0, 1):
            self.slice_view()[:, row::2, (row + self.parity) % 2 :: 2] = values[:, row::2]
        if self.parity:
            self.kernels.raise_absmax(self._absmax_bits, self.slice_view())

    def take(self, coder: GpuRead) -> None:
        """`parameters` and `add` in one step, with a coder on the device."""
        coder.read(self.joint_parameters(), OutputView(self.slice_view(), self.parity, self._absmax_bits))
        self._next_pass()

    def _latents(self) -> Tensor:
        return self._image

    def hyper_and_channel(self) -> Tensor:
        """All of the first product but the spatial context's part, anchors and others: (2, B, P, width)."""
        self._absmax_bits = self.kernels.zero_bits(self.batch)  # of this slice's values
        if self.k == 0:
            return self._hyper[0]
        weights = self.weights.slices[self.k]
        context = exact.rwkv_blocks(self.context_input(), weights.blocks, backend="triton")
        return self.kernels.two_products(context, weights.context, weights.channel, self._hyper[self.k])

    def network(self, hyper_and_channel: Tensor) -> Tensor:
        """Spatial context and aggregation network of this pass: (B, P, 2 g)."""
        weights, image = self.weights.slices[self.k], self.slice_view()
        network = weights.first_block, *weights.other_blocks
        if self.parity == 0:
            return self.kernels.anchors(network, hyper_and_channel)
        return self.kernels.others(network, hyper_and_channel, image, _taps(image.device), weights.taps)

    def add_to_later_contexts(self) -> None:
        """Add slice k, now complete, to the first convolution of all later contexts."""
        weights = self.weights.slices[self.k].to_later_contexts
        if weights is not None:
            previous = None if self._later is None else self._later[..., self.channels :]
            bits = self._absmax_bits
            self._later = self.kernels.conv(self.slice_view(), weights, previous=previous, absmax_bits=bits)
