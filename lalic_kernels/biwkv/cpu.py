"""Bidirectional WKV for CPUs: compiled with numba, linear in T, forward and backward, float32.

The sequence is cut into chunks. Inside a chunk the weights ``exp(-w * distance)`` stay within ``exp(+-RANGE)``, so one
exponential per element against a per-chunk, per-channel maximum serves both directions, numerator and denominator.
Between chunks the running sums are kept as (float64 mantissa, float64 exponent), because a float32 decay factor applied
a thousand times over would drift. The chain over chunks is short; the two passes over the elements run on all threads.

Every intermediate stays in range when ``max|w| * chunk <= RANGE`` and ``max|u| <= RANGE``, whatever k is; ``supports``
tells. Outside, ``lalic_kernels.biwkv`` takes the log-space torch path (see README.md in this folder).
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import numpy as np
import torch

from .._core.threads import run_ranges

njit: Any
try:
    from numba import njit
except ImportError:  # the torch path serves; `python -m lalic_kernels.info` shows it

    def njit(**options: Any) -> Any:
        """Stand-in that leaves functions as they are, so that the module imports; none of them is called."""
        return lambda function: function


NUMBA = importlib.util.find_spec("numba") is not None


RANGE = 20.0
CHUNK = 64
_MIN_CHUNK = 4

f32 = np.float32
_LOG2E = f32(1.4426950408889634)
_LN2_HI = f32(0.693359375)
_LN2_LO = f32(-2.12194440e-4)
_LOWEST = f32(-87.0)

# 'contract' lets a*b+c become one fused operation; nothing else is relaxed, so infinities and order keep their meaning.
_OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy", "fastmath": {"contract"}}


def available() -> bool:
    """Whether numba is importable, and so whether this path can run."""
    return NUMBA


def chunk_length(w: torch.Tensor, T: int) -> int:
    """Longest usable chunk for decays ``w`` (C,): 64, less where ``max|w| * 64`` leaves the range, 0 if none."""
    largest = float(w.abs().max()) if w.numel() else 0.0
    length = min(CHUNK, T)
    if largest * length > RANGE:
        length = int(RANGE / largest) if math.isfinite(largest) else 0
        if length < _MIN_CHUNK:
            return 0
    return length


def supports(w: torch.Tensor, u: torch.Tensor, T: int) -> bool:
    """Whether the fast form stays in range for these parameters; depends on w, u and T only, never on k or v."""
    in_range = u.numel() == 0 or float(u.abs().max()) <= RANGE  # False for NaN and infinity as well
    return in_range and (T == 0 or chunk_length(w, T) > 0)


@njit(inline="always")
def _exp(x):
    """exp for float32 in plain arithmetic, so that the loop round it vectorises; 1e-7 relative, 0 below -87."""
    clipped = max(x, _LOWEST)
    n = np.floor(clipped * _LOG2E + f32(0.5))
    r = clipped - n * _LN2_HI
    r = r - n * _LN2_LO
    p = f32(1.9875691500e-4)
    p = p * r + f32(1.3981999507e-3)
    p = p * r + f32(8.3334519073e-3)
    p = p * r + f32(4.1665795894e-2)
    p = p * r + f32(1.6666665459e-1)
    p = p * r + f32(5.0000001201e-1)
    y = p * r * r + r + f32(1.0)
    scale = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return y * scale if x > _LOWEST else f32(0.0)


@njit(**_OPTIONS)
def _summaries(k, v, em1, chunk, start, stop, top, a1, a2, b1, b2):
    """Per chunk and channel: maximum of k, and the sums of (p v, p) decayed to the chunk's right and left edge."""
    T, C = k.shape[1], k.shape[2]
    per = (T + chunk - 1) // chunk
    p = np.empty((chunk, C), np.float32)
    for item in range(start, stop):
        b, first = item // per, (item % per) * chunk
        length = min(chunk, T - first)
        m = np.full(C, f32(-np.inf))
        for t in range(length):
            row = k[b, first + t]
            for c in range(C):
                m[c] = max(m[c], row[c])
        x1, x2, y1, y2 = a1[item], a2[item], b1[item], b2[item]
        x1[:] = f32(0.0)
        x2[:] = f32(0.0)
        y1[:] = f32(0.0)
        y2[:] = f32(0.0)
        for t in range(length):
            row, value, weight = k[b, first + t], v[b, first + t], p[t]
            for c in range(C):
                e = _exp(row[c] - m[c])
                weight[c] = e
                x1[c] += x1[c] * em1[c] + e * value[c]
                x2[c] += x2[c] * em1[c] + e
        for t in range(length - 1, -1, -1):
            value, weight = v[b, first + t], p[t]
            for c in range(C):
                y1[c] += y1[c] * em1[c] + weight[c] * value[c]
                y2[c] += y2[c] * em1[c] + weight[c]
        for c in range(C):
            top[item, c] = m[c]


@njit(**_OPTIONS)
def _chain(w, chunk, T, per, start, stop, top, a1, a2, b1, b2, l1, l2, lm, r1, r2, rm):
    """For batch items start..stop: the sums that enter each chunk from the left (l) and from the right (r).

    A sum is mantissa * exp(exponent). The exponent follows the larger of what comes in and what the chunk adds.
    """
    C = w.shape[0]
    for b in range(start, stop):
        for side in range(2):
            s1, s2 = np.zeros(C), np.zeros(C)
            m = np.full(C, -np.inf)
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
def _apply(k, v, em1, eu, chunk, start, stop, top, l1, l2, lm, r1, r2, rm, y, inv, base):
    """y = numerator / denominator. With ``inv`` of k's shape 1 / denominator, relative to exp(-base), is kept too."""
    T, C = k.shape[1], k.shape[2]
    keep = inv.shape[1] > 0
    per = (T + chunk - 1) // chunk
    p = np.empty((chunk, C), np.float32)
    left1, left2 = np.empty((chunk, C), np.float32), np.empty((chunk, C), np.float32)
    x1, x2, ref = np.empty(C, np.float32), np.empty(C, np.float32), np.empty(C, np.float32)
    for item in range(start, stop):
        b, first = item // per, (item % per) * chunk
        length = min(chunk, T - first)
        for c in range(C):
            ref[c] = f32(max(top[item, c], lm[item, c], rm[item, c]))
            scale = _exp(f32(lm[item, c] - ref[c]))
            x1[c] = l1[item, c] * scale
            x2[c] = l2[item, c] * scale
        for t in range(length):
            row, value, weight, o1, o2 = k[b, first + t], v[b, first + t], p[t], left1[t], left2[t]
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
            value, weight, o1, o2, out = v[b, first + t], p[t], left1[t], left2[t], y[b, first + t]
            for c in range(C):
                e = weight[c]
                d = o2[c] + x2[c]
                out[c] = (o1[c] + x1[c]) / d
                o2[c] = d
                x1[c] += x1[c] * em1[c] + e * value[c]
                x2[c] += x2[c] * em1[c] + e
        if keep:
            for c in range(C):
                base[item, c] = ref[c]
            for t in range(length):
                for c in range(C):
                    inv[b, first + t, c] = f32(1.0) / left2[t, c]


@njit(**_OPTIONS)
def _gradient_summaries(gy, y, inv, base, em1, chunk, start, stop, top, unit, a1, a2, b1, b2):
    """The transposed sums' chunk summaries: values gy / den and gy y / den, relative to exp(top).

    ``unit`` takes a chunk's reciprocal denominators to at most one, which is what ``top`` is relative to.
    """
    T, C = gy.shape[1], gy.shape[2]
    per = (T + chunk - 1) // chunk
    for item in range(start, stop):
        b, first = item // per, (item % per) * chunk
        length = min(chunk, T - first)
        peak, scale = np.zeros(C, np.float32), unit[item]
        for t in range(length):
            row = inv[b, first + t]
            for c in range(C):
                peak[c] = max(peak[c], row[c])
        for c in range(C):
            scale[c] = f32(1.0) / peak[c]
            top[item, c] = math.log(peak[c]) - np.float64(base[item, c])
        x1, x2, y1, y2 = a1[item], a2[item], b1[item], b2[item]
        x1[:] = f32(0.0)
        x2[:] = f32(0.0)
        y1[:] = f32(0.0)
        y2[:] = f32(0.0)
        for t in range(length):
            g, out, d = gy[b, first + t], y[b, first + t], inv[b, first + t]
            for c in range(C):
                q = g[c] * (scale[c] * d[c])
                x1[c] += x1[c] * em1[c] + q
                x2[c] += x2[c] * em1[c] + q * out[c]
        for t in range(length - 1, -1, -1):
            g, out, d = gy[b, first + t], y[b, first + t], inv[b, first + t]
            for c in range(C):
                q = g[c] * (scale[c] * d[c])
                y1[c] += y1[c] * em1[c] + q
                y2[c] += y2[c] * em1[c] + q * out[c]


@njit(**_OPTIONS)
def _gradients(
    k, v, gy, y, inv, base, unit, w, em1, eu, chunk, start, stop,
    ktop, kl1, kl2, klm, kr1, kr2, krm, gtop, gl1, gl2, glm, gr1, gr2, grm, gk, gv, gw, gu,
):  # fmt: skip
    """gk, gv per element; gw, gu per chunk. x marks sums of (p v, p), g the transposed sums of (gy, gy y) / den.

    The four running sums have an exponent each. The products that are formed (an x-sum from one side with a g-sum from
    the other) are sums of true weights, at most one each, so their exponents cancel. Other pairs are not formed.
    gw uses that (|t - i| - 1) counts the positions strictly between i and t: at each position the x-sum from one side
    meets the g-sum from the other. gk and gv may lie where inv and y do: a chunk is read before it is written.
    """
    T, C = k.shape[1], k.shape[2]
    per = (T + chunk - 1) // chunk
    p = np.empty((chunk, C), np.float32)
    sx1, sx2 = np.empty((chunk, C), np.float32), np.empty((chunk, C), np.float32)
    sg1, sg2 = np.empty((chunk, C), np.float32), np.empty((chunk, C), np.float32)
    weighed, outs = np.empty((chunk, C), np.float32), np.empty((chunk, C), np.float32)
    x1, x2, g1, g2 = np.empty(C, f32), np.empty(C, f32), np.empty(C, f32), np.empty(C, f32)
    px, pg = np.empty(C, f32), np.empty(C, f32)  # the chunk's own scale inside the running sum
    el, er, diag = np.empty(C, f32), np.empty(C, f32), np.empty(C, f32)
    wl, wr, ul = np.empty(C, f32), np.empty(C, f32), np.empty(C, f32)
    fl, fr = np.empty(C, f32), np.empty(C, f32)
    top = np.empty(C, f32)
    for item in range(start, stop):
        b, first = item // per, (item % per) * chunk
        length = min(chunk, T - first)
        for c in range(C):
            top[c] = f32(ktop[item, c])
            xl = max(ktop[item, c], klm[item, c])
            xr = max(ktop[item, c], krm[item, c])
            gl = max(gtop[item, c], glm[item, c])
            gr = max(gtop[item, c], grm[item, c])
            scale = math.exp(klm[item, c] - xl)
            x1[c] = f32(kl1[item, c] * scale)
            x2[c] = f32(kl2[item, c] * scale)
            scale = math.exp(glm[item, c] - gl)
            g1[c] = f32(gl1[item, c] * scale)
            g2[c] = f32(gl2[item, c] * scale)
            px[c] = f32(math.exp(ktop[item, c] - xl))
            pg[c] = f32(math.exp(gtop[item, c] - gl)) * unit[item, c]
            el[c] = f32(math.exp(ktop[item, c] + gl))
            er[c] = f32(math.exp(ktop[item, c] + gr))
            fl[c] = f32(math.exp(xl + gr - w[c]))
            fr[c] = f32(math.exp(xr + gl - w[c]))
            diag[c] = eu[c] * f32(math.exp(ktop[item, c] - base[item, c]))
            wl[c] = f32(0.0)
            wr[c] = f32(0.0)
            ul[c] = f32(0.0)
        for t in range(length):
            row, value, weight = k[b, first + t], v[b, first + t], p[t]
            g, out, d = gy[b, first + t], y[b, first + t], inv[b, first + t]
            o1, o2, q1, q2 = sx1[t], sx2[t], sg1[t], sg2[t]
            for c in range(C):
                e = _exp(row[c] - top[c])
                weight[c] = e
                o1[c] = x1[c]
                o2[c] = x2[c]
                x = e * px[c]
                x1[c] += x1[c] * em1[c] + x * value[c]
                x2[c] += x2[c] * em1[c] + x
            own, kept = weighed[t], outs[t]
            for c in range(C):
                q1[c] = g1[c]
                q2[c] = g2[c]
                own[c] = g[c] * d[c]
                kept[c] = out[c]
                q = own[c] * pg[c]
                g1[c] += g1[c] * em1[c] + q
                g2[c] += g2[c] * em1[c] + q * kept[c]
        for c in range(C):
            xr = max(ktop[item, c], krm[item, c])
            gr = max(gtop[item, c], grm[item, c])
            scale = math.exp(krm[item, c] - xr)
            x1[c] = f32(kr1[item, c] * scale)
            x2[c] = f32(kr2[item, c] * scale)
            scale = math.exp(grm[item, c] - gr)
            g1[c] = f32(gr1[item, c] * scale)
            g2[c] = f32(gr2[item, c] * scale)
            px[c] = f32(math.exp(ktop[item, c] - xr))
            pg[c] = f32(math.exp(gtop[item, c] - gr)) * unit[item, c]
        for t in range(length - 1, -1, -1):
            value, weight, own, out = v[b, first + t], p[t], weighed[t], outs[t]
            o1, o2, q1, q2 = sx1[t], sx2[t], sg1[t], sg2[t]
            ok, ov = gk[b, first + t], gv[b, first + t]
            for c in range(C):
                e = weight[c]
                wl[c] += o1[c] * g1[c] - o2[c] * g2[c]
                wr[c] += x1[c] * q1[c] - x2[c] * q2[c]
                s1 = e * (q1[c] * el[c] + g1[c] * er[c])
                s2 = e * (q2[c] * el[c] + g2[c] * er[c])
                direct = diag[c] * e * own[c]
                direct_k = direct * (value[c] - out[c])
                ul[c] += direct_k
                ov[c] = s1 + direct
                ok[c] = value[c] * s1 - s2 + direct_k
            for c in range(C):
                x = weight[c] * px[c]
                x1[c] += x1[c] * em1[c] + x * value[c]
                x2[c] += x2[c] * em1[c] + x
                q = own[c] * pg[c]
                g1[c] += g1[c] * em1[c] + q
                g2[c] += g2[c] * em1[c] + q * out[c]
        for c in range(C):
            gw[item, c] = -(wl[c] * fl[c] + wr[c] * fr[c])
            gu[item, c] = ul[c]


class _States:
    """Scratch of one scan: per chunk and channel the summaries, and what enters from either side."""

    def __init__(self, items: int, C: int):
        self.top = np.empty((items, C), np.float64)
        self.sums = [np.empty((items, C), np.float32) for _ in range(4)]
        empty = [np.empty((items, C), t) for t in (np.float32, np.float32, np.float64) * 2]
        self.entering = tuple(empty)  # l1, l2, lm, r1, r2, rm

    def chain(self, w: np.ndarray, chunk: int, T: int, per: int, batch: int) -> None:
        run_ranges(lambda i, j: _chain(w, chunk, T, per, i, j, self.top, *self.sums, *self.entering), batch)


def _prepare(w: torch.Tensor, u: torch.Tensor, k: torch.Tensor) -> tuple[Any, ...]:
    B, T, C = k.shape
    chunk = chunk_length(w, T)
    if chunk == 0 or not supports(w, u, T):
        raise ValueError(
            f"w, u: the compiled path needs max|w| * {_MIN_CHUNK} <= {RANGE} and max|u| <= {RANGE}, "
            f"got max|w| = {float(w.abs().max()):g}, max|u| = {float(u.abs().max()):g}"
        )
    per = -(-T // chunk)
    w64 = w.detach().double().numpy()
    em1 = np.expm1(-w64).astype(np.float32)
    eu = np.exp(u.detach().double().numpy()).astype(np.float32)
    least = max(1, 16384 // (chunk * C))  # below some ten thousand elements a thread costs more than it saves
    return B, T, C, chunk, per, w64, em1, eu, least


def _forward(w, u, k, v, keep: bool):  # type: ignore[no-untyped-def]
    B, T, C, chunk, per, w64, em1, eu, least = _prepare(w, u, k)
    kn, vn = k.detach().numpy(), v.detach().numpy()
    y = torch.empty_like(k)
    inv = np.empty(k.shape if keep else (1, 0, C), np.float32)
    base = np.empty((B * per if keep else 1, C), np.float32)
    x = _States(B * per, C)
    run_ranges(lambda i, j: _summaries(kn, vn, em1, chunk, i, j, x.top, *x.sums), B * per, least=least)
    x.chain(w64, chunk, T, per, B)
    run_ranges(
        lambda i, j: _apply(kn, vn, em1, eu, chunk, i, j, x.top, *x.entering, y.numpy(), inv, base),
        B * per,
        least=least,
    )
    return y, x, inv, base


def forward(w: torch.Tensor, u: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """y (B, T, C) float32 from w, u (C,) and k, v (B, T, C), all contiguous float32 on the CPU.

    Raises ``ValueError`` where ``supports(w, u, T)`` is false.
    """
    if k.numel() == 0:
        return torch.empty_like(k)
    if k.shape[1] == 1:
        return v.clone()  # one token: its weight cancels exactly, which rounding would not quite do
    return _forward(w, u, k, v, keep=False)[0]


def backward(
    w: torch.Tensor, u: torch.Tensor, k: torch.Tensor, v: torch.Tensor, gy: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(gw (C,), gu (C,), gk (B, T, C), gv (B, T, C)) float32; same inputs as ``forward`` and the gradient of y.

    The forward sums are recomputed. No work space of k's size: y and the reciprocal denominators live where gv and gk
    will be. Deterministic: per-chunk parts of gw and gu are added in a fixed order in float64.
    """
    if k.numel() == 0:
        return torch.zeros_like(w), torch.zeros_like(u), torch.empty_like(k), torch.empty_like(v)
    if k.shape[1] == 1:
        return torch.zeros_like(w), torch.zeros_like(u), torch.zeros_like(k), gy.clone()
    B, T, C, chunk, per, w64, em1, eu, least = _prepare(w, u, k)
    y, x, inv, base = _forward(w, u, k, v, keep=True)
    kn, vn, gn, yn = k.detach().numpy(), v.detach().numpy(), gy.detach().numpy(), y.numpy()
    unit = np.empty((B * per, C), np.float32)
    g = _States(B * per, C)
    run_ranges(
        lambda i, j: _gradient_summaries(gn, yn, inv, base, em1, chunk, i, j, g.top, unit, *g.sums),
        B * per,
        least=least,
    )
    g.chain(w64, chunk, T, per, B)
    gk, gv = torch.from_numpy(inv), y  # both are read for the last time where the gradients are written
    gw, gu = np.empty((B * per, C), np.float32), np.empty((B * per, C), np.float32)
    run_ranges(
        lambda i, j: _gradients(
            kn, vn, gn, yn, inv, base, unit, w64, em1, eu, chunk, i, j,
            x.top, *x.entering, g.top, *g.entering, gk.numpy(), gv.numpy(), gw, gu,
        ),
        B * per,
        least=least,
    )  # fmt: skip
    total_w, total_u = gw.sum(0, dtype=np.float64), gu.sum(0, dtype=np.float64)
    return torch.from_numpy(total_w.astype(np.float32)), torch.from_numpy(total_u.astype(np.float32)), gk, gv
