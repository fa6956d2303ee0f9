"""The token shift on a GPU: launches of its Triton kernels, with and without the LayerNorm, forward and backward."""

from __future__ import annotations

import torch
from torch import Tensor

from lalic_kernels.launch import Launch, blocks, on

# The forward's tile depends on the number of pixels B * H * W. For few pixels tiles are smaller and several programs
# share the channels of a tile, so that all processors of a GPU have work; each computes the statistics again.
MANY_PIXELS = 16384
BLOCK_C = 32


# Two warps if a thread has eight neighbouring channels (vectors of 16-bit types); otherwise four, to save registers.
def _tile(rows: int, warps: int) -> Launch:
    return Launch((("ROWS", rows), ("COLUMNS", 16), ("BLOCK_C", BLOCK_C)), num_warps=warps)


TILES: dict[tuple[str, int], Launch] = {
    ("many", 8): _tile(8, 2),
    ("many", 4): _tile(8, 4),
    ("few", 8): _tile(4, 2),
    ("few", 4): _tile(4, 4),
}
SPLIT = 2  # blocks of channels per program for few pixels
TAPS = Launch((("ROWS", 32), ("COLUMNS", 16), ("BLOCK_C", BLOCK_C)), num_warps=4)
NORM_STEPS = 8  # blocks of pixels per program in the norm's backward
_REGISTER_ELEMENTS = 4096  # elements in registers when statistics are computed


def taps(weight: Tensor) -> Tensor:
    """weight (C, 5, 5) in the kernels' layout: (25, C), contiguous, float32, padded with zeros to whole blocks of C."""
    channels = weight.shape[0]
    by_tap = weight.detach().reshape(channels, 25).t().float()
    missing = -channels % BLOCK_C
    return torch.nn.functional.pad(by_tap, (0, missing)) if missing else by_tap.contiguous()


def tile(pixels: int, vec: int) -> tuple[Launch, bool]:
    """The forward's tile for a number of pixels and a vector width, and whether several programs share its channels."""
    size = "many" if pixels >= MANY_PIXELS else "few"
    return TILES[size, 8 if vec == 8 else 4], size == "few"


def over_channels(channels: int, tile: Launch, vec: int) -> dict[str, int]:
    """Kernel constants for the statistics: all channels of a few pixels at once.

    Without vectors fewer pixels, because each element then needs registers for its address and its mask.
    """
    all_c = 1 << max(4, (channels - 1).bit_length())
    elements = _REGISTER_ELEMENTS if vec > 1 else _REGISTER_ELEMENTS // 4
    return {"ALL_C": all_c, "PIXELS": max(1, min(16, elements * tile.num_warps // (4 * all_c)))}


def vector(channels: int, itemsize: int) -> int:
    """The number of channels in one 16-byte access; 1 if C is not a multiple of it."""
    whole = 16 // itemsize
    return whole if channels % whole == 0 else 1


def shift(x: Tensor, taps: Tensor, out: Tensor, *, turned: bool = False) -> None:
    """Write the shift of x to out. taps: from `taps`; with `turned` the kernel is turned by 180 degrees. One launch.

    x, out: (B, H, W, C), contiguous, one dtype, not the same memory, not empty.
    """
    _shift(x, None, taps, out, 0.0, turned)


def norm_shift(x: Tensor, norm_weight: Tensor, norm_bias: Tensor, taps: Tensor, out: Tensor, eps: float = 1e-5) -> None:
    """Write the shift of x's LayerNorm to out. taps: from `taps`. One launch, and one allocation of scratch memory.

    x, out: (B, H, W, C), contiguous, one dtype, not the same memory, not empty. norm_weight, norm_bias: (C,) float32,
    contiguous.
    """
    _shift(x, (norm_weight, norm_bias), taps, out, eps, False)


def _shift(x: Tensor, norm: tuple[Tensor, Tensor] | None, taps: Tensor, out: Tensor, eps: float, turned: bool) -> None:
    from lalic_kernels.shift import kernels

    batch, height, width, channels = x.shape
    vec = vector(channels, x.element_size())
    launch, shared = tile(batch * height * width, vec)
    rows, columns = launch["ROWS"], launch["COLUMNS"]
    c_blocks = blocks(channels, launch["BLOCK_C"])
    split = SPLIT if shared else c_blocks
    tiles, splits = batch * blocks(height, rows) * blocks(width, columns), blocks(c_blocks, split)
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

    `norm`: norm_weight and norm_bias (C,) float32, and the statistics from `grad_norm`. The partial sums of the tiles
    are added in a fixed order in float64.
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
    """Backward of the LayerNorm: changes `grad` in place, from the normalised image's gradient to that of x.

    x, grad (B, H, W, C) contiguous, norm_weight (C,) float32. Returns the gradients of norm_weight and norm_bias, (C,)
    float32, and the statistics (mean, 1 / standard deviation), (2, B H W) float32.
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
    grad_norm_weight, grad_norm_bias = parts.sum(0, dtype=torch.float64).to(torch.float32)
    return grad_norm_weight, grad_norm_bias, statistics
