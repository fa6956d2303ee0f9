"""The exact bidirectional WKV's loops for CPUs, compiled by numba; `reference.biwkv` is what they compute, bit for bit.

float64 throughout, no fast-math, in the definition's order. Three passes: weights and each chunk's sums; the sums that
enter a chunk from either side; the values. The inner loops run over channels and touch few arrays each: with more than
a handful the compiler gives up proving them apart and does not vectorise. Importing this needs numba.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from lalic_kernels.exact import numbers as n
from lalic_kernels.exact.cpu_loops import OPTIONS, gate_row, settle

CHUNK = n.CHUNK
f32, f64 = np.float32, np.float64
_ROUND = 1.5 * 2.0**52
_FLOOR = n.EXP64_FLOOR
_LOG2E, _LN2_HIGH, _LN2_LOW = n.LOG2E_64, n.LN2_HIGH_64, n.LN2_LOW_64
_P0, _P1, _P2, _P3, _P4, _P5, _P6, _P7, _P8, _P9 = n.EXP64_POLYNOMIAL


@njit(inline="always")
def exp64(x):
    """`reference._exp64` of one value."""
    shifted = x * _LOG2E + _ROUND
    turns = shifted - _ROUND
    r = x - turns * _LN2_HIGH
    r = r - turns * _LN2_LOW
    p = _P0 * r + _P1
    p = p * r + _P2
    p = p * r + _P3
    p = p * r + _P4
    p = p * r + _P5
    p = p * r + _P6
    p = p * r + _P7
    p = p * r + _P8
    p = p * r + _P9
    y = p * (r * r) + r + 1.0
    # the low bits of `shifted` are the integer: one shift puts them where the exponent is
    return y * np.int64((f64(shifted).view(np.int64) + np.int64(1023)) << np.int64(52)).view(np.float64)


@njit(**OPTIONS)
def exps(x, y):
    """y = exp64(x), elementwise."""
    for c in range(x.shape[0]):
        y[c] = exp64(x[c])


@njit(**OPTIONS)
def tops(x, place, tokens, start, stop, found):
    """found (B, C) = the largest k of each channel over images start..stop; k as in `summaries`, from place on."""
    channels = found.shape[1]
    for b in range(start, stop):
        m = found[b]
        m[:] = x[b * tokens, place : place + channels]
        for t in range(1, tokens):
            row = x[b * tokens + t, place : place + channels]
            for c in range(channels):
                m[c] = max(m[c], row[c])


@njit(**OPTIONS)
def _add(total, decay, x):
    """total = total decay + x, of every channel."""
    for c in range(total.shape[0]):
        total[c] = total[c] * decay[c] + x[c]


@njit(**OPTIONS)
def _put(total, decay, x, before):
    """`_add`, with what `total` was in `before`."""
    for c in range(total.shape[0]):
        before[c] = total[c]
        total[c] = total[c] * decay[c] + x[c]


@njit(**OPTIONS)
def _join(total, decay, x, before):
    """`_add`, with what `total` was added to `before`."""
    for c in range(total.shape[0]):
        before[c] = before[c] + total[c]
        total[c] = total[c] * decay[c] + x[c]


@njit(**OPTIONS)
def summaries(x, v, places, top, decay, start, stop, weights, sums):
    """Items (batch, chunk) start..stop: weights (B, T, 2, C) = p v, p; sums (items, 4, C) of both, to either edge.

    k and v are C columns of x and v (B T, ...), from places[0] and places[1] on; top (B, C) is k's maximum over an
    image.
    """
    tokens, channels = weights.shape[1], weights.shape[3]
    chunks = (tokens + CHUNK - 1) // CHUNK
    for item in range(start, stop):
        b, first = item // chunks, (item % chunks) * CHUNK
        last = min(first + CHUNK, tokens)
        out = sums[item]
        out[:] = 0.0
        a1, a2, z1, z2 = out[0], out[1], out[2], out[3]
        m = top[b]
        for t in range(first, last):
            row = x[b * tokens + t, places[0] : places[0] + channels]
            value = v[b * tokens + t, places[1] : places[1] + channels]
            pv, p = weights[b, t, 0], weights[b, t, 1]
            for c in range(channels):
                d = f64(row[c]) - f64(m[c])
                e = exp64(d if d > _FLOOR else _FLOOR)
                p[c] = e
                pv[c] = e * f64(settle(value[c]))
        for t in range(first, last):
            _add(a1, decay, weights[b, t, 0])
            _add(a2, decay, weights[b, t, 1])
        for t in range(last - 1, first - 1, -1):
            _add(z1, decay, weights[b, t, 0])
            _add(z2, decay, weights[b, t, 1])


@njit(**OPTIONS)
def chain(jump, chunks, start, stop, sums):
    """Images start..stop: each chunk's sums become those that enter it, from the left, then from the right."""
    channels = jump.shape[0]
    s1, s2 = np.empty(channels), np.empty(channels)
    for b in range(start, stop):
        for side in range(2):
            s1[:] = 0.0
            s2[:] = 0.0
            for step in range(chunks):
                item = b * chunks + (step if side == 0 else chunks - 1 - step)
                x1, x2 = sums[item, 2 * side], sums[item, 2 * side + 1]
                for c in range(channels):
                    own1, own2 = x1[c], x2[c]
                    x1[c], x2[c] = s1[c], s2[c]
                    s1[c] = s1[c] * jump[c] + own1
                    s2[c] = s2[c] * jump[c] + own2


@njit(**OPTIONS)
def values(v, gate, places, weights, decay, boost, start, stop, sums, y):
    """y (B T, C) of items start..stop, times sigmoid(gate) unless gate has no rows; `sums` is used up.

    v and the gate are C columns of v and gate (B T, ...), from places[1] and places[2] on.
    """
    tokens, channels = weights.shape[1], weights.shape[3]
    chunks = (tokens + CHUNK - 1) // CHUNK
    both = np.empty((CHUNK, 2, channels))  # what comes from the left and, in the end, from the right as well
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
            value, out = v[b * tokens + t, places[1] : places[1] + channels], y[b * tokens + t]
            p, top, below = weights[b, t, 1], both[t - first, 0], both[t - first, 1]
            for c in range(channels):
                own = boost[c] * p[c]
                out[c] = settle(f32((top[c] + own * f64(settle(value[c]))) / (below[c] + own)))
        if gate.shape[0]:
            for t in range(first, last):
                gate_row(gate[b * tokens + t, places[2] : places[2] + channels], y[b * tokens + t])
