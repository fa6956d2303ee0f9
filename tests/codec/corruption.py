"""Makes bad .lalic files out of good ones, by accidental damage or on purpose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from lalic.container import Tile, parse
from lalic.tiles import Grid


def corrupted(files: list[bytes], count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """`count` pairs of (what was done, bytes), none equal to one of `files`. Checksums are not corrected."""
    rng = np.random.default_rng(seed)
    made = 0
    while made < count:
        kind, data = _one(files, rng)
        if data not in files:
            made += 1
            yield kind, data


def _one(files: list[bytes], rng: np.random.Generator) -> tuple[str, bytes]:
    data = bytearray(files[rng.integers(len(files))])
    kind = ("flip", "burst", "truncate", "splice", "zeros", "insert", "delete", "swap")[rng.integers(8)]
    # Half of the damage is in the first 48 bytes, which have the header.
    at = int(rng.integers(min(48, len(data)) if rng.random() < 0.5 else len(data)))
    if kind == "flip":
        for position in [at, *rng.integers(len(data), size=rng.integers(4))]:
            data[position] ^= 1 << rng.integers(8)
    elif kind == "burst":
        data[at : at + int(rng.integers(1, 64))] = rng.bytes(min(int(rng.integers(1, 64)), len(data) - at))
    elif kind == "truncate":
        del data[at:]
    elif kind == "splice":
        other = files[rng.integers(len(files))]
        data[at:] = other[at if rng.random() < 0.5 else int(rng.integers(len(other))) :]
    elif kind == "zeros":
        length = min(int(rng.integers(1, 512)), len(data) - at)
        data[at : at + length] = bytes(length)
    elif kind == "insert":
        data[at:at] = rng.bytes(int(rng.integers(1, 9)))
    elif kind == "delete":
        del data[at : at + int(rng.integers(1, 9))]
    else:
        half = len(data) // 2
        data = data[half:] + data[:half]
    return kind, bytes(data)


def resealed(files: list[bytes], count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """`count` pairs of (what was done, bytes) with correct checksums of all parts, so that they reach the model."""
    rng = np.random.default_rng(seed)
    containers = [parse(data) for data in files]
    made = 0
    while made < count:
        container = containers[rng.integers(len(containers))]
        other = containers[rng.integers(len(containers))]
        kind = ("flip", "begin", "shorten", "lengthen", "empty", "splice", "size", "checksum")[rng.integers(8)]
        number = int(rng.integers(len(container.tiles)))
        stream, checksum = container.tiles[number]
        grid = container.grid
        if kind in ("flip", "begin"):
            flipped = bytearray(stream)
            for position in rng.integers(min(len(flipped), 16 if kind == "begin" else 2**28), size=rng.integers(1, 4)):
                flipped[position] ^= 1 << rng.integers(8)
            stream = bytes(flipped)
        elif kind == "checksum":
            checksum ^= 1 << int(rng.integers(48))
        elif kind == "size":
            grid = replace(grid, width=int(rng.integers(1, 2048)), height=int(rng.integers(1, 2048)))
            # Another size with as many blocks is another picture of the same symbols, not damage.
            if grid.padded.width == container.grid.padded.width or len(grid) != len(container.grid):
                continue
        else:
            stream = {
                "shorten": stream[: rng.integers(len(stream))],
                "lengthen": stream + rng.bytes(int(rng.integers(1, 9))),
                "empty": b"",
                "splice": other.tiles[0].stream,
            }[kind]
        tiles = list(container.tiles)
        tiles[number] = Tile(stream, checksum)
        made_one = replace(container, grid=grid, tiles=tuple(tiles))
        if made_one not in containers:
            made += 1
            yield kind, made_one.pack()


def claiming(data: bytes, width: int, height: int) -> bytes:
    """The file with another size in its header, with correct checksums."""
    return replace(parse(data), grid=Grid(width, height)).pack()
