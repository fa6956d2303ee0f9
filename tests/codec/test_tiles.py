"""The division of a picture: every pixel is in one tile, every tile in its window, all windows of one size."""

from __future__ import annotations

import numpy as np
import pytest

from lalic.tiles import Box, Grid

GRIDS = [
    Grid(300, 200), Grid(300, 200, 64), Grid(300, 200, 128, 64), Grid(64, 64, 64, 64), Grid(1, 20000, 768, 64),
    Grid(4032, 3024, 768, 64), Grid(1537, 769, 768, 128),
]  # fmt: skip
EACH = pytest.mark.parametrize("grid", GRIDS, ids=str)


@EACH
def test_tiles_cover_the_padded_picture_once(grid) -> None:
    covered = np.zeros((grid.padded.height, grid.padded.width), np.int8)
    for index in range(len(grid)):
        tile = grid.box(index)
        covered[tile.top : tile.bottom, tile.left : tile.right] += 1
        assert not any(side % 64 for side in tile) and not tile.empty
    assert (covered == 1).all()


@EACH
def test_windows_have_one_size_and_hold_their_tile(grid) -> None:
    windows = [grid.window(index) for index in range(len(grid))]
    assert len({(w.width, w.height) for w in windows}) == 1
    for index, window in enumerate(windows):
        tile = grid.box(index)
        assert window.intersection(tile) == tile and window.intersection(grid.padded) == window
        for near, far in ((tile.left - window.left, window.left), (tile.top - window.top, window.top)):
            assert near >= grid.margin or far == 0
        for near, far in (
            (window.right - tile.right, grid.padded.right - window.right),
            (window.bottom - tile.bottom, grid.padded.bottom - window.bottom),
        ):
            assert near >= grid.margin or far == 0


@EACH
def test_tiles_that_meet_a_box(grid) -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        left, top = rng.integers(grid.padded.width), rng.integers(grid.padded.height)
        box = Box(left, top, left + rng.integers(1, 500), top + rng.integers(1, 500))
        met = [i for i in range(len(grid)) if not grid.box(i).intersection(box).empty]
        assert list(grid.meeting(box)) == met
    assert list(grid.meeting(Box(0, 0, 0, 0))) == list(grid.meeting(Box(10**6, 10**6, 10**7, 10**7))) == []


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ((0, 1), "width is 0"), ((1, 2**31), "height is 2147483648"), ((64, 64, 100), "tile is 100"),
        ((64, 64, -64), "tile is -64"), ((64, 64, 64, 1), "margin is 1"),
    ],
)  # fmt: skip
def test_what_is_no_grid(fields, match) -> None:
    with pytest.raises(ValueError, match=match):
        Grid(*fields)
