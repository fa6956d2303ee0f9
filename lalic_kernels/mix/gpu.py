"""The two mixes on a GPU: launches of their Triton kernels, and frozen launch tables by architecture and shape.

In the channel mix a program holds all C channels of BLOCK_M tokens in registers, so its table is indexed by C. For C
beyond the table not even 16 tokens fit, and torch's matrix products over chunks of tokens are used (`torch_path.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lalic_kernels.launch import Launch, architecture, blocks, on, precision, vector
from lalic_kernels.mix.torch_path import dtype_of

# Programs that a launch must have before one takes several blocks of outputs: 2 for each of 132 processors.
PROGRAMS = 264


def split(channels: int) -> tuple[int, int]:
    """(main, rest): two powers of two, at least 16 (rest may be 0); their sum is `channels` or slightly more."""
    main = max(16, 1 << (channels.bit_length() - 1))
    over = max(channels - main, 0)
    rest = max(16, 1 << (over - 1).bit_length()) if over else 0
    return main, rest


def _launch(block_m: int, block_n: int, block_k: int, warps: int, stages: int, held: bool = True) -> Launch:
    constants = (("BLOCK_M", block_m), ("BLOCK_N", block_n), ("BLOCK_K", block_k), ("HELD", int(held)))
    return Launch(constants, num_warps=warps, num_stages=stages)


# (architecture or "any", largest number of channels with padding, elements in a 16-byte vector) -> configuration.
# With vectors of one element each address needs a register, so tiles are small and x is not held in registers.
# Blackwell for data centres has one stage wherever a loop has two products for one sum, as the two parts of C and the
# three products of float32 are: Triton 3.6 to 3.8 pipeline these wrongly (triton-lang/triton issue 10821).
ANY_WIDTH = 1 << 30
LINEAR: dict[tuple[str, int, int], Launch] = {
    ("any", 96, 8): _launch(128, 32, 32, 4, 2),
    ("any", 160, 8): _launch(64, 32, 32, 4, 2),
    ("any", 256, 8): _launch(64, 32, 32, 4, 1),
    ("any", ANY_WIDTH, 8): _launch(64, 32, 32, 4, 1, held=False),
    ("any", ANY_WIDTH, 4): _launch(64, 32, 32, 4, 1, held=False),
    ("any", ANY_WIDTH, 1): _launch(32, 32, 16, 4, 1, held=False),
    ("cuda 100", 96, 8): _launch(128, 32, 32, 4, 1),
    ("cuda 100", 160, 8): _launch(64, 32, 32, 4, 1),
}
CHANNEL: dict[tuple[str, int, int], Launch] = {
    ("any", 64, 8): _launch(128, 32, 32, 8, 2),
    ("cuda 80", 64, 8): _launch(64, 32, 32, 8, 2),  # 128 rows spill
    ("cuda 100", 64, 8): _launch(128, 32, 32, 8, 1),
    ("any", 96, 8): _launch(128, 32, 32, 8, 2),
    ("cuda 100", 96, 8): _launch(128, 32, 32, 8, 1),
    ("any", 160, 8): _launch(64, 32, 32, 8, 1),
    ("any", 256, 8): _launch(32, 32, 16, 8, 1),
    ("any", 512, 8): _launch(16, 16, 16, 8, 1, held=False),
    ("cuda 80", 512, 8): _launch(16, 16, 32, 8, 1, held=False),  # BLOCK_K of 16 spills in Triton 3.7
    # Hopper's matrix instructions take 64 rows, and its shared memory holds two stages of them.
    ("cuda 90", 160, 8): _launch(64, 32, 32, 8, 2),
    ("cuda 90", 256, 8): _launch(64, 32, 32, 8, 2),
    ("hip gfx942", 256, 8): _launch(64, 32, 32, 8, 2),
    # float32: the two parts of both factors need registers too.
    ("any", 96, 4): _launch(64, 32, 16, 8, 1, held=False),
    ("any", 160, 4): _launch(32, 16, 16, 8, 1, held=False),
    ("any", 256, 4): _launch(32, 32, 16, 8, 1, held=False),
    ("any", 512, 4): _launch(16, 16, 16, 8, 1, held=False),
    ("hip gfx942", 160, 4): _launch(16, 16, 16, 8, 1, held=False),
    ("cuda 90", 96, 4): _launch(128, 32, 16, 8, 1, held=False),
    ("cuda 90", 160, 4): _launch(64, 16, 16, 8, 1, held=False),  # 32 spill in Triton 3.3
    ("any", 256, 1): _launch(16, 16, 16, 8, 1, held=False),
}


@dataclass(frozen=True)
class Choice:
    """A launch for C channels: `split` of C, the channels in a 16-byte vector (or 1), the products' precision."""

    launch: Launch
    main: int
    rest: int
    vec: int
    precision: str

    def constants(self) -> dict[str, Any]:
        """Compile-time constants besides the launch's."""
        return {"VEC": self.vec, "MAIN": self.main, "REST": self.rest, "PRECISION": self.precision}

    def options(self) -> dict[str, Any]:
        """Keyword arguments for the Triton launch."""
        return self.launch.options() | self.constants()


def choose(table: dict[tuple[str, int, int], Launch], arch: str, channels: int, vec: int) -> Choice | None:
    """The configuration for C channels in vectors of `vec`; None if the table has none for so many."""
    main, rest = split(channels)
    limit = min((n for _, n, v in table if v == vec and n >= main + rest), default=None)
    if limit is None:
        return None
    launch = table.get((arch, limit, vec)) or table["any", limit, vec]
    return Choice(launch, main, rest, vec, precision(arch))


def choose_linear(arch: str, channels: int, itemsize: int) -> Choice:
    """The configuration of the products of the spatial mix."""
    choice = choose(LINEAR, arch, channels, vector(itemsize, channels))
    assert choice is not None  # the table has ANY_WIDTH
    # Where x is not held its two parts are not used: one compilation for all widths.
    return choice if choice.launch["HELD"] else replace(choice, main=16, rest=0)


def choose_channel(arch: str, channels: int, hidden: int, itemsize: int) -> Choice | None:
    """The configuration of the channel mix; None if torch's products must be used."""
    return choose(CHANNEL, arch, channels, vector(itemsize, channels, hidden))


def output_groups(rows: int, tiles: int, block_m: int) -> tuple[tuple[int, int], int]:
    """The grid for `tiles` blocks of outputs, and the blocks per program: several if there are enough programs."""
    down = blocks(rows, block_m)
    per = blocks(tiles, min(tiles, blocks(PROGRAMS, down)))
    return (down, blocks(tiles, per)), per


def linear(
    x: Tensor, matrix: Tensor, planes: int, residual: Tensor | None = None, gamma: Tensor | None = None
) -> Tensor:
    """x (B, T, C) @ matrix^T, shape (planes, B, T, C); for one plane (B, T, C), and residual + gamma * () if given.

    Contiguous arguments; matrix (planes * C, C) in x's dtype, gamma (C,) float32.
    """
    from lalic_kernels.mix import kernels

    rows, channels = x.shape[0] * x.shape[1], x.shape[2]
    choice = choose_linear(architecture(x.device), channels, x.element_size())
    tiles = planes * blocks(channels, choice.launch["BLOCK_N"])
    grid, per = output_groups(rows, tiles, choice.launch["BLOCK_M"])
    shape = x.shape if planes == 1 else (planes, *x.shape)
    y = torch.empty(shape, dtype=dtype_of(x, residual), device=x.device)
    with on(x.device):
        kernels.rows_linear_kernel[grid](
            x, matrix, residual, gamma, y, rows, channels, per, PLANES=planes, **choice.options()
        )
    return y


def channel_mix(
    x: Tensor, key: Tensor, receptance: Tensor, value: Tensor, residual: Tensor | None, gamma: Tensor | None
) -> Tensor | None:
    """The channel mix of contiguous x (rows, C), gamma float32; None if the launch table has no entry for the shape."""
    from lalic_kernels.mix import kernels

    (rows, channels), hidden = x.shape, key.shape[0]
    choice = choose_channel(architecture(x.device), channels, hidden, x.element_size())
    if choice is None:
        return None
    y = torch.empty(x.shape, dtype=dtype_of(x, residual), device=x.device)
    with on(x.device):
        kernels.channel_mix_kernel[(blocks(rows, choice.launch["BLOCK_M"]),)](
            x, key, receptance, value, residual, gamma, y, rows, channels, hidden, **choice.options()
        )
    return y
