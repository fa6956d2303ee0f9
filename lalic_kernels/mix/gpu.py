"""The two mixes on a GPU: launches of their Triton kernels, and frozen launch tables by architecture and shape.

In the channel mix a program holds all C channels of BLOCK_M tokens in registers, so its table is indexed by C. For C
beyond the table not even 16 tokens fit, and torch's matrix products over chunks of tokens are used (`torch_path.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lalic_kernels.launch import Launch, architecture, blocks, on
from lalic_kernels.mix.torch_path import dtype_of


def split(channels: int) -> tuple[int, int]:
    """(main, rest): two powers of two, at least 16 (rest may be 0); their sum is `channels` or slightly more."""
    main = max(16, 1 << (channels.bit_length() - 1))
    over = max(channels - main, 0)
    rest = max(16, 1 << (over - 1).bit_length()) if over else 0
    return main, rest


# A program takes several blocks of outputs only if the launch has at least this many programs: 2 for 132 processors.
PROGRAMS = 264


def _linear(block_m: int, block_n: int, block_k: int, warps: int, stages: int, held: bool = True) -> Launch:
    constants = (("BLOCK_M", block_m), ("BLOCK_N", block_n), ("BLOCK_K", block_k), ("HELD", int(held)))
    return Launch(constants, num_warps=warps, num_stages=stages)


# (architecture or "any", largest number of channels with padding, elements in a 16-byte vector) -> configuration.
# None: any number of channels. With vectors of one element each address needs a register, so tiles are small.
LINEAR: dict[tuple[str, int | None, int], Launch] = {
    ("any", 96, 8): _linear(128, 32, 32, 4, 2),
    ("any", 160, 8): _linear(64, 32, 32, 4, 2),
    ("any", 256, 8): _linear(64, 32, 32, 4, 1),
    ("any", None, 8): _linear(64, 32, 32, 4, 1, held=False),
    ("any", None, 4): _linear(32, 32, 32, 4, 1, held=False),
    ("any", None, 1): _linear(32, 32, 16, 4, 1, held=False),
}


@dataclass(frozen=True)
class LinearChoice:
    """The launch of one product: `split` of C; vec channels in a 16-byte vector (or 1); `per` blocks per program."""

    launch: Launch
    main: int
    rest: int
    vec: int
    grid: tuple[int, int]
    per: int


def choose_linear(arch: str, rows: int, channels: int, planes: int, itemsize: int) -> LinearChoice:
    """The configuration for a number of rows, C channels and `planes` planes of C outputs each."""
    main, rest = split(channels)
    vec = 16 // itemsize if channels % (16 // itemsize) == 0 else 1
    limits = [n for _, n, v in LINEAR if v == vec and n is not None and n >= main + rest]
    limit = min(limits) if limits else None
    launch = LINEAR.get((arch, limit, vec)) or LINEAR["any", limit, vec]
    if not launch["HELD"]:
        main, rest = 16, 0  # not used
    down, tiles = blocks(rows, launch["BLOCK_M"]), planes * blocks(channels, launch["BLOCK_N"])
    groups = min(tiles, blocks(PROGRAMS, down))
    per = blocks(tiles, groups)
    return LinearChoice(launch, main, rest, vec, (down, blocks(tiles, per)), per)


def linear(
    x: Tensor, matrix: Tensor, planes: int, residual: Tensor | None = None, gamma: Tensor | None = None
) -> Tensor:
    """x (B, T, C) @ matrix^T, shape (planes, B, T, C); for one plane (B, T, C), and residual + gamma * () if given.

    Contiguous arguments; matrix (planes * C, C) in x's dtype, gamma (C,) float32.
    """
    from lalic_kernels.mix import kernels

    rows, channels = x.shape[0] * x.shape[1], x.shape[2]
    choice = choose_linear(architecture(x.device), rows, channels, planes, x.element_size())
    shape = x.shape if planes == 1 else (planes, *x.shape)
    y = torch.empty(shape, dtype=dtype_of(x, residual), device=x.device)
    with on(x.device):
        kernels.rows_linear_kernel[choice.grid](
            x, matrix, x if residual is None else residual, x if gamma is None else gamma, y, rows, channels,
            choice.per, VEC=choice.vec, PLANES=planes, RESIDUAL=residual is not None,
            MAIN=choice.main, REST=choice.rest, **choice.launch.options(),
        )  # fmt: skip
    return y


def _channel(block_m: int, block_h: int, block_k: int, warps: int, stages: int, held: bool = True) -> Launch:
    constants = (("BLOCK_M", block_m), ("BLOCK_H", block_h), ("BLOCK_K", block_k), ("HELD", int(held)))
    return Launch(constants, num_warps=warps, num_stages=stages)


# (architecture or "any", largest number of channels with padding, elements in a 16-byte vector) -> configuration.
# With vectors of one element each address needs a register, so tiles are small and x is not held in registers.
CHANNEL: dict[tuple[str, int, int], Launch] = {
    ("any", 96, 8): _channel(128, 32, 32, 8, 2),
    ("any", 160, 8): _channel(64, 32, 32, 8, 1),
    ("any", 256, 8): _channel(32, 32, 16, 8, 1),
    ("any", 512, 8): _channel(16, 16, 16, 8, 1, held=False),
    # Hopper's matrix instructions take 64 rows, and its shared memory holds two stages of them.
    ("cuda 90", 160, 8): _channel(64, 32, 32, 8, 2),
    ("cuda 90", 256, 8): _channel(64, 32, 32, 8, 2),
    ("hip gfx942", 256, 8): _channel(64, 32, 32, 8, 2),
    ("any", 512, 4): _channel(16, 16, 16, 8, 1, held=False),
    ("any", 256, 1): _channel(16, 16, 16, 8, 1, held=False),
}


@dataclass(frozen=True)
class ChannelChoice:
    """The launch of one call: `split` of C, and vec channels in a 16-byte vector (or 1)."""

    launch: Launch
    main: int
    rest: int
    vec: int


def choose_channel(arch: str, channels: int, hidden: int, itemsize: int) -> ChannelChoice | None:
    """The configuration for C channels and a hidden layer's width; None if torch's products must be used."""
    main, rest = split(channels)
    vec = 16 // itemsize
    if channels % vec or hidden % vec:
        vec = 1
    limit = min((n for _, n, v in CHANNEL if v == vec and n >= main + rest), default=None)
    if limit is None:
        return None
    return ChannelChoice(CHANNEL.get((arch, limit, vec)) or CHANNEL["any", limit, vec], main, rest, vec)


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
            x, key, receptance, value, x if residual is None else residual, x if gamma is None else gamma, y,
            rows, channels, hidden, VEC=choice.vec, RESIDUAL=residual is not None,
            MAIN=choice.main, REST=choice.rest, **choice.launch.options(),
        )  # fmt: skip
    return y
