"""What the kernels that decode share: the numbers of a stream's row of `heads`, faults, tickets, words and fields.

A row of heads has FIXED + (CONTROL + 32) room numbers: the section at hand (exceptions, length of the main list,
escapes, faults as bits, programs that have counted, that have decoded, two unused) and 8 stages; CONTROL numbers for
each group (next word, end of its words, working lanes, steps until they halve or -1, place in the stages, section,
section of the fan, groups + 65536 level); 32 states for each group, uint32 held as int32. Faults are kept from section
to section.
"""

import triton
import triton.language as tl

EXCEPTIONS = tl.constexpr(0)
TOTAL = tl.constexpr(1)
ESCAPES = tl.constexpr(2)
FAULTS = tl.constexpr(3)
COUNTED = tl.constexpr(4)
DECODED = tl.constexpr(5)
STAGES = tl.constexpr(8)
FIXED = tl.constexpr(16)  # numbers in front of the groups'
AT = tl.constexpr(0)
END = tl.constexpr(1)
WORKING = tl.constexpr(2)
LEFT = tl.constexpr(3)
AHEAD = tl.constexpr(4)
SECTION = tl.constexpr(5)
FAN = tl.constexpr(6)
SHAPE = tl.constexpr(7)
CONTROL = tl.constexpr(8)
# Bits of faults, 1 << -code of what reference.py returns; gpu.py has more.
BAD_INDEX = tl.constexpr(1 << 1)
BAD_LENGTH = tl.constexpr(1 << 2)
BAD_PLACE = tl.constexpr(1 << 3)
BAD_COUNT = tl.constexpr(1 << 4)
BAD_DIGIT = tl.constexpr(1 << 5)
TOO_LARGE = tl.constexpr(1 << 6)
BAD_LANE = tl.constexpr(1 << 7)
NOT_FINITE = tl.constexpr(1 << 16)


@triton.jit
def blame(head_ptr, fault):
    """Marks a fault of the stream."""
    tl.atomic_or(head_ptr + FAULTS, fault, sem="relaxed")


@triton.jit
def is_last(head_ptr, counter, programs):
    """Whether all other programs have come by here; then what they stored is seen, and the counter is set back.

    All threads' stores come before the barrier, then one takes the ticket, as release and acquire for the whole device
    (in PTX bar.warp.sync or bar.sync, then atom.global.acq_rel.gpu), and the others learn of it behind a barrier.
    """
    tl.debug_barrier()
    last = tl.atomic_add(head_ptr + counter, 1, sem="acq_rel", scope="gpu") == programs - 1
    if last:
        tl.store(head_ptr + counter, 0)
    return last


@triton.jit
def refill(x, mask, words_ptr, at, end):
    """x and the next word's place after lanes in `mask` whose states are small have taken words, lane by lane."""
    need = (mask & (x < 65536)).to(tl.int32)
    place = at + tl.cumsum(need, 0) - need
    word = tl.load(words_ptr + place, mask=(need != 0) & (place < end), other=0).to(tl.uint32) & 0xFFFF
    return tl.where(need != 0, (x << 16) | word, x), at + tl.sum(need, 0)


@triton.jit
def field(x, mask, width, words_ptr, at, end):
    """A field of `width` bits from each lane in `mask`; x and the next word's place after it."""
    rest = (16 - width).to(tl.uint32)
    slot = x & 0xFFFF
    value = tl.where(mask, (slot >> rest).to(tl.int32), 0)
    after = ((x >> 16) << rest) + (slot & ((tl.full(rest.shape, 1, tl.uint32) << rest) - 1))
    x, at = refill(tl.where(mask, after, x), mask, words_ptr, at, end)
    return value, x, at
