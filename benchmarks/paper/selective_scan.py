"""Selective scan (Mamba, Gu and Dao 2023): mamba-ssm's kernel, compiled loops, or chunks in plain torch.

    h_t = exp(delta_t A) h_(t-1) + delta_t u_t B_t        h_t (D, N), h_0 = 0
    y_t = <C_t, h_t> + skip u_t

u, delta (L, D), delta positive; A (D, N), negative; B, C (L, N); skip (D,). Causal. `implementation` says what runs.
"""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from lalic_kernels.numba_math import OPTIONS, exp
from lalic_kernels.threads import run_ranges


def implementation(device: torch.device, dtype: torch.dtype) -> str:
    """ "mamba-ssm" on CUDA where it is installed, "compiled" for float32 on CPUs, otherwise "chunked"."""
    if device.type == "cuda" and dtype != torch.float64 and importlib.util.find_spec("mamba_ssm"):
        return "mamba-ssm"
    if device.type == "cpu" and dtype == torch.float32:
        return "compiled"
    return "chunked"


def selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, skip: Tensor) -> Tensor:
    """y (L, D) as above, by `implementation`. An installed mamba-ssm that does not import raises its own error."""
    chosen = implementation(u.device, u.dtype)
    if chosen == "chunked":
        return chunked(u, delta, A, B, C, skip)
    return torch.ops.lalic_benchmarks.selective_scan(u, delta, A, B, C, skip, chosen)


def recurrence(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, skip: Tensor) -> Tensor:
    """The recurrence of Mamba (Gu and Dao, 2023), algorithm 2: u, delta (L, D), A (D, N), B, C (L, N), skip (D,)."""
    h, y = torch.zeros_like(A), torch.empty_like(u)
    for t in range(len(u)):
        h = torch.exp(delta[t][:, None] * A) * h + delta[t][:, None] * B[t][None, :] * u[t][:, None]
        y[t] = h @ C[t] + skip * u[t]
    return y


def chunked(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, skip: Tensor, chunk: int | None = None
) -> Tensor:
    """The same in plain torch, any floating dtype: about sqrt(L) steps on about sqrt(L) chunks at once.

    First every chunk's last state as if it began with nothing; then, chunk after chunk, the states that really enter,
    for what a chunk does to an older state is a factor exp(A sum delta); then every chunk again from there. Nothing
    is divided, so nothing overflows. Works on 3 (L / chunk, D, N) numbers besides the result.
    """
    length, channels = u.shape
    chunk = max(1, math.isqrt(length)) if chunk is None else chunk
    count = -(-length // chunk)
    missing = count * chunk - length

    def cut(x: Tensor) -> Tensor:
        """(L, n) -> (chunk, count, n), zeros behind the end: steps of length zero, which change no state."""
        padded = torch.nn.functional.pad(x, (0, 0, 0, missing)) if missing else x
        return padded.view(count, chunk, -1).transpose(0, 1)

    us, deltas, Bs, Cs = cut(u), cut(delta), cut(B), cut(C)

    def advance(h: Tensor, t: int) -> Tensor:
        entering = (deltas[t] * us[t])[..., None] * Bs[t][:, None, :]
        return torch.exp(deltas[t][..., None] * A).mul_(h).add_(entering)

    h = u.new_zeros(count, channels, A.shape[1])
    for t in range(chunk):
        h = advance(h, t)
    entering, factors = torch.zeros_like(h), torch.exp(deltas.sum(0)[..., None] * A)
    for j in range(1, count):
        entering[j] = factors[j - 1] * entering[j - 1] + h[j - 1]
    y, h = torch.empty(count, chunk, channels, dtype=u.dtype, device=u.device), entering
    for t in range(chunk):
        h = advance(h, t)
        y[:, t] = torch.matmul(h, Cs[t][..., None])[..., 0]
    return y.view(-1, channels)[:length].addcmul_(u, skip)


# The recurrence compiled by numba, channels side by side

WIDTH = 32  # channels of a work item: their states stay in the first cache


@njit(**OPTIONS)
def _factors(step, rates, out):
    """out (N, WIDTH) = exp(step rates). The loops of all that follows are of fixed length, so that they vectorise."""
    for n in range(rates.shape[0]):
        rate, target = rates[n], out[n]
        for c in range(WIDTH):
            target[c] = exp(step[c] * rate[c])


@njit(**OPTIONS)
def _advance(h, factors, entering, b, weights, total):
    """h = factors h + b entering, total += <weights, h>; h, factors (N, WIDTH), b, weights (N,), the rest (WIDTH,)."""
    for n in range(h.shape[0]):
        own, factor, into, weight = h[n], factors[n], b[n], weights[n]
        for c in range(WIDTH):
            value = factor[c] * own[c] + into * entering[c]
            own[c] = value
            total[c] += weight * value


@njit(**OPTIONS)
def _loops(u, delta, A, B, C, skip, y, start, stop):
    """Work items start .. stop - 1. u, delta, y (L, D); A (N, D), transposed; B, C (L, N); skip (D,); float32."""
    length, channels = u.shape
    states = A.shape[0]
    h, rates, factors = (
        np.empty((states, WIDTH), np.float32),
        np.zeros((states, WIDTH), np.float32),
        np.empty((states, WIDTH), np.float32),
    )
    step, entering, total = np.zeros(WIDTH, np.float32), np.zeros(WIDTH, np.float32), np.zeros(WIDTH, np.float32)
    for item in range(start, stop):
        first = item * WIDTH
        width = min(WIDTH, channels - first)
        rates[:, :width] = A[:, first : first + width]
        h[:] = np.float32(0.0)
        for t in range(length):
            row, moment, target = u[t], delta[t], y[t]
            for c in range(width):
                step[c] = moment[first + c]
                entering[c] = moment[first + c] * row[first + c]
                total[c] = skip[first + c] * row[first + c]
            _factors(step, rates, factors)
            _advance(h, factors, entering, B[t], C[t], total)
            for c in range(width):
                target[first + c] = total[c]


def _whole(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, skip: Tensor, chosen: str) -> Tensor:
    if chosen == "mamba-ssm":
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        rows = (x.T[None].contiguous() for x in (u, delta, B, C))  # (1, D, L) and (1, N, L), as it wants them
        u_, delta_, B_, C_ = rows
        return selective_scan_fn(u_, delta_, A.float(), B_, C_, skip.float())[0].T.contiguous()
    y = torch.empty_like(u)
    transposed = A.T.contiguous()
    arrays = [x.detach().contiguous().numpy() for x in (u, delta, transposed, B, C, skip)]
    items = -(-u.shape[1] // WIDTH)
    run_ranges(lambda start, stop: _loops(*arrays, y.numpy(), start, stop), items)
    return y


torch.library.custom_op(
    "lalic_benchmarks::selective_scan",
    _whole,
    mutates_args=(),
    schema="(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor skip, str chosen) -> Tensor",
).register_fake(lambda u, *_: torch.empty_like(u))


@register_flop_formula(torch.ops.lalic_benchmarks.selective_scan)
def _operations(u: tuple[int, ...], delta: tuple[int, ...], A: tuple[int, ...], *_: object, **__: object) -> int:
    """A state: delta A, exponential, times h, B times delta u, sum, C h, sum. A channel: delta u, skip u.

    To the operation what the compiled loops do. mamba-ssm's parallel scan does more, which is not seen.
    """
    return u[0] * u[1] * (7 * A[1] + 2)
