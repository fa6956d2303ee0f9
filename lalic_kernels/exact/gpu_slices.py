"""Coding slices on a GPU: parts of first products, aggregation networks, contexts of later slices.

Images are (B, H, W, C) with evenly spaced positions. "By colour" is (2, B, H W / 2, C): anchors first, positions of a
colour in row-major order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lalic_kernels.exact import gpu
from lalic_kernels.exact.gpu import factor_of, product
from lalic_kernels.exact.gpu_state import checked, one_check, zeros
from lalic_kernels.exact.quantise import require_float32
from lalic_kernels.exact.weights import ExactConv, ExactEntropyParams, ExactLinear


@dataclass(frozen=True)
class SliceKernels:
    """The kernels of coding slices on a device. Results are settled float32; inputs are float32 and finite.

    Raises of every method:
        TypeError: an input is not float32.
        NotFinite: an input is not finite; inside `exact.one_check` only at its end, inside `exact.statuses` never.
    """

    device: torch.device

    def zero_bits(self, images: int) -> Tensor:
        """(B,) int32 zeros: magnitude bits, to be raised to each image's largest."""
        return zeros(self.device, images)

    def raise_absmax(self, absmax_bits: Tensor, x: Tensor) -> None:
        """Raise absmax_bits (B,) to those of images x (B, H, W, C)."""
        gpu.raise_absmax(absmax_bits, x)

    def conv(
        self, x: Tensor, weights: ExactConv, *, previous: Tensor | None = None, absmax_bits: Tensor | None = None
    ) -> Tensor:
        """`exact.conv` of images x (B, H, W, C) -> (B, H', W', O), or previous + that.

        absmax_bits (B,): magnitude bits of each image's largest value, or None to compute them.
        """
        return gpu.conv(x, weights, previous, absmax_bits)

    def linear_by_colour(self, x: Tensor, weights: ExactLinear) -> Tensor:
        """x (B, H, W, K), W even -> x w^T + bias by colour (2, B, H W / 2, O)."""
        require_float32(x)
        images, height, width, _ = x.shape
        with checked(x.device) as status:
            y = product(gpu.digits_by_colour(x, status), factor_of(weights))
        return y.reshape(2, images, height * width // 2, -1)

    def two_products(self, x: Tensor, first: ExactLinear, second: ExactLinear, partial: Tensor) -> Tensor:
        """x (B, H, W, K) -> partial + second (first x), by colour (2, B, H W / 2, O); partial with any row stride."""
        require_float32(x, partial)
        with one_check(), checked(x.device) as status:
            y = product(gpu.digits_by_colour(x, status), factor_of(first))
            y = product(gpu.digits_of(y, status, y.shape[1]), factor_of(second), partial=partial.flatten(0, 2))
        return y.reshape(partial.shape)

    def anchors(self, network: Sequence[ExactEntropyParams], partial: Tensor) -> Tensor:
        """Parameters (B, P, 2 g) of the anchors: the blocks of `network`; the first has no input but partial.

        partial (B, P, width): added to the first mix, any row stride.
        """
        require_float32(partial)
        with one_check(), checked(partial.device) as status:
            return _aggregation(network, None, partial, status)

    def others(
        self, network: Sequence[ExactEntropyParams], partial: Tensor, image: Tensor, taps: Tensor, weights: ExactLinear
    ) -> Tensor:
        """Parameters (B, P, 2 g) of the others: the blocks of `network` after the spatial context.

        The context is the product `weights` of the neighbours in image (B, H, W, g), which has the anchors; taps (n, 2)
        int32 are offsets (dy, dx). partial (B, P, width): added to the first mix, any row stride.
        """
        require_float32(partial, image)
        with one_check(), checked(partial.device) as status:
            context = product(gpu.digits_of_neighbours(image, taps, status), factor_of(weights))
            return _aggregation(network, context, partial, status)


def _aggregation(network: Sequence[ExactEntropyParams], x: Tensor | None, partial: Tensor, status: Tensor) -> Tensor:
    """The blocks of `network` one after the other, from the spatial context x (B P, 2 g), if any, and partial."""
    first, *others = network
    y = gpu.entropy_rows(first, x, partial.flatten(0, 1), status)
    for block in others:
        y = gpu.entropy_rows(block, y, None, status)
    return y.reshape(*partial.shape[:2], -1)
