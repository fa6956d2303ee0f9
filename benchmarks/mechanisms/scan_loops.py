"""The selective scan compiled by numba: the recurrence as it stands, channels side by side."""

from __future__ import annotations

import numpy as np
from numba import njit

from lalic_kernels.numba_math import OPTIONS
from lalic_kernels.numba_math import exp as _exp

WIDTH = 32  # channels of a work item: their states stay in the first cache


@njit(**OPTIONS)
def _factors(step, rates, out):
    """out (N, WIDTH) = exp(step rates). The loops of all that follows are of fixed length, so that they vectorise."""
    for n in range(rates.shape[0]):
        rate, target = rates[n], out[n]
        for c in range(WIDTH):
            target[c] = _exp(step[c] * rate[c])


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
def scan(u, delta, A, B, C, skip, y, start, stop):
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
