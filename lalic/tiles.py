"""Tiles and windows: how a large picture is divided, so that memory does not grow with it and a part can be decoded.

A picture has one grid of latents. Its tiles are squares of `tile` pixels from the top left, smaller at the right and at
the bottom; each is entropy-coded by itself. The transforms run on windows: a tile with a margin on each side, which
takes part in the computation and is cut off. At the picture's edges a window is moved inside, so all windows of a
picture have one size. BiWKV divides decays by the number of tokens, so a window of fixed size also keeps a model where
it was trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

STEP = 64  # pixels a side for one hyper latent
MAX_SIDE = 2**31 - 1
MAX_WINDOW = 2**20  # pixels, after padding: what a reader needs memory for at a time
SCALES = (1, 2, 4, 8, 16, 32, STEP)  # divisors of a tile's side, by which a picture can be reduced


class Box(NamedTuple):
    """A rectangle in pixels: right and bottom are not part of it."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top

    def intersection(self, other: Box) -> Box:
        return Box(*map(max, self[:2], other[:2]), *map(min, self[2:], other[2:]))

    @property
    def empty(self) -> bool:
        return self.width <= 0 or self.height <= 0

    def moved(self, x: int, y: int) -> Box:
        return Box(self.left + x, self.top + y, self.right + x, self.bottom + y)


@dataclass(frozen=True)
class Grid:
    """Size of a picture in pixels, and its tiles. A bad field raises `ValueError`.

    width, height: 1 to 2^31 - 1. tile: side of a tile, a multiple of 64; 0: the whole picture is one tile. margin: of a
    window on each side, a multiple of 64.
    """

    width: int
    height: int
    tile: int = 0
    margin: int = 0

    def __post_init__(self) -> None:
        for name, side in (("width", self.width), ("height", self.height)):
            if not 1 <= side <= MAX_SIDE:
                raise ValueError(f"{name} is {side}, expected 1 to {MAX_SIDE}")
        for name, size in (("tile", self.tile), ("margin", self.margin)):
            if size < 0 or size % STEP:
                raise ValueError(f"{name} is {size}, expected a multiple of {STEP}")

    @property
    def whole(self) -> Box:
        """The picture."""
        return Box(0, 0, self.width, self.height)

    @property
    def padded(self) -> Box:
        """The picture with both sides padded to multiples of 64."""
        return Box(0, 0, -(-self.width // STEP) * STEP, -(-self.height // STEP) * STEP)

    @property
    def columns(self) -> int:
        return -(-self.width // self.tile) if self.tile else 1

    @property
    def rows(self) -> int:
        return -(-self.height // self.tile) if self.tile else 1

    def __len__(self) -> int:
        return self.columns * self.rows

    def box(self, index: int) -> Box:
        """The tile of an index, in the padded picture. Tiles count row by row."""
        row, column = divmod(index, self.columns)
        tile = Box(column * self.tile, row * self.tile, (column + 1) * self.tile, (row + 1) * self.tile)
        return tile.intersection(self.padded) if self.tile else self.padded

    def window(self, index: int) -> Box:
        """The window of a tile, in the padded picture."""
        if not self.tile:
            return self.padded
        tile, all_ = self.box(index), self.padded
        left, width = self._placed(tile.left, all_.width)
        top, height = self._placed(tile.top, all_.height)
        return Box(left, top, left + width, top + height)

    @property
    def window_pixels(self) -> int:
        """Pixels of each window."""
        if not self.tile:
            return self.padded.width * self.padded.height
        return self._placed(0, self.padded.width)[1] * self._placed(0, self.padded.height)[1]

    def _placed(self, begin: int, side: int) -> tuple[int, int]:
        """Where a window begins, and its size, along a side of the padded picture."""
        size = min(side, self.tile + 2 * self.margin)
        return max(0, min(begin - self.margin, side - size)), size

    def meeting(self, box: Box) -> Iterator[int]:
        """Indexes of the tiles that a box meets, in order."""
        box = box.intersection(self.padded)
        if box.empty:
            return
        tile = self.tile or max(self.padded)
        for row in range(box.top // tile, -(-box.bottom // tile)):
            for column in range(box.left // tile, -(-box.right // tile)):
                yield row * self.columns + column
