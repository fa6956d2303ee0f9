"""One model, every quality: a factor for each latent channel before coding, and another after.

Source: Cui et al., "Asymmetric gained deep image compression with continuous rate adaptation", CVPR 2021. Latents are
multiplied by a gain before they are rounded and coded, so large gains mean fine steps; decoded latents are multiplied
by an inverse gain before the synthesis transform. Both are vectors (M,), learned at a few anchor qualities and
interpolated between them in the log domain, for every quality in [1, 100]. The hyper analysis takes gained latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lalic.errors import QualityError

LOWEST, HIGHEST = 1.0, 100.0


class Gains(nn.Module):
    """Logs of gains and of inverse gains, at anchors in even steps from quality 1 to quality 100.

    Args:
        channels: latent channels M. anchors: their number, at least 2.
    """

    def __init__(self, channels: int, anchors: int):
        super().__init__()
        self.log_gains = nn.Parameter(torch.zeros(anchors, channels))
        self.log_inverses = nn.Parameter(torch.zeros(anchors, channels))

    def gain(self, y: Tensor, quality: Tensor) -> Tensor:
        """Latents y (B, M, h, w) from g_a, quality (B,) -> gained latents, float32."""
        return self._scaled(y, self.log_gains, quality)

    def inverse(self, y_hat: Tensor, quality: Tensor) -> Tensor:
        """Decoded latents y_hat (B, M, h, w), quality (B,) -> input of g_s, float32."""
        return self._scaled(y_hat, self.log_inverses, quality)

    def start(self, step_ratios: Tensor) -> None:
        """Set the gains of all channels to `step_ratios` (anchors,), and the inverse gains to 1 / `step_ratios`."""
        with torch.no_grad():
            self.log_gains.copy_(step_ratios.log()[:, None].expand_as(self.log_gains))
            self.log_inverses.copy_(-self.log_gains)

    @staticmethod
    def _scaled(x: Tensor, logs: Tensor, quality: Tensor) -> Tensor:
        logs = logs.float() if logs.dtype.itemsize == 2 else logs
        last = logs.shape[0] - 1
        position = (quality.to(logs, non_blocking=True) - LOWEST) * (last / (HIGHEST - LOWEST))  # in anchors
        below = position.floor().clamp(0, last - 1)
        fraction = (position - below)[:, None]
        index = below.long()
        factors = torch.lerp(logs[index], logs[index + 1], fraction).exp()
        # Always in float32, also under autocast: the result is rounded to symbols.
        return x.to(torch.promote_types(x.dtype, factors.dtype)) * factors[:, :, None, None]


def anchor_qualities(anchors: int) -> Tensor:
    """Quality of each anchor: (anchors,) float32, from 1 to 100."""
    return torch.linspace(LOWEST, HIGHEST, anchors, dtype=torch.float32, device="cpu")


def as_number(quality: Any) -> float:
    """A quality as Python's float, from a number of Python, NumPy or torch. Raises `TypeError` for anything else."""
    try:
        if not isinstance(quality, str | bytes | bytearray):
            return float(quality)
    except (TypeError, ValueError, OverflowError):
        pass
    raise TypeError(f"quality is {str(quality)[:40]!r} of type {type(quality).__name__}, expected a number")


def as_qualities(quality: float | Sequence[float] | Tensor, batch: int) -> Tensor:
    """One number, or one for each picture, as (batch,) float32: on the CPU, or on the device of a given tensor.

    Raises ``QualityError`` for a number not in [1, 100], ``ValueError`` for another count.
    """
    if not isinstance(quality, Tensor):
        numbers = [as_number(value) for value in (quality if isinstance(quality, list | tuple) else [quality])]
        for number in numbers:
            if not LOWEST <= number <= HIGHEST:
                raise QualityError(f"quality is {number:g}, expected {LOWEST:g} to {HIGHEST:g}")
        value = torch.from_numpy(np.array(numbers, np.float32))
    else:
        value = quality.to(torch.float32)
        if not torch.compiler.is_compiling() and not bool(((value >= LOWEST) & (value <= HIGHEST)).all()):
            raise QualityError(f"quality is {value.tolist()}, expected {LOWEST:g} to {HIGHEST:g}")
    if value.ndim > 1 or value.numel() not in (1, batch):
        raise ValueError(f"quality: expected one number or {batch}, one a picture, got shape {tuple(value.shape)}")
    return value.expand(batch)
