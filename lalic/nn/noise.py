"""Rounding with gradients; noise in its place, drawn so that it does not depend on how processes divide a batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Share(NamedTuple):
    """The part of a batch that one process has: its number from 0, and the number of parts."""

    number: int = 0
    parts: int = 1


ALL = Share()


def uniform_like(x: Tensor, share: Share = ALL) -> Tensor:
    """Uniform noise in [-0.5, 0.5) with the shape and dtype of x, which is one of ``share.parts`` parts of a batch.

    Each process draws noise for the whole batch and takes its part, so the same seed gives the same noise for any
    number of processes. The time for this is small beside a training step.
    """
    n = x.shape[0]
    noise = torch.empty((share.parts * n, *x.shape[1:]), dtype=x.dtype, device=x.device).uniform_(-0.5, 0.5)
    return noise[share.number * n :][:n]


def rounded(x: Tensor) -> Tensor:
    """x rounded, with the same values everywhere. Where gradients are on they pass unchanged (straight-through)."""
    nearest = torch.round(x)
    # The difference is exact, and so is its sum with x.
    return x + (nearest - x).detach() if torch.is_grad_enabled() else nearest
