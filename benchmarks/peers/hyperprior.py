"""A yardstick that ships: networks with the layer shapes of the mean-scale hyperprior (Minnen et al., 2018).

Written from the paper's table of layers, with N = 192 and M = 320 channels, in plain torch, random weights. Networks
only: no entropy model, no coder, no clamping. What a real codec of these shapes needs is therefore more.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GDN(nn.Module):
    """Generalised divisive normalisation (Balle et al., 2016): x / sqrt(beta + gamma x^2), or times it if inverse.

    gamma (C, C) and beta (C,) are held as they are used, non-negative; training would need a parametrisation.
    """

    def __init__(self, channels: int, inverse: bool = False):
        super().__init__()
        self.inverse = inverse
        self.beta = nn.Parameter(torch.ones(channels))
        self.gamma = nn.Parameter(0.1 * torch.eye(channels))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, C, H, W)."""
        norm = F.conv2d(x * x, self.gamma[:, :, None, None], self.beta)
        return x * (torch.sqrt(norm) if self.inverse else torch.rsqrt(norm))


def _down(cin: int, cout: int) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, 5, stride=2, padding=2)


def _up(cin: int, cout: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(cin, cout, 5, stride=2, padding=2, output_padding=1)


class MeanScaleHyperprior(nn.Module):
    """The four transforms. Pictures (B, 3, H, W) with H and W multiples of 64."""

    def __init__(self, N: int = 192, M: int = 320):
        super().__init__()
        self.N, self.M = N, M
        self.g_a = nn.Sequential(
            _down(3, N), GDN(N), _down(N, N), GDN(N), _down(N, N), GDN(N), _down(N, M)
        )  # fmt: skip
        self.g_s = nn.Sequential(
            _up(M, N), GDN(N, inverse=True), _up(N, N), GDN(N, inverse=True), _up(N, N), GDN(N, inverse=True), _up(N, 3)
        )  # fmt: skip
        self.h_a = nn.Sequential(
            nn.Conv2d(M, N, 3, padding=1), nn.LeakyReLU(inplace=True),
            _down(N, N), nn.LeakyReLU(inplace=True), _down(N, N),
        )  # fmt: skip
        self.h_s = nn.Sequential(
            _up(N, M), nn.LeakyReLU(inplace=True), _up(M, M * 3 // 2), nn.LeakyReLU(inplace=True),
            nn.Conv2d(M * 3 // 2, 2 * M, 3, padding=1),
        )  # fmt: skip

    def encoding(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What an encoder runs: x (B, 3, H, W) -> rounded y (B, M, H/16, W/16) and z (B, N, H/64, W/64), parameters."""
        y = self.g_a(x)
        z = torch.round(self.h_a(y))
        params = self.h_s(z)
        return torch.round(y - params[:, self.M :]) + params[:, self.M :], z, params

    def decoding(self, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """What a decoder runs: latents as above -> picture (B, 3, H, W), parameters (B, 2 M, H/16, W/16)."""
        return self.g_s(y), self.h_s(z)
