"""The numbers of the exact arithmetic's definition, version 1 (docs/exact-arithmetic.md).

A float is given by its bits or as a power of two, so that no parser of decimals can change it. A change of any number
changes every stream, and needs a new `VERSION`.
"""

from __future__ import annotations

import struct

VERSION = 1


class NotFinite(ValueError):
    """An argument of exact arithmetic has an infinity or NaN, which has no integer."""

    def __init__(self, message: str = "x must be finite in exact arithmetic, but holds an infinity or NaN"):
        super().__init__(message)


def _float(bits: int) -> float:
    """The float32 with these bits; exact in a Python float."""
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def _double(bits: int) -> float:
    """The float64 with these bits."""
    return struct.unpack("<d", struct.pack("<Q", bits))[0]


# A settled value is 0 or has a magnitude from TINY to HUGE: a product of two of them is a normal number.
EXPONENT = 60
TINY = 2.0**-EXPONENT
HUGE = 2.0**EXPONENT
INFINITY = 0x7F800000  # magnitude bits from here on are not finite

# Quantised factors of a product
BITS = 13
LARGEST = 2**BITS - 1  # 8191
DIGIT = 128  # q = 128 high + low, both in -64..64
MAX_TERMS = 2**17  # of one sum: the digits' sums stay in int32, the whole sum far below 2^53

# LayerNorm
NORM_EPS = 1e-5
NORM_BITS = 17
NORM_MIN_EXPONENT = -40
ROOT_GUESS = 0x5F375A86
NORM_MAX_CHANNELS = 4096  # 4096 * 2^17 * 2 is still an int32

# exp in float32, its argument clipped to +-EXP_RANGE, so that exp(x) is settled
EXP_RANGE = 41.5
LOG2E = _float(0x3FB8AA3B)
LN2_HIGH = _float(0x3F318000)  # 355 / 512: its product with an integer up to 60 is exact
LN2_LOW = _float(0xB95E8083)
EXP_POLYNOMIAL = tuple(
    _float(bits) for bits in (0x39506967, 0x3AB743CE, 0x3C088908, 0x3D2AA9C1, 0x3E2AAAAA, 0x3F000000)
)  # of r^7 .. r^2

# exp in float64, for the bidirectional WKV
EXP64_FLOOR = -300.0
DECAY_RANGE = 256.0  # |w| T at most
BOOST_RANGE = 80.0  # |u| at most
CHUNK = 64  # tokens
LOG2E_64 = _double(0x3FF71547652B82FE)
LN2_HIGH_64 = _double(0x3FE62E4000000000)
LN2_LOW_64 = _double(0x3EB7F7D1CF79ABCA)
EXP64_POLYNOMIAL = tuple(
    _double(bits)
    for bits in (
        0x3E5AE64567F544E4, 0x3E927E4FB7789F5C, 0x3EC71DE3A556C734, 0x3EFA01A01A01A01A, 0x3F2A01A01A01A01A,
        0x3F56C16C16C16C17, 0x3F81111111111111, 0x3FA5555555555555, 0x3FC5555555555555, 0x3FE0000000000000,
    )
)  # 1 / n! rounded, n = 11 .. 2  # fmt: skip

# The first 63 standard deviations of the shipped Gaussian tables
THRESHOLD_BITS = (
    0x3DE147AE, 0x3DFEC793, 0x3E101230, 0x3E22EFC7, 0x3E3845C8, 0x3E506704, 0x3E6BB124, 0x3E85470A, 0x3E96BACD,
    0x3EAA779A, 0x3EC0CA0E, 0x3EDA08CA, 0x3EF695CC, 0x3F0B6FF2, 0x3F1DB234, 0x3F325889, 0x3F49B318, 0x3F641C86,
    0x3F80FDAB, 0x3F91E1BD, 0x3FA4FC07, 0x3FBA96AF, 0x3FD3058F, 0x3FEEA77C, 0x4006F3DC, 0x40189FC7, 0x402C9C16,
    0x4043365C, 0x405CC651, 0x4079AF2F, 0x408D3097, 0x409FAD98, 0x40B4965B, 0x40CC3C0E, 0x40E6FA78, 0x41029CB1,
    0x4113B71B, 0x41270EDD, 0x413CEF07, 0x4155AC83, 0x4171A758, 0x4188A610, 0x419A8AD8, 0x41AEC774, 0x41C5AA71,
    0x41DF8CA9, 0x41FCD28B, 0x420EF6DD, 0x4221AF59, 0x4236DB65, 0x424ECD30, 0x4269E1A0, 0x428440F0, 0x42959263,
    0x42A9285D, 0x42BF4EEC, 0x42D85C06, 0x42F4B0DE, 0x430A5DBD, 0x431C7C18, 0x4330F9CE, 0x43482672, 0x43625BEB,
)  # fmt: skip
THRESHOLDS = tuple(_float(bits) for bits in THRESHOLD_BITS)
