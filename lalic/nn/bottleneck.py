"""The factorised prior of the hyper latents (Balle et al., 2018), with the published model's parameter names."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lalic.nn.context import LowerBound, full_precision
from lalic.nn.noise import ALL, Share, rounded, uniform_like
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
            matrix, bias = matrix.to(x.dtype), bias.to(x.dtype)  # a model in 16 bits computes probabilities in float32
            if frozen:
                matrix, bias = matrix.detach(), bias.detach()
            x = torch.matmul(F.softplus(matrix), x) + bias
            if i < self.layers - 1:
                factor = getattr(self, f"_factor{i}").to(x.dtype)
                x = x + torch.tanh(factor.detach() if frozen else factor) * torch.tanh(x)
        return x

    @torch.no_grad()
    def search_quantiles(self, radius: float = 1e5) -> None:
        """Set the quantiles to where the cumulative function has the tail masses and one half, within +-radius.

        By bisection, to a float's last bits: what the auxiliary loss trains them to in many steps.
        """
        edges = full_precision(self.target).expand_as(self.quantiles)
        low, high = torch.full_like(edges, -radius), torch.full_like(edges, radius)
        for _ in range(60):
            middle = (low + high) / 2
            below = self.logits_cumulative(middle) < edges
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        self.quantiles.copy_((low + high) / 2)

    def medians(self) -> Tensor:
        """Median of each channel's distribution, (C,), at least float32, without gradient."""
        return full_precision(self.quantiles[:, 0, 1].detach())

    def likelihood(self, z: Tensor) -> Tensor:
        """Probability of the unit interval around each value: z (B, C, ...) -> same shape, at least 1e-9."""
        self._check(z)
        z = full_precision(z).transpose(0, 1)
        flat = z.reshape(self.channels, 1, -1)
        # A probability is a difference of close numbers: autocast must not compute it in low precision.
        with torch.autocast(z.device.type, enabled=False):
            low, high = self.logits_cumulative(flat - 0.5), self.logits_cumulative(flat + 0.5)
        p = lower_bound(torch.sigmoid(high) - torch.sigmoid(low), _LIKELIHOOD_MIN)
        return p.reshape(z.shape).transpose(0, 1)

    def _check(self, z: Tensor) -> None:
        if z.ndim < 2 or z.shape[1] != self.channels:
            raise ValueError(f"z: expected shape (B, {self.channels}, ...), got {tuple(z.shape)}")

    def auxiliary_loss(self) -> Tensor:
        """Distance of the cumulative function at the quantiles from the tail masses and one half, in logits; scalar."""
        return (self.logits_cumulative(full_precision(self.quantiles), frozen=True) - self.target).abs().sum()

    def tables(self) -> list[Tensor]:
        """Integer coding tables (CDFs, their lengths, offsets), int32; empty before they are set."""
        return [self._quantized_cdf, self._cdf_length, self._offset]

    def set_tables(self, cdf: Tensor, length: Tensor, offset: Tensor) -> None:
        """Set the coding tables, int32, from `lalic.coder.tables.bottleneck_cdfs`; they go to the prior's device."""
        device = self.quantiles.device
        self._quantized_cdf, self._cdf_length, self._offset = cdf.to(device), length.to(device), offset.to(device)

    def forward(self, z: Tensor, share: Share = ALL) -> tuple[Tensor, Tensor]:
        """z (B, C, ...) -> (z_hat, likelihoods).

        Where gradients are on, they pass the rounding of z_hat. Likelihoods are those of rounded values; in training,
        of values with noise. Raises ``ValueError`` for another number of channels.
        """
        self._check(z)
        medians = self.medians().reshape(1, -1, *[1] * (z.ndim - 2))
        z_hat = rounded(z - medians) + medians
        return z_hat, self.likelihood(z + uniform_like(z, share) if self.training else z_hat.detach())
