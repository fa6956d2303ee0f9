"""Frozen launch configurations of the channel mix's kernel, by architecture and shape; never by timing.

A program has all C channels of BLOCK_M tokens in registers, so the table goes by C. Wider than its widest row, not even
16 tokens fit, and torch's matrix products over stretches of tokens serve (`torch_path.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from lalic_kernels._core.launch import Launch
from lalic_kernels._core.residual import split


def _launch(block_m: int, block_h: int, block_k: int, warps: int, stages: int, held: bool = True) -> Launch:
    constants = (("BLOCK_M", block_m), ("BLOCK_H", block_h), ("BLOCK_K", block_k), ("HELD", int(held)))
    return Launch(constants, num_warps=warps, num_stages=stages)


# (architecture or "any", at most so many channels with their padding, elements in a 16-byte vector) -> configuration.
# Vectors of one element need a register an address, so their tiles are small and x is not held.
TABLE: dict[tuple[str, int, int], Launch] = {
    ("any", 96, 8): _launch(128, 32, 32, 8, 2),
    ("any", 160, 8): _launch(64, 32, 32, 8, 1),
    ("any", 256, 8): _launch(32, 32, 16, 8, 1),
    ("any", 512, 8): _launch(16, 16, 16, 8, 1, held=False),
    # Hopper's matrix instructions take 64 rows, and its shared memory holds two stages of them.
    ("cuda 90", 160, 8): _launch(64, 32, 32, 8, 2),
    ("cuda 90", 256, 8): _launch(64, 32, 32, 8, 2),
    ("hip gfx942", 256, 8): _launch(64, 32, 32, 8, 2),
    ("any", 512, 4): _launch(16, 16, 16, 8, 1, held=False),
    ("any", 256, 1): _launch(16, 16, 16, 8, 1, held=False),
}


@dataclass(frozen=True)
class Choice:
    """The launch of one call: main + rest powers of two that cover C, and vec channels a 16-byte vector (or 1)."""

    launch: Launch
    main: int
    rest: int
    vec: int


def choose(arch: str, channels: int, hidden: int, itemsize: int) -> Choice | None:
    """The configuration for C channels and a hidden layer's width; None where the library's products are taken."""
    main, rest = split(channels)
    vec = 16 // itemsize
    if channels % vec or hidden % vec:
        vec = 1
    limit = min((n for _, n, v in TABLE if v == vec and n >= main + rest), default=None)
    if limit is None:
        return None
    return Choice(TABLE.get((arch, limit, vec)) or TABLE["any", limit, vec], main, rest, vec)
