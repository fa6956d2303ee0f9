"""The four transforms: analysis, synthesis, hyper analysis, hyper synthesis. All (B, C, H, W), channels last."""

from __future__ import annotations

from torch import nn

from lalic.config import Config, stride
from lalic.nn.blocks import RWKVBlock


def down(cin: int, cout: int, kernel: int) -> nn.Conv2d:
    """Convolution that divides H and W: by 2 for kernels 3 and 5, which overlap, else by the kernel, in patches."""
    return nn.Conv2d(cin, cout, kernel, stride=stride(kernel), padding=_padding(kernel))


def up(cin: int, cout: int, kernel: int) -> nn.ConvTranspose2d:
    """Transposed convolution that multiplies H and W by the number that `down` divides by."""
    overlaps = kernel > stride(kernel)
    return nn.ConvTranspose2d(
        cin, cout, kernel, stride=stride(kernel), padding=_padding(kernel), output_padding=int(overlaps)
    )


def _padding(kernel: int) -> int:
    return kernel // 2 if kernel > stride(kernel) else 0


def _blocks(dim: int, depth: int) -> list[nn.Module]:
    return [RWKVBlock(dim) for _ in range(depth)]


def analysis(c: Config) -> nn.Sequential:
    """g_a: picture (3, H, W) -> latents (M, H / 16, W / 16)."""
    d, n, k = c.dims, c.depths, c.kernels
    return nn.Sequential(
        down(3, d[0], k[0]), *_blocks(d[0], n[0]),
        down(d[0], d[1], k[1]), *_blocks(d[1], n[1]),
        down(d[1], d[2], k[2]), *_blocks(d[2], n[2]),
        down(d[2], d[3], k[3]),
    )  # fmt: skip


def synthesis(c: Config) -> nn.Sequential:
    """g_s: latents (M, H / 16, W / 16) -> picture (3, H, W)."""
    d, n, k = c.dims, c.depths, c.kernels
    return nn.Sequential(
        up(d[3], d[2], k[3]), *_blocks(d[2], n[2]),
        up(d[2], d[1], k[2]), *_blocks(d[1], n[1]),
        up(d[1], d[0], k[1]), *_blocks(d[0], n[0]),
        up(d[0], 3, k[0]),
    )  # fmt: skip


def hyper_analysis(c: Config) -> nn.Sequential:
    """h_a: latents (M, h, w) -> hyper latents (dims[5], h / 4, w / 4)."""
    d = c.dims
    return nn.Sequential(down(d[3], d[4], 5), *_blocks(d[4], c.depths[3]), down(d[4], d[5], 5))


def hyper_synthesis(c: Config) -> nn.Sequential:
    """h_s: hyper latents (dims[5], h / 4, w / 4) -> hyper parameters (hyper_width, h, w)."""
    d = c.dims
    return nn.Sequential(up(d[5], d[4], 5), *_blocks(d[4], c.depths[3]), up(d[4], c.hyper_width, 5))
