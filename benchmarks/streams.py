"""Streams of a stated rate from a model with random weights, so that its decoder works as a trained one's does.

Random weights predict scales that have nothing to do with their latents: the rate is several times a trained model's,
and half the symbols are escapes or none is. Here the last aggregation block of each slice is given a bias, one scale a
channel, that outweighs the rest of its network; latents are drawn from just these Gaussians. What a decoder then reads
is what it predicted, from a mixture of scales, as with a trained model. Every layer keeps its shape and is computed.

The scales are log-normal over the channels, exp(m + s n) with s = `SPREAD` and n the normal quantiles in an order
drawn by a fixed seed; m is found by bisection on the entropy of rounded Gaussians. The factorised prior is narrowed,
and what hyper latents of zero then cost is taken off the latents' share. The real rate of what is coded stands in each
record.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lalic.model import LALIC

PUBLISHED_RATE = 0.29  # bits per pixel of the published model at its third quality (Kodak)
SPREAD = 1.0  # of the scales' logarithms over channels
QUIET = 0.05  # what is left of the rest of the last aggregation block
NARROWING = 20.0  # of the prior, whose fresh weights are about ten symbols wide
POSITIONS = 256  # pixels a latent position


def entropy_bits(scales: Tensor) -> Tensor:
    """Bits of a rounded Gaussian of each scale (n,), centred on a whole number, float64."""
    edges = torch.arange(-200, 202, dtype=torch.float64) - 0.5
    cumulative = torch.special.ndtr(edges / scales.double()[:, None])
    p = (cumulative[:, 1:] - cumulative[:, :-1]).clamp_min(1e-300)
    return -(p * p.log2()).sum(1)


def channel_scales(channels: int, bits_per_pixel: float) -> Tensor:
    """Scales (channels,) float32 whose symbols cost that much. Raises ``ValueError`` for a rate out of reach."""
    places = (torch.arange(channels, dtype=torch.float64) + 0.5) / channels
    order = torch.randperm(channels, generator=torch.Generator().manual_seed(0))
    normal = torch.special.ndtri(places)[order]
    low, high = -8.0, 3.0
    for _ in range(50):
        middle = (low + high) / 2
        rate = float(entropy_bits(torch.exp(middle + SPREAD * normal)).sum()) / POSITIONS
        low, high = (middle, high) if rate < bits_per_pixel else (low, middle)
    if not bits_per_pixel > 1e-3 or abs(rate - bits_per_pixel) > 1e-3 * bits_per_pixel:
        raise ValueError(f"bits_per_pixel: expected a rate that {channels} channels can have, got {bits_per_pixel}")
    return torch.exp(middle + SPREAD * normal).float()


@torch.no_grad()
def imitate(model: LALIC, bits_per_pixel: float = PUBLISHED_RATE) -> Tensor:
    """Change a model's random weights as above, before its first use; the scales (M,) to draw latents from."""
    prior: Any = model.latent_codec.hyper.entropy_bottleneck
    slices: Any = model.latent_codec.y.latent_codec
    prior._matrix0.copy_(torch.log(torch.expm1(NARROWING * F.softplus(prior._matrix0))))
    for i in range(prior.layers):  # the middle of each channel is where its symbols are
        getattr(prior, f"_bias{i}").zero_()
    model.update(force=True)
    zeros = prior.likelihood(torch.zeros(1, prior.channels, 1, 1, device=prior.quantiles.device))
    hyper = float(-zeros.log2().sum()) / model.downsampling**2
    scales = channel_scales(model.config.M, bits_per_pixel - hyper)
    own = scales.split(model.config.groups)
    for k, of_slice in enumerate(own):
        last = slices[f"y{k}"].entropy_parameters[-1]
        last.mix.weight.mul_(QUIET)
        last.value.weight.mul_(QUIET)
        last.mix.bias.copy_(torch.cat((of_slice, torch.zeros_like(of_slice))))
    return scales


def latents(scales: Tensor, batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Latents (batch, M, height / 16, width / 16) of pictures of that size, as `imitate` says, channels last."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randn(batch, len(scales), height // 16, width // 16, generator=generator) * scales[:, None, None]
    return y.contiguous(memory_format=torch.channels_last)
