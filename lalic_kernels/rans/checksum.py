"""A checksum of decoded symbols that does not depend on the order of computation: a sum over (index, symbol) pairs.

With i the index of a symbol s among all symbols of an image, and all arithmetic modulo 2^64:

    x = i 2^32 + (s mod 2^32)
    x = (x xor (x >> 30)) 0xBF58476D1CE4E5B9;  x = (x xor (x >> 27)) 0x94D049BB133111EB;  x = x xor (x >> 31)
    checksum = sum of x over all symbols

(the mixing function is that of splitmix64, Steele et al., OOPSLA 2014). A CRC needs one order. A sum does not: a GPU
can add up parts in any order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lalic_kernels import installed
from lalic_kernels.launch import Launch, blocks, on
from lalic_kernels.rans.layout import MIX_FIRST, MIX_SECOND
from lalic_kernels.threads import run_ranges

LAUNCH = Launch((("BLOCK", 1024),), num_warps=4)
_LEAST = 16384  # with fewer symbols a thread costs more than it saves


def symbol_checksum(symbols: Tensor, first: int = 0) -> Tensor:
    """The checksum of each row's symbols, whose indices are first, first + 1, ...

    Computed by a Triton kernel on CUDA tensors, by compiled code on CPU tensors, by torch if these are missing.

    Args:
        symbols: (B, n) int32, any strides.
        first: at least 0, with first + n below 2^31.

    Returns:
        (B,) int64, the 64 bits of the sum, on the symbols' device, without a synchronisation.

    Raises:
        TypeError: symbols are not int32.
        ValueError: symbols are not (B, n), or an index is out of range.
    """
    if symbols.dtype != torch.int32:
        raise TypeError(f"symbol_checksum: symbols must be int32, but is {str(symbols.dtype).removeprefix('torch.')}")
    if symbols.dim() != 2:
        raise ValueError(f"symbol_checksum: symbols must have shape (B, n), but has {tuple(symbols.shape)}")
    if first < 0 or first + symbols.shape[1] >= 2**31:
        raise ValueError(f"symbol_checksum: first must be in 0 to 2^31 - 1 - n, but is {first}")
    if symbols.device.type == "cpu" and installed.NUMBA and not installed.interpreting():
        return _by_numba(symbols, first)
    if installed.TRITON and (symbols.is_cuda or installed.interpreting()):
        return _by_triton(symbols, first)
    return by_torch(symbols, first)


def by_torch(symbols: Tensor, first: int = 0) -> Tensor:
    """The definition in torch: (B,) int64 for symbols (B, n) int32."""
    indices = torch.arange(first, first + symbols.shape[1], dtype=torch.int64, device=symbols.device)
    x = (indices << 32) + (symbols.to(torch.int64) & 0xFFFFFFFF)
    x = (x ^ ((x >> 30) & (2**34 - 1))) * MIX_FIRST  # the mask makes the shift a logical one
    x = (x ^ ((x >> 27) & (2**37 - 1))) * MIX_SECOND
    return (x ^ ((x >> 31) & (2**33 - 1))).sum(1)


def _by_numba(symbols: Tensor, first: int) -> Tensor:
    from lalic_kernels.rans.cpu_loops import add_up

    rows = symbols.contiguous().numpy()
    sums = torch.zeros(symbols.shape[0], dtype=torch.int64, device="cpu")
    for row, total in zip(rows, sums, strict=True):
        parts: list[int] = []  # append is atomic, and the order does not matter
        run_ranges(lambda i, j, x=row, to=parts: to.append(add_up(x, first, i, j)), row.size, least=_LEAST)  # type: ignore[misc]
        value = sum(parts) % 2**64
        total.fill_(value - 2**64 if value >= 2**63 else value)
    return sums


def _by_triton(symbols: Tensor, first: int) -> Tensor:
    from lalic_kernels.rans.kernels import checksum_kernel

    symbols = symbols.contiguous()
    sums = torch.zeros(symbols.shape[0], dtype=torch.int64, device=symbols.device)
    if symbols.numel():
        with on(symbols.device):
            checksum_kernel[(symbols.shape[0] * blocks(symbols.shape[1], LAUNCH["BLOCK"]),)](
                symbols, sums, symbols.shape[1], first, **LAUNCH.options()
            )
    return sums
