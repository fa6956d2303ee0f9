"""Where a GPU decoder writes values."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class OutputView:
    """One colour of the checkerboard in images, or all positions, for decoded values to be written to.

    Args:
        image: (B, h, w, g) float32, channels side by side, positions one after the other at any distance.
        colour: 0 for the positions where row + column is even, 1 for the others, w even; None for all.
        absmax_bits: (B,) int32 or None, raised to the bits of each image's largest absolute value.

    Raises ValueError for an image with other strides, another colour, or an odd width with a colour.
    """

    image: Tensor
    colour: int | None
    absmax_bits: Tensor | None = None

    def __post_init__(self) -> None:
        _, h, w, g = self.image.shape
        b, down, across, beside = self.image.stride()
        lined_up = beside == 1 and (h == 1 or down == w * across) and (len(self.image) == 1 or b == h * w * across)
        if not lined_up or across < g:
            raise ValueError(f"image must have its positions one after the other, but has strides {(b, down, across)}")
        if self.colour not in (0, 1, None) or (self.colour is not None and w % 2):
            raise ValueError(f"colour must be 0, 1 or None, and w even with a colour, but is {self.colour}, w {w}")

    @property
    def positions(self) -> int:
        """How many of an image's positions the values are of."""
        return self.image.shape[1] * self.image.shape[2] // (1 if self.colour is None else 2)

    @property
    def numbers(self) -> tuple[int, int, int, int]:
        """What the kernel is told: positions of an image, their distance, half the width or 0, colour or 0."""
        _, h, w, _ = self.image.shape
        return h * w, self.image.stride(2), 0 if self.colour is None else w // 2, self.colour or 0
