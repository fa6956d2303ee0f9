"""BiWKV for CPUs: compiled by numba, linear in T, forward and backward, in float32.

The sequence is cut into chunks. Inside a chunk the weights exp(-w * distance) stay within exp(+-RANGE), so one
exponential per element, relative to the maximum of its chunk and channel, is enough for both directions, numerator and
denominator. Between chunks the running sums have a float64 mantissa and exponent, because a float32 decay factor
applied a thousand times would drift. The loop over chunks is short; the passes over elements run on all threads.

For any k, every intermediate result stays in range if max|w| * chunk <= RANGE and max|u| <= RANGE (`supports`).
Otherwise `lalic_kernels.biwkv` takes the torch path.
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
    """The longest possible chunk for decays w (C,): 64 tokens, fewer if max|w| * 64 > RANGE, 0 if none is possible."""
    largest = float(w.abs().max()) if w.numel() else 0.0
    length = min(CHUNK, T)
    if largest * length > RANGE:
        length = int(RANGE / largest) if math.isfinite(largest) else 0
        if length < _MIN_CHUNK:
            return 0
    return length


def supports(w: Tensor, u: Tensor, T: int) -> bool:
    """Whether the compiled code stays in range for these w (C,), u (C,) and T, for any k and v."""
    in_range = u.numel() == 0 or float(u.abs().max()) <= RANGE  # also False for NaN and infinity
    return in_range and (T == 0 or chunk_length(w, T) > 0)


class _States:
    """Work space of one scan: for each chunk and channel its sums with their exponent, and the sums that enter it."""

    def __init__(self, items: int, width: int):
        self.exponent = np.empty((items, width), np.float64)
        self.sums = [np.empty((items, width), np.float32) for _ in range(4)]
        arrays = [np.empty((items, width), t) for t in (np.float32, np.float32, np.float64) * 2]
        self.entering = tuple(arrays)  # l1, l2, lm, r1, r2, rm

    def chain(self, w: np.ndarray, chunk: int, T: int, per: int, batch: int) -> None:
        run_ranges(lambda i, j: loops.chain(w, chunk, T, per, i, j, self.exponent, *self.sums, *self.entering), batch)


class _Call:
    """Sizes and factors of one call, and its first pass over the elements.

    Arrays over channels are padded to `width`, a multiple of 16; after the last channel w, u, k and v are 0.
    """

    def __init__(self, w: Tensor, u: Tensor, k: Tensor, v: Tensor):
        self.B, self.T, self.C = k.shape
        self.chunk = chunk_length(w, self.T)
        if self.chunk == 0 or not supports(w, u, self.T):
            raise ValueError(
                f"w, u: the compiled path needs max|w| * {_MIN_CHUNK} <= {RANGE} and max|u| <= {RANGE}, "
                f"but max|w| = {float(w.abs().max()):g} and max|u| = {float(u.abs().max()):g}"
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
        """Call kernel(start, stop) for ranges that cover all chunks, each of at least 16384 elements."""
        run_ranges(kernel, self.items, least=max(1, 16384 // (self.chunk * self.C)))

    def summaries(self, peak_v: np.ndarray | None) -> _States:
        x = _States(self.items, self.width)
        self.over_chunks(
            lambda i, j: loops.summaries(self.k, self.v, self.em1, *self.sizes, i, j, x.exponent, *x.sums, peak_v)
        )
        return x


def forward(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, gate: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """y (B, T, C) from w, u (C,) float32 and k, v (B, T, C), all contiguous on the CPU; with gate, sigmoid(gate) * y.

    k, v, gate and y have one dtype, float32 or bfloat16. bfloat16 is computed in float32 and rounded once. `out` is
    memory for y; it may be the gate, each element of which is read before y's is written.

    Raises:
        ValueError: w or u is out of range (`supports`).
    """
    if k.numel() == 0:
        return torch.empty_like(k)
    if k.shape[1] == 1:  # one token: its weight cancels exactly
        return v.clone() if gate is None else torch.sigmoid(gate) * v
    call = _Call(w, u, k, v)
    y = torch.empty_like(k) if out is None else out
    x = call.summaries(None)
    x.chain(call.w, call.chunk, call.T, call.per, call.B)
    result, receptance = flat_array(y), None if gate is None else flat_array(gate)
    call.over_chunks(
        lambda i, j: loops.apply(
            call.k, call.v, receptance, call.em1, call.eu, *call.sizes, i, j, x.exponent, *x.entering, result
        )
    )
    return y


def backward(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, gy: Tensor, gate: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """(gw, gu (C,) float32, gk, gv, ggate (B, T, C) in k's dtype or None) from `forward`'s inputs and gy (B, T, C).

    k, v, gy and gate are all float32 or all bfloat16, not empty, of two tokens or more. Arithmetic is float32; bfloat16
    gradients are rounded once. The forward sums are recomputed. Work space of k's shape: y and gy / denominator in
    float32; for float32 they use the memory of gv and gk. Deterministic: the chunks' parts of gw and gu are added in a
    fixed order in float64.
    """
    call = _Call(w, u, k, v)
    B, T, C, chunk, per, shape = call.B, call.T, call.C, call.chunk, call.per, (call.items, call.width)
    peak_v, centre = np.empty(shape, np.float32), np.empty((B, call.width), np.float32)
    x = call.summaries(peak_v)
    run_ranges(lambda i, j: loops.recentre(call.w, chunk, per, i, j, x.exponent, *x.sums, peak_v, centre), B)
    x.chain(call.w, chunk, T, per, B)
    gv, gk, ggate = torch.empty_like(v), torch.empty_like(k), None if gate is None else torch.empty_like(gate)
    flat_gk, flat_gv, upstream = flat_array(gk), flat_array(gv), flat_array(gy)
    if k.dtype == torch.float32:  # y and q may be overwritten when the gradients of v and k are written
        y, q = flat_gv, flat_gk
    else:
        y, q = np.empty(k.numel(), np.float32), np.empty(k.numel(), np.float32)
    receptance, flat_ggate = (None if a is None else flat_array(a) for a in (gate, ggate))
    base, unit, g = np.empty(shape, np.float32), np.empty(shape, np.float32), _States(*shape)
    call.over_chunks(
        lambda i, j: loops.gradient_summaries(
            call.k, call.v, receptance, upstream, call.em1, call.eu, *call.sizes, i, j,
            x.exponent, *x.entering, centre, y, q, flat_ggate, base, g.exponent, unit, *g.sums,
        )
    )  # fmt: skip
    g.chain(call.w, chunk, T, per, B)
    gw, gu = np.empty(shape, np.float32), np.empty(shape, np.float32)
    call.over_chunks(
        lambda i, j: loops.gradients(
            call.k, call.v, y, q, base, unit, centre, call.w, call.em1, call.eu, *call.sizes, i, j,
            x.exponent, *x.entering, g.exponent, *g.entering, flat_gk, flat_gv, gw, gu,
        )
    )  # fmt: skip
    total_w, total_u = (torch.from_numpy(part.sum(0, dtype=np.float64)[:C].astype(np.float32)) for part in (gw, gu))
    return total_w, total_u, gk, gv, ggate
