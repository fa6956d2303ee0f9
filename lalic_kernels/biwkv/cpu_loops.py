"""The loops of BiWKV's CPU path, compiled by numba. They use no threads and allocate nothing of k's size.

A pass loops over chunks, then over blocks of LANES channels, then over tokens: running sums stay in registers, and the
results of one direction stay in the nearest cache for the other. The next block is prefetched, because the hardware
does not predict such large steps. The last channels, if they do not fill a block, are copied to arrays `edge_*` and
followed by zeros. Arrays of k's shape are flat; arrays of states are (items, channels in whole blocks).

numba compiles one version for None and one for an array, so an argument that is None costs nothing. k, v, gate, y, the
upstream gradient and the gradients of k, v and gate may be uint16 that holds bfloat16: it is converted to float32 when
read, and rounded when written. NaN in an argument is NaN in what depends on it. The forward's work space is np.empty
with the dtype of an array: for np.zeros, and for a dtype that is written out, numba compiles more functions.
"""

from __future__ import annotations

import math

import numpy as np

from lalic_kernels.numba_math import (
    CALLEE,
    LANES,
    OPTIONS,
    add,
    div,
    exp,
    exp16,
    exp_double,
    fma,
    larger,
    load,
    minus_abs,
    mul,
    njit,
    prefetch,
    splat,
    store,
    sub,
    where_above,
)

f32 = np.float32
LOWEST = np.finfo(f32).min
START, STEP = np.int64(0), np.int64(LANES)  # of a copy; plain integers would make other versions of `_copy`


@njit(inline="always")
def _add(running, step, value):
    """running * exp(-w) + value, with step = exp(-w) - 1: a factor close to one would lose digits."""
    return add(running, fma(running, step, value))


@njit(**CALLEE)
def _copy(x, at, stride, out, to, step, length, count):
    """Copy `count` channels of `length` tokens from x[at:] to out[to:], with `stride` and `step` elements per token."""
    for t in range(length):
        for c in range(count):
            out[to + t * step + c] = x[at + t * stride + c]


@njit(**OPTIONS)
def summaries(k, v, em1, T, C, chunk, start, stop, max_key, a1, a2, b1, b2, peak_v):
    """Per chunk and channel: the maximum of k, and the sums of (p v, p) decayed to the chunk's right and left edge.

    If `peak_v` (items, channels in whole blocks) is not None, it gets v at the maximum of k, and the sums are of
    p (v - peak_v), for `recentre`.
    """
    per, whole = (T + chunk - 1) // chunk, C // LANES * LANES
    p, m = np.empty(chunk * LANES, em1.dtype), np.empty(LANES, em1.dtype)
    edge_k, edge_v = np.empty(chunk * LANES, k.dtype), np.empty(chunk * LANES, v.dtype)
    edge_k[:], edge_v[:] = 0, 0
    for item in range(start, stop):
        first = (item % per) * chunk
        length, begin = min(chunk, T - first), (item // per * T + first) * C
        x1, x2, y1, y2 = a1[item], a2[item], b1[item], b2[item]
        for c in range(0, C, LANES):
            keys, values, at, stride = k, v, begin + c, C
            if c == whole:
                _copy(k, at, C, edge_k, START, STEP, length, C - c)
                _copy(v, at, C, edge_v, START, STEP, length, C - c)
                keys, values, at, stride = edge_k, edge_v, 0, LANES
            # The largest key, and the value there.
            peak, middle = splat(LOWEST), splat(f32(0.0))  # finite, as -inf - -inf would be NaN
            if peak_v is None:
                for t in range(length):
                    prefetch(keys, at + t * stride + LANES)
                    prefetch(values, at + t * stride + LANES)
                    peak = larger(peak, load(keys, at + t * stride))
            else:
                for t in range(length):
                    prefetch(keys, at + t * stride + LANES)
                    prefetch(values, at + t * stride + LANES)
                    key = load(keys, at + t * stride)
                    middle = where_above(key, peak, load(values, at + t * stride), middle)
                    peak = larger(peak, key)
                store(peak_v[item], c, middle)
            store(m, 0, peak)
            for i in range(LANES):
                max_key[item, c + i] = m[i]
            # Sums to the right.
            step = load(em1, c)
            s1 = splat(f32(0.0))
            s2 = s1
            for t in range(length):
                e = exp16(sub(load(keys, at + t * stride), peak))
                store(p, t * LANES, e)
                value = load(values, at + t * stride)
                if peak_v is not None:
                    value = sub(value, middle)
                s1, s2 = _add(s1, step, mul(e, value)), _add(s2, step, e)
            store(x1, c, s1)
            store(x2, c, s2)
            # Sums to the left.
            s1 = splat(f32(0.0))
            s2 = s1
            for t in range(length - 1, -1, -1):
                e, value = load(p, t * LANES), load(values, at + t * stride)
                if peak_v is not None:
                    value = sub(value, middle)
                s1, s2 = _add(s1, step, mul(e, value)), _add(s2, step, e)
            store(y1, c, s1)
            store(y2, c, s2)


@njit(**OPTIONS)
def recentre(w, chunk, per, start, stop, max_key, a1, a2, b1, b2, peak_v, centre):
    """Set `centre` (B, C) to y in the middle of the sequence, and change the sums to sums of p (v - centre).

    The gradients of w and k are sums of p q (v - y). With sharp keys one weight is large and all others are tiny, and
    v - y nearly cancels. Relative to a value that most rows are close to, it stays accurate.
    """
    C = w.shape[0]
    for b in range(start, stop):
        # y in the middle: the largest exponent, then the sums.
        middle = per // 2
        step = w * chunk
        peak, num, den = np.full(C, -np.inf), np.zeros(C), np.zeros(C)
        for j in range(per):
            gap = float(middle - 1 - j if j < middle else j - middle)
            row = max_key[b * per + j]
            for c in range(C):
                peak[c] = max(peak[c], row[c] - gap * step[c])
        for j in range(per):
            i = b * per + j
            gap = float(middle - 1 - j if j < middle else j - middle)
            s1, s2 = (a1[i], a2[i]) if j < middle else (b1[i], b2[i])
            row, z = max_key[i], peak_v[i]
            for c in range(C):
                e = np.float64(exp(f32(row[c] - gap * step[c] - peak[c])))
                num[c] += e * (np.float64(s1[c]) + np.float64(s2[c]) * z[c])
                den[c] += e * s2[c]
        for c in range(C):
            centre[b, c] = f32(num[c] / den[c])
        # The chunks' sums relative to it.
        for i in range(b * per, (b + 1) * per):
            for c in range(C):
                z = np.float64(peak_v[i, c]) - np.float64(centre[b, c])
                a1[i, c] = f32(a1[i, c] + z * a2[i, c])
                b1[i, c] = f32(b1[i, c] + z * b2[i, c])


@njit(**OPTIONS)
def chain(w, chunk, T, per, start, stop, exponent, a1, a2, b1, b2, l1, l2, lm, r1, r2, rm):
    """For batch items start..stop: the sums that enter each chunk from the left (l) and from the right (r).

    A sum is mantissa * exp(exponent); the exponent is the larger one of the entering sum and of the chunk's sum.
    """
    C = w.shape[0]
    s1, s2, m, e = np.empty(C, w.dtype), np.empty(C, w.dtype), np.empty(C, w.dtype), np.empty(C, w.dtype)
    for b in range(start, stop):
        for side in range(2):
            for c in range(C):
                s1[c], s2[c], m[c] = 0.0, 0.0, -np.inf
            for step in range(per):
                j = b * per + (step if side == 0 else per - 1 - step)
                o1, o2, om = (l1[j], l2[j], lm[j]) if side == 0 else (r1[j], r2[j], rm[j])
                c1, c2 = (a1[j], a2[j]) if side == 0 else (b1[j], b2[j])
                length = min(chunk, T - (j - b * per) * chunk)
                peak = exponent[j]
                # In a separate loop over few arrays, which the compiler vectorises.
                for c in range(C):
                    e[c] = exp_double(-abs(m[c] - w[c] * length - peak[c]))
                for c in range(C):
                    o1[c] = f32(s1[c])
                    o2[c] = f32(s2[c])
                    om[c] = m[c]
                    carried = m[c] - w[c] * length
                    larger_carry = carried >= peak[c]
                    old, new = (1.0, e[c]) if larger_carry else (e[c], 1.0)
                    s1[c] = s1[c] * old + new * c1[c]
                    s2[c] = s2[c] * old + new * c2[c]
                    m[c] = carried if larger_carry else peak[c]


@njit(inline="always")
def _from_left(keys, values, at, stride, length, centre, step, bonus, c, units, l1, l2, s):
    """A chunk's pass from the left: write p and the sums of (p v, p) from the left, token included, to s.

    s is (length, 3, LANES). `units` has the reference exponent of k, and the exponent of the entering sums relative to
    it.
    """
    ref, scale = load(units, 0), exp16(load(units, LANES))
    s1, s2 = mul(load(l1, c), scale), mul(load(l2, c), scale)
    em, eu = load(step, c), load(bonus, c)
    if centre is not None:
        middle = load(centre, c)
    for t in range(length):
        e, value = exp16(sub(load(keys, at + t * stride), ref)), load(values, at + t * stride)
        if centre is not None:
            value = sub(value, middle)
        prefetch(keys, at + t * stride + LANES)
        prefetch(values, at + t * stride + LANES)
        self_weight = mul(eu, e)
        store(s, 3 * LANES * t, e)
        store(s, 3 * LANES * t + LANES, fma(self_weight, value, s1))
        store(s, 3 * LANES * t + 2 * LANES, add(self_weight, s2))
        s1, s2 = _add(s1, em, mul(e, value)), _add(s2, em, e)


@njit(inline="always")
def _units(max_key, lm, rm, c, units):
    """Write to units (3, LANES): the largest of a chunk's exponents, then those of the entering sums relative to it."""
    for i in range(LANES):
        ref = f32(max(max_key[c + i], lm[c + i], rm[c + i]))
        units[i] = ref
        units[LANES + i] = f32(lm[c + i] - ref)
        units[2 * LANES + i] = f32(rm[c + i] - ref)


@njit(**OPTIONS)
def apply(k, v, gate, em1, eu, T, C, chunk, start, stop, max_key, l1, l2, lm, r1, r2, rm, y):
    """Write y = numerator / denominator, times sigmoid(gate) if there is a gate."""
    per, whole = (T + chunk - 1) // chunk, C // LANES * LANES
    s, units = np.empty(3 * chunk * LANES, em1.dtype), np.empty(3 * LANES, em1.dtype)
    edge_k, edge_v = np.empty(chunk * LANES, k.dtype), np.empty(chunk * LANES, v.dtype)
    edge_y, edge_gate = np.empty(chunk * LANES, y.dtype), np.empty(chunk * LANES, k.dtype)
    edge_k[:], edge_v[:], edge_gate[:] = 0, 0, 0
    zero, one = splat(f32(0.0)), splat(f32(1.0))
    for item in range(start, stop):
        first = (item % per) * chunk
        length, begin = min(chunk, T - first), (item // per * T + first) * C
        for c in range(0, C, LANES):
            keys, values, result, at, stride = k, v, y, begin + c, C
            if gate is not None:
                gates = gate
            if c == whole:
                _copy(k, at, C, edge_k, START, STEP, length, C - c)
                _copy(v, at, C, edge_v, START, STEP, length, C - c)
                if gate is not None:
                    _copy(gate, at, C, edge_gate, START, STEP, length, C - c)
                    gates = edge_gate
                keys, values, result, at, stride = edge_k, edge_v, edge_y, 0, LANES
            # From the left, then from the right; divide and gate.
            _units(max_key[item], lm[item], rm[item], c, units)
            _from_left(keys, values, at, stride, length, None, em1, eu, c, units, l1[item], l2[item], s)
            step, scale = load(em1, c), exp16(load(units, 2 * LANES))
            s1, s2 = mul(load(r1[item], c), scale), mul(load(r2[item], c), scale)
            for t in range(length - 1, -1, -1):
                e, value = load(s, 3 * LANES * t), load(values, at + t * stride)
                num, den = add(load(s, 3 * LANES * t + LANES), s1), add(load(s, 3 * LANES * t + 2 * LANES), s2)
                prefetch(result, at + t * stride + LANES)
                if gate is None:
                    store(result, at + t * stride, div(num, den))
                else:  # sigmoid(r) is (1 or z) / (1 + z), with one division for both quotients
                    prefetch(gates, at + t * stride + LANES)
                    r = load(gates, at + t * stride)
                    z = exp16(minus_abs(r))
                    half = div(num, mul(den, add(one, z)))
                    store(result, at + t * stride, mul(half, where_above(r, zero, one, z)))
                s1, s2 = _add(s1, step, mul(e, value)), _add(s2, step, e)
            if c == whole:
                _copy(edge_y, START, STEP, y, begin + c, C, length, C - c)


@njit(**OPTIONS)
def gradient_summaries(
    k, v, gate, gy, em1, eu, T, C, chunk, start, stop,
    max_key, l1, l2, lm, r1, r2, rm, centre, y, q, ggate, base, exponent, unit, a1, a2, b1, b2,
):  # fmt: skip
    """Write y and q = gy / den per element, both float32, and the chunks' sums of (q, q y), relative to exp(exponent).

    y is relative to `centre` (B, channels in whole blocks), den to exp(base). With a gate, ggate gets its gradient
    and q is gy sigmoid(gate) / den. `unit` is a power of two for which unit / den <= 1 in the chunk; it is included in
    `exponent`.
    """
    per, whole = (T + chunk - 1) // chunk, C // LANES * LANES
    s, units = np.empty(3 * chunk * LANES, np.float32), np.empty(3 * LANES, np.float32)
    edge_k, edge_v = np.zeros(chunk * LANES, k.dtype), np.zeros(chunk * LANES, v.dtype)
    edge_g, edge_gate, edge_ggate = np.zeros_like(edge_k), np.zeros_like(edge_k), np.empty_like(edge_k)
    edge_y, edge_q = np.empty(chunk * LANES, np.float32), np.empty(chunk * LANES, np.float32)
    largest = np.empty(LANES, np.float32)
    bits = largest.view(np.int32)
    zero, one = splat(f32(0.0)), splat(f32(1.0))
    for item in range(start, stop):
        b, first = item // per, (item % per) * chunk
        length, begin = min(chunk, T - first), (b * T + first) * C
        for c in range(0, C, LANES):
            keys, values, upstream, results, quotients, at, stride = k, v, gy, y, q, begin + c, C
            if gate is not None:
                gates, gate_results = gate, ggate
            if c == whole:
                _copy(k, at, C, edge_k, START, STEP, length, C - c)
                _copy(v, at, C, edge_v, START, STEP, length, C - c)
                _copy(gy, at, C, edge_g, START, STEP, length, C - c)
                if gate is not None:
                    _copy(gate, at, C, edge_gate, START, STEP, length, C - c)
                    gates, gate_results = edge_gate, edge_ggate
                keys, values, upstream, at, stride = edge_k, edge_v, edge_g, 0, LANES
                results, quotients = edge_y, edge_q
            # The forward again: from the left, then from the right. Sums of (q, q y) to the left.
            _units(max_key[item], lm[item], rm[item], c, units)
            _from_left(keys, values, at, stride, length, centre[b], em1, eu, c, units, l1[item], l2[item], s)
            step, scale, middle = load(em1, c), exp16(load(units, 2 * LANES)), load(centre[b], c)
            s1, s2 = mul(load(r1[item], c), scale), mul(load(r2[item], c), scale)
            peak, g1 = zero, zero
            g2 = g1
            for t in range(length - 1, -1, -1):
                index = at + t * stride
                e, value = load(s, 3 * LANES * t), sub(load(values, index), middle)
                num, den = add(load(s, 3 * LANES * t + LANES), s1), add(load(s, 3 * LANES * t + 2 * LANES), s2)
                out, inverse, g = div(num, den), div(one, den), load(upstream, index)
                prefetch(upstream, index + LANES)
                prefetch(results, index + LANES)
                prefetch(quotients, index + LANES)
                if gate is not None:
                    prefetch(gates, index + LANES)
                    prefetch(gate_results, index + LANES)
                if gate is not None:
                    r = load(gates, index)
                    z = exp16(minus_abs(r))
                    near = div(one, add(one, z))  # the larger of sigmoid(r) and sigmoid(-r)
                    far = mul(z, near)
                    store(gate_results, index, mul(mul(g, add(out, middle)), mul(near, far)))
                    g = mul(g, where_above(r, zero, near, far))
                g = mul(g, inverse)
                store(results, index, out)
                store(quotients, index, g)
                peak = larger(peak, inverse)
                g1, g2 = _add(g1, step, g), _add(g2, step, mul(g, out))
                s1, s2 = _add(s1, step, mul(e, value)), _add(s2, step, e)
            store(b1[item], c, g1)
            store(b2[item], c, g2)
            # Sums of (q, q y) to the right.
            g1 = zero
            g2 = g1
            for t in range(length):
                g, out = load(quotients, at + t * stride), load(results, at + t * stride)
                g1, g2 = _add(g1, step, g), _add(g2, step, mul(g, out))
            store(a1[item], c, g1)
            store(a2[item], c, g2)
            # The unit, from the largest 1 / den.
            store(largest, 0, peak)
            for i in range(LANES):
                n = min((bits[i] >> 23) - 126, 126)  # 2**n exceeds the largest
                scalar = np.int32((127 - n) << 23).view(np.float32)
                unit[item, c + i], base[item, c + i] = scalar, units[i]
                exponent[item, c + i] = n * math.log(2.0) - np.float64(units[i])
                a1[item, c + i] *= scalar
                a2[item, c + i] *= scalar
                b1[item, c + i] *= scalar
                b2[item, c + i] *= scalar
            if c == whole:
                _copy(edge_y, START, STEP, y, begin + c, C, length, C - c)
                _copy(edge_q, START, STEP, q, begin + c, C, length, C - c)
                if gate is not None:
                    _copy(edge_ggate, START, STEP, ggate, begin + c, C, length, C - c)


@njit(**OPTIONS)
def gradients(
    k, v, y, q, base, unit, centre, w, em1, eu, T, C, chunk, start, stop,
    max_key, kl1, kl2, klm, kr1, kr2, krm, g_exponent, gl1, gl2, glm, gr1, gr2, grm, gk, gv, gw, gu,
):  # fmt: skip
    """Write gk, gv per element, and gw, gu per chunk. x: sums of (p v, p); g: transposed sums of (q, q y).

    Each of the four running sums has an exponent. An x-sum from one side is only multiplied with a g-sum from the other
    side: such products are sums of true weights, at most one each, so their exponents cancel. (|t - i| - 1) counts the
    positions strictly between i and t, so gw is a sum of such products over positions. v and y are relative to
    `centre`. In float32 gv and gk may use the memory of y and q: a chunk is read before it is written.
    """
    per, whole = (T + chunk - 1) // chunk, C // LANES * LANES
    left, f = np.empty(6 * chunk * LANES, np.float32), np.empty(14 * LANES, np.float32)
    edge_k, edge_v = np.zeros(chunk * LANES, k.dtype), np.zeros(chunk * LANES, v.dtype)
    edge_y, edge_q = np.zeros(chunk * LANES, np.float32), np.zeros(chunk * LANES, np.float32)
    edge_gk, edge_gv = np.empty_like(edge_k), np.empty_like(edge_v)
    for item in range(start, stop):
        b, first = item // per, (item % per) * chunk
        length, begin = min(chunk, T - first), (b * T + first) * C
        for c in range(0, C, LANES):
            keys, values, results, quotients, gk_out, gv_out, at, stride = k, v, y, q, gk, gv, begin + c, C
            if c == whole:
                _copy(k, at, C, edge_k, START, STEP, length, C - c)
                _copy(v, at, C, edge_v, START, STEP, length, C - c)
                _copy(y, at, C, edge_y, START, STEP, length, C - c)
                _copy(q, at, C, edge_q, START, STEP, length, C - c)
                keys, values, results, quotients = edge_k, edge_v, edge_y, edge_q
                gk_out, gv_out, at, stride = edge_gk, edge_gv, 0, LANES
            # Exponents of all sums and products.
            for i in range(LANES):
                n = c + i
                k0, g0 = max_key[item, n], g_exponent[item, n]
                xl, xr = max(k0, klm[item, n]), max(k0, krm[item, n])
                gl, gr = max(g0, glm[item, n]), max(g0, grm[item, n])
                f[i] = f32(klm[item, n] - xl)
                f[LANES + i] = f32(glm[item, n] - gl)
                f[2 * LANES + i] = f32(krm[item, n] - xr)
                f[3 * LANES + i] = f32(grm[item, n] - gr)
                f[4 * LANES + i] = f32(k0 - xl)
                f[5 * LANES + i] = f32(g0 - gl)
                f[6 * LANES + i] = f32(k0 - xr)
                f[7 * LANES + i] = f32(g0 - gr)
                f[8 * LANES + i] = f32(k0 + gl)
                f[9 * LANES + i] = f32(k0 + gr)
                f[10 * LANES + i] = f32(xl + gr - w[n])
                f[11 * LANES + i] = f32(xr + gl - w[n])
                f[12 * LANES + i] = f32(k0 - base[item, n])
                f[13 * LANES + i] = f32(k0)
            # From the left: store the running sums before each token.
            peak, step, middle, scale_g = load(f, 13 * LANES), load(em1, c), load(centre[b], c), load(unit[item], c)
            scale = exp16(load(f, 0))
            x1, x2 = mul(load(kl1[item], c), scale), mul(load(kl2[item], c), scale)
            scale = exp16(load(f, LANES))
            g1, g2 = mul(load(gl1[item], c), scale), mul(load(gl2[item], c), scale)
            # The scale of the chunk's elements in a running sum.
            x_scale, g_scale = exp16(load(f, 4 * LANES)), mul(exp16(load(f, 5 * LANES)), scale_g)
            for t in range(length):
                index, n = at + t * stride, 6 * LANES * t
                e, x = exp16(sub(load(keys, index), peak)), sub(load(values, index), middle)
                prefetch(keys, index + LANES)
                prefetch(values, index + LANES)
                prefetch(quotients, index + LANES)
                prefetch(results, index + LANES)
                store(left, n, e)
                store(left, n + LANES, x)
                store(left, n + 2 * LANES, x1)
                store(left, n + 3 * LANES, x2)
                store(left, n + 4 * LANES, g1)
                store(left, n + 5 * LANES, g2)
                e, g = mul(e, x_scale), mul(load(quotients, index), g_scale)
                x1, x2 = _add(x1, step, mul(e, x)), _add(x2, step, e)
                g1, g2 = _add(g1, step, g), _add(g2, step, mul(g, load(results, index)))
            # From the right: combine both sides.
            scale = exp16(load(f, 2 * LANES))
            x1, x2 = mul(load(kr1[item], c), scale), mul(load(kr2[item], c), scale)
            scale = exp16(load(f, 3 * LANES))
            g1, g2 = mul(load(gr1[item], c), scale), mul(load(gr2[item], c), scale)
            x_scale, g_scale = exp16(load(f, 6 * LANES)), mul(exp16(load(f, 7 * LANES)), scale_g)
            # Factors that turn products of two units into true weights.
            from_left, from_right = exp16(load(f, 8 * LANES)), exp16(load(f, 9 * LANES))
            over_left, over_right = exp16(load(f, 10 * LANES)), exp16(load(f, 11 * LANES))
            diagonal = mul(load(eu, c), exp16(load(f, 12 * LANES)))
            sum_w = splat(f32(0.0))
            sum_u = sum_w
            for t in range(length - 1, -1, -1):
                index, n = at + t * stride, 6 * LANES * t
                e, x = load(left, n), load(left, n + LANES)
                left_x1, left_x2 = load(left, n + 2 * LANES), load(left, n + 3 * LANES)
                left_g1, left_g2 = load(left, n + 4 * LANES), load(left, n + 5 * LANES)
                g, out = load(quotients, index), load(results, index)
                s1 = mul(e, fma(left_g1, from_left, mul(g1, from_right)))
                s2 = mul(e, fma(left_g2, from_left, mul(g2, from_right)))
                direct = mul(mul(diagonal, e), g)
                direct_k = mul(direct, sub(x, out))
                store(gk_out, index, add(sub(mul(x, s1), s2), direct_k))
                store(gv_out, index, add(s1, direct))
                sum_u = add(sum_u, direct_k)
                between = mul(over_left, sub(mul(left_x1, g1), mul(left_x2, g2)))
                sum_w = add(sum_w, fma(over_right, sub(mul(x1, left_g1), mul(x2, left_g2)), between))
                e, g = mul(e, x_scale), mul(g, g_scale)
                x1, x2 = _add(x1, step, mul(e, x)), _add(x2, step, e)
                g1, g2 = _add(g1, step, g), _add(g2, step, mul(g, out))
            store(gw[item], c, sub(splat(f32(0.0)), sum_w))
            store(gu[item], c, sum_u)
            if c == whole:
                _copy(edge_gk, START, STEP, gk, begin + c, C, length, C - c)
                _copy(edge_gv, START, STEP, gv, begin + c, C, length, C - c)
