"""Elementwise steps between matrix products, in place and in one pass: compiled for float32 on CPUs, else torch's."""

from __future__ import annotations

import importlib.util

from torch import Tensor

from lalic_kernels._core import residual as _residual


def available() -> bool:
    """Whether compiled code is there."""
    return importlib.util.find_spec("numba") is not None


def squared_relu_(x: Tensor) -> Tensor:
    """relu(x)^2, written over x."""
    x.relu_()
    return x.mul_(x)


def gated(mixed: Tensor, gate: Tensor, residual: Tensor | None, gamma: Tensor | None, out: Tensor) -> None:
    """out = sigmoid(gate) * mixed, or residual + gamma * that. All (rows, C); mixed and gate may be overwritten."""
    _residual.finish(mixed.mul_(gate.sigmoid_()), residual, gamma, out)
