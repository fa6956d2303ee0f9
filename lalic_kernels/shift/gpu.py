"""The shift on a GPU: launches of its Triton kernels, with and without the LayerNorm, forward and backward."""

from __future__ import annotations

import torch
from torch import Tensor

from lalic_kernels.launch import Launch, blocks, on

# The forward's tile, by the number of pixels B * H * W. Fewer pixels: smaller tiles and the channels dealt out to
# several programs, each of which finds the statistics anew, so that a GPU's processors all have work.
MANY_PIXELS = 16384
BLOCK_C = 32


# Two warps where a thread has eight neighbouring channels (vectors of 16-bit types), else four, for registers' sake.
def _tile(rows: int, warps: int) -> Launch:
    return Launch((("ROWS", rows), ("COLUMNS", 16), ("BLOCK_C", BLOCK_C)), num_warps=warps)


TILES: dict[tuple[str, int], Launch] = {
    ("many", 8): _tile(8, 2),
    ("many", 4): _tile(8, 4),
    ("few", 8): _tile(4, 2),
    ("few", 4): _tile(4, 4),
}
SPLIT = 2  # blocks of channels a program where pixels are few
TAPS = Launch((("ROWS", 32), ("COLUMNS", 16), ("BLOCK_C", BLOCK_C)), num_warps=4)
NORM_STEPS = 8  # blocks of pixels a program of the norm's backward
_HELD = 4096  # elements that a block of statistics holds in registers


def taps(weight: Tensor) -> Tensor:
    """weight (C, 5, 5) as the kernels read it: (25, C), contiguous, float32, zeros up to whole blocks of channels."""
    channels = weight.shape[0]
    found = weight.detach().reshape(channels, 25).t().float()
    missing = -channels % BLOCK_C
    return torch.nn.functional.pad(found, (0, missing)) if missing else found.contiguous()


def tile(pixels: int, vec: int) -> tuple[Launch, bool]:
    """The forward's tile for a number of pixels and a width of vectors; whether its channels are dealt out."""
    size = "many" if pixels >= MANY_PIXELS else "few"
    return TILES[size, 8 if vec == 8 else 4], size == "few"


def over_channels(channels: int, tile: Launch, vec: int) -> dict[str, int]:
    """Constants of what takes all channels of a few pixels at once, for the warps of a tile.

    Fewer pixels where there are no vectors: each element then needs registers for its own address and test.
    """
    all_c = 1 << max(4, (channels - 1).bit_length())
    held = _HELD if vec > 1 else _HELD // 4
    return {"ALL_C": all_c, "PIXELS": max(1, min(16, held * tile.num_warps // (4 * all_c)))}


def vector(channels: int, itemsize: int) -> int:
    """Channels that one 16-byte access moves, 1 where C is no multiple of them."""
    whole = 16 // itemsize
    return whole if channels % whole == 0 else 1


def shift(x: Tensor, taps: Tensor, out: Tensor, *, turned: bool = False) -> None:
    """out = the shift of x by taps as `taps` returns them; with `turned` by the kernel turned by 180 degrees.

    x, out: (B, H, W, C), contiguous, one dtype, not the same memory, not empty. One launch, nothing else.
    """
    _shift(x, None, taps, out, 0.0, turned)


def norm_shift(x: Tensor, norm_weight: Tensor, norm_bias: Tensor, taps: Tensor, out: Tensor, eps: float = 1e-5) -> None:
    """out = the shift, by taps as `taps` returns them, of x's LayerNorm.

    x, out: (B, H, W, C), contiguous, one dtype, not the same memory, not empty. norm_weight, norm_bias: (C,) float32,
    contiguous. One launch, nothing else, besides asking the allocator for the programs' scratch.
    """
    _shift(x, (norm_weight, norm_bias), taps, out, eps, False)


def _shift(x: Tensor, norm: tuple[Tensor, Tensor] | None, taps: Tensor, out: Tensor, eps: float, turned: bool) -> None:
    from lalic_kernels.shift import kernels

    batch, height, width, channels = x.shape
    vec = vector(channels, x.element_size())
    launch, dealt = tile(batch * height * width, vec)
    rows, columns = launch["ROWS"], launch["COLUMNS"]
    across = blocks(channels, launch["BLOCK_C"])
    split = SPLIT if dealt else across
    tiles, splits = batch * blocks(height, rows) * blocks(width, columns), blocks(across, split)
    statistics = taps
    if norm is not None:
        scratch = tiles * splits * 2 * (rows + 4) * (columns + 4)
        statistics = torch.empty(scratch, dtype=torch.float32, device=x.device)
    with on(x.device):
        kernels.shift_kernel[(tiles, splits)](
            x, *(norm or (taps, taps)), taps, statistics, out, height, width, channels, split, eps,
            NORM=norm is not None, TURNED=turned, VEC=vec,
            **over_channels(channels, launch, vec), **launch.options(),
        )  # fmt: skip


def grad_weight(x: Tensor, grad: Tensor, norm: tuple[Tensor, Tensor, Tensor] | None = None) -> Tensor:
    """Gradient of the weight, (C, 5, 5) float32, from x and the result's gradient, both (B, H, W, C), contiguous.

    `norm`: norm_weight, norm_bias (C,) float32, and the statistics as `grad_norm` returns them. Shares of tiles are
    added in one order, in float64.
    """
    from lalic_kernels.shift import kernels_backward

    batch, height, width, channels = x.shape
    tiles = batch * blocks(height, TAPS["ROWS"]) * blocks(width, TAPS["COLUMNS"])
    parts = torch.empty((tiles, 25, channels), dtype=torch.float32, device=x.device)
    with on(x.device):
        kernels_backward.grad_taps_kernel[(tiles, blocks(channels, TAPS["BLOCK_C"]), 5)](
            x, *(norm or (parts, parts, parts)), grad, parts, height, width, channels, batch * height * width,
            NORM=norm is not None, VEC=vector(channels, x.element_size()), **TAPS.options(),
        )  # fmt: skip
    return parts.sum(0, dtype=torch.float64).to(torch.float32).t().reshape(channels, 5, 5)


def grad_norm(x: Tensor, norm_weight: Tensor, grad: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Through the LayerNorm: `grad`, the normalised image's gradient, becomes that of x, in place.

    Returns (gradients of norm_weight and of norm_bias, (C,) float32, and the statistics (2, B H W) float32).
    """
    from lalic_kernels.shift import kernels_backward

    channels = x.shape[3]
    pixels = x.numel() // channels
    vec = vector(channels, x.element_size())
    constants = over_channels(channels, TAPS, vec) | {"STEPS": NORM_STEPS}
    programs = blocks(pixels, constants["PIXELS"] * NORM_STEPS)
    statistics = torch.empty((2, pixels), dtype=torch.float32, device=x.device)
    parts = torch.empty((programs, 2, channels), dtype=torch.float32, device=x.device)
    with on(x.device):
        kernels_backward.grad_norm_kernel[(programs,)](
            x, norm_weight, grad, statistics, parts, pixels, channels, eps,
            VEC=vec, **constants, num_warps=TAPS.num_warps,
        )  # fmt: skip
    of_weight, of_bias = parts.sum(0, dtype=torch.float64).to(torch.float32)
    return of_weight, of_bias, statistics
