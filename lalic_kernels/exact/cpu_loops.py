"""Exact arithmetic's loops for CPUs, compiled by numba: the functions of `reference.py`, bit for bit.

No fast-math, not even contraction: each float operation is rounded separately. Only exact operations may be reordered:
integers, and float64 sums of integers below 2^53. Values below 2^22 are rounded half to even by adding and subtracting
1.5 2^23, which works on every instruction set.

Arrays are contiguous, and results do not depend on the number of rows of a call. A *factor*, from `cpu.factor_of`, is
(packed weight, scales 2^(exponent - 12), bias, pairs that fit an int32). *Magnitude bits* are the bits of |x|. Loops
with inputs of the user write the rows' magnitude bits, so that the caller can check that all are finite; results of
finite numbers are finite by definition. Importing this file needs numba.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lalic_kernels.exact import numbers as n
from lalic_kernels.exact.cpu_product import LANES, multiply
from lalic_kernels.numba_math import EXACT, EXACT_CALLEE, njit, view

f32, i32, f64 = np.float32, np.int32, np.float64
STRIP = 64  # rows at a time, a multiple of cpu_product.ROWS
CHUNK = n.CHUNK
_TINY, _HUGE, _ZERO, _ONE = f32(n.TINY), f32(n.HUGE), f32(0.0), f32(1.0)
_HALF, _THREE_HALVES = f32(0.5), f32(1.5)
_ROUND, _ROUND_64 = f32(1.5 * 2.0**23), 1.5 * 2.0**52
_LARGEST = f32(n.LARGEST)
_NORM_LARGEST = f32(2.0**n.NORM_BITS)
_EXP_RANGE, _LOG2E, _LN2_HIGH, _LN2_LOW = f32(n.EXP_RANGE), f32(n.LOG2E), f32(n.LN2_HIGH), f32(n.LN2_LOW)
_P0, _P1, _P2, _P3, _P4, _P5 = (f32(c) for c in n.EXP_POLYNOMIAL)
_FLOOR = n.EXP64_FLOOR
_LOG2E_64, _LN2_HIGH_64, _LN2_LOW_64 = n.LOG2E_64, n.LN2_HIGH_64, n.LN2_LOW_64
_Q0, _Q1, _Q2, _Q3, _Q4, _Q5, _Q6, _Q7, _Q8, _Q9 = n.EXP64_POLYNOMIAL
_MAGNITUDE = i32(0x7FFFFFFF)
_MAX_EXPONENT, _MIN_EXPONENT, _NORM_MIN = i32(n.EXPONENT), i32(-n.EXPONENT), i32(n.NORM_MIN_EXPONENT)


# Single values


@njit(inline="always")
def settle(x):
    """`quantise.settle` of one value."""
    y = x if abs(x) >= _TINY else _ZERO
    y = y if y < _HUGE else _HUGE
    return y if y > -_HUGE else -_HUGE


@njit(inline="always")
def exponent_of(bits, minimum):
    """`quantise.leading_exponent` of one magnitude's bits."""
    exponent = i32((bits >> i32(23)) - i32(127))
    exponent = exponent if exponent > minimum else minimum
    return exponent if exponent < _MAX_EXPONENT else _MAX_EXPONENT


@njit(inline="always")
def power(exponent):
    """2^exponent."""
    return view(i32((exponent + i32(127)) << i32(23)), f32)


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
    y = view(i32(i32(n.ROOT_GUESS) - (view(f32(x), i32) >> i32(1))), f32)
    half = _HALF * x
    y = y * (_THREE_HALVES - (half * y) * y)
    y = y * (_THREE_HALVES - (half * y) * y)
    return y * (_THREE_HALVES - (half * y) * y)


@njit(inline="always")
def sigmoid(x):
    """`reference.sigmoid` of one value."""
    z = exp(-abs(x))
    return (_ONE if x >= _ZERO else z) / (_ONE + z)


@njit(inline="always")
def exp64(x):
    """`reference.exp64` of one value."""
    shifted = x * _LOG2E_64 + _ROUND_64
    turns = shifted - _ROUND_64
    r = x - turns * _LN2_HIGH_64
    r = r - turns * _LN2_LOW_64
    p = _Q0 * r + _Q1
    p = p * r + _Q2
    p = p * r + _Q3
    p = p * r + _Q4
    p = p * r + _Q5
    p = p * r + _Q6
    p = p * r + _Q7
    p = p * r + _Q8
    p = p * r + _Q9
    y = p * (r * r) + r + 1.0
    # The low bits of `shifted` are the integer; a shift moves them into the exponent field.
    return y * view(np.int64((view(f64(shifted), np.int64) + np.int64(1023)) << np.int64(52)), f64)


# Single rows


@intrinsic
def copy(typing, row, out):  # type: ignore[no-untyped-def]
    """out = row, contiguous, of one dtype and length. For `out[:] = row` numba compiles its errors too, for 2 s."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        source, target = (
            context.make_array(kind)(context, builder, x) for kind, x in zip(signature.args, args, strict=True)
        )
        cgutils.raw_memcpy(builder, target.data, source.data, source.nitems, source.itemsize)
        return context.get_dummy_value()

    return types.none(row, out), codegen


@njit(**EXACT_CALLEE)
def bits_of(row):
    """Magnitude bits of one row (K,)."""
    m = i32(0)
    for c in range(row.shape[0]):
        bits = i32(view(row[c], i32) & _MAGNITUDE)
        m = bits if bits > m else m
    return m


@njit(**EXACT_CALLEE)
def quantise_row(row, bits, q):
    """Write the integers of one row (K,) with these magnitude bits to q[:K] int16."""
    scale, out = power(i32(12) - exponent_of(bits, _MIN_EXPONENT)), q[: row.shape[0]]
    for c in range(row.shape[0]):
        y = row[c] * scale
        y = y if y < _LARGEST else _LARGEST
        y = y if y > -_LARGEST else -_LARGEST
        out[c] = np.int16(i32((y + _ROUND) - _ROUND))


@njit(**EXACT_CALLEE)
def finish_row(row, bits, scales, bias):
    """In place: turn sums (O,) into floats. bits: magnitude bits of the input row; scales 2^(exponent - 12)."""
    scale = power(exponent_of(bits, _MIN_EXPONENT) - i32(12))
    for c in range(row.shape[0]):
        row[c] = settle(row[c] * scale * scales[c] + bias[c])


@njit(inline="always")
def square_row(row):
    """In place: squared ReLU."""
    for c in range(row.shape[0]):
        v = row[c] if row[c] > _ZERO else _ZERO
        row[c] = settle(v * v)


@njit(**EXACT_CALLEE)
def gate_row(r, row):
    """In place: sigmoid(r) row."""
    for c in range(row.shape[0]):
        row[c] = settle(sigmoid(r[c]) * row[c])


@njit(**EXACT_CALLEE)
def add_row(row, change, gamma, out):
    """out = row + gamma change; gamma (C,) settled, or (0,) for 1."""
    if gamma.shape[0] == 0:
        for c in range(row.shape[0]):
            out[c] = settle(row[c] + change[c])
    else:
        for c in range(row.shape[0]):
            out[c] = settle(row[c] + settle(gamma[c] * change[c]))


@njit(**EXACT_CALLEE)
def normalise_row(row, weight, bias, offset, q, out):
    """Write `reference.layer_norm` of one row (C,) to out, which may be the row. Returns the row's magnitude bits.

    offset = float32(eps) float32(C^2); q (C,) int32 is work space.
    """
    channels, m = i32(row.shape[0]), bits_of(row)
    scale = power(i32(16) - exponent_of(m, _NORM_MIN))
    total, squares = i32(0), np.int64(0)
    for c in range(channels):
        v = row[c] * scale
        v = v if v < _NORM_LARGEST else _NORM_LARGEST
        v = v if v > -_NORM_LARGEST else -_NORM_LARGEST
        q[c] = i32((v + _ROUND) - _ROUND)
    for c in range(channels):
        total = i32(total + q[c])
        squares += np.int64(q[c]) * np.int64(q[c])
    variance = np.int64(channels) * squares - np.int64(total) * np.int64(total)  # times C^2
    rstd = reciprocal_root(f32(variance) + (offset * scale) * scale)
    for c in range(channels):
        d = i32(i32(channels * q[c]) - total)
        out[c] = settle(f32(d) * rstd * weight[c] + bias[c])
    return m


# Many rows: maxima, LayerNorm, scales and means


@njit(**EXACT)
def absmax_of_channels(bits, rows, start, stop, absmax_bits):
    """absmax_bits[i] (C,) = each channel's magnitude bits over the i-th `rows` rows; bits (R, C): x as int32."""
    for i in range(start, stop):
        m = absmax_bits[i]
        m[:] = i32(0)
        for r in range(i * rows, min((i + 1) * rows, bits.shape[0])):
            row = bits[r]
            for c in range(row.shape[0]):
                magnitude = i32(row[c] & _MAGNITUDE)
                m[c] = magnitude if magnitude > m[c] else m[c]


@njit(**EXACT)
def layer_norm_rows(x, weight, bias, offset, start, stop, bits, y):
    """`reference.layer_norm` of rows start..stop of x (R, C) to y; bits (R,) get x's magnitude bits."""
    q = np.empty(x.shape[1], np.int32)
    for r in range(start, stop):
        bits[r] = normalise_row(x[r], weight, bias, offset, q, y[r])


@njit(inline="always")
def scale_index(scales, thresholds, index):
    """The number of the 63 thresholds that are below each scale, by bisection."""
    for i in range(index.shape[0]):
        value, below = scales[i], np.uint32(0)
        for power_of_half in range(6):
            step = np.uint32(32 >> power_of_half)
            below += step if thresholds[below + step - np.uint32(1)] < value else np.uint32(0)
        index[i] = below


@njit(**EXACT)
def head_rows(x, thresholds, start, stop, bits, index, mean):
    """Rows start..stop of x (R, 2 C), scales, then means: write scale indexes and means, each (R, C)."""
    width = index.shape[1]
    for r in range(start, stop):
        bits[r] = bits_of(x[r])
        scale_index(x[r, :width], thresholds, index[r])
        copy(x[r, width:], mean[r])


# Products with quantisation and epilogues, in strips of rows that stay in the cache


@njit(inline="always")
def _work_space(factor):
    """Work space for a strip's integers (STRIP, K), and for its sums (STRIP, O)."""
    w = factor[0]
    return np.empty((STRIP, 2 * w.shape[1]), np.int16), np.empty((STRIP, LANES * w.shape[0]), np.float32)


@njit(**EXACT)
def linear_rows(x, factor, start, stop, bits, y):
    """Rows start..stop of y (R, O) = x (R, K) W^T + bias; bits (R,) get x's magnitude bits."""
    w, scales, bias, chunk = factor
    q, sums = _work_space(factor)
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
            copy(row, y[first + i])


@njit(**EXACT)
def channel_mix_rows(x, hidden, value, gamma, start, stop, y):
    """In place: y (R, C) += gamma sigmoid(R x) V relu(K x)^2; x (R, C) finite. hidden is K and R together."""
    w, scales, bias, chunk = hidden
    value_w, value_scales, value_bias, value_chunk = value
    q, inner = _work_space(hidden)
    inner_q, outer = _work_space(value)
    channels = y.shape[1]
    terms = scales.shape[0] - channels
    bits = np.empty(STRIP, np.int32)
    for first in range(start, stop, STRIP):
        count = min(STRIP, stop - first)
        for i in range(count):
            bits[i] = bits_of(x[first + i])
            quantise_row(x[first + i], bits[i], q[i])
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


@njit(**EXACT)
def sum_norm_rows(x, factor, residual, gamma, weight, norm_bias, offset, start, stop, bits, y, normal):
    """y (R, C) = residual + gamma (x W^T + bias), and y's LayerNorm to `normal`; x (R, K), K may be 0.

    residual (R, C), or (0, C) for none. gamma (C,), or (0,) for 1: then y is not settled, as in entropy parameters.
    bits (R,) get the magnitude bits of x's rows, and without gamma those of the residual too.
    """
    w, scales, bias, chunk = factor
    q, sums = _work_space(factor)
    channels, has_residual, q_norm = y.shape[1], residual.shape[0] > 0, np.empty(y.shape[1], np.int32)
    for first in range(start, stop, STRIP):
        count = min(STRIP, stop - first)
        # the product
        if x.shape[1]:
            for i in range(count):
                bits[first + i] = bits_of(x[first + i])
                quantise_row(x[first + i], bits[first + i], q[i])
            multiply(q, w, chunk, count, sums)
        # the sum and its LayerNorm
        for i in range(count):
            out, row = y[first + i], sums[i, :channels]
            if x.shape[1]:
                finish_row(row, bits[first + i], scales, bias)
            else:
                copy(bias, row)
                bits[first + i] = 0
            if gamma.shape[0]:
                add_row(residual[first + i], row, gamma, out)
            elif has_residual:
                part = residual[first + i]
                bits[first + i] = max(bits[first + i], bits_of(part))
                for c in range(channels):
                    out[c] = row[c] + part[c]
            else:
                copy(row, out)
            normalise_row(out, weight, norm_bias, offset, q_norm, normal[first + i])


# Convolution and depth-wise shift


@njit(**EXACT)
def quantise_image(x, absmax_bits, size, start, stop, q):
    """Write the integers of pixels start..stop of x (B P, C) to q (B P, C) int16; absmax_bits (B,); P is `size`."""
    for r in range(start, stop):
        quantise_row(x[r], absmax_bits[r // size], q[r])


@njit(inline="always")
def _gather(x, taps, height, width, image, i, j, out):
    """out[t C:] = pixel (i, j) + tap t of x (B H W, C), zeros outside the image."""
    channels = x.shape[1]
    for t in range(taps.shape[0]):
        a, b = i + taps[t, 0], j + taps[t, 1]
        part = out[t * channels : (t + 1) * channels]
        if 0 <= a < height and 0 <= b < width:
            copy(x[(image * height + a) * width + b], part)
        else:
            part[:] = np.int16(0)


@njit(**EXACT)
def conv_rows(x, absmax_bits, taps, size, shape, in_step, out_step, corner, factor, start, stop, y):
    """Outputs start..stop of one phase of a convolution, counted over images, rows and columns.

    x (B H W, C) int16; taps (T, 2) offsets; size: (H, W); shape: the phase's rows and columns per image. Output (i, j)
    goes to y (B, H', W', O) at row corner[0] + i out_step, column corner[1] + j out_step.
    """
    w, scales, bias, chunk = factor
    q, sums = _work_space(factor)
    rows, columns = shape
    for first in range(start, stop, STRIP):
        count = min(STRIP, stop - first)
        for r in range(count):
            image, pixel = (first + r) // (rows * columns), (first + r) % (rows * columns)
            _gather(x, taps, size[0], size[1], image, pixel // columns * in_step, pixel % columns * in_step, q[r])
        multiply(q, w, chunk, count, sums)
        for r in range(count):
            image, pixel = (first + r) // (rows * columns), (first + r) % (rows * columns)
            out = y[image, corner[0] + pixel // columns * out_step, corner[1] + pixel % columns * out_step]
            row = sums[r, : y.shape[3]]
            finish_row(row, absmax_bits[image], scales, bias)
            copy(row, out)


@njit(**EXACT)
def integers_of_image(x, absmax_bits, height, width, edge, start, stop, q):
    """Write the integers of lines start..stop of x (B H, W, C), flat, to q (B H, W + 2 edge, C) int32, flat.

    absmax_bits (B, C). Each line of q has `edge` zeros at both ends.
    """
    channels = absmax_bits.shape[1]
    scales = np.empty(channels, np.float32)
    for line in range(start, stop):
        m = absmax_bits[line // height]
        for c in range(channels):
            scales[c] = power(i32(12) - exponent_of(m[c], _MIN_EXPONENT))
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


@njit(**EXACT_CALLEE)
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


@njit(**EXACT_CALLEE)
def _one_tap(q, taps, n, sums):
    """sums (n,) += the products of one pixel of n channels with one tap."""
    for c in range(n):
        sums[c] += q[c] * taps[c]


@njit(**EXACT)
def depthwise_lines(q, taps, size, absmax_bits, scales, height, width, start, stop, y):
    """Write lines start..stop of y (B H, W, C), flat, from the q of `integers_of_image` with edge size // 2.

    taps: (size, size, C) int32, flat.
    """
    channels, edge = absmax_bits.shape[1], size // 2
    x_scales, sums = np.empty(channels, np.float32), np.empty(channels, np.int32)
    for line in range(start, stop):
        image, i = line // height, line % height
        for c in range(channels):
            x_scales[c] = power(exponent_of(absmax_bits[image, c], _MIN_EXPONENT) - i32(12))
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
                out[c] = settle(f32(sums[c]) * x_scales[c] * scales[c])


# Bidirectional WKV: float64, in the definition's order. Three passes: weights and each chunk's sums; the sums that
# enter a chunk from both sides; the values. Inner loops run over channels and use few arrays each: with many arrays
# the compiler cannot prove that they do not overlap, and does not vectorise.


@njit(**EXACT_CALLEE)
def _add(total, decay, x):
    """total = total decay + x, for every channel."""
    for c in range(total.shape[0]):
        total[c] = total[c] * decay[c] + x[c]


@njit(**EXACT_CALLEE)
def _put(total, decay, x, before):
    """Copy `total` to `before`, then `_add`."""
    for c in range(total.shape[0]):
        before[c] = total[c]
        total[c] = total[c] * decay[c] + x[c]


@njit(**EXACT_CALLEE)
def _join(total, decay, x, before):
    """Add `total` to `before`, then `_add`."""
    for c in range(total.shape[0]):
        before[c] = before[c] + total[c]
        total[c] = total[c] * decay[c] + x[c]


@njit(**EXACT)
def summaries(kvr, max_key, decay, start, stop, weights, sums):
    """Items (image, chunk) start..stop: write weights (B, T, 2, C), p v and p, and their sums (items, 4, C).

    The sums of both are decayed to the chunk's end, then to its beginning. kvr (B T, 3 C): keys, values, gates.
    max_key (B, C): from `max_keys`.
    """
    tokens, channels = weights.shape[1], weights.shape[3]
    chunks = (tokens + CHUNK - 1) // CHUNK
    for item in range(start, stop):
        b, first = item // chunks, (item % chunks) * CHUNK
        last = min(first + CHUNK, tokens)
        out = sums[item]
        out[:] = 0.0
        a1, a2, z1, z2 = out[0], out[1], out[2], out[3]
        m = max_key[b]
        for t in range(first, last):
            key = kvr[b * tokens + t, :channels]
            value = kvr[b * tokens + t, channels : 2 * channels]
            pv, p = weights[b, t, 0], weights[b, t, 1]
            for c in range(channels):
                d = f64(key[c]) - f64(m[c])
                e = exp64(d if d > _FLOOR else _FLOOR)
                p[c] = e
                pv[c] = e * f64(settle(value[c]))
        for t in range(first, last):
            _add(a1, decay, weights[b, t, 0])
            _add(a2, decay, weights[b, t, 1])
        for t in range(last - 1, first - 1, -1):
            _add(z1, decay, weights[b, t, 0])
            _add(z2, decay, weights[b, t, 1])


@njit(**EXACT)
def chain(jump, chunks, start, stop, sums):
    """Images start..stop: replace each chunk's sums by the sums that enter it, from the left, then from the right."""
    channels = jump.shape[0]
    s1, s2 = np.empty(channels, np.float64), np.empty(channels, np.float64)
    for b in range(start, stop):
        for side in range(2):
            s1[:] = 0.0
            s2[:] = 0.0
            for step in range(chunks):
                item = b * chunks + (step if side == 0 else chunks - 1 - step)
                x1, x2 = sums[item, 2 * side], sums[item, 2 * side + 1]
                for c in range(channels):
                    chunk1, chunk2 = x1[c], x2[c]
                    x1[c], x2[c] = s1[c], s2[c]
                    s1[c] = s1[c] * jump[c] + chunk1
                    s2[c] = s2[c] * jump[c] + chunk2


@njit(**EXACT)
def values(kvr, weights, decay, boost, start, stop, sums, y):
    """Write y (B T, C), times sigmoid(gate), for items start..stop; kvr (B T, 3 C). Overwrites `sums`."""
    tokens, channels = weights.shape[1], weights.shape[3]
    chunks = (tokens + CHUNK - 1) // CHUNK
    both = np.empty((CHUNK, 2, channels), np.float64)  # sums from the left, later from both sides
    for item in range(start, stop):
        b, first = item // chunks, (item % chunks) * CHUNK
        last = min(first + CHUNK, tokens)
        for t in range(first, last):
            _put(sums[item, 0], decay, weights[b, t, 0], both[t - first, 0])
            _put(sums[item, 1], decay, weights[b, t, 1], both[t - first, 1])
        for t in range(last - 1, first - 1, -1):
            _join(sums[item, 2], decay, weights[b, t, 0], both[t - first, 0])
            _join(sums[item, 3], decay, weights[b, t, 1], both[t - first, 1])
        for t in range(first, last):
            value, out = kvr[b * tokens + t, channels : 2 * channels], y[b * tokens + t]
            p, num, den = weights[b, t, 1], both[t - first, 0], both[t - first, 1]
            for c in range(channels):
                self_weight = boost[c] * p[c]
                out[c] = settle(f32((num[c] + self_weight * f64(settle(value[c]))) / (den[c] + self_weight)))
        for t in range(first, last):
            gate_row(kvr[b * tokens + t, 2 * channels :], y[b * tokens + t])
