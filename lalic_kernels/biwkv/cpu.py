"""Bidirectional WKV for CPUs: compiled with numba, linear in T, forward and backward, computed in float32.

The sequence is cut into chunks. Inside a chunk the weights ``exp(-w * distance)`` stay within ``exp(+-RANGE)``, so one
exponential per element against a per-chunk, per-channel maximum serves both directions, numerator and denominator.
Between chunks the running sums are (float64 mantissa, float64 exponent), because a float32 decay factor applied
a thousand times over would drift. The chain over chunks is short; the two passes over the elements run on all threads.

Every intermediate stays in range when ``max|w| * chunk <= RANGE`` and ``max|u| <= RANGE``, whatever k is; ``supports``
tells. Outside, ``lalic_kernels.biwkv`` takes the log-space torch path (see README.md in this folder).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lalic_kernels import installed
from lalic_kernels.threads import flat_array, run_ranges

if installed.NUMBA:
    from lalic_kernels.biwkv import cpu_loops as loops

RANGE = 20.0
CHUNK = 64
_MIN_CHUNK = 4


def chunk_length(w: Tensor, T: int) -> int:
    """Longest usable chunk for decays ``w`` (C,): 64, less where ``max|w| * 64`` leaves the range, 0 if none."""
    largest = float(w.abs().max()) if w.numel() else 0.0
    length = min(CHUNK, T)
    if largest * length > RANGE:
        length = int(RANGE / largest) if math.isfinite(largest) else 0
        if length < _MIN_CHUNK:
            return 0
    return length


def supports(w: Tensor, u: Tensor, T: int) -> bool:
    """Whether the fast form stays in range for these parameters; depends on w, u and T only, never on k or v."""
    in_range = u.numel() == 0 or float(u.abs().max()) <= RANGE  # False for NaN and infinity as well
    return in_range and (T == 0 or chunk_length(w, T) > 0)


class _States:
    """Scratch of one scan: per chunk and channel the summaries, and what enters from either side."""

    def __init__(self, items: int, width: int):
        self.top = np.empty((items, width), np.float64)
        self.sums = [np.empty((items, width), np.float32) for _ in range(4)]
        empty = [np.empty((items, width), t) for t in (np.float32, np.float32, np.float64) * 2]
        self.entering = tuple(empty)  # l1, l2, lm, r1, r2, rm

    def chain(self, w: np.ndarray, chunk: int, T: int, per: int, batch: int) -> None:
        run_ranges(lambda i, j: loops.chain(w, chunk, T, per, i, j, self.top, *self.sums, *self.entering), batch)


class _Call:
    """Sizes and factors of one call, and its first pass over the elements.

    Arrays over channels have whole blocks of 16 channels, `width`; behind the last channel w, u, k and v count as 0.
    """

    def __init__(self, w: Tensor, u: Tensor, k: Tensor, v: Tensor):
        self.B, self.T, self.C = k.shape
        self.chunk = chunk_length(w, self.T)
        if self.chunk == 0 or not supports(w, u, self.T):
            raise ValueError(
                f"w, u: the compiled path needs max|w| * {_MIN_CHUNK} <= {RANGE} and max|u| <= {RANGE}, "
                f"got max|w| = {float(w.abs().max()):g}, max|u| = {float(u.abs().max()):g}"
            )
        self.k, self.v = flat_array(k), flat_array(v)
        self.per = -(-self.T // self.chunk)
        self.items = self.B * self.per
        self.width = -(-self.C // loops.LANES) * loops.LANES
        self.w, bonus = np.zeros(self.width), np.zeros(self.width)
        self.w[: self.C], bonus[: self.C] = w.detach().double().numpy(), u.detach().double().numpy()
        self.em1, self.eu = np.expm1(-self.w).astype(np.float32), np.exp(bonus).astype(np.float32)
        self.sizes = self.T, self.C, self.chunk

    def over_chunks(self, kernel: Any) -> None:
        """kernel(start, stop) over all chunks; below some ten thousand elements a thread costs more than it saves."""
        run_ranges(kernel, self.items, least=max(1, 16384 // (self.chunk * self.C)))

    def summaries(self, own: np.ndarray | None) -> _States:
        x = _States(self.items, self.width)
        self.over_chunks(lambda i, j: loops.summaries(self.k, self.v, self.em1, *self.sizes, i, j, x.top, *x.sums, own))
        return x


def forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, gate: Tensor | None = None) -> Tensor:
    """y (B, T, C) from w, u (C,) float32 and k, v (B, T, C), all contiguous on the CPU, k, v and y of one dtype.

    That is float32 or bfloat16, which is widened where it is read and rounded once. With `gate`, as k, the result is
    sigmoid(gate) * y. Raises ``ValueError`` where ``supports(w, u, T)`` is false.
    """
    if k.numel() == 0:
        return torch.empty_like(k)
    if k.shape[1] == 1:  # one token: its weight cancels exactly, which rounding would not quite do
        return v.clone() if gate is None else torch.sigmoid(gate) * v
    call = _Call(w, u, k, v)
    y = torch.empty_like(k)
    x = call.summaries(None)
    x.chain(call.w, call.chunk, call.T, call.per, call.B)
    result, receptance = flat_array(y), None if gate is None else flat_array(gate)
    call.over_chunks(
        lambda i, j: loops.apply(
            call.k, call.v, receptance, call.em1, call.eu, *call.sizes, i, j, x.top, *x.entering, result
        )
    )
    return y


def backward(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, gy: Tensor, gate: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """(gw, gu (C,) float32, gk, gv, ggate (B, T, C) in k's dtype); ``forward``'s inputs and the gradient of its result.

    k, v, gy and gate are all float32 or all bfloat16. Arithmetic is float32; bfloat16 is widened where it is read and
    rounded once, where a gradient is written. The forward sums are recomputed. Work space of k's shape: y and
    gy / denominator in float32, which for float32 live where gv and gk will be. Deterministic: parts of gw and gu per
    chunk are added in a fixed order in float64. ``ggate`` is None without a gate.
    """
    if k.numel() == 0:
        empty = torch.zeros_like(w), torch.zeros_like(u), torch.zeros_like(k), torch.zeros_like(v)
        return *empty, None if gate is None else torch.zeros_like(gate)
    if k.shape[1] == 1:
        zeros = torch.zeros_like(w), torch.zeros_like(u), torch.zeros_like(k)
        if gate is None:
            return *zeros, gy.clone(), None
        s = torch.sigmoid(gate.float())  # what meets it is float32 as well
        return *zeros, (gy * s).to(v.dtype), (gy.float() * v * s * (1 - s)).to(gate.dtype)
    call = _Call(w, u, k, v)
    B, T, C, chunk, per, shape = call.B, call.T, call.C, call.chunk, call.per, (call.items, call.width)
    own, centre = np.empty(shape, np.float32), np.empty((B, call.width), np.float32)
    x = call.summaries(own)
    run_ranges(lambda i, j: loops.recentre(call.w, chunk, per, i, j, x.top, *x.sums, own, centre), B)
    x.chain(call.w, chunk, T, per, B)
    gv, gk, ggate = torch.empty_like(v), torch.empty_like(k), None if gate is None else torch.empty_like(gate)
    of_k, of_v, upstream = flat_array(gk), flat_array(gv), flat_array(gy)
    if k.dtype == torch.float32:  # y and q are read for the last time where the gradients of v and k are written
        y, q = of_v, of_k
    else:
        y, q = np.empty(k.numel(), np.float32), np.empty(k.numel(), np.float32)
    receptance, of_gate = (None if a is None else flat_array(a) for a in (gate, ggate))
    base, unit, g = np.empty(shape, np.float32), np.empty(shape, np.float32), _States(*shape)
    call.over_chunks(
        lambda i, j: loops.gradient_summaries(
            call.k, call.v, receptance, upstream, call.em1, call.eu, *call.sizes, i, j,
            x.top, *x.entering, centre, y, q, of_gate, base, g.top, unit, *g.sums,
        )
    )  # fmt: skip
    g.chain(call.w, chunk, T, per, B)
    gw, gu = np.empty(shape, np.float32), np.empty(shape, np.float32)
    call.over_chunks(
        lambda i, j: loops.gradients(
            call.k, call.v, y, q, base, unit, centre, call.w, call.em1, call.eu, *call.sizes, i, j,
            x.top, *x.entering, g.top, *g.entering, of_k, of_v, gw, gu,
        )
    )  # fmt: skip
    total_w, total_u = (torch.from_numpy(part.sum(0, dtype=np.float64)[:C].astype(np.float32)) for part in (gw, gu))
    return total_w, total_u, gk, gv, ggate
