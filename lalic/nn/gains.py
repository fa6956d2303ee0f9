"""One model, every quality: a factor for each latent channel before coding, and another after.

Source: Cui et al., "Asymmetric gained deep image compression with continuous rate adaptation", CVPR 2021. Latents times
`gain` are what is rounded and coded, so large gains mean fine steps; what was decoded, times `inverse`, goes to the
synthesis transform. Both are vectors, learned at a few anchors and interpolated in the log domain between them, so that
every quality in [1, 100] has its own. The hyper latents have no gains of their own: they see gained latents.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

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
        place = (quality.to(logs) - LOWEST) * (last / (HIGHEST - LOWEST))
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
    """The number itself. Raises ``ValueError`` beyond [1, 100]."""
    if not LOWEST <= quality <= HIGHEST:
        raise ValueError(f"quality: expected {LOWEST:g} to {HIGHEST:g}, got {quality}")
    return quality


def as_qualities(quality: float | Tensor, batch: int, device: torch.device) -> Tensor:
    """One number, or one a picture, as (batch,) float32. Raises ``ValueError`` for another count or beyond [1, 100]."""
    if not isinstance(quality, Tensor):  # looked at before it is on the device, for which one would have to wait
        return torch.full((batch,), checked_quality(quality), dtype=torch.float32, device=device)
    value = quality.to(device, torch.float32)
    if value.ndim > 1 or value.numel() not in (1, batch):
        raise ValueError(f"quality: expected one number or {batch}, one a picture, got shape {tuple(value.shape)}")
    if not torch.compiler.is_compiling() and not bool(((value >= LOWEST) & (value <= HIGHEST)).all()):
        raise ValueError(f"quality: expected {LOWEST:g} to {HIGHEST:g}, got {value.tolist()}")
    return value.expand(batch)
