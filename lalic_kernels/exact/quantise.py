"""The parts of all exact arithmetic in eager torch: settled values, powers of two, integers from floats and back.

Each step is elementwise: an integer operation, a comparison, or one correctly rounded float operation. Eager torch
rounds each of them separately on every device, so the bits are the same everywhere. These functions must not be
compiled: a compiler may round a product and a sum together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lalic_kernels.exact.numbers import BITS, EXPONENT, HUGE, INFINITY, LARGEST, TINY, NotFinite

_MAGNITUDE = 0x7FFFFFFF


def settle(x: Tensor) -> Tensor:
    """x, float32, with magnitudes below 2^-60 set to +0, those above 2^60 set to 2^60. x may be infinite, not NaN."""
    size = x.abs()
    x = torch.where(size >= TINY, x, torch.zeros_like(x))
    return torch.where(size > HUGE, torch.where(x > 0, HUGE, -HUGE).to(x.dtype), x)


def power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent in float32, exponent int32 in -126..127."""
    return ((exponent + 127) << 23).view(torch.float32)


def require_float32(*tensors: Tensor) -> None:
    """Raise TypeError unless all are float32."""
    for x in tensors:
        if x.dtype != torch.float32:
            raise TypeError(f"x must be float32 in exact arithmetic, but is {str(x.dtype).removeprefix('torch.')}")


def magnitude_bits(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Bits of the largest |x| over dims (which get size 1), int32. Bits have the order of the magnitudes.

    Raises:
        NotFinite: an element of x is infinite or NaN.
        TypeError: x is not float32.
    """
    require_float32(x)
    bits = (x.contiguous().view(torch.int32) & _MAGNITUDE).amax(dim=tuple(dims), keepdim=True)
    if bits.numel() and int(bits.max()) >= INFINITY:
        raise NotFinite
    return bits


def leading_exponent(bits: Tensor, minimum: int = -EXPONENT) -> Tensor:
    """The E, int32, with 2^E <= magnitude < 2^(E + 1), clipped to minimum..60, from magnitude bits."""
    return ((bits >> 23) - 127).clamp(minimum, EXPONENT)


def quantise(x: Tensor, dims: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Integers of 13 bits and sign, with one power-of-two scale for all elements along dims.

    x is about q 2^(exponent - 12). The exponent is that of the largest magnitude, clipped to -60..60; q is
    x 2^(12 - exponent), clipped to +-8191 and rounded half to even.

    Args:
        x: float32, any shape, not empty along dims.
        dims: dimensions that share a scale; never the batch.

    Returns:
        q, int32 of x's shape; exponent, int32, of size 1 along dims.

    Raises:
        NotFinite: x is not finite.
        TypeError: x is not float32.
    """
    exponent = leading_exponent(magnitude_bits(x, dims))
    scaled = x * power_of_two(BITS - 1 - exponent)
    return torch.round(scaled.clamp(-LARGEST, LARGEST)).to(torch.int32), exponent


def dequantise(sums: Tensor, exponent: Tensor, weight_exponent: Tensor, bias: Tensor | None) -> Tensor:
    """The float of an integer sum of products: sums 2^(exponent - 12) 2^(weight_exponent - 12) + bias, settled.

    The sum is rounded to float32 once. The two scalings are exact if the result is not settled to 0 or 2^60.

    Args:
        sums: integers below 2^53 in float64, or int32; any shape.
        exponent, weight_exponent: int32 that broadcast to it.
        bias: settled float32 that broadcasts to it, or None.

    Returns:
        float32 of the shape of sums.
    """
    y = sums.to(torch.float32) * power_of_two(exponent - (BITS - 1)) * power_of_two(weight_exponent - (BITS - 1))
    return settle(y if bias is None else y + bias)
