"""Products of exact arithmetic on a GPU: weights and rows as digits, and the launches that make and multiply them."""

from __future__ import annotations

import torch
from torch import Tensor

from lalic_kernels.exact import kernels_products
from lalic_kernels.exact import numbers as n
from lalic_kernels.exact.gpu_state import positions
from lalic_kernels.exact.launches import DEPTH, LAUNCHES, options
from lalic_kernels.exact.quantise import power_of_two
from lalic_kernels.exact.weights import ExactLinear
from lalic_kernels.launch import blocks


class Factor:
    """Integers (O, ..., K) of a weight as digits (O, ..., depth) int8 with zeros behind; scales 2^(exponent - 12)."""

    def __init__(self, weight: Tensor, exponent: Tensor, bias: Tensor | None):
        self.depth = blocks(weight.shape[-1], DEPTH) * DEPTH
        q = torch.nn.functional.pad(weight.to(torch.int32), (0, self.depth - weight.shape[-1]))
        low = ((q + 64) & 127) - 64
        self.digits = torch.stack((((q - low) >> 7).to(torch.int8), low.to(torch.int8)))  # high ones first
        self.high, self.low = self.digits
        self.scales = power_of_two(exponent - (n.BITS - 1))
        self.bias = bias


class Rows:
    """Rows of digits with a scale each."""

    def __init__(self, rows: int, width: int, device: torch.device):
        self.rows, self.depth = rows, blocks(width, DEPTH) * DEPTH
        self.high = torch.empty(rows, self.depth, dtype=torch.int8, device=device)
        self.low = torch.empty_like(self.high)
        self.scales = torch.empty(rows, dtype=torch.float32, device=device)


def digits_of(flat: Tensor, status: Tensor, width: int) -> Rows:
    """Digits of the first `width` columns of flat (rows, ...), a scale a row."""
    rows = flat.shape[0]
    return fill(Rows(rows, width, flat.device), flat, flat, status, "rows", 1, rows, width, flat.stride(0))


def fill(
    found: Rows, x: Tensor, other: Tensor, status: Tensor, source: str, images: int, rows: int, width: int,
    x_stride: int, height: int = 1, half: int = 1, channels: int = 1,
) -> Rows:  # fmt: skip
    """`found`, filled; other: the images' maxima ("shared") or the taps ("seen"); see the kernel."""
    kernels_products.exact_digits_kernel[(blocks(rows, LAUNCHES["digits"]["BLOCK_M"]), images)](
        x, other, other, found.high, found.low, found.scales, status, rows, width, x_stride, found.depth, height, half,
        channels, SOURCE=source, **options("digits"),
    )  # fmt: skip
    return found


def digits_by_colour(x: Tensor, status: Tensor) -> Rows:
    """Digits of the positions of x (B, H, W, C), W even, anchors of all images first; channels side by side."""
    images, height, width, channels = x.shape
    rows, stride = images * height * width, positions(x)
    return fill(Rows(rows, channels, x.device), x, x, status, "packed", 1, rows, channels, stride, height, width // 2)


def digits_of_seen(x: Tensor, taps: Tensor, status: Tensor) -> Rows:
    """Digits of what the others in x (B, H, W, g) see at taps (n, 2) int32 offsets: rows (B H W / 2, n g)."""
    images, height, width, channels = x.shape
    rows, wide = height * width // 2, taps.shape[0] * channels
    return fill(
        Rows(images * rows, wide, x.device), x, taps, status, "seen", images, rows, wide, positions(x), height,
        width // 2, channels,
    )  # fmt: skip


def product(
    x: Rows, factor: Factor, squared: int = 0, gate: Tensor | None = None, residual: Tensor | None = None,
    gamma: Tensor | None = None, tops: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """(rows, O): x @ w^T + bias; relu()^2 below column `squared`; sigmoid(gate) (); residual + gamma ().

    tops (images, n): order keys, which are raised to the maxima of the first n outputs over an image's rows.
    """
    outputs = factor.high.shape[0]
    y = torch.empty(x.rows, outputs, device=x.high.device)
    launch = LAUNCHES["linear"]
    kernels_products.exact_linear_kernel[(blocks(x.rows, launch["BLOCK_M"]), blocks(outputs, launch["BLOCK_N"]))](
        x.high, x.low, x.scales, factor.high, factor.low, factor.scales,
        factor.scales if factor.bias is None else factor.bias,
        y if gate is None else gate, y if residual is None else residual, factor.scales if gamma is None else gamma,
        x.high if tops is None else tops, y, x.rows, x.depth, outputs, squared, 0 if gate is None else gate.stride(0),
        0 if residual is None else residual.stride(0), 1 if tops is None else x.rows // tops.shape[0],
        0 if tops is None else tops.shape[1],
        HAS_BIAS=factor.bias is not None, HAS_SQUARED=squared > 0, HAS_GATE=gate is not None,
        HAS_RESIDUAL=residual is not None, HAS_GAMMA=gamma is not None, TOPS=tops is not None, **options("linear"),
    )  # fmt: skip
    return y


def factor_of(prepared: ExactLinear) -> Factor:
    found = prepared.kept.get("triton")
    if found is None:
        found = prepared.kept["triton"] = Factor(prepared.weight, prepared.exponent, prepared.bias)
    return found
