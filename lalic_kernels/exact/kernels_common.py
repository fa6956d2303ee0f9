"""Functions of all exact kernels: the definition's elementwise functions, on tiles, with the bits of `reference.py`.

*Magnitude bits* are the bits of |x|; they have the order of the magnitudes. A *status* is an int32 on the device that
becomes 1 if an input is not finite.

Kernels are launched with `enable_fp_fusion=False`: each float operation is rounded separately. float32 divisions use
`tl.div_rn` (Triton's `/` is approximate in float32, correctly rounded in float64). Values below 2^22 are rounded half
to even by adding and subtracting 1.5 2^23, which no compiler may simplify without fast-math. No library function is
called.
"""

import triton
import triton.language as tl

from lalic_kernels.exact import numbers as n
from lalic_kernels.triton_math import Constant

TINY, HUGE = Constant(n.TINY), Constant(n.HUGE)
MAX_EXPONENT, MIN_EXPONENT = Constant(n.EXPONENT), Constant(-n.EXPONENT)
LARGEST = Constant(float(n.LARGEST))
SHIFT = Constant(n.BITS - 1)
ROUND, ROUND_64 = Constant(1.5 * 2.0**23), Constant(1.5 * 2.0**52)
INFINITY = Constant(n.INFINITY)
ROOT_GUESS = Constant(n.ROOT_GUESS)
EXP_RANGE, LOG2E = Constant(n.EXP_RANGE), Constant(n.LOG2E)
LN2_HIGH, LN2_LOW = Constant(n.LN2_HIGH), Constant(n.LN2_LOW)
P0, P1, P2, P3, P4, P5 = (Constant(c) for c in n.EXP_POLYNOMIAL)
LOG2E_64 = Constant(n.LOG2E_64)
LN2_HIGH_64, LN2_LOW_64 = Constant(n.LN2_HIGH_64), Constant(n.LN2_LOW_64)
Q0, Q1, Q2, Q3, Q4, Q5, Q6, Q7, Q8, Q9 = (Constant(c) for c in n.EXP64_POLYNOMIAL)


@triton.jit
def magnitude(x):
    """Magnitude bits of float32 x, int32."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def set_status(status_ptr, bits):
    """Set status[0] to 1 if magnitude bits, a tile of any shape, have an infinity or NaN."""
    tl.store(status_ptr + tl.zeros_like(bits), 1, mask=bits >= INFINITY)


@triton.jit
def order_key(x):
    """Bits of x as a uint32 with the order of the floats; 0 is below that of every finite float."""
    bits = x.to(tl.int32, bitcast=True)
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)) ^ -0x80000000).to(tl.uint32, bitcast=True)


@triton.jit
def from_order_key(key):
    """The float of an order key, given as int32 with the same bits."""
    bits = key ^ -0x80000000
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def raise_absmax(ptr, bits, mask):
    """Atomic maximum of magnitude bits, in memory that starts as zeros: exact in any order."""
    tl.atomic_max(ptr, bits, mask=mask, sem="relaxed")


@triton.jit
def raise_max_key(ptr, x, mask):
    """Atomic maximum of floats' order keys, in memory that starts as zeros; ptr to int32 with the same bits."""
    tl.atomic_max(ptr.to(tl.pointer_type(tl.uint32), bitcast=True), order_key(x), mask=mask, sem="relaxed")


@triton.jit
def leading_exponent(bits, minimum: tl.constexpr):
    """`quantise.leading_exponent`."""
    return tl.minimum(tl.maximum((bits >> 23) - 127, minimum), MAX_EXPONENT)


@triton.jit
def power_of_two(exponent):
    """2^exponent in float32, exponent int32 in -126..127."""
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def settle(x):
    """`quantise.settle`."""
    x = tl.where(tl.abs(x) >= TINY, x, 0.0)
    x = tl.where(x > HUGE, HUGE, x)
    return tl.where(x < -HUGE, -HUGE, x)


@triton.jit
def clip_round(x, bound: tl.constexpr):
    """x clipped to +-bound (below 2^22), rounded half to even: int32."""
    x = tl.where(x > bound, bound, x)
    x = tl.where(x < -bound, -bound, x)
    return ((x + ROUND) - ROUND).to(tl.int32)


@triton.jit
def digits(x, up):
    """Digits (high, low), int8 in -64..64, of q = 128 high + low: x up rounded, clipped to +-8191."""
    q = clip_round(x * up, LARGEST)
    low = ((q + 64) & 127) - 64
    return ((q - low) >> 7).to(tl.int8), low.to(tl.int8)


@triton.jit
def exp(x):
    """`reference.exp`."""
    x = tl.where(x > EXP_RANGE, EXP_RANGE, x)
    x = tl.where(x < -EXP_RANGE, -EXP_RANGE, x)
    turns = (x * LOG2E + ROUND) - ROUND
    r = x - turns * LN2_HIGH
    r = r - turns * LN2_LOW
    p = r * P0 + P1
    p = p * r + P2
    p = p * r + P3
    p = p * r + P4
    p = p * r + P5
    y = p * (r * r) + r
    y = y + 1.0
    return y * power_of_two(turns.to(tl.int32))


@triton.jit
def sigmoid(x):
    """`reference.sigmoid`."""
    z = exp(-tl.abs(x))
    return tl.div_rn(tl.where(x >= 0, 1.0, z), 1.0 + z)


@triton.jit
def reciprocal_root(x):
    """`reference._reciprocal_root`."""
    y = (-((x.to(tl.int32, bitcast=True) >> 1) - ROOT_GUESS)).to(tl.float32, bitcast=True)
    half = x * 0.5
    y = y * (1.5 - (half * y) * y)
    y = y * (1.5 - (half * y) * y)
    return y * (1.5 - (half * y) * y)


@triton.jit
def double(value: tl.constexpr):
    """A float64 constant: some versions of Triton first make a number in an expression a float32."""
    return tl.full([1], value, tl.float64)


@triton.jit
def exp64(x):
    """`reference._exp64` of float64 x with at least one dimension."""
    turns = (x * double(LOG2E_64) + double(ROUND_64)) - double(ROUND_64)
    r = x - turns * double(LN2_HIGH_64)
    r = r - turns * double(LN2_LOW_64)
    p = r * double(Q0) + double(Q1)
    p = p * r + double(Q2)
    p = p * r + double(Q3)
    p = p * r + double(Q4)
    p = p * r + double(Q5)
    p = p * r + double(Q6)
    p = p * r + double(Q7)
    p = p * r + double(Q8)
    p = p * r + double(Q9)
    y = p * (r * r) + r
    y = y + double(1.0)
    return y * ((turns.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def clip64(x, low, high):
    """x clipped to low..high, float64."""
    x = tl.where(x < low, low, x)
    return tl.where(x > high, high, x)


@triton.jit
def threshold_index(thresholds_ptr, x):
    """The number of the 63 increasing thresholds that are below each x, a tile, in six steps of bisection."""
    index = tl.zeros_like(x.to(tl.int32, bitcast=True))
    for shift in tl.static_range(6):
        step = 32 >> shift
        index += tl.where(tl.load(thresholds_ptr + index + (step - 1)) < x, step, 0)
    return index
