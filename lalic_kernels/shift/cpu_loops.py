"""The token shift for CPUs, compiled with numba: image lines through a ring of five, with or without a LayerNorm.

A line enters the ring once: converted to float32, normalised if asked, laid out as (blocks of 16 channels, columns, 16)
with two columns of zeros on either side, which is the zero padding. The 5x5 sums then read vectors at fixed distances
from one pointer a line, four pixels at a time, so that a tap is loaded once for four products. Work space: the ring,
in the backward two and a line, so that the normalised image and its gradient are never written to memory.

Arrays are flat and contiguous. Each image is float32, or uint16 that holds bfloat16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from lalic_kernels.numba_math import add, f32, fma, load, mul, splat, store, sub, total, wide

PIXELS = 4  # whose sums are in registers together
_OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}


@njit(inline="always")
def _row_of_taps(ring, r, taps, t, a0, a1, a2, a3):
    """Add one row of five taps to the sums of four neighbouring pixels."""
    x0, x1, x2, x3 = load(ring, r), load(ring, r + 16), load(ring, r + 32), load(ring, r + 48)
    x4, x5, x6, x7 = load(ring, r + 64), load(ring, r + 80), load(ring, r + 96), load(ring, r + 112)
    w = load(taps, t)
    a0, a1, a2, a3 = fma(x0, w, a0), fma(x1, w, a1), fma(x2, w, a2), fma(x3, w, a3)
    w = load(taps, t + 16)
    a0, a1, a2, a3 = fma(x1, w, a0), fma(x2, w, a1), fma(x3, w, a2), fma(x4, w, a3)
    w = load(taps, t + 32)
    a0, a1, a2, a3 = fma(x2, w, a0), fma(x3, w, a1), fma(x4, w, a2), fma(x5, w, a3)
    w = load(taps, t + 48)
    a0, a1, a2, a3 = fma(x3, w, a0), fma(x4, w, a1), fma(x5, w, a2), fma(x6, w, a3)
    w = load(taps, t + 64)
    a0, a1, a2, a3 = fma(x4, w, a0), fma(x5, w, a1), fma(x6, w, a2), fma(x7, w, a3)
    return a0, a1, a2, a3


@njit(inline="always")
def _four_pixels(ring, r0, r1, r2, r3, r4, taps, t, out, place, stride):
    """All 25 taps for four pixels and 16 channels, written `stride` apart."""
    a0 = splat(f32(0.0))
    a1, a2, a3 = a0, a0, a0
    a0, a1, a2, a3 = _row_of_taps(ring, r0, taps, t, a0, a1, a2, a3)
    a0, a1, a2, a3 = _row_of_taps(ring, r1, taps, t + 80, a0, a1, a2, a3)
    a0, a1, a2, a3 = _row_of_taps(ring, r2, taps, t + 160, a0, a1, a2, a3)
    a0, a1, a2, a3 = _row_of_taps(ring, r3, taps, t + 240, a0, a1, a2, a3)
    a0, a1, a2, a3 = _row_of_taps(ring, r4, taps, t + 320, a0, a1, a2, a3)
    store(out, place, a0)
    store(out, place + stride, a1)
    store(out, place + 2 * stride, a2)
    store(out, place + 3 * stride, a3)


@njit(**_OPTIONS)
def _enter(x, first, norm_weight, norm_bias, eps, normed, ring, slot, means, factors, width, padded, channels, pixel):
    """Put an image line, from element `first` on, into the ring's slot; with `normed` through the LayerNorm.

    `means` and `factors` (1 / standard deviation) get a value a pixel. `pixel` holds one pixel in float32.
    """
    whole = channels // 16 * 16
    count = f32(channels)
    for j in range(width):
        start, place = first + j * channels, slot + (j + 2) * 16
        if not normed:
            for c in range(0, whole, 16):
                store(ring, place + c * padded, load(x, start + c))
            if whole < channels:
                _last(x, start + whole, channels - whole, pixel)
                store(ring, place + whole * padded, load(pixel, 0))
            continue
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
            away = sub(load(pixel, c + 16), centre)
            squares = fma(away, away, squares)
        square = total(squares)
        for c in range(whole, channels):
            square += (pixel[c + 16] - mean) * (pixel[c + 16] - mean)
        factor = f32(1.0) / np.sqrt(square / count + eps)
        means[j], factors[j] = mean, factor
        scale = splat(factor)
        for c in range(0, channels, 16):
            away = mul(sub(load(pixel, c + 16), centre), scale)
            store(ring, place + c * padded, fma(away, load(norm_weight, c), load(norm_bias, c)))


@njit(**_OPTIONS)
def _last(x, start, count, pixel):
    """The channels that fill no vector: to pixel[:16], zeros behind them."""
    for c in range(16):
        pixel[c] = wide(x[start + c]) if c < count else f32(0.0)


@njit(**_OPTIONS)
def _line(ring, size, i, width, padded, channels, taps, out, first, spill):
    """The 5x5 sums of line i, whose five lines are in the ring, to out from element `first` on."""
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
                place = first + j * channels + c
                _four_pixels(ring, r0 + q, r1 + q, r2 + q, r3 + q, r4 + q, taps, c * 25, out, place, channels)
        for j in range(inner if full else 0, width, PIXELS):
            q = block + j * 16
            _four_pixels(ring, r0 + q, r1 + q, r2 + q, r3 + q, r4 + q, taps, c * 25, spill, 0, 16)
            for p in range(min(PIXELS, width - j)):
                place = first + (j + p) * channels + c
                for n in range(min(16, channels - c)):
                    out[place + n] = spill[p * 16 + n]


@njit(**_OPTIONS)
def forward_lines(x, norm_weight, norm_bias, eps, normed, taps, y, height, width, channels, start, stop):
    """y for the lines start .. stop of the batch's B * H."""
    padded = (width + PIXELS - 1) // PIXELS * PIXELS + 4
    size = padded * ((channels + 15) // 16 * 16)
    ring = np.zeros(5 * size, np.float32)
    means, factors = np.empty(width, np.float32), np.empty(width, np.float32)
    pixel, spill = np.zeros(channels + 32, np.float32), np.zeros(16 * PIXELS, y.dtype)
    for line in range(start, stop):
        i = line % height
        for row in range(i - 2 if line == start or i == 0 else i + 2, i + 3):
            slot = (row + 5) % 5 * size
            if row < 0 or row >= height:
                ring[slot : slot + size] = f32(0.0)
            else:
                first = (line + row - i) * width * channels
                _enter(
                    x, first, norm_weight, norm_bias, eps, normed, ring, slot, means, factors, width, padded, channels,
                    pixel,
                )  # fmt: skip
        _line(ring, size, i, width, padded, channels, taps, y, line * width * channels, spill)


@njit(**_OPTIONS)
def _leave(line, x, first, norm_weight, normed, means, factors, of_x, share, at, width, channels, pixel, spill):
    """A line of the (normalised) image's gradient, (width, whole blocks), to of_x from element `first` on.

    With `normed` through the LayerNorm of the line of x there: with h = (x - mean) factor and q = line * norm_weight it
    is factor (q - mean(q) - h mean(q h)). Shares of the gradients of norm_weight and norm_bias, sums of line * h and of
    line, are added to share[at:], one behind the other.
    """
    whole, blocks = channels // 16 * 16, (channels + 15) // 16 * 16
    count = f32(channels)
    for j in range(width):
        start, place = first + j * channels, j * blocks
        if normed:
            centre, scale = splat(means[j]), splat(factors[j])
            level = splat(f32(0.0))
            slope = level
            # Behind the last channel h is not zero, but line and norm_weight are.
            for c in range(0, blocks, 16):
                if c < whole:
                    value = load(x, start + c)
                else:
                    _last(x, start + c, channels - c, pixel)
                    value = load(pixel, 0)
                away, grad = mul(sub(value, centre), scale), load(line, place + c)
                store(pixel, c + 16, away)
                store(share, at + c, fma(grad, away, load(share, at + c)))
                store(share, at + blocks + c, add(grad, load(share, at + blocks + c)))
                q = mul(grad, load(norm_weight, c))
                store(line, place + c, q)
                level, slope = add(level, q), fma(q, away, slope)
            middle, steep = splat(total(level) / count), splat(-total(slope) / count)
            for c in range(0, blocks, 16):
                q = sub(load(line, place + c), middle)
                store(line, place + c, mul(fma(load(pixel, c + 16), steep, q), scale))
        for c in range(0, whole, 16):
            store(of_x, start + c, load(line, place + c))
        if whole < channels:
            store(spill, 0, load(line, place + whole))
            for n in range(channels - whole):
                of_x[start + whole + n] = spill[n]


@njit(**_OPTIONS)
def gradient_lines(
    x, norm_weight, norm_bias, eps, normed, turned, grad, of_x, parts, norm_parts, height, width, channels, lines,
    start, stop,
):  # fmt: skip
    """Gradients of x, the weight and the norm's two vectors for the items start .. stop, `lines` image lines each.

    Lines of x and of the result's gradient pass through a ring each. `turned`: the taps of the kernel turned by 180
    degrees. Shares of the items: `parts` (items, channels / 16, 25, 16), and `norm_parts` (items, 2, channels in whole
    blocks), not touched without a norm.
    """
    padded = (width + PIXELS - 1) // PIXELS * PIXELS + 4
    blocks = (channels + 15) // 16 * 16
    size = padded * blocks
    ring, upstream = np.zeros(5 * size, np.float32), np.zeros(5 * size, np.float32)
    means, factors = np.empty(5 * width, np.float32), np.empty(5 * width, np.float32)
    pixel, line = np.zeros(channels + 32, np.float32), np.empty(width * blocks, np.float32)
    sums_spill, spill = np.zeros(16 * PIXELS, np.float32), np.zeros(16, of_x.dtype)
    per = (height + lines - 1) // lines
    share = 25 * blocks
    for item in range(start, stop):
        image, top = item // per * height, item % per * lines
        parts[item * share : (item + 1) * share] = f32(0.0)
        if normed:
            norm_parts[item * 2 * blocks : (item + 1) * 2 * blocks] = f32(0.0)
        for i in range(top, min(top + lines, height)):
            for row in range(i - 2 if i == top else i + 2, i + 3):
                turn = (row + 5) % 5
                slot, at = turn * size, turn * width
                if row < 0 or row >= height:
                    ring[slot : slot + size] = f32(0.0)
                    upstream[slot : slot + size] = f32(0.0)
                else:
                    first = (image + row) * width * channels
                    _enter(
                        grad, first, norm_weight, norm_bias, eps, False, upstream, slot, means, factors, width, padded,
                        channels, pixel,
                    )  # fmt: skip
                    _enter(
                        x, first, norm_weight, norm_bias, eps, normed, ring, slot, means[at : at + width],
                        factors[at : at + width], width, padded, channels, pixel,
                    )  # fmt: skip
            own = i % 5
            for c in range(0, channels, 16):
                middle = own * size + c * padded + 32
                for a in range(5):
                    r0 = (i + a + 3) % 5 * size + c * padded
                    s0 = splat(f32(0.0))
                    s1, s2, s3, s4 = s0, s0, s0, s0
                    for q in range(0, width * 16, 16):
                        g, r = load(upstream, middle + q), r0 + q
                        s0, s1 = fma(load(ring, r), g, s0), fma(load(ring, r + 16), g, s1)
                        s2, s3 = fma(load(ring, r + 32), g, s2), fma(load(ring, r + 48), g, s3)
                        s4 = fma(load(ring, r + 64), g, s4)
                    t = item * share + c * 25 + a * 80
                    store(parts, t, add(load(parts, t), s0))
                    store(parts, t + 16, add(load(parts, t + 16), s1))
                    store(parts, t + 32, add(load(parts, t + 32), s2))
                    store(parts, t + 48, add(load(parts, t + 48), s3))
                    store(parts, t + 64, add(load(parts, t + 64), s4))
            # In whole blocks, so that nothing but the line's last pixels goes the slow way.
            _line(upstream, size, i, width, padded, blocks, turned, line, 0, sums_spill)
            _leave(
                line, x, (image + i) * width * channels, norm_weight, normed, means[own * width : (own + 1) * width],
                factors[own * width : (own + 1) * width], of_x, norm_parts, item * 2 * blocks, width, channels, pixel,
                spill,
            )  # fmt: skip
