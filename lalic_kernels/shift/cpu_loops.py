"""The token shift for CPUs, compiled by numba, with or without a LayerNorm.

A ring buffer holds five image lines. Each line is read into it once: converted to float32, normalised if there is a
norm, stored as (blocks of 16 channels, columns, 16) with two columns of zeros on each side, which is the zero padding.
The 5x5 sums are computed four pixels at a time, so that a tap is loaded once for four products. The forward needs one
ring, the backward two and one line: the normalised image and its gradient are never written to memory.

Arrays are flat and contiguous. Each image is float32, or uint16 that holds bfloat16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from lalic_kernels.numba_math import (
    EXACT,
    EXACT_CALLEE,
    VECTOR_VALUE,
    add,
    emit_fma,
    emit_load,
    emit_store,
    f32,
    fma,
    load,
    mul,
    njit,
    splat,
    store,
    sub,
    total,
    wide,
)

PIXELS = 4  # pixels whose sums are in registers at the same time


@intrinsic
def _four_pixels(typingctx, ring, rows, taps, tap, out, index, stride):  # type: ignore[no-untyped-def]
    """Write the sums over all 25 taps for four pixels and 16 channels from out[index] on, `stride` apart.

    rows: where the five lines' pixels begin in the ring. tap: where this block's taps begin. These are instructions
    for LLVM, because numba would need seconds to compile the 200 calls of `load` and `fma`.
    """
    intp = types.intp
    signature = types.none(ring, types.UniTuple(intp, 5), taps, intp, out, intp, intp)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        ring, rows, taps, tap, out, index, stride = args
        ring_type, _, taps_type, _, out_type, _, _ = signature.args

        def after(start: Any, elements: int) -> Any:
            return builder.add(start, ir.Constant(start.type, elements))

        sums = [ir.Constant(VECTOR_VALUE, [0.0] * 16)] * PIXELS
        for row in range(5):
            first = builder.extract_value(rows, row)
            pixels = [emit_load(context, builder, ring_type, ring, after(first, 16 * n)) for n in range(PIXELS + 4)]
            for column in range(5):
                weight = emit_load(context, builder, taps_type, taps, after(tap, 80 * row + 16 * column))
                sums = [emit_fma(builder, pixels[n + column], weight, sums[n]) for n in range(PIXELS)]
        for value in sums:
            emit_store(context, builder, out_type, out, index, value)
            index = builder.add(index, stride)
        return context.get_dummy_value()

    return signature, codegen


@njit(inline="always")
def _read_line(
    x, first, norm_weight, norm_bias, eps, normed, ring, slot, means, factors, width, padded, channels, pixel
):
    """Read an image line, which starts at x[first], into the ring at `slot`; with `normed` apply the LayerNorm.

    `means` and `factors` (1 / standard deviation) get one value per pixel. `pixel` is work space for one pixel.
    """
    whole = channels // 16 * 16
    count = f32(channels)
    for j in range(width):
        start, index = first + j * channels, slot + (j + 2) * 16
        # Without a norm: convert to float32.
        if not normed:
            for c in range(0, whole, 16):
                store(ring, index + c * padded, load(x, start + c))
            if whole < channels:
                _last(x, start + whole, channels - whole, pixel)
                store(ring, index + whole * padded, load(pixel, 0))
            continue
        # Mean, then variance of the centred values.
        sums = splat(f32(0.0))
        for c in range(0, whole, 16):
            value = load(x, start + c)
            store(pixel, c + 16, value)
            sums = add(sums, value)
        if whole < channels:
            _last(x, start + whole, channels - whole, pixel)
            value = load(pixel, 0)
            store(pixel, whole + 16, value)
            sums = add(sums, value)
        mean = total(sums) / count
        centre, squares = splat(mean), splat(f32(0.0))
        for c in range(0, whole, 16):
            centred = sub(load(pixel, c + 16), centre)
            squares = fma(centred, centred, squares)
        square = total(squares)
        for c in range(whole, channels):
            square += (pixel[c + 16] - mean) * (pixel[c + 16] - mean)
        factor = f32(1.0) / np.sqrt(square / count + eps)
        means[j], factors[j] = mean, factor
        # Normalise.
        scale = splat(factor)
        for c in range(0, channels, 16):
            h = mul(sub(load(pixel, c + 16), centre), scale)
            store(ring, index + c * padded, fma(h, load(norm_weight, c), load(norm_bias, c)))


@njit(**EXACT_CALLEE)
def _last(x, start, count, pixel):
    """Copy the last `count` channels, fewer than 16, to pixel[:16], followed by zeros."""
    for c in range(16):
        pixel[c] = wide(x[start + c]) if c < count else f32(0.0)


@njit(inline="always")
def _line(ring, size, i, width, padded, channels, taps, out, first, spill):
    """Write the 5x5 sums of line i to out[first:]; the ring holds lines i - 2 to i + 2."""
    r0, r1, r2, r3, r4 = (
        (i + 3) % 5 * size, (i + 4) % 5 * size, i % 5 * size, (i + 1) % 5 * size, (i + 2) % 5 * size,
    )  # fmt: skip
    inner = width // PIXELS * PIXELS
    for c in range(0, channels, 16):
        block = c * padded
        full = c + 16 <= channels
        if full:
            for j in range(0, inner, PIXELS):
                q = block + j * 16
                index = first + j * channels + c
                _four_pixels(ring, (r0 + q, r1 + q, r2 + q, r3 + q, r4 + q), taps, c * 25, out, index, channels)
        for j in range(inner if full else 0, width, PIXELS):
            q = block + j * 16
            _four_pixels(ring, (r0 + q, r1 + q, r2 + q, r3 + q, r4 + q), taps, c * 25, spill, 0, 16)
            for p in range(min(PIXELS, width - j)):
                index = first + (j + p) * channels + c
                for n in range(min(16, channels - c)):
                    out[index + n] = spill[p * 16 + n]


@njit(**EXACT)
def forward_lines(x, norm_weight, norm_bias, eps, normed, taps, y, height, width, channels, start, stop):
    """Write y for the image lines start .. stop of all B * H."""
    padded = (width + PIXELS - 1) // PIXELS * PIXELS + 4
    size = padded * ((channels + 15) // 16 * 16)
    # For np.zeros, and for a dtype that is written out, numba compiles more functions.
    ring, pixel = np.empty(5 * size, taps.dtype), np.empty(channels + 32, taps.dtype)
    ring[:], pixel[:] = f32(0.0), f32(0.0)
    means, factors = np.empty(width, taps.dtype), np.empty(width, taps.dtype)
    spill = np.empty(16 * PIXELS, y.dtype)
    for line in range(start, stop):
        i = line % height
        for row in range(i - 2 if line == start or i == 0 else i + 2, i + 3):
            slot = (row + 5) % 5 * size
            if row < 0 or row >= height:
                ring[slot : slot + size] = f32(0.0)
            else:
                first = (line + row - i) * width * channels
                _read_line(
                    x, first, norm_weight, norm_bias, eps, normed, ring, slot, means, factors, width, padded, channels,
                    pixel,
                )  # fmt: skip
        _line(ring, size, i, width, padded, channels, taps, y, line * width * channels, spill)


@njit(**EXACT_CALLEE)
def _write_gradient(
    line, x, first, norm_weight, normed, means, factors, grad_x, part, at, width, channels, pixel, spill
):  # fmt: skip
    """Write a line of x's gradient to grad_x[first:], from `line` (W, C in whole blocks), that of the shift's input.

    Without `normed` it is `line`. Else, with h = (x - mean) factor and q = line * norm_weight, it is
    factor (q - mean(q) - h mean(q h)), and the sums of line * h and of line, for the gradients of norm_weight and
    norm_bias, are added to part[at:], one after the other.
    """
    whole, blocks = channels // 16 * 16, (channels + 15) // 16 * 16
    count = f32(channels)
    for j in range(width):
        start, index = first + j * channels, j * blocks
        if normed:
            centre, scale = splat(means[j]), splat(factors[j])
            sum_q = splat(f32(0.0))
            sum_qh = sum_q
            # Sums for the gradients. Past the last channel h is not zero, but line and norm_weight are.
            for c in range(0, blocks, 16):
                if c < whole:
                    value = load(x, start + c)
                else:
                    _last(x, start + c, channels - c, pixel)
                    value = load(pixel, 0)
                h, grad = mul(sub(value, centre), scale), load(line, index + c)
                store(pixel, c + 16, h)
                store(part, at + c, fma(grad, h, load(part, at + c)))
                store(part, at + blocks + c, add(grad, load(part, at + blocks + c)))
                q = mul(grad, load(norm_weight, c))
                store(line, index + c, q)
                sum_q, sum_qh = add(sum_q, q), fma(q, h, sum_qh)
            # The gradient of x.
            mean_q, minus_mean_qh = splat(total(sum_q) / count), splat(-total(sum_qh) / count)
            for c in range(0, blocks, 16):
                q = sub(load(line, index + c), mean_q)
                store(line, index + c, mul(fma(load(pixel, c + 16), minus_mean_qh, q), scale))
        # Write it.
        for c in range(0, whole, 16):
            store(grad_x, start + c, load(line, index + c))
        if whole < channels:
            store(spill, 0, load(line, index + whole))
            for n in range(channels - whole):
                grad_x[start + whole + n] = spill[n]


@njit(**EXACT)
def gradient_lines(
    x, norm_weight, norm_bias, eps, normed, turned, grad, grad_x, parts, norm_parts, height, width, channels, lines,
    start, stop,
):  # fmt: skip
    """Write the gradients of x, weight and norm for the items start .. stop, each of `lines` lines of an image.

    x and the result's gradient have one ring each. `turned`: the taps of the kernel turned by 180 degrees. Partial sums
    for each item: `parts` (items, C / 16, 25, 16); with a norm `norm_parts` (items, 2, C in whole blocks).
    """
    padded = (width + PIXELS - 1) // PIXELS * PIXELS + 4
    blocks = (channels + 15) // 16 * 16
    size = padded * blocks
    ring, upstream = np.zeros(5 * size, np.float32), np.zeros(5 * size, np.float32)
    means, factors = np.empty(5 * width, np.float32), np.empty(5 * width, np.float32)
    pixel, line = np.zeros(channels + 32, np.float32), np.empty(width * blocks, np.float32)
    sums_spill, spill = np.zeros(16 * PIXELS, np.float32), np.zeros(16, grad_x.dtype)
    items_per_image = (height + lines - 1) // lines
    part = 25 * blocks
    for item in range(start, stop):
        image, first_line = item // items_per_image * height, item % items_per_image * lines
        parts[item * part : (item + 1) * part] = f32(0.0)
        if normed:
            norm_parts[item * 2 * blocks : (item + 1) * 2 * blocks] = f32(0.0)
        for i in range(first_line, min(first_line + lines, height)):
            # Read the lines that are new into both rings.
            for row in range(i - 2 if i == first_line else i + 2, i + 3):
                slot, at = (row + 5) % 5 * size, (row + 5) % 5 * width
                if row < 0 or row >= height:
                    ring[slot : slot + size] = f32(0.0)
                    upstream[slot : slot + size] = f32(0.0)
                else:
                    first = (image + row) * width * channels
                    _read_line(
                        grad, first, norm_weight, norm_bias, eps, False, upstream, slot, means, factors, width, padded,
                        channels, pixel,
                    )  # fmt: skip
                    _read_line(
                        x, first, norm_weight, norm_bias, eps, normed, ring, slot, means[at : at + width],
                        factors[at : at + width], width, padded, channels, pixel,
                    )  # fmt: skip
            # The gradient of the weight: for each of its rows five sums over the line.
            current = i % 5
            for c in range(0, channels, 16):
                middle = current * size + c * padded + 32
                for a in range(5):
                    r0 = (i + a + 3) % 5 * size + c * padded
                    s0 = splat(f32(0.0))
                    s1, s2, s3, s4 = s0, s0, s0, s0
                    for q in range(0, width * 16, 16):
                        g, r = load(upstream, middle + q), r0 + q
                        s0, s1 = fma(load(ring, r), g, s0), fma(load(ring, r + 16), g, s1)
                        s2, s3 = fma(load(ring, r + 32), g, s2), fma(load(ring, r + 48), g, s3)
                        s4 = fma(load(ring, r + 64), g, s4)
                    t = item * part + c * 25 + a * 80
                    store(parts, t, add(load(parts, t), s0))
                    store(parts, t + 16, add(load(parts, t + 16), s1))
                    store(parts, t + 32, add(load(parts, t + 32), s2))
                    store(parts, t + 48, add(load(parts, t + 48), s3))
                    store(parts, t + 64, add(load(parts, t + 64), s4))
            # The gradient of x. In whole blocks of channels: only the line's last pixels take the slow path.
            _line(upstream, size, i, width, padded, blocks, turned, line, 0, sums_spill)
            at = current * width
            _write_gradient(
                line, x, (image + i) * width * channels, norm_weight, normed, means[at : at + width],
                factors[at : at + width], grad_x, norm_parts, item * 2 * blocks, width, channels, pixel, spill,
            )  # fmt: skip
