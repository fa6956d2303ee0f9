"""The exact primitives' loops for CPUs, compiled by numba: single rows, LayerNorm, depth-wise, pointwise functions.

Same bits as `reference.py`. No fast-math of any kind, not even contraction: each float operation below is rounded by
itself. What may be rearranged is exact: integers, and float64 sums of integers below 2^53. Rounding half to even of
values below 2^22 is adding and subtracting 1.5 2^23, which every instruction set has. Importing this needs numba.

A loop over start..stop takes that slice first: of an index that may be negative, as numba's may, it would make gathers.
Arrays are contiguous; `bits` is the int32 view of x. No loop here depends on how many rows a call is given.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from lalic_kernels.exact import numbers as n

f32, i32, f64 = np.float32, np.int32, np.float64
OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
_TINY, _HUGE, _ZERO, _ONE = f32(n.TINY), f32(n.HUGE), f32(0.0), f32(1.0)
_HALF, _THREE_HALVES = f32(0.5), f32(1.5)
_ROUND = f32(1.5 * 2.0**23)
_LARGEST = f32(n.LARGEST)
_NORM_LARGEST = f32(2.0**n.NORM_BITS)
_EXP_RANGE, _LOG2E, _LN2_HIGH, _LN2_LOW = f32(n.EXP_RANGE), f32(n.LOG2E), f32(n.LN2_HIGH), f32(n.LN2_LOW)
_P0, _P1, _P2, _P3, _P4, _P5 = (f32(c) for c in n.EXP_POLYNOMIAL)
_MAGNITUDE = i32(0x7FFFFFFF)
_MOST, _LEAST, _NORM_LEAST = i32(n.EXPONENT), i32(-n.EXPONENT), i32(n.NORM_LEAST_EXPONENT)


@njit(inline="always")
def settle(x):
    """`quantise.settle` of one value."""
    y = x if abs(x) >= _TINY else _ZERO
    y = y if y < _HUGE else _HUGE
    return y if y > -_HUGE else -_HUGE


@njit(inline="always")
def exponent_of(bits, least):
    """`quantise.leading_exponent` of one magnitude's bits."""
    return min(max((bits >> i32(23)) - i32(127), least), _MOST)


@njit(inline="always")
def power(exponent):
    """2^exponent."""
    return i32((exponent + i32(127)) << i32(23)).view(np.float32)


@njit(inline="always")
def exp(x):
    """`reference.exp` of one value."""
    x = x if x < _EXP_RANGE else _EXP_RANGE
    x = x if x > -_EXP_RANGE else -_EXP_RANGE
    turns = (x * _LOG2E + _ROUND) - _ROUND
    r = x - turns * _LN2_HIGH
    r = r - turns * _LN2_LOW
    p = _P0 * r + _P1
    p = p * r + _P2
    p = p * r + _P3
    p = p * r + _P4
    p = p * r + _P5
    y = p * (r * r) + r + _ONE
    return y * power(i32(turns))


@njit(inline="always")
def reciprocal_root(x):
    """`reference._reciprocal_root` of one value."""
    y = i32(i32(n.ROOT_GUESS) - (f32(x).view(np.int32) >> i32(1))).view(np.float32)
    half = _HALF * x
    y = y * (_THREE_HALVES - (half * y) * y)
    y = y * (_THREE_HALVES - (half * y) * y)
    return y * (_THREE_HALVES - (half * y) * y)


@njit(inline="always")
def sigmoid(x):
    """`reference.sigmoid` of one value."""
    z = exp(-abs(x))
    return (_ONE if x >= _ZERO else z) / (_ONE + z)


@njit(**OPTIONS)
def largest_of_rows(bits, start, stop, found):
    """found[r] = magnitude bits of row r of (R, K)."""
    for r in range(start, stop):
        row = bits[r]
        m = i32(0)
        for c in range(row.shape[0]):
            m = max(m, row[c] & _MAGNITUDE)
        found[r] = m


@njit(**OPTIONS)
def largest_of_channels(bits, rows, start, stop, found):
    """found[i] (C,) = magnitude bits of each channel over rows i * rows .. of (R, C)."""
    for i in range(start, stop):
        m = found[i]
        m[:] = i32(0)
        for r in range(i * rows, min((i + 1) * rows, bits.shape[0])):
            row = bits[r]
            for c in range(row.shape[0]):
                m[c] = max(m[c], row[c] & _MAGNITUDE)


@njit(**OPTIONS)
def bits_of(row):
    """Magnitude bits of one row (K,)."""
    raw, m = row.view(np.int32), i32(0)
    for c in range(raw.shape[0]):
        m = max(m, raw[c] & _MAGNITUDE)
    return m


@njit(**OPTIONS)
def quantise_row(row, bits, q):
    """One row (K,) as integers in q (K' >= K) int16 by magnitude bits; the rest of q is left."""
    scale, out = power(i32(12) - exponent_of(bits, _LEAST)), q[: row.shape[0]]
    for c in range(row.shape[0]):
        y = row[c] * scale
        y = y if y < _LARGEST else _LARGEST
        y = y if y > -_LARGEST else -_LARGEST
        out[c] = np.int16(i32((y + _ROUND) - _ROUND))


@njit(**OPTIONS)
def finish_row(row, bits, scales, bias):
    """In place: sums (O,) of integers that had these magnitude bits become floats; scales 2^(exponent - 12)."""
    scale = power(exponent_of(bits, _LEAST) - i32(12))
    for c in range(row.shape[0]):
        row[c] = settle(row[c] * scale * scales[c] + bias[c])


@njit(**OPTIONS)
def square_row(row):
    """In place: squared ReLU."""
    for c in range(row.shape[0]):
        v = row[c] if row[c] > _ZERO else _ZERO
        row[c] = settle(v * v)


@njit(**OPTIONS)
def gate_row(r, row):
    """In place: sigmoid(r) row."""
    for c in range(row.shape[0]):
        row[c] = settle(sigmoid(r[c]) * row[c])


@njit(**OPTIONS)
def add_row(row, change, gamma, out):
    """out = row + gamma change; gamma (C,) settled, or (0,) for 1."""
    if gamma.shape[0] == 0:
        for c in range(row.shape[0]):
            out[c] = settle(row[c] + change[c])
    else:
        for c in range(row.shape[0]):
            out[c] = settle(row[c] + settle(gamma[c] * change[c]))


@njit(**OPTIONS)
def squared_relu_of(x, start, stop, y):
    """Elements start..stop."""
    a, out = x[start:stop], y[start:stop]
    for i in range(out.shape[0]):
        v = a[i] if a[i] > _ZERO else _ZERO
        out[i] = settle(v * v)


@njit(**OPTIONS)
def integers_of_image(x, magnitudes, height, width, edge, start, stop, q):
    """Lines start..stop of x (B H, W, C), flat, as int32 in q (B H, W + 2 edge, C), flat, zeros at both ends of a line.

    magnitudes (B, C): one of each channel of each image.
    """
    channels = magnitudes.shape[1]
    scales = np.empty(channels, np.float32)
    for line in range(start, stop):
        m = magnitudes[line // height]
        for c in range(channels):
            scales[c] = power(i32(12) - exponent_of(m[c], _LEAST))
        first = line * (width + 2 * edge) * channels
        q[first : first + edge * channels] = i32(0)
        first += edge * channels
        q[first + width * channels : first + (width + edge) * channels] = i32(0)
        for j in range(width):
            row = x[(line * width + j) * channels : (line * width + j + 1) * channels]
            out = q[first + j * channels : first + (j + 1) * channels]
            for c in range(channels):
                y = row[c] * scales[c]
                y = y if y < _LARGEST else _LARGEST
                y = y if y > -_LARGEST else -_LARGEST
                out[c] = i32((y + _ROUND) - _ROUND)


@njit(**OPTIONS)
def _five_taps(q, taps, n, sums):
    """sums (n,) += the products of five neighbouring pixels of n channels with five taps, both flat."""
    for c in range(n):
        sums[c] += (
            q[c] * taps[c]
            + q[c + n] * taps[c + n]
            + q[c + 2 * n] * taps[c + 2 * n]
            + q[c + 3 * n] * taps[c + 3 * n]
            + q[c + 4 * n] * taps[c + 4 * n]
        )


@njit(**OPTIONS)
def _one_tap(q, taps, n, sums):
    """The same of one pixel and tap."""
    for c in range(n):
        sums[c] += q[c] * taps[c]


@njit(**OPTIONS)
def depthwise_lines(q, taps, size, magnitudes, scales, height, width, start, stop, y):
    """Lines start..stop of all images: y (B H, W, C), flat, from q as `integers_of_image` makes it, edge size // 2.

    taps: (size, size, C) int32, flat.
    """
    channels, edge = magnitudes.shape[1], size // 2
    own, sums = np.empty(channels, np.float32), np.empty(channels, np.int32)
    for line in range(start, stop):
        image, i = line // height, line % height
        for c in range(channels):
            own[c] = power(exponent_of(magnitudes[image, c], _LEAST) - i32(12))
        for j in range(width):
            sums[:] = i32(0)
            for ky in range(size):
                a = i + ky - edge
                if 0 <= a < height:
                    pixels = q[((image * height + a) * (width + 2 * edge) + j) * channels :]
                    row = taps[ky * size * channels :]
                    if size == 5:
                        _five_taps(pixels, row, channels, sums)
                    else:
                        for kx in range(size):
                            _one_tap(pixels[kx * channels :], row[kx * channels :], channels, sums)
            out = y[(line * width + j) * channels : (line * width + j + 1) * channels]
            for c in range(channels):
                out[c] = settle(f32(sums[c]) * own[c] * scales[c])


@njit(**OPTIONS)
def normalise_row(row, weight, bias, offset, q, out):
    """`reference.layer_norm` of one row (C,) to out, which may be the row; its magnitude bits.

    offset = float32(eps) float32(C^2); q (C,) int32 is room to work in.
    """
    channels, m = i32(row.shape[0]), bits_of(row)
    scale = power(i32(16) - exponent_of(m, _NORM_LEAST))
    total, squares = i32(0), np.int64(0)
    for c in range(channels):
        v = row[c] * scale
        v = v if v < _NORM_LARGEST else _NORM_LARGEST
        v = v if v > -_NORM_LARGEST else -_NORM_LARGEST
        q[c] = i32((v + _ROUND) - _ROUND)
    for c in range(channels):
        total = i32(total + q[c])
        squares += np.int64(q[c]) * np.int64(q[c])
    spread = np.int64(channels) * squares - np.int64(total) * np.int64(total)
    rate = reciprocal_root(f32(spread) + (offset * scale) * scale)
    for c in range(channels):
        d = i32(i32(channels * q[c]) - total)
        out[c] = settle(f32(d) * rate * weight[c] + bias[c])
    return m


@njit(**OPTIONS)
def layer_norm_rows(x, weight, bias, offset, start, stop, found, y):
    """`reference.layer_norm` of rows start..stop of (R, C); found (R,) magnitude bits."""
    q = np.empty(x.shape[1], np.int32)
    for r in range(start, stop):
        found[r] = normalise_row(x[r], weight, bias, offset, q, y[r])


@njit(**OPTIONS)
def exp_of(x, start, stop, y):
    """Elements start..stop."""
    a, out = x[start:stop], y[start:stop]
    for i in range(out.shape[0]):
        out[i] = exp(a[i])


@njit(**OPTIONS)
def sigmoid_of(x, start, stop, y):
    """Elements start..stop."""
    a, out = x[start:stop], y[start:stop]
    for i in range(out.shape[0]):
        out[i] = sigmoid(a[i])


@njit(**OPTIONS)
def gate_of(r, x, start, stop, y):
    """Elements start..stop."""
    b, a, out = r[start:stop], x[start:stop], y[start:stop]
    for i in range(out.shape[0]):
        out[i] = settle(sigmoid(b[i]) * a[i])


@njit(**OPTIONS)
def residual_of(x, change, gamma, start, stop, y):
    """Rows start..stop of (R, C); gamma (C,) settled, or (0,) for none."""
    for r in range(start, stop):
        add_row(x[r], change[r], gamma, y[r])


@njit(**OPTIONS)
def scale_index_of(x, thresholds, start, stop, y):
    """Elements start..stop: how many of the 63 thresholds are less, by halving."""
    a, out = x[start:stop], y[start:stop]
    for i in range(out.shape[0]):
        value, found = a[i], np.uint32(0)
        for power_of_half in range(6):
            step = np.uint32(32 >> power_of_half)
            found += step if thresholds[found + step - np.uint32(1)] < value else np.uint32(0)
        out[i] = found


@njit(**OPTIONS)
def head_rows(x, thresholds, start, stop, found, index, mean):
    """Rows start..stop of x (R, 2 C): indexes of the scales, its first half, and the means, each (R, C)."""
    width = index.shape[1]
    for r in range(start, stop):
        found[r] = bits_of(x[r])
        scale_index_of(x[r], thresholds, 0, width, index[r])
        mean[r, :] = x[r, width:]
