"""Exact kernels of the RWKV block whose programs own whole rows; see `kernels_rows.py`."""

import triton
import triton.language as tl

from lalic_kernels.exact.kernels import row_bits
from lalic_kernels.exact.kernels_common import note, raise_top, settle
from lalic_kernels.exact.kernels_conv import shifted
from lalic_kernels.exact.kernels_rows import gated_rows, norm_rows, row_maximum, rows_product


@triton.jit
def exact_output_norm_kernel(
    x_ptr,  # (images * rows, width): what the WKV gave
    weight_ptr,  # (2, width, depth) int8
    scale_ptr,  # (width,)
    residual_ptr,  # rows residual_stride apart
    gamma_ptr,  # (width,)
    norm_weight_ptr,  # (width,)
    norm_bias_ptr,  # (width,)
    y_ptr,  # (images * rows, width), written: residual + gamma (x @ w^T)
    normal_ptr,  # (images * rows, width), written: LayerNorm of it
    maxima_ptr,  # (images, width) int32, raised to the channels' magnitude bits of that
    status_ptr,
    rows,  # of an image
    width,
    depth,
    residual_stride,
    eps_area,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The output product of a spatial mix with its residual, and the next norm. Grid (blocks of rows, images)."""
    image = tl.program_id(1)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_in = row < rows
    place = (image.to(tl.int64) * rows + row)[:, None]
    base = place * width
    bits = row_bits(x_ptr, base, width, row_in, BLOCK_M, BLOCK_N)
    most = tl.zeros([BLOCK_M], tl.int32)
    bad = tl.zeros([BLOCK_M], tl.int32)
    for start in range(0, width, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        mask = row_in[:, None] & (n < width)[None, :]
        y = rows_product(
            x_ptr, base, bits, width, row_in, weight_ptr, width, depth, scale_ptr, scale_ptr, n, width,
            False, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        y = settle(settle(tl.load(gamma_ptr + n, mask=n < width, other=0.0))[None, :] * y)
        before = tl.load(residual_ptr + place * residual_stride + n[None, :], mask=mask, other=0.0)
        bad = row_maximum(bad, before, mask)
        y = settle(before + y)
        tl.store(y_ptr + base + n[None, :], y, mask=mask)
        most = row_maximum(most, y, mask)
    note(status_ptr, bad)
    tl.debug_barrier()
    norm_rows(
        y_ptr, base, most, normal_ptr, base, norm_weight_ptr, norm_bias_ptr, maxima_ptr + image * width, width,
        eps_area, row_in, True, BLOCK_M, BLOCK_N,
    )  # fmt: skip


@triton.jit
def _shift_rows(
    x_ptr, maxima_ptr, taps_ptr, w_scale_ptr, s_ptr, image, row, place, row_in, height, width, channels,
    SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The depth-wise shift at rows, to s. Returns the largest magnitude bits of its rows."""
    most = tl.zeros([BLOCK_M], tl.int32)
    start = image.to(tl.int64) * height * width * channels
    for begin in range(0, channels, BLOCK_N):
        c = begin + tl.arange(0, BLOCK_N)
        mask = row_in[:, None] & (c < channels)[None, :]
        y = shifted(
            x_ptr + start, maxima_ptr + image * channels, taps_ptr, w_scale_ptr, row // width, row % width, c,
            height, width, channels, SIZE, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        tl.store(s_ptr + place * channels + c[None, :], y, mask=mask)
        most = row_maximum(most, y, mask)
    tl.debug_barrier()
    return most


@triton.jit
def exact_shift_mix_kernel(
    x_ptr,  # (images, height, width, channels), normalised
    maxima_ptr,  # (images, channels) int32 magnitude bits of it
    taps_ptr,  # (SIZE^2, channels) int16
    w_scale_ptr,  # (channels,)
    s_ptr,  # as x, written: the shifted image, for this launch alone
    weight_ptr,  # (2, 3 channels, depth) int8: key, value, receptance
    scale_ptr,  # (3 channels,)
    tops_ptr,  # (images, channels) int32: order keys, raised to the maxima of the keys
    y_ptr,  # (images * height * width, 3 channels), written
    height,
    width,
    channels,
    depth,
    SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The shift and the first products of a spatial mix. Grid (blocks of positions, images)."""
    image = tl.program_id(1)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_in = row < height * width
    place = (image.to(tl.int64) * height * width + row)[:, None]
    bits = _shift_rows(
        x_ptr, maxima_ptr, taps_ptr, w_scale_ptr, s_ptr, image, row, place, row_in, height, width, channels,
        SIZE, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    outputs = 3 * channels
    for start in range(0, outputs, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        y = rows_product(
            s_ptr, place * channels, bits, channels, row_in, weight_ptr, outputs, depth, scale_ptr, scale_ptr, n,
            outputs, False, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        tl.store(y_ptr + place * outputs + n[None, :], y, mask=row_in[:, None] & (n < outputs)[None, :])
        top = tl.max(tl.where(row_in[:, None], y, float("-inf")), axis=0)
        raise_top(tops_ptr + image * channels + n, top, n < channels)


@triton.jit
def exact_shift_channel_kernel(
    x_ptr,  # (images, height, width, channels), normalised
    maxima_ptr,  # (images, channels) int32 magnitude bits of it
    taps_ptr,  # (SIZE^2, channels) int16
    w_scale_ptr,  # (channels,)
    s_ptr,  # as x, written: the shifted image, for this launch alone
    hidden_ptr,  # (images * height * width, inner), written: likewise
    key_ptr,  # (2, inner + channels, depth) int8: key, receptance
    key_scale_ptr,  # (inner + channels,)
    value_ptr,  # (2, channels, inner_depth) int8
    value_scale_ptr,  # (channels,)
    residual_ptr,  # (images * height * width, channels)
    gamma_ptr,  # (channels,)
    norm_weight_ptr,  # (channels,), with NEXT
    norm_bias_ptr,  # (channels,), with NEXT
    y_ptr,  # (images * height * width, channels), written
    normal_ptr,  # likewise, written with NEXT: LayerNorm of y
    next_maxima_ptr,  # int32, raised to magnitude bits: with NEXT (images, channels) of that, else (images,) of y
    height,
    width,
    channels,
    inner,
    depth,
    inner_depth,
    eps_area,
    NEXT: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The shift and a channel mix with its residual, and the next block's norm. Grid (blocks of positions, images)."""
    image = tl.program_id(1)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_in = row < height * width
    place = (image.to(tl.int64) * height * width + row)[:, None]
    base = place * channels
    bits = _shift_rows(
        x_ptr, maxima_ptr, taps_ptr, w_scale_ptr, s_ptr, image, row, place, row_in, height, width, channels,
        SIZE, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    most = gated_rows(
        s_ptr, base, bits, hidden_ptr, place * inner, residual_ptr, base, gamma_ptr, y_ptr, base, key_ptr,
        key_scale_ptr, value_ptr, value_scale_ptr, channels, inner, depth, inner_depth, row_in,
        True, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    if NEXT:
        tl.debug_barrier()
        norm_rows(
            y_ptr, base, most, normal_ptr, base, norm_weight_ptr, norm_bias_ptr, next_maxima_ptr + image * channels,
            channels, eps_area, row_in, True, BLOCK_M, BLOCK_N,
        )  # fmt: skip
    else:
        tl.atomic_max(next_maxima_ptr + image, tl.max(most, axis=0), sem="relaxed")
