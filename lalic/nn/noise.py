"""Noise that stands for rounding in training, drawn so that processes which share a batch share its noise."""

from __future__ import annotations

import torch
from torch import Tensor

Share = tuple[int, int]
"""Which part of a batch this process has: (its number from 0, how many there are)."""

ALL: Share = (0, 1)


def uniform_like(x: Tensor, share: Share = ALL) -> Tensor:
    """Uniform noise in [-0.5, 0.5) for x, which is one of ``share[1]`` equal parts of a batch.

    Each process draws for the whole batch and keeps its part: with the same seed, a batch sees the same noise in
    however many parts it is. Latents are a hundredth of the work, so the rest is no loss.
    """
    number, parts = share
    n = x.shape[0]
    noise = torch.empty((parts * n, *x.shape[1:]), dtype=x.dtype, device=x.device).uniform_(-0.5, 0.5)
    return noise[number * n : (number + 1) * n]
