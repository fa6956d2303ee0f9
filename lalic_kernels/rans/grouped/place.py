"""Where decoded values lie on a device."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Place:
    """One colour of images, or all of them, for values to be written to.

    image: (B, h, w, g) float32, channels side by side, positions one after the other at any distance. colour: 0 for the
    positions where row + column is even, 1 for the others, w even; None for all. most: (B,) int32 or None, raised to
    the magnitude bits of each image's largest value.
    """

    image: Tensor
    colour: int | None
    most: Tensor | None = None

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
