"""Frozen launch configurations of the spatial mix's products, by architecture and shape; never by timing."""

from __future__ import annotations

from dataclasses import dataclass

from lalic_kernels._core.launch import Launch, blocks
from lalic_kernels._core.residual import split

# A launch has at least so many programs before a program takes several blocks of outputs: two on each of 132 units.
PROGRAMS = 264


def _launch(block_m: int, block_n: int, block_k: int, warps: int, stages: int, held: bool = True) -> Launch:
    constants = (("BLOCK_M", block_m), ("BLOCK_N", block_n), ("BLOCK_K", block_k), ("HELD", int(held)))
    return Launch(constants, num_warps=warps, num_stages=stages)


# (architecture or "any", at most so many channels with their padding, elements in a 16-byte vector) -> configuration.
# None: any number of channels. Vectors of one element need a register an address, so their tiles are small.
TABLE: dict[tuple[str, int | None, int], Launch] = {
    ("any", 96, 8): _launch(128, 32, 32, 4, 2),
    ("any", 160, 8): _launch(64, 32, 32, 4, 2),
    ("any", 256, 8): _launch(64, 32, 32, 4, 1),
    ("any", None, 8): _launch(64, 32, 32, 4, 1, held=False),
    ("any", None, 4): _launch(32, 32, 32, 4, 1, held=False),
    ("any", None, 1): _launch(32, 32, 16, 4, 1, held=False),
}


@dataclass(frozen=True)
class Choice:
    """The launch of one product: main + rest powers of two that cover C, vec channels a 16-byte vector (or 1)."""

    launch: Launch
    main: int
    rest: int
    vec: int
    grid: tuple[int, int]
    per: int


def choose(arch: str, rows: int, channels: int, planes: int, itemsize: int) -> Choice:
    """The configuration for so many rows, C channels and planes of C outputs."""
    main, rest = split(channels)
    vec = 16 // itemsize if channels % (16 // itemsize) == 0 else 1
    limits = [n for _, n, v in TABLE if v == vec and n is not None and n >= main + rest]
    limit = min(limits) if limits else None
    launch = TABLE.get((arch, limit, vec)) or TABLE["any", limit, vec]
    if not launch["HELD"]:
        main, rest = 16, 0  # not used
    down, tiles = blocks(rows, launch["BLOCK_M"]), planes * blocks(channels, launch["BLOCK_N"])
    groups = min(tiles, blocks(PROGRAMS, down))
    per = blocks(tiles, groups)
    return Choice(launch, main, rest, vec, (down, blocks(tiles, per)), per)
