"""The checksum's loop for CPUs, compiled by numba; `checksum.py` has the definition."""

from __future__ import annotations

import numpy as np
from numba import njit

u64 = np.uint64


@njit(nogil=True, cache=True)
def add_up(symbols, first, start, stop):
    """The sum over symbols[start:stop] int32, that of symbols[i] at place first + i."""
    total = u64(0)
    for i in range(start, stop):
        x = (u64(first + i) << u64(32)) + u64(np.uint32(symbols[i]))
        x = (x ^ (x >> u64(30))) * u64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> u64(27))) * u64(0x94D049BB133111EB)
        total += x ^ (x >> u64(31))
    return total
