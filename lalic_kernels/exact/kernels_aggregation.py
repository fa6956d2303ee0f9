"""The exact kernel of whole aggregation networks, whose programs own whole rows; see `kernels_rows.py`."""

import triton
import triton.language as tl

from lalic_kernels.exact.kernels import row_bits
from lalic_kernels.exact.kernels_common import (
    LEAST,
    SHIFT,
    digits,
    leading_exponent,
    magnitude,
    note,
    power_of_two,
)
from lalic_kernels.exact.kernels_products import add_products, dequantised, seen_tile
from lalic_kernels.exact.kernels_rows import gated_rows, norm_rows, row_maximum, rows_product, weight_tiles


@triton.jit
def exact_aggregation_kernel(
    x_ptr,  # "seen": images as `seen_tile` has them; "rows": (images * rows, inputs); "known": unused
    taps_ptr,  # (taps, 2) int32 offsets, in "seen"
    spatial_ptr,  # (2, 2 group, spatial_depth) int8, in "seen": the product of what is seen
    spatial_scale_ptr,  # (2 group,)
    spatial_bias_ptr,  # (2 group,)
    known_ptr,  # rows known_stride apart, of images * rows: added to the first mix; unused in "rows"
    digits_ptr,  # int8, for each block: mix, key (inner + outputs) and value, each (2, outputs, depth)
    floats_ptr,  # for each block: mix scales, mix bias, norm weight, norm bias, key scales, value scales, eps_area
    table_ptr,  # (blocks, 4) int32: outputs, inner, where digits begin (in 64s), where floats begin
    scratch_ptr,  # (images * rows, scratch_stride), written
    y_ptr,  # (images * rows, outputs of the last block), written
    status_ptr,
    rows,  # of an image
    inputs,  # of the first mix; 0 in "known", for which the digits of that mix are left out
    spatial_depth,
    x_stride,
    height,
    half,
    taps,
    group,  # channels seen at a tap
    known_stride,
    scratch_stride,
    wide,  # at least each block's outputs and the first mix's inputs
    blocks,
    START: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Entropy-parameter blocks one after the other. Grid (blocks of rows, images).

    The first block's m is bias + known ("known"), product + known with spatial context as input ("seen"), or product
    ("rows"). Scratch of a row: two slots of `wide` that change roles, and the hidden layer.
    """
    image = tl.program_id(1)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_in = row < rows
    place = (image.to(tl.int64) * rows + row)[:, None]
    own = place * scratch_stride
    free = own  # slot for what comes next
    m_at = own + wide  # slot of m
    hidden = own + 2 * wide
    outputs = tl.load(table_ptr)
    floats = floats_ptr + tl.load(table_ptr + 3)
    digit = digits_ptr + tl.load(table_ptr + 2).to(tl.int64) * 64
    depth = (inputs + 63) // 64 * 64
    bits = tl.zeros([BLOCK_M], tl.int32)
    source = own
    if START == "seen":
        line = row // half
        column = 2 * (row % half) + ((line + 1) & 1)
        seen = taps * group
        most = tl.zeros([BLOCK_M, BLOCK_K], tl.int32)
        for start in range(0, seen, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            x = seen_tile(x_ptr, image, line, column, k, group, taps_ptr, taps, height, 2 * half, x_stride, row_in)
            most = tl.maximum(most, magnitude(x))
        exponent = leading_exponent(tl.max(most, axis=1), LEAST)
        note(status_ptr, most)
        up = power_of_two(-(exponent - SHIFT))[:, None]
        spatial_depth = (spatial_depth // BLOCK_K) * BLOCK_K
        spatial_low_ptr = spatial_ptr + tl.cast(inputs, tl.int64) * spatial_depth
        for begin in range(0, inputs, BLOCK_N):
            n = begin + tl.arange(0, BLOCK_N)
            n_in = n < inputs
            high = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
            middle = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
            low = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
            for start in range(0, spatial_depth, BLOCK_K):
                k = start + tl.arange(0, BLOCK_K)
                x = seen_tile(x_ptr, image, line, column, k, group, taps_ptr, taps, height, 2 * half, x_stride, row_in)
                x_high, x_low = digits(x, up)
                w_high, w_low = weight_tiles(spatial_ptr, spatial_low_ptr, n, n_in, k, spatial_depth)
                high, middle, low = add_products(x_high, x_low, w_high, w_low, high, middle, low)
            scale = tl.load(spatial_scale_ptr + n, mask=n_in, other=1.0)
            y = dequantised(high, middle, low, power_of_two(exponent - SHIFT), scale, spatial_bias_ptr, n, inputs, True)
            mask = row_in[:, None] & n_in[None, :]
            tl.store(scratch_ptr + free + n[None, :], y, mask=mask)
            bits = row_maximum(bits, y, mask)
        tl.debug_barrier()
        source = free
        source_ptr = scratch_ptr
    if START == "rows":
        source = place * inputs
        source_ptr = x_ptr
        bits = row_bits(x_ptr, source, inputs, row_in, BLOCK_M, BLOCK_K)
        note(status_ptr, bits)
    most = tl.zeros([BLOCK_M], tl.int32)
    for start in range(0, outputs, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        mask = row_in[:, None] & (n < outputs)[None, :]
        if START == "known":
            y = tl.load(floats + outputs + n, mask=n < outputs, other=0.0)[None, :]
        else:
            y = rows_product(
                source_ptr, source, bits, inputs, row_in, digit, outputs, depth, floats, floats + outputs, n, outputs,
                True, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
        if START != "rows":
            y = y + tl.load(known_ptr + place * known_stride + n[None, :], mask=mask, other=0.0)
        tl.store(scratch_ptr + m_at + n[None, :], y, mask=mask)
        most = row_maximum(most, y, mask)
    for block in range(0, blocks):
        outputs = tl.load(table_ptr + 4 * block)
        inner = tl.load(table_ptr + 4 * block + 1)
        digit = digits_ptr + tl.load(table_ptr + 4 * block + 2).to(tl.int64) * 64
        floats = floats_ptr + tl.load(table_ptr + 4 * block + 3)
        note(status_ptr, most)
        tl.debug_barrier()
        key = digit + 2 * outputs.to(tl.int64) * depth
        depth = (outputs + 63) // 64 * 64
        value = key + 2 * (inner + outputs).to(tl.int64) * depth
        inner_depth = (inner + 63) // 64 * 64
        scales = floats + 4 * outputs
        eps_area = tl.load(scales + inner + 2 * outputs)
        bits = norm_rows(
            scratch_ptr, m_at, most, scratch_ptr, free, floats + 2 * outputs, floats + 3 * outputs, table_ptr, outputs,
            eps_area, row_in, False, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        tl.debug_barrier()
        most = gated_rows(
            scratch_ptr, free, bits, scratch_ptr, hidden, scratch_ptr, m_at, floats, scratch_ptr, m_at,
            key, scales, value, scales + inner + outputs, outputs, inner, depth, inner_depth, row_in,
            False, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        tl.debug_barrier()
        if block + 1 < blocks:
            # The next block's m, from this one's result to the other slot.
            width = outputs
            outputs = tl.load(table_ptr + 4 * block + 4)
            digit = digits_ptr + tl.load(table_ptr + 4 * block + 6).to(tl.int64) * 64
            floats = floats_ptr + tl.load(table_ptr + 4 * block + 7)
            bits = most
            most = tl.zeros([BLOCK_M], tl.int32)
            for start in range(0, outputs, BLOCK_N):
                n = start + tl.arange(0, BLOCK_N)
                mask = row_in[:, None] & (n < outputs)[None, :]
                y = rows_product(
                    scratch_ptr, m_at, bits, width, row_in, digit, outputs, depth, floats, floats + outputs, n,
                    outputs, True, BLOCK_M, BLOCK_N, BLOCK_K,
                )  # fmt: skip
                tl.store(scratch_ptr + free + n[None, :], y, mask=mask)
                most = row_maximum(most, y, mask)
            swap = m_at
            m_at = free
            free = swap
        else:
            for start in range(0, outputs, BLOCK_N):
                n = start + tl.arange(0, BLOCK_N)
                mask = row_in[:, None] & (n < outputs)[None, :]
                y = tl.load(scratch_ptr + m_at + n[None, :], mask=mask)
                tl.store(y_ptr + place * outputs + n[None, :], y, mask=mask)
