"""The checksum of symbols in Triton; `checksum.py` has the definition.

One program adds up a block of one row and adds that to the row's total: integers, so the order of the atomics is of no
consequence.
"""

import triton
import triton.language as tl

from lalic_kernels.rans.checksum import FIRST, SECOND

_FIRST, _SECOND = tl.constexpr(FIRST), tl.constexpr(SECOND)


@triton.jit
def mixed(places, symbols):
    """The terms of the sum, int64: places and symbols int32."""
    x = (places.to(tl.int64) << 32) + (symbols.to(tl.int64) & 0xFFFFFFFF)
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _FIRST
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _SECOND
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


@triton.jit
def checksum_kernel(symbols_ptr, totals_ptr, count, first, BLOCK: tl.constexpr):
    """symbols (B, count) int32, totals (B,) int64 zeroed; grid (blocks of count, B)."""
    row = tl.program_id(1)
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = places < count
    symbols = tl.load(symbols_ptr + row.to(tl.int64) * count + places, mask=inside, other=0)
    tl.atomic_add(totals_ptr + row, tl.sum(tl.where(inside, mixed(places + first, symbols), 0), 0))
