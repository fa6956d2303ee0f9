"""The loops of BiWKV's CPU path, compiled by numba: no allocation of k's size, no threads; `cpu.py` calls them.

An argument that may be None makes another compiled version, in which what it stands for costs nothing. So does a dtype:
where k, v, gate, y, the upstream gradient and the gradients of k, v and gate may be uint16 that holds bfloat16, what is
read is widened on its way in and what is written is rounded on its way out.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from lalic_kernels._core.floats import OPTIONS as _OPTIONS
from lalic_kernels._core.floats import exp as _exp
from lalic_kernels._core.floats import sigmoid, stored, wide
from lalic_kernels.biwkv.cpu_storage import leave, room, rows, target

f32 = np.float32
WIDTH = 32  # channels that `gradients` takes at a time


@njit(**_OPTIONS)
def _shifted(values, length, centre, out):
    """out (length, C) = values - centre for a stretch of tokens."""
    for t in range(length):
        row, target = values[t], out[t]
        for c in range(centre.shape[0]):
            target[c] = row[c] - centre[c]


@njit(**_OPTIONS)
def summaries(k, v, em1, chunk, start, stop, top, a1, a2, b1, b2, own):
    """Per chunk and channel: maximum of k, and the sums of (p v, p) decayed to the chunk's right and left edge.

    With `own` (items, C), it is given v at the maximum of k, and the sums are of p (v - own): see `recentre`.
    """
    T, C = k.shape[1], k.shape[2]
    per = (T + chunk - 1) // chunk
    p = np.empty((chunk, C), np.float32)
    moved, m = np.empty((0 if own is None else chunk, C), np.float32), np.empty(C, np.float32)
    room_k, room_v = room(k, chunk), room(v, chunk)
    for item in range(start, stop):
        b, first = item // per, (item % per) * chunk
        length = min(chunk, T - first)
        keys, values = rows(k, b, first, length, room_k), rows(v, b, first, length, room_v)
        for c in range(C):
            m[c] = f32(-np.inf)
        if own is None:
            for t in range(length):
                row = keys[t]
                for c in range(C):
                    m[c] = max(m[c], row[c])
        else:
            z = own[item]
            for c in range(C):
                z[c] = f32(0.0)
            for t in range(length):
                row, value = keys[t], values[t]
                for c in range(C):
                    z[c] = value[c] if row[c] > m[c] else z[c]
                    m[c] = max(m[c], row[c])
            _shifted(values, length, z, moved)
            values = moved[:length]
        x1, x2, y1, y2 = a1[item], a2[item], b1[item], b2[item]
        for c in range(C):
            x1[c], x2[c], y1[c], y2[c] = f32(0.0), f32(0.0), f32(0.0), f32(0.0)
        for t in range(length):
            row, value, weight = keys[t], values[t], p[t]
            for c in range(C):
                e = _exp(row[c] - m[c])
                weight[c] = e
                x1[c] += x1[c] * em1[c] + e * value[c]
                x2[c] += x2[c] * em1[c] + e
        for t in range(length - 1, -1, -1):
            value, weight = values[t], p[t]
            for c in range(C):
                y1[c] += y1[c] * em1[c] + weight[c] * value[c]
                y2[c] += y2[c] * em1[c] + weight[c]
        for c in range(C):
            top[item, c] = m[c]


@njit(**_OPTIONS)
def recentre(w, chunk, per, start, stop, top, a1, a2, b1, b2, own, centre):
    """Choose `centre` (B, C), y as seen from the middle, and make chunks' sums of p (v - own) ones of p (v - centre).

    The gradients of w and k are differences, sums of p q (v - y). Where keys are sharp all but one weight are tiny and
    v - y nearly cancels; measured from a value that most rows are close to, it keeps its digits.
    """
    C = w.shape[0]
    for b in range(start, stop):
        middle = per // 2
        step = w * chunk
        peak, num, den = np.full(C, -np.inf), np.zeros(C), np.zeros(C)
        for j in range(per):
            gap = float(middle - 1 - j if j < middle else j - middle)
            row = top[b * per + j]
            for c in range(C):
                peak[c] = max(peak[c], row[c] - gap * step[c])
        for j in range(per):
            i = b * per + j
            gap = float(middle - 1 - j if j < middle else j - middle)
            s1, s2 = (a1[i], a2[i]) if j < middle else (b1[i], b2[i])
            row, z = top[i], own[i]
            for c in range(C):
                e = np.float64(_exp(f32(row[c] - gap * step[c] - peak[c])))
                num[c] += e * (np.float64(s1[c]) + np.float64(s2[c]) * z[c])
                den[c] += e * s2[c]
        for c in range(C):
            centre[b, c] = f32(num[c] / den[c])
        for i in range(b * per, (b + 1) * per):
            for c in range(C):
                z = np.float64(own[i, c]) - np.float64(centre[b, c])
                a1[i, c] = f32(a1[i, c] + z * a2[i, c])
                b1[i, c] = f32(b1[i, c] + z * b2[i, c])


@njit(**_OPTIONS)
def chain(w, chunk, T, per, start, stop, top, a1, a2, b1, b2, l1, l2, lm, r1, r2, rm):
    """For batch items start..stop: the sums that enter each chunk from the left (l) and from the right (r).

    A sum is mantissa * exp(exponent). The exponent follows the larger of what comes in and what the chunk adds.
    """
    C = w.shape[0]
    s1, s2, m = np.empty(C), np.empty(C), np.empty(C)
    for b in range(start, stop):
        for side in range(2):
            for c in range(C):
                s1[c], s2[c], m[c] = 0.0, 0.0, -np.inf
            for step in range(per):
                j = b * per + (step if side == 0 else per - 1 - step)
                o1, o2, om = (l1[j], l2[j], lm[j]) if side == 0 else (r1[j], r2[j], rm[j])
                c1, c2 = (a1[j], a2[j]) if side == 0 else (b1[j], b2[j])
                length = min(chunk, T - (j - b * per) * chunk)
                for c in range(C):
                    o1[c] = f32(s1[c])
                    o2[c] = f32(s2[c])
                    om[c] = m[c]
                    carried = m[c] - w[c] * length
                    d = carried - top[j, c]
                    e = math.exp(-abs(d))
                    if d >= 0.0:
                        s1[c] += e * c1[c]
                        s2[c] += e * c2[c]
                        m[c] = carried
                    else:
                        s1[c] = s1[c] * e + c1[c]
                        s2[c] = s2[c] * e + c2[c]
                        m[c] = top[j, c]


@njit(**_OPTIONS)
def apply(k, v, gate, em1, eu, chunk, start, stop, top, l1, l2, lm, r1, r2, rm, y, inv, base, centre):
    """y = numerator / denominator, times sigmoid(gate) if there is one.

    With `inv` of k's shape 1 / denominator, relative to exp(-base), is kept too, and y measured from `centre` (B, C).
    """
    T, C = k.shape[1], k.shape[2]
    per = (T + chunk - 1) // chunk
    p = np.empty((chunk, C), np.float32)
    left1, left2 = np.empty((chunk, C), np.float32), np.empty((chunk, C), np.float32)
    moved = np.empty((0 if centre is None else chunk, C), np.float32)
    room_k, room_v, room_y = room(k, chunk), room(v, chunk), room(y, chunk)
    x1, x2, ref = np.empty(C, np.float32), np.empty(C, np.float32), np.empty(C, np.float32)
    for item in range(start, stop):
        b, first = item // per, (item % per) * chunk
        length = min(chunk, T - first)
        keys, values = rows(k, b, first, length, room_k), rows(v, b, first, length, room_v)
        result = target(y, b, first, length, room_y)
        if centre is not None:
            _shifted(values, length, centre[b], moved)
            values = moved[:length]
        for c in range(C):
            ref[c] = f32(max(top[item, c], lm[item, c], rm[item, c]))
            scale = _exp(f32(lm[item, c] - ref[c]))
            x1[c] = l1[item, c] * scale
            x2[c] = l2[item, c] * scale
        for t in range(length):
            row, value, weight, o1, o2 = keys[t], values[t], p[t], left1[t], left2[t]
            for c in range(C):
                e = _exp(row[c] - ref[c])
                weight[c] = e
                o1[c] = x1[c] + eu[c] * e * value[c]
                o2[c] = x2[c] + eu[c] * e
                x1[c] += x1[c] * em1[c] + e * value[c]
                x2[c] += x2[c] * em1[c] + e
        for c in range(C):
            scale = _exp(f32(rm[item, c] - ref[c]))
            x1[c] = r1[item, c] * scale
            x2[c] = r2[item, c] * scale
        for t in range(length - 1, -1, -1):
            value, weight, o1, o2, out = values[t], p[t], left1[t], left2[t], result[t]
            for c in range(C):
                e = weight[c]
                d = o2[c] + x2[c]
                out[c] = (o1[c] + x1[c]) / d
                o2[c] = d
                x1[c] += x1[c] * em1[c] + e * value[c]
                x2[c] += x2[c] * em1[c] + e
        if gate is not None:  # a loop of its own: with one array more the loop above would not be vectorised
            gates = rows(gate, b, first, length, room_k)
            for t in range(length):
                receptance, out = gates[t], result[t]
                for c in range(C):
                    out[c] *= sigmoid(receptance[c])
        leave(y, b, first, length, result)
        if inv is not None:
            for c in range(C):
                base[item, c] = ref[c]
            for t in range(length):
                for c in range(C):
                    inv[b, first + t, c] = f32(1.0) / left2[t, c]


@njit(**_OPTIONS)
def gradient_summaries(gy, y, inv, base, em1, chunk, start, stop, top, unit, a1, a2, b1, b2):
    """The transposed sums' chunk summaries: values gy / den and gy y / den, relative to exp(top).

    ``unit`` takes a chunk's reciprocal denominators to at most one, which is what ``top`` is relative to.
    """
    T, C = gy.shape[1], gy.shape[2]
    per = (T + chunk - 1) // chunk
    room_g = room(gy, chunk)
    for item in range(start, stop):
        b, first = item // per, (item % per) * chunk
        length = min(chunk, T - first)
        upstream = rows(gy, b, first, length, room_g)
        peak, scale = np.zeros(C, np.float32), unit[item]
        for t in range(length):
            row = inv[b, first + t]
            for c in range(C):
                peak[c] = max(peak[c], row[c])
        for c in range(C):
            scale[c] = f32(1.0) / peak[c]
            top[item, c] = math.log(peak[c]) - np.float64(base[item, c])
        x1, x2, y1, y2 = a1[item], a2[item], b1[item], b2[item]
        for c in range(C):
            x1[c], x2[c], y1[c], y2[c] = f32(0.0), f32(0.0), f32(0.0), f32(0.0)
        for t in range(length):
            g, out, d = upstream[t], y[b, first + t], inv[b, first + t]
            for c in range(C):
                q = g[c] * (scale[c] * d[c])
                x1[c] += x1[c] * em1[c] + q
                x2[c] += x2[c] * em1[c] + q * out[c]
        for t in range(length - 1, -1, -1):
            g, out, d = upstream[t], y[b, first + t], inv[b, first + t]
            for c in range(C):
                q = g[c] * (scale[c] * d[c])
                y1[c] += y1[c] * em1[c] + q
                y2[c] += y2[c] * em1[c] + q * out[c]


@njit(**_OPTIONS)
def gradients(
    k, v, gy, y, inv, base, unit, centre, w, em1, eu, chunk, start, stop,
    ktop, kl1, kl2, klm, kr1, kr2, krm, gtop, gl1, gl2, glm, gr1, gr2, grm, gk, gv, gw, gu,
):  # fmt: skip
    """gk, gv per element; gw, gu per chunk. x marks sums of (p v, p), g the transposed sums of (gy, gy y) / den.

    The four running sums have an exponent each. The products that are formed (an x-sum from one side with a g-sum from
    the other) are sums of true weights, at most one each, so their exponents cancel. Other pairs are not formed.
    gw uses that (|t - i| - 1) counts the positions strictly between i and t: at each position the x-sum from one side
    meets the g-sum from the other. v and y are measured from `centre`. In float32 gk and gv may lie where inv and y do:
    a chunk is read before it is written.

    Everything of a token and a block of WIDTH channels lies side by side in `s`, and the running sums move from a
    token's places to its neighbour's, a constant distance away. So the compiler knows that nothing overlaps; with an
    array each it would test every pair at every row, which takes longer than the arithmetic.
    """
    T, C = k.shape[1], k.shape[2]
    per, blocks = (T + chunk - 1) // chunk, (C + WIDTH - 1) // WIDTH
    p, value, own, out, x1, x2, g1, g2 = 0, WIDTH, 2 * WIDTH, 3 * WIDTH, 4 * WIDTH, 5 * WIDTH, 6 * WIDTH, 7 * WIDTH
    z1, z2, h1, h2, wt, ut = (
        8 * WIDTH,
        9 * WIDTH,
        10 * WIDTH,
        11 * WIDTH,
        12 * WIDTH,
        13 * WIDTH,
    )  # z, h: from the right
    n = 14 * WIDTH  # from a token to the next one; the first place is for the one before the chunk
    px, pg, el, pz, ph, er = 0, WIDTH, 2 * WIDTH, 3 * WIDTH, 4 * WIDTH, 5 * WIDTH
    fl, fr, diag, step, top, mid = 6 * WIDTH, 7 * WIDTH, 8 * WIDTH, 9 * WIDTH, 10 * WIDTH, 11 * WIDTH
    s = np.zeros(blocks * (chunk + 2) * n, np.float32)
    factors = np.zeros(blocks * 12 * WIDTH, np.float32)
    for item in range(start, stop):
        b, first = item // per, (item % per) * chunk
        length = min(chunk, T - first)
        for j in range(blocks):
            c0, f = j * WIDTH, factors[j * 12 * WIDTH :]
            head = s[(j * (chunk + 2) + 1) * n :]
            tail = s[(j * (chunk + 2) + length) * n :]
            for i in range(min(WIDTH, C - c0)):
                c = c0 + i
                xl = max(ktop[item, c], klm[item, c])
                xr = max(ktop[item, c], krm[item, c])
                gl = max(gtop[item, c], glm[item, c])
                gr = max(gtop[item, c], grm[item, c])
                scale = _exp(f32(klm[item, c] - xl))
                head[x1 + i] = kl1[item, c] * scale
                head[x2 + i] = kl2[item, c] * scale
                scale = _exp(f32(glm[item, c] - gl))
                head[g1 + i] = gl1[item, c] * scale
                head[g2 + i] = gl2[item, c] * scale
                scale = _exp(f32(krm[item, c] - xr))
                tail[z1 + i] = kr1[item, c] * scale
                tail[z2 + i] = kr2[item, c] * scale
                scale = _exp(f32(grm[item, c] - gr))
                tail[h1 + i] = gr1[item, c] * scale
                tail[h2 + i] = gr2[item, c] * scale
                tail[wt + i] = f32(0.0)
                tail[ut + i] = f32(0.0)
                # The chunk's own scale inside a running sum; then what takes products of two units to true weights.
                f[px + i] = _exp(f32(ktop[item, c] - xl))
                f[pz + i] = _exp(f32(ktop[item, c] - xr))
                f[pg + i] = _exp(f32(gtop[item, c] - gl)) * unit[item, c]
                f[ph + i] = _exp(f32(gtop[item, c] - gr)) * unit[item, c]
                f[el + i] = _exp(f32(ktop[item, c] + gl))
                f[er + i] = _exp(f32(ktop[item, c] + gr))
                f[fl + i] = _exp(f32(xl + gr - w[c]))
                f[fr + i] = _exp(f32(xr + gl - w[c]))
                f[diag + i] = eu[c] * _exp(f32(ktop[item, c] - base[item, c]))
                f[step + i] = em1[c]
                f[top + i] = f32(ktop[item, c])
                f[mid + i] = centre[b, c]
        for t in range(length):
            for j in range(blocks):
                c0, f = j * WIDTH, factors[j * 12 * WIDTH :]
                r = s[(j * (chunk + 2) + t + 1) * n :]
                key, val = k[b, first + t, c0:], v[b, first + t, c0:]
                g, result, d = gy[b, first + t, c0:], y[b, first + t, c0:], inv[b, first + t, c0:]
                for c in range(min(WIDTH, C - c0)):
                    r[p + c] = wide(key[c])
                    r[value + c] = wide(val[c])
                    r[own + c] = wide(g[c]) * d[c]
                    r[out + c] = result[c]
                for c in range(WIDTH):
                    e = _exp(r[p + c] - f[top + c])
                    x = r[value + c] - f[mid + c]
                    r[p + c] = e
                    r[value + c] = x
                    e *= f[px + c]
                    r[n + x1 + c] = r[x1 + c] + (r[x1 + c] * f[step + c] + e * x)
                    r[n + x2 + c] = r[x2 + c] + (r[x2 + c] * f[step + c] + e)
                    q = r[own + c] * f[pg + c]
                    r[n + g1 + c] = r[g1 + c] + (r[g1 + c] * f[step + c] + q)
                    r[n + g2 + c] = r[g2 + c] + (r[g2 + c] * f[step + c] + q * r[out + c])
        for t in range(length - 1, -1, -1):
            for j in range(blocks):
                c0, f = j * WIDTH, factors[j * 12 * WIDTH :]
                r = s[(j * (chunk + 2) + t) * n :]  # the token before; this one's places come n later
                for c in range(WIDTH):
                    e, x, q, o = r[n + p + c], r[n + value + c], r[n + own + c], r[n + out + c]
                    right1, right2, below1, below2 = r[n + z1 + c], r[n + z2 + c], r[n + h1 + c], r[n + h2 + c]
                    left1, left2, above1, above2 = r[n + x1 + c], r[n + x2 + c], r[n + g1 + c], r[n + g2 + c]
                    s1 = e * (above1 * f[el + c] + below1 * f[er + c])
                    s2 = e * (above2 * f[el + c] + below2 * f[er + c])
                    direct = f[diag + c] * e * q
                    direct_k = direct * (x - o)
                    r[n + p + c] = x * s1 - s2 + direct_k
                    r[n + value + c] = s1 + direct
                    r[ut + c] = r[n + ut + c] + direct_k
                    between = f[fl + c] * (left1 * below1 - left2 * below2)
                    r[wt + c] = r[n + wt + c] + (between + f[fr + c] * (right1 * above1 - right2 * above2))
                    e *= f[pz + c]
                    r[z1 + c] = right1 + (right1 * f[step + c] + e * x)
                    r[z2 + c] = right2 + (right2 * f[step + c] + e)
                    q *= f[ph + c]
                    r[h1 + c] = below1 + (below1 * f[step + c] + q)
                    r[h2 + c] = below2 + (below2 * f[step + c] + q * o)
                of_k, of_v = gk[b, first + t, c0:], gv[b, first + t, c0:]
                for c in range(min(WIDTH, C - c0)):
                    of_k[c] = stored(of_k, r[n + p + c])
                    of_v[c] = stored(of_v, r[n + value + c])
        for j in range(blocks):
            r = s[j * (chunk + 2) * n :]
            for i in range(min(WIDTH, C - j * WIDTH)):
                gw[item, j * WIDTH + i] = -r[wt + i]
                gu[item, j * WIDTH + i] = r[ut + i]


@njit(**_OPTIONS)
def gate_gradient(grad, gate, y, centre, start, stop, inner, gate_grad):
    """For rows start..stop of B * T: inner = grad sigmoid(gate), and the gradient of the gate; y is from `centre`.

    inner and y are float32; grad, gate and gate_grad may be bfloat16.
    """
    T, C = y.shape[1], y.shape[2]
    for item in range(start, stop):
        b, t = item // T, item % T
        g, r, out, target, result, middle = grad[b, t], gate[b, t], y[b, t], inner[b, t], gate_grad[b, t], centre[b]
        for c in range(C):
            x, upstream = wide(r[c]), wide(g[c])
            z = _exp(-abs(x))
            near = f32(1.0) / (f32(1.0) + z)  # the larger of sigmoid(r) and sigmoid(-r)
            far = z * near
            s = near if x >= f32(0.0) else far
            target[c] = upstream * s
            result[c] = stored(result, upstream * (out[c] + middle[c]) * (near * far))
