"""What each mechanism computes, written as its paper writes it: slow, obvious, any floating dtype. For small inputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def aft_simple(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """AFT-simple (Zhai et al., 2021), equation 5: sigmoid(q_t) * sum_i exp(k_i) v_i / sum_i exp(k_i). All (L, D)."""
    weights = torch.exp(k) / torch.exp(k).sum(0)
    return torch.stack([torch.sigmoid(q[t]) * sum(weights[i] * v[i] for i in range(len(k))) for t in range(len(q))])


def shift(x: Tensor, weight: Tensor, grid: tuple[int, int]) -> Tensor:
    """Depth-wise correlation of tokens on a grid (H, W), row by row. x (L, D), weight (D, 5, 5), zero outside."""
    height, width = grid
    y = torch.zeros_like(x)
    for t in range(len(x)):
        row, column = divmod(t, width)
        for a in range(5):
            for b in range(5):
                i, j = row + a - 2, column + b - 2
                if 0 <= i < height and 0 <= j < width:
                    y[t] += weight[:, a, b] * x[i * width + j]
    return y


def window_attention(q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int], window: int, head: int) -> Tensor:
    """Attention over all tokens with -inf outside the query's own window (Swin, Liu et al. 2021, no bias, no shift).

    q, k, v (L, D), D heads of `head` channels side by side; windows of window x window on the grid (H, W).
    """
    place = torch.arange(len(q))
    row, column = place // grid[1], place % grid[1]
    own = (row // window) * grid[1] + column // window
    outside = own[:, None] != own[None, :]
    parts = []
    for one in range(0, q.shape[1], head):
        part = slice(one, one + head)
        scores = (q[:, part] @ k[:, part].T / math.sqrt(head)).masked_fill(outside, -math.inf)
        parts.append(torch.softmax(scores, 1) @ v[:, part])
    return torch.cat(parts, 1)


def selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, skip: Tensor) -> Tensor:
    """The recurrence of Mamba (Gu and Dao, 2023), algorithm 2: u, delta (L, D), A (D, N), B, C (L, N), skip (D,)."""
    h, y = torch.zeros_like(A), torch.empty_like(u)
    for t in range(len(u)):
        h = torch.exp(delta[t][:, None] * A) * h + delta[t][:, None] * B[t][None, :] * u[t][:, None]
        y[t] = h @ C[t] + skip * u[t]
    return y


def paths(grid: tuple[int, int]) -> list[list[int]]:
    """The four orders of SS2D (VMamba, Liu et al. 2024): by rows, by columns, and both backwards."""
    height, width = grid
    rows = [i * width + j for i in range(height) for j in range(width)]
    columns = [i * width + j for j in range(width) for i in range(height)]
    return [rows, columns, rows[::-1], columns[::-1]]


def selective_scan_2d(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, skip: Tensor, grid: tuple[int, int]
) -> Tensor:
    """The sum of four scans along `paths`. u (L, D) by rows; the rest (4, ...), each in its path's order."""
    y = torch.zeros_like(u)
    for number, path in enumerate(paths(grid)):
        y[path] += selective_scan(u[path], delta[number], A[number], B[number], C[number], skip[number])
    return y
