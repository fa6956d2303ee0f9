"""The view that a GPU decoder writes values to."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class OutputView:
    """The positions of images that decoded values are written to: one colour of a checkerboard, or all.

    Args:
        image: (B, h, w, g) float32; channels have stride 1, positions (in row-major order) any one stride.
        colour: 0 for the positions where row + column is even, 1 for the others; then w must be even. None for all.
        absmax_bits: (B,) int32 or None; raised to the bits of each image's largest absolute value.

    Raises:
        ValueError: the image has other strides, another colour, or an odd width with a colour.
    """

    image: Tensor
    colour: int | None
    absmax_bits: Tensor | None = None

    def __post_init__(self) -> None:
        _, h, w, g = self.image.shape
        per_image, per_row, per_position, per_channel = self.image.stride()
        regular = h == 1 or per_row == w * per_position
        regular = regular and (len(self.image) == 1 or per_image == h * w * per_position)
        if per_channel != 1 or not regular or per_position < g:
            raise ValueError(
                f"image must have its positions one after the other, but has strides {self.image.stride()[:3]}"
            )
        if self.colour not in (0, 1, None) or (self.colour is not None and w % 2):
            raise ValueError(f"colour must be 0, 1 or None, and w even with a colour, but is {self.colour}, w {w}")

    @property
    def positions(self) -> int:
        """The number of positions in each image that are written."""
        return self.image.shape[1] * self.image.shape[2] // (1 if self.colour is None else 2)

    @property
    def numbers(self) -> tuple[int, int, int, int]:
        """The kernel's arguments: positions per image, their stride, half the width or 0, colour or 0."""
        _, h, w, _ = self.image.shape
        return h * w, self.image.stride(2), 0 if self.colour is None else w // 2, self.colour or 0
