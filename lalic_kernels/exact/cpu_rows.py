"""What is computed row by row on CPUs, while the rows are in the cache: products with all that surrounds them.

Rows go in strips: quantised, multiplied (`cpu_product`), and what follows a product done on its sums. A factor is
(packed weight, scales 2^(exponent - 12), bias, terms of an int32), as `cpu.factor_of` makes it. `bits` and `found` are
magnitude bits of rows, for the caller, who looks whether all were finite; what follows is finite by definition. Same
bits as `reference.py`. Importing this needs numba.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from lalic_kernels.exact.cpu_loops import (
    OPTIONS,
    add_row,
    bits_of,
    finish_row,
    gate_row,
    normalise_row,
    quantise_row,
    square_row,
)
from lalic_kernels.exact.cpu_product import LANES, multiply

STRIP = 64  # rows at a time, a multiple of cpu_product.ROWS


@njit(**OPTIONS)
def _integers(factor):
    """Room for a strip's integers, and for its sums."""
    w = factor[0]
    return np.empty((STRIP, 2 * w.shape[1]), np.int16), np.empty((STRIP, LANES * w.shape[0]), np.float32)


@njit(**OPTIONS)
def linear_rows(x, factor, squared, start, stop, bits, y):
    """Rows start..stop: y (R, O) = x (R, K) W^T + bias, and squared ReLU of it where asked for."""
    w, scales, bias, chunk = factor
    q, sums = _integers(factor)
    outputs = y.shape[1]
    for first in range(start, stop, STRIP):
        count = min(STRIP, stop - first)
        for i in range(count):
            bits[first + i] = bits_of(x[first + i])
            quantise_row(x[first + i], bits[first + i], q[i])
        multiply(q, w, chunk, count, sums)
        for i in range(count):
            row = sums[i, :outputs]
            finish_row(row, bits[first + i], scales, bias)
            if squared:
                square_row(row)
            y[first + i, :] = row


@njit(**OPTIONS)
def residual_norm_rows(x, change, factor, gamma, weight, norm_bias, offset, start, stop, y, normal):
    """y (R, C) = x + gamma (change W^T + bias), and the LayerNorm of that; all (R, C), x and change finite."""
    w, scales, bias, chunk = factor
    q, sums = _integers(factor)
    bits, room = np.empty(STRIP, np.int32), np.empty(x.shape[1], np.int32)
    for first in range(start, stop, STRIP):
        count = min(STRIP, stop - first)
        for i in range(count):
            bits[i] = bits_of(change[first + i])
            quantise_row(change[first + i], bits[i], q[i])
        multiply(q, w, chunk, count, sums)
        for i in range(count):
            row, out = sums[i, : x.shape[1]], y[first + i]
            finish_row(row, bits[i], scales, bias)
            add_row(x[first + i], row, gamma, out)
            normalise_row(out, weight, norm_bias, offset, room, normal[first + i])


@njit(**OPTIONS)
def _gated(q, bits, count, hidden, value, gamma, first, inner_q, inner, outer, y):
    """y[first..] += gamma sigmoid(R x) V relu(K x)^2 for the strip x in q and bits; hidden is K and R together."""
    w, scales, bias, chunk = hidden
    value_w, value_scales, value_bias, value_chunk = value
    channels = y.shape[1]
    terms = scales.shape[0] - channels
    multiply(q, w, chunk, count, inner)
    for i in range(count):
        finish_row(inner[i, : scales.shape[0]], bits[i], scales, bias)
        row = inner[i, :terms]
        square_row(row)
        bits[i] = bits_of(row)
        quantise_row(row, bits[i], inner_q[i])
    multiply(inner_q, value_w, value_chunk, count, outer)
    for i in range(count):
        row = outer[i, :channels]
        finish_row(row, bits[i], value_scales, value_bias)
        gate_row(inner[i, terms : terms + channels], row)
        add_row(y[first + i], row, gamma, y[first + i])


@njit(**OPTIONS)
def channel_mix_rows(x, hidden, value, gamma, start, stop, y):
    """In place: y (R, C) += gamma sigmoid(R x) V relu(K x)^2; x (R, C) finite."""
    q, inner = _integers(hidden)
    inner_q, outer = _integers(value)
    bits = np.empty(STRIP, np.int32)
    for first in range(start, stop, STRIP):
        count = min(STRIP, stop - first)
        for i in range(count):
            bits[i] = bits_of(x[first + i])
            quantise_row(x[first + i], bits[i], q[i])
        _gated(q, bits, count, hidden, value, gamma, first, inner_q, inner, outer, y)


@njit(**OPTIONS)
def entropy_rows(x, partial, mix, weight, norm_bias, offset, hidden, value, gamma, start, stop, found, y):
    """An entropy-parameter block: y (R, C) of x (R, K) and the part of m that is known, partial (R, C) or (0, C).

    K may be 0. found (R,): magnitude bits of what was given; y is then m, and takes the rest in place. `gamma` is (0,).
    """
    w, scales, bias, chunk = mix
    mix_q, sums = _integers(mix)
    q, inner = _integers(hidden)
    inner_q, outer = _integers(value)
    channels, known = y.shape[1], partial.shape[0] > 0
    bits, room, normal = np.empty(STRIP, np.int32), np.empty(channels, np.int32), np.empty(channels, np.float32)
    for first in range(start, stop, STRIP):
        count = min(STRIP, stop - first)
        if x.shape[1]:
            for i in range(count):
                found[first + i] = bits_of(x[first + i])
                quantise_row(x[first + i], found[first + i], mix_q[i])
            multiply(mix_q, w, chunk, count, sums)
        for i in range(count):
            m, row = y[first + i], sums[i, :channels]
            if x.shape[1]:
                finish_row(row, found[first + i], scales, bias)
            else:
                row[:] = bias
                found[first + i] = 0
            if known:
                part = partial[first + i]
                found[first + i] = max(found[first + i], bits_of(part))
                for c in range(channels):
                    m[c] = row[c] + part[c]
            else:
                m[:] = row
            normalise_row(m, weight, norm_bias, offset, room, normal)
            bits[i] = bits_of(normal)
            quantise_row(normal, bits[i], q[i])
        _gated(q, bits, count, hidden, value, gamma, first, inner_q, inner, outer, y)


@njit(**OPTIONS)
def quantise_image(x, magnitudes, size, start, stop, q):
    """Pixels start..stop of x (B P, C) as integers in q (B P, C) int16, by magnitude bits (B,); P is `size`."""
    for r in range(start, stop):
        quantise_row(x[r], magnitudes[r // size], q[r])


@njit(**OPTIONS)
def _gather(x, taps, height, width, image, i, j, out):
    """out[t C:] = pixel (i, j) + tap t of x (B H W, C), zeros outside the image."""
    channels = x.shape[1]
    for t in range(taps.shape[0]):
        a, b = i + taps[t, 0], j + taps[t, 1]
        part = out[t * channels : (t + 1) * channels]
        if 0 <= a < height and 0 <= b < width:
            part[:] = x[(image * height + a) * width + b]
        else:
            part[:] = np.int16(0)


@njit(**OPTIONS)
def conv_rows(x, magnitudes, taps, size, shape, in_step, out_step, corner, parity, factor, start, stop, y):
    """Outputs start..stop of one phase of a convolution, counted over images, rows and columns.

    x (B H W, C) int16; taps (T, 2) offsets; size: H, W; shape: the phase's rows and columns of an image. With parity 0
    or 1 an output row has the columns of one colour of the checkerboard, else -1. y (B, H', W', O) takes output (i, j)
    at row corner[0] + i out_step, column corner[1] + j out_step.
    """
    w, scales, bias, chunk = factor
    q, sums = _integers(factor)
    down, across = shape
    for first in range(start, stop, STRIP):
        count = min(STRIP, stop - first)
        for r in range(count):
            image, rest = (first + r) // (down * across), (first + r) % (down * across)
            i, j = rest // across, rest % across
            if parity >= 0:
                j = 2 * j + (i + parity) % 2
            _gather(x, taps, size[0], size[1], image, i * in_step, j * in_step, q[r])
        multiply(q, w, chunk, count, sums)
        for r in range(count):
            image, rest = (first + r) // (down * across), (first + r) % (down * across)
            out = y[image, corner[0] + rest // across * out_step, corner[1] + rest % across * out_step]
            row = sums[r, : y.shape[3]]
            finish_row(row, magnitudes[image], scales, bias)
            out[:] = row
