"""Encoding with all lanes in Triton: a program is a group of lanes, and one warp. The rest is in gpu_encode.py."""

import triton
import triton.language as tl


@triton.jit
def rans_push_kernel(
    entries_ptr, bounds_ptr, shared_ptr, x_ptr, words_ptr, free_ptr, lists, groups, lanes, LANES: tl.constexpr
):  # fmt: skip
    """Encodes the first `lists` lists with `lanes` lanes a group, from the last to the first; words go below `free`."""
    group = tl.program_id(0)
    lane = tl.arange(0, LANES)
    x = tl.load(x_ptr + group * LANES + lane).to(tl.uint32, bitcast=True)
    free = tl.load(free_ptr + group)
    for back in range(0, lists):
        number = lists - 1 - back
        begin = tl.load(bounds_ptr + number)
        end = tl.load(bounds_ptr + number + 1)
        shared = tl.load(shared_ptr + number)
        # The first group has a list that is not shared alone; to the others it is empty.
        end = tl.where((shared == 0) & (group > 0), begin, end)
        stride = tl.where(shared != 0, groups * lanes, lanes)
        first = begin + tl.where(shared != 0, group * lanes, 0)
        steps = tl.maximum((end - first + stride - 1) // stride, 0)
        for step in range(0, steps):
            i = first + (steps - 1 - step) * stride + lane
            mask = (i < end) & (lane < lanes)
            interval = tl.load(entries_ptr + i, mask=mask, other=0).to(tl.uint32, bitcast=True)
            freq = (interval >> 16) + 1
            full = mask & ((x >> 16) >= freq)
            put = full.to(tl.int32)
            count = tl.sum(put, 0)
            # The decoder takes words in the order of lanes, so the first lane's is on top.
            place = free - count + tl.cumsum(put, 0) - put
            tl.store(words_ptr + place, (x & 0xFFFF).to(tl.int16), mask=full)
            free -= count
            x = tl.where(full, x >> 16, x)
            after = ((x // freq) << 16) + x % freq + (interval & 0xFFFF)
            x = tl.where(mask, after, x)
    tl.store(words_ptr + free - lanes + lane, (x & 0xFFFF).to(tl.int16), mask=lane < lanes)
    tl.store(x_ptr + group * LANES + lane, (x >> 16).to(tl.int32, bitcast=True))
    tl.store(free_ptr + group, free - lanes)
