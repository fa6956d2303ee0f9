"""One model, every quality: a factor for each latent channel before coding, and another after.

Source: Cui et al., "Asymmetric gained deep image compression with continuous rate adaptation", CVPR 2021. Latents times
`gain` are what is rounded and coded, so large gains mean fine steps; what was decoded, times `inverse`, goes to the
synthesis transform. Both are vectors, learned at a few anchors and interpolated in the log domain between them, so that
every quality in [1, 100] has its own. The hyper latents have no gains of their own: they see gained latents.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lalic.errors import QualityError

LOWEST, HIGHEST = 1.0, 100.0


class Gains(nn.Module):
    """Logs of gains and of inverse gains at anchors that lie evenly on the qualities from 1 to 100.

    Args:
        channels: latent channels M. anchors: how many, at least 2; the first is quality 1, the last quality 100.
    """

    def __init__(self, channels: int, anchors: int):
        super().__init__()
        self.log_gains = nn.Parameter(torch.zeros(anchors, channels))
        self.log_inverses = nn.Parameter(torch.zeros(anchors, channels))

    def gain(self, y: Tensor, quality: Tensor) -> Tensor:
        """y (B, M, h, w) as g_a gives it, quality (B,) -> what is coded, float32."""
        return self._scaled(y, self.log_gains, quality)

    def inverse(self, y_hat: Tensor, quality: Tensor) -> Tensor:
        """y_hat (B, M, h, w) as decoded, quality (B,) -> what g_s takes, float32."""
        return self._scaled(y_hat, self.log_inverses, quality)

    def start(self, step_ratios: Tensor) -> None:
        """Let gains be `step_ratios` (anchors,) and inverses one over that, in every channel alike."""
        with torch.no_grad():
            self.log_gains.copy_(step_ratios.log()[:, None].expand_as(self.log_gains))
            self.log_inverses.copy_(-self.log_gains)

    @staticmethod
    def _scaled(x: Tensor, logs: Tensor, quality: Tensor) -> Tensor:
        last = logs.shape[0] - 1
        place = (quality.to(logs, non_blocking=True) - LOWEST) * (last / (HIGHEST - LOWEST))
        below = place.floor().clamp(0, last - 1)
        along = (place - below)[:, None]
        index = below.long()
        factors = torch.lerp(logs[index], logs[index + 1], along).exp()
        # Gains and what they multiply are in float32 whatever autocast says: this is what is rounded to symbols.
        return x.to(torch.promote_types(x.dtype, factors.dtype)) * factors[:, :, None, None]


def anchor_qualities(anchors: int) -> Tensor:
    """The qualities that anchors stand for: (anchors,) from 1 to 100."""
    return torch.linspace(LOWEST, HIGHEST, anchors)


def checked_quality(quality: float) -> float:
    """The number itself. Raises ``QualityError`` beyond [1, 100]."""
    if not LOWEST <= quality <= HIGHEST:
        raise QualityError(f"quality is {quality:g}, expected {LOWEST:g} to {HIGHEST:g}")
    return quality


def as_qualities(quality: float | Sequence[float] | Tensor, batch: int) -> Tensor:
    """One number, or one a picture, as (batch,) float32: on the CPU, or where a given tensor is.

    Raises ``QualityError`` beyond [1, 100], ``ValueError`` for another count.
    """
    if not isinstance(quality, Tensor):
        numbers = [quality] if isinstance(quality, int | float) else list(quality)
        value = torch.from_numpy(np.array([checked_quality(number) for number in numbers], np.float32))
    else:
        value = quality.to(torch.float32)
        if not torch.compiler.is_compiling() and not bool(((value >= LOWEST) & (value <= HIGHEST)).all()):
            raise QualityError(f"quality is {value.tolist()}, expected {LOWEST:g} to {HIGHEST:g}")
    if value.ndim > 1 or value.numel() not in (1, batch):
        raise ValueError(f"quality: expected one number or {batch}, one a picture, got shape {tuple(value.shape)}")
    return value.expand(batch)
