"""Checksum of decoded symbols that every device computes in its own order: a sum of mixed (place, symbol) pairs.

With i the place of a symbol s among all symbols of a picture, and all arithmetic modulo 2^64:

    x = i 2^32 + (s mod 2^32)
    x = (x xor (x >> 30)) 0xBF58476D1CE4E5B9;  x = (x xor (x >> 27)) 0x94D049BB133111EB;  x = x xor (x >> 31)
    checksum = sum of x over all symbols

(the mixing function is splitmix64's, Steele et al., OOPSLA 2014). A CRC would have to be taken in one order; this is a
sum, so that a GPU adds up parts as passes are decoded, and bits do not depend on how.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lalic_kernels import installed
from lalic_kernels.launch import Launch, blocks, on
from lalic_kernels.rans.layout import MIX_FIRST, MIX_SECOND
from lalic_kernels.threads import run_ranges

LAUNCH = Launch((("BLOCK", 1024),), num_warps=4)
_LEAST = 16384  # symbols below which a thread costs more than it saves


def symbol_checksum(symbols: Tensor, first: int = 0) -> Tensor:
    """The sum over each row's symbols, whose places are `first`, `first` + 1 and so on.

    symbols: (B, n) int32, any strides. first: at least 0; first + n below 2^31. Returns (B,) int64, the sum's 64 bits,
    on the symbols' device and without waiting for it. A Triton kernel on CUDA tensors, compiled code on CPU tensors,
    torch where either is missing.

    Raises TypeError or ValueError for symbols of another dtype or shape, or places out of range.
    """
    if symbols.dtype != torch.int32:
        raise TypeError(f"symbol_checksum: symbols must be int32, but is {str(symbols.dtype).removeprefix('torch.')}")
    if symbols.dim() != 2:
        raise ValueError(f"symbol_checksum: symbols must have shape (B, n), but has {tuple(symbols.shape)}")
    if first < 0 or first + symbols.shape[1] >= 2**31:
        raise ValueError(f"symbol_checksum: places must lie in 0 to 2^31 - 1, but begin at {first}")
    if symbols.device.type == "cpu" and installed.NUMBA and not installed.interpreting():
        return _by_numba(symbols, first)
    if installed.TRITON and (symbols.is_cuda or installed.interpreting()):
        return _by_triton(symbols, first)
    return by_torch(symbols, first)


def by_torch(symbols: Tensor, first: int = 0) -> Tensor:
    """The definition in torch's integers."""
    places = torch.arange(first, first + symbols.shape[1], dtype=torch.int64, device=symbols.device)
    x = (places << 32) + (symbols.to(torch.int64) & 0xFFFFFFFF)
    x = (x ^ ((x >> 30) & (2**34 - 1))) * MIX_FIRST  # the mask makes the shift a logical one
    x = (x ^ ((x >> 27) & (2**37 - 1))) * MIX_SECOND
    return (x ^ ((x >> 31) & (2**33 - 1))).sum(1)


def _by_numba(symbols: Tensor, first: int) -> Tensor:
    from lalic_kernels.rans.cpu_loops import add_up

    rows = symbols.contiguous().numpy()
    found = torch.zeros(symbols.shape[0], dtype=torch.int64)
    for row, total in zip(rows, found, strict=True):
        parts: list[int] = []  # appending is atomic, and a sum has no order
        run_ranges(lambda i, j, x=row, to=parts: to.append(add_up(x, first, i, j)), row.size, least=_LEAST)  # type: ignore[misc]
        value = sum(parts) % 2**64
        total.fill_(value - 2**64 if value >= 2**63 else value)
    return found


def _by_triton(symbols: Tensor, first: int) -> Tensor:
    from lalic_kernels.rans.kernels import checksum_kernel

    symbols = symbols.contiguous()
    found = torch.zeros(symbols.shape[0], dtype=torch.int64, device=symbols.device)
    if symbols.numel():
        with on(symbols.device):
            checksum_kernel[(blocks(symbols.shape[1], LAUNCH["BLOCK"]), symbols.shape[0])](
                symbols, found, symbols.shape[1], first, **LAUNCH.options()
            )
    return found
