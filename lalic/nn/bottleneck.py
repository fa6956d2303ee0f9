"""The factorised prior of the hyper latents (Balle et al., 2018), with the published model's parameter names."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lalic.nn.context import LowerBound, full_precision
from lalic.nn.noise import ALL, Share, uniform_like
from lalic_kernels.gaussian import lower_bound

_FILTERS = (1, 3, 3, 3, 3, 1)
_LIKELIHOOD_MIN = 1e-9
_INIT_SCALE = 10.0


class EntropyBottleneck(nn.Module):
    """A learned cumulative distribution function for each channel.

    Args:
        channels: C of the hyper latents.
        tail_mass: probability outside the outer two of the trained ``quantiles``, which end the coding tables.
    """

    _offset: Tensor
    _quantized_cdf: Tensor
    _cdf_length: Tensor
    target: Tensor

    def __init__(self, channels: int, tail_mass: float = 1e-9):
        super().__init__()
        self.channels = channels
        self.layers = len(_FILTERS) - 1
        scale = _INIT_SCALE ** (1 / self.layers)
        for i in range(self.layers):
            rows, columns = _FILTERS[i + 1], _FILTERS[i]
            start = math.log(math.expm1(1 / scale / rows))
            self.register_parameter(f"_matrix{i}", nn.Parameter(torch.full((channels, rows, columns), start)))
            self.register_parameter(f"_bias{i}", nn.Parameter(torch.rand(channels, rows, 1) - 0.5))
            if i < self.layers - 1:
                self.register_parameter(f"_factor{i}", nn.Parameter(torch.zeros(channels, rows, 1)))
        quantiles = torch.tensor([-_INIT_SCALE, 0.0, _INIT_SCALE])
        self.quantiles = nn.Parameter(quantiles.repeat(channels, 1, 1))
        for name in ("_offset", "_quantized_cdf", "_cdf_length"):
            self.register_buffer(name, torch.empty(0, dtype=torch.int32))
        edge = math.log(2 / tail_mass - 1)
        self.register_buffer("target", torch.tensor([-edge, 0.0, edge]))
        self.likelihood_lower_bound = LowerBound(_LIKELIHOOD_MIN)

    def logits_cumulative(self, x: Tensor, *, frozen: bool = False) -> Tensor:
        """Logits of the cumulative function at x (C, 1, n) -> (C, 1, n).

        frozen: detach the function's parameters, for the auxiliary loss, which trains ``quantiles`` only.
        """
        for i in range(self.layers):
            matrix, bias = getattr(self, f"_matrix{i}"), getattr(self, f"_bias{i}")
            if frozen:
                matrix, bias = matrix.detach(), bias.detach()
            x = torch.matmul(F.softplus(matrix), x) + bias
            if i < self.layers - 1:
                factor = getattr(self, f"_factor{i}")
                x = x + torch.tanh(factor.detach() if frozen else factor) * torch.tanh(x)
        return x

    def medians(self) -> Tensor:
        """Median of each channel's distribution, (C,), without gradient."""
        return self.quantiles[:, 0, 1].detach()

    def likelihood(self, z: Tensor) -> Tensor:
        """Probability of the unit interval around each value: z (B, C, h, w) -> same shape, at least 1e-9."""
        B, C, h, w = z.shape
        z = full_precision(z)
        flat = z.transpose(0, 1).reshape(C, 1, -1)
        # A probability is a difference of close numbers: autocast must not compute it in low precision.
        with torch.autocast(z.device.type, enabled=False):
            low, high = self.logits_cumulative(flat - 0.5), self.logits_cumulative(flat + 0.5)
        p = lower_bound(torch.sigmoid(high) - torch.sigmoid(low), _LIKELIHOOD_MIN)
        return p.reshape(C, B, h, w).transpose(0, 1)

    def auxiliary_loss(self) -> Tensor:
        """Distance of the cumulative function at the quantiles from the tail masses and one half, in logits; scalar."""
        return (self.logits_cumulative(self.quantiles, frozen=True) - self.target).abs().sum()

    def tables(self) -> list[Tensor]:
        """Integer coding tables (CDFs, their lengths, offsets), int32; empty before they are set."""
        return [self._quantized_cdf, self._cdf_length, self._offset]

    def set_tables(self, cdf: Tensor, length: Tensor, offset: Tensor) -> None:
        """Set the coding tables, int32, from `lalic.coder.tables.bottleneck_cdfs`; they go to the prior's device."""
        device = self.quantiles.device
        self._quantized_cdf, self._cdf_length, self._offset = cdf.to(device), length.to(device), offset.to(device)

    def forward(self, z: Tensor, share: Share = ALL) -> tuple[Tensor, Tensor]:
        """z (B, C, h, w) -> (z_hat, likelihoods). Training: noise for the rate, straight-through rounding for z_hat."""
        medians = self.medians().reshape(1, -1, 1, 1)
        rounded = torch.round(z - medians) + medians
        if not self.training:
            return rounded, self.likelihood(rounded)
        return z + (rounded - z).detach(), self.likelihood(z + uniform_like(z, share))
