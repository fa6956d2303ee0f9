"""Where the bits of a .lalic file go: the code length of the symbols at each place of a picture."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from lalic.codec import LATENT, Prepared, coded_quality
from lalic.coder.host import Symbols, symbols_of
from lalic.coder.tables import gaussian_tables
from lalic.model import LALIC
from lalic.nn.context import interleave
from lalic_kernels.rans import CodingTables

__all__ = ["bit_map", "code_lengths", "heat_map"]

_UNIT = 2.0**-24  # bits, of `CodingTables.priced`


def bit_map(
    prepared: Prepared, quality: float | None = None, progress: Callable[[int, int], None] | None = None
) -> NDArray[np.float32]:
    """Bits that a picture's symbols take at a quality: float32 (H / 16, W / 16), one number for 16x16 pixels.

    The picture is padded to multiples of 64. The sum is the length of the streams to about a percent; what is beside
    the symbols in a file (header, checksums, alpha, metadata) is no part of it. Bits of a hyper latent are divided
    among the 4x4 places that it describes. progress and errors are those of `Prepared.encode`.
    """
    quality = coded_quality(prepared.model, quality)
    grid = prepared.grid
    result = np.zeros((grid.padded.height // LATENT, grid.padded.width // LATENT), np.float32)
    with torch.inference_mode():
        for index, y in enumerate(prepared.latents()):
            left, top, right, bottom = (side // LATENT for side in grid.box(index))
            result[top:bottom, left:right] = _of_latents(prepared.model, y, quality)
            if progress is not None:
                progress(index + 1, len(grid))
    return result


def _of_latents(model: LALIC, y: torch.Tensor, quality: float | None) -> NDArray[np.float64]:
    """Bits (h, w) of latents y (1, M, h, w)."""
    height, width = y.shape[2:]
    coded: Symbols = symbols_of(model, y, quality)
    total = np.zeros((height, width))
    passes = [
        code_lengths(symbols[0].numpy(), rows[0].numpy(), gaussian_tables()).reshape(-1, height, width // 2).sum(axis=0)
        for symbols, rows in coded.passes
    ]
    for anchors, others in zip(passes[0::2], passes[1::2], strict=True):
        pair = [torch.from_numpy(bits)[None, :, :, None] for bits in (anchors, others)]
        total += interleave(*pair)[0, :, :, 0].numpy()
    z = code_lengths(coded.z[0][0].numpy(), coded.z[1][0].numpy(), model.prior_tables())
    z = z.reshape(-1, height // 4, width // 4).sum(axis=0)
    return total + z.repeat(4, axis=0).repeat(4, axis=1) / 16


def code_lengths(symbols: NDArray[np.int32], rows: NDArray[np.int32], tables: CodingTables) -> NDArray[np.float64]:
    """Bits of each symbol (n,) with its row (n,) of the tables. The digits of an escape take 4 bits each."""
    position = symbols.astype(np.int64) - tables.offset[rows]
    last = tables.escape[rows].astype(np.int64)
    escaped = (position < 0) | (position >= last)
    entry = tables.priced[tables.start[rows] + np.where(escaped, last, position)]
    bits = (entry >> np.uint64(32)).astype(np.float64) * _UNIT
    if escaped.any():
        raw = np.where(position < 0, -2 * position - 1, 2 * (position - last))[escaped]
        bits[escaped] += 4 * (2 + np.floor(np.log2(np.maximum(raw, 1)) / 4))  # the number of digits, and the digits
    return bits


_HEAT = ((0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164))  # dark to bright


def heat_map(bits: NDArray[np.float32], size: tuple[int, int]) -> tuple[Image.Image, float]:
    """A bit map as an RGB picture of this (width, height), and the bits per pixel that are brightest.

    The brightest colour stands for the 99th percentile and what is above it.
    """
    width, height = size
    per_pixel = bits[: -(-height // LATENT), : -(-width // LATENT)] / LATENT**2
    top = float(np.percentile(per_pixel, 99)) or 1.0
    levels = np.linspace(0, len(_HEAT) - 1, 256)
    colors = np.stack([np.interp(levels, range(len(_HEAT)), channel) for channel in zip(*_HEAT, strict=True)], axis=1)
    small = Image.fromarray(colors.round().astype(np.uint8)[(255 * np.clip(per_pixel / top, 0, 1)).astype(np.uint8)])
    large = small.resize((small.width * LATENT, small.height * LATENT), Image.Resampling.NEAREST)
    return large.crop((0, 0, width, height)), top
