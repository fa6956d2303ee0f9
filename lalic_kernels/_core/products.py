"""Sums of matrix products over stretches of tokens, for the gradients of matrices."""

from __future__ import annotations

import torch
from torch import Tensor


def add_product_(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a^T b for a (rows, m), b (rows, n); total may be of a wider dtype than they are."""
    if total.dtype == a.dtype:
        total.addmm_(a.t(), b)
    else:
        total += torch.mm(a.t(), b)
