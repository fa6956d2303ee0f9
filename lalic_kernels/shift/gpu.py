"""The token shift on a GPU: launches of its Triton kernels, with and without the LayerNorm, forward and backward."""

from __future__ import annotations

import torch
from torch import Tensor

from lalic_kernels.launch import Launch, blocks, on, vector

# With fewer pixels B * H * W, tiles have 4 lines in place of 8 and several programs share the channels of a tile, so
# that all processors of a GPU have work; each computes the statistics again.
MANY_PIXELS = 16384
BLOCK_C = 32
SPLIT = 2  # blocks of channels per program for few pixels
TAPS = Launch((("ROWS", 32), ("COLUMNS", 16), ("BLOCK_C", BLOCK_C)), num_warps=4)
NORM = Launch((("STEPS", 8),), num_warps=4)  # the norm's backward: blocks of pixels per program
_REGISTER_ELEMENTS = 4096  # elements in registers when statistics are computed


def taps(weight: Tensor) -> Tensor:
    """weight (C, 5, 5) in the kernels' layout: (25, C), contiguous, float32, padded with zeros to whole blocks of C."""
    channels = weight.shape[0]
    by_tap = weight.detach().reshape(channels, 25).t().float()
    missing = -channels % BLOCK_C
    return torch.nn.functional.pad(by_tap, (0, missing)) if missing else by_tap.contiguous()


def tile(vec: int) -> Launch:
    """The forward's launch for a vector width.

    Two warps if a thread has eight neighbouring channels (vectors of 16-bit types); otherwise four, to save registers.
    """
    constants = (("COLUMNS", 16), ("BLOCK_C", BLOCK_C))
    return Launch(constants, num_warps=2 if vec == 8 else 4)


def over_channels(channels: int, tile: Launch, vec: int) -> dict[str, int]:
    """Kernel constants for the statistics: all channels of a few pixels at once.

    Without vectors fewer pixels, because each element then needs registers for its address and its mask.
    """
    all_c = 1 << max(4, (channels - 1).bit_length())
    elements = _REGISTER_ELEMENTS if vec > 1 else _REGISTER_ELEMENTS // 4
    return {"ALL_C": all_c, "PIXELS": max(1, min(16, elements * tile.num_warps // (4 * all_c)))}


def plain(norm_weight: Tensor, norm_bias: Tensor) -> tuple[Tensor, Tensor]:
    """norm_weight and norm_bias as the kernels read them: contiguous float32."""
    return norm_weight.detach().float().contiguous(), norm_bias.detach().float().contiguous()


def forward(
    x: Tensor, weight: Tensor, norm_weight: Tensor | None = None, norm_bias: Tensor | None = None, eps: float = 0.0
) -> Tensor:
    """The shift of x (B, H, W, C) by weight (C, 5, 5); with norm_weight and norm_bias (C,), of x's LayerNorm."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    norm = None if norm_weight is None or norm_bias is None else plain(norm_weight, norm_bias)
    shift(x.contiguous(), taps(weight), y, norm, eps)
    return y


def backward(
    x: Tensor,
    weight: Tensor,
    grad: Tensor,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 0.0,
) -> tuple[Tensor, ...]:
    """Gradients of x, in its dtype, and of weight, norm_weight and norm_bias, float32; grad is in x's dtype."""
    x, grad, grad_x = x.contiguous(), grad.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    shift(grad, taps(weight), grad_x, turned=True)
    if norm_weight is None or norm_bias is None:
        return grad_x, grad_weight(x, grad)
    norm = plain(norm_weight, norm_bias)
    *grad_parameters, statistics = grad_norm(x, norm[0], grad_x, eps)
    return grad_x, grad_weight(x, grad, (*norm, statistics)), *grad_parameters


def shift(
    x: Tensor,
    taps: Tensor,
    out: Tensor,
    norm: tuple[Tensor, Tensor] | None = None,
    eps: float = 0.0,
    *,
    turned: bool = False,
) -> None:
    """Write the shift of x to out: one launch, and with a norm one allocation of scratch memory.

    x, out: (B, H, W, C), contiguous, one dtype, not the same memory, not empty. taps: from `taps`. norm: from `plain`,
    for the shift of x's LayerNorm. With `turned` the kernel is turned by 180 degrees.
    """
    from lalic_kernels.shift import kernels

    batch, height, width, channels = x.shape
    vec = vector(x.element_size(), channels)
    launch, c_blocks = tile(vec), blocks(channels, BLOCK_C)
    rows, split = (8, c_blocks) if batch * height * width >= MANY_PIXELS else (4, SPLIT)
    columns = launch["COLUMNS"]
    tiles, splits = batch * blocks(height, rows) * blocks(width, columns), blocks(c_blocks, split)
    statistics = None
    if norm is not None:
        scratch = tiles * splits * 2 * (rows + 4) * (columns + 4)
        statistics = torch.empty(scratch, dtype=torch.float32, device=x.device)
    with on(x.device):
        kernels.shift_kernel[(tiles, splits)](
            x, *(norm or (None, None)), taps, statistics, out, height, width, channels, split, rows, eps,
            TURNED=turned, VEC=vec, **over_channels(channels, launch, vec), **launch.options(),
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
            x, *(norm or (None, None, None)), grad, parts, height, width, channels, batch * height * width,
            VEC=vector(x.element_size(), channels), **TAPS.options(),
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
    vec = vector(x.element_size(), channels)
    constants = over_channels(channels, NORM, vec)
    programs = blocks(pixels, constants["PIXELS"] * NORM["STEPS"])
    statistics = torch.empty((2, pixels), dtype=torch.float32, device=x.device)
    parts = torch.empty((programs, 2, channels), dtype=torch.float32, device=x.device)
    with on(x.device):
        kernels_backward.grad_norm_kernel[(programs,)](
            x, norm_weight, grad, statistics, parts, pixels, channels, eps,
            VEC=vec, **constants, **NORM.options(),
        )  # fmt: skip
    grad_norm_weight, grad_norm_bias = parts.sum(0, dtype=torch.float64).to(torch.float32)
    return grad_norm_weight, grad_norm_bias, statistics
