"""Parts of a slice's probability model: channel context, checkerboard (spatial) context, parameter aggregation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lalic_kernels
from lalic.config import Config
from lalic.nn.blocks import RWKVBlock
from lalic_kernels.cache import WeightCache
from lalic_kernels.plain import PlainLayers, plain


def full_precision(x: Tensor) -> Tensor:
    """x in float32, or unchanged in float64: values that are rounded to symbols must not be in low precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def narrowed_for(weight: Tensor, x: Tensor) -> Tensor:
    """x in the dtype of a 16-bit weight; unchanged beside any other, which autocast may narrow."""
    return x.to(weight.dtype) if weight.dtype.itemsize == 2 else x


def pack(x: Tensor, parity: int) -> Tensor:
    """Half of the positions, as a checkerboard: x (B, h, w, C), h and w even -> (B, h, w / 2, C).

    Parity 0 takes the anchors, where row + column is even; parity 1 the others. Column j of row r of the result is
    column 2 j + (r + parity) % 2 of x.
    """
    even, odd = x[:, 0::2, parity::2], x[:, 1::2, 1 - parity :: 2]
    return torch.stack((even, odd), dim=2).flatten(1, 2)


def unpack(x: Tensor, parity: int) -> Tensor:
    """Inverse of `pack`, with zeros at the other positions: x (B, h, w / 2, C) -> (B, h, w, C)."""
    zero = torch.zeros_like(x)
    return interleave(x, zero) if parity == 0 else interleave(zero, x)


def interleave(anchors: Tensor, others: Tensor) -> Tensor:
    """Inverse of `pack` for both parities: anchors and others, each (B, h, w / 2, C) -> (B, h, w, C)."""
    B, h, half, C = anchors.shape
    # (B, h / 2, w / 2, C) each; in an even row the anchor comes first, in an odd row the other.
    even, odd = (anchors[:, 0::2], others[:, 0::2]), (others[:, 1::2], anchors[:, 1::2])
    rows = torch.stack([torch.stack(pair, dim=3) for pair in (even, odd)], dim=2)
    return rows.reshape(B, h, 2 * half, C)


CHECKERBOARD_TAPS = tuple((row, column) for row in range(5) for column in range(5) if (row + column) % 2)
"""(row, column) of the 12 taps of a 5x5 kernel that read positions of the other parity."""


class CheckerboardConv(nn.Conv2d):
    """5x5 convolution masked to the 12 taps that read positions of the other parity."""

    mask: Tensor

    def __init__(self, cin: int, cout: int):
        super().__init__(cin, cout, 5, padding=2)
        taps = torch.arange(5)
        self.register_buffer("mask", ((taps[:, None] + taps) % 2).float().expand_as(self.weight).clone())

    def forward(self, x: Tensor) -> Tensor:
        """x (B, cin, h, w) -> (B, cout, h, w)."""
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=2)

    def live_taps(self) -> Tensor:
        """The weight at the 12 taps that the mask leaves, (cout, 12 cin): by tap, then by channel."""
        rows, columns = zip(*CHECKERBOARD_TAPS, strict=True)
        return self.weight[:, :, rows, columns].transpose(1, 2).flatten(1)


class EntropyParametersBlock(nn.Module):
    """Pointwise: 1x1 mix, LayerNorm, gated squared-ReLU network, residual (`lalic_kernels.entropy_params`)."""

    def __init__(self, cin: int, cout: int):
        super().__init__()
        self.mix = nn.Conv2d(cin, cout, 1)
        self.norm = nn.LayerNorm(cout)
        self.key = nn.Linear(cout, 2 * cout, bias=False)
        self.value = nn.Linear(2 * cout, cout, bias=False)
        self.receptance = nn.Linear(cout, cout, bias=False)
        self._plain = PlainLayers()

    def forward(self, x: Tensor) -> Tensor:
        """x (B, P, n) -> (B, P, cout). With n < cin, x has the last n inputs and the first cin - n are zero."""
        if not plain(self._plain, self):
            x = F.pad(x, (self.mix.in_channels - x.shape[2], 0))
            m = self.mix(x.transpose(1, 2).unsqueeze(3)).squeeze(3).transpose(1, 2)
            n = self.norm(m)
            return m + torch.sigmoid(self.receptance(n)) * self.value(torch.relu(self.key(n)).square())
        mix, *others = self.tensors()
        return lalic_kernels.entropy_params(x, mix[:, mix.shape[1] - x.shape[2] :], *others)  # type: ignore[misc]

    def tensors(self) -> tuple[Tensor, ...]:
        """The weights in the order of `lalic_kernels.entropy_params`, the mix as a matrix (cout, cin)."""
        bias = self.mix.bias
        assert bias is not None  # for mypy
        return (
            self.mix.weight.flatten(1), bias, self.norm.weight, self.norm.bias,
            self.key.weight, self.receptance.weight, self.value.weight,
        )  # fmt: skip


def channel_ramp(cin: int, cout: int, least: int) -> list[int]:
    """Published widths of an aggregation network: from cin to cout in even steps, rounded down, inner ones >= least."""
    ramp = [int(v) for v in torch.linspace(cin, cout, 4, dtype=torch.float32, device="cpu").tolist()]
    return [cin, max(ramp[1], least), max(ramp[2], least), cout]


def aggregation_ramp(c: Config, cin: int, cout: int) -> list[int]:
    """Widths of an aggregation network from inputs to outputs: given by the configuration, or `channel_ramp`."""
    return [cin, *c.aggregation_widths, cout] if c.aggregation_widths else channel_ramp(cin, cout, 2 * c.N)


def parameter_aggregation(widths: Sequence[int]) -> nn.Sequential:
    """Context and hyper parameters (B, P, widths[0]) -> scales and means (B, P, widths[-1]); blocks at 0, 2, ..."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [EntropyParametersBlock(a, b), nn.Identity()]
    return nn.Sequential(*layers[:-1])


def channel_context(c: Config, k: int) -> nn.Sequential:
    """Latents of slices 0 .. k-1 (B, sum(groups[:k]), h, w) -> channel context of slice k (B, 2 groups[k], h, w)."""
    blocks = [RWKVBlock(c.hyper_width, c.context_rate) for _ in range(c.context_depth)]
    return nn.Sequential(
        nn.Conv2d(sum(c.groups[:k]), c.hyper_width, 3, padding=1), *blocks, nn.Conv2d(c.hyper_width, 2 * c.groups[k], 1)
    )  # fmt: skip


class GaussianConditional(nn.Module):
    """The published model's buffers for the conditional Gaussian; the arithmetic is `lalic_kernels.gaussian`."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("_offset", "_quantized_cdf", "_cdf_length"):
            self.register_buffer(name, torch.empty(0, dtype=torch.int32))
        self.register_buffer("scale_table", torch.empty(0))
        self.register_buffer("scale_bound", torch.tensor([0.11]))
        self.likelihood_lower_bound = LowerBound(1e-9)
        self.lower_bound_scale = LowerBound(0.11)


class LowerBound(nn.Module):
    """A buffer ``bound`` (1,) under its published name."""

    bound: Tensor

    def __init__(self, bound: float):
        super().__init__()
        self.register_buffer("bound", torch.tensor([bound]))


class Slice(nn.Module):
    """Probability model of slice k: its checkerboard context and its parameter aggregation."""

    def __init__(self, c: Config, k: int):
        super().__init__()
        g = c.groups[k]
        inputs = 2 * g + (2 * g if k else 0) + c.hyper_width
        self.entropy_parameters = parameter_aggregation(aggregation_ramp(c, inputs, 2 * g))
        self.context_prediction = CheckerboardConv(g, 2 * g)
        self.y = nn.ModuleDict({"gaussian_conditional": GaussianConditional()})


class SliceStack(nn.Module):
    """All slices and their channel contexts, under the published names."""

    def __init__(self, c: Config):
        super().__init__()
        self.groups = c.groups
        self.cache = WeightCache()  # weights prepared by engines
        self.plain = PlainLayers()
        count = range(len(c.groups))
        self.channel_context = nn.ModuleDict({f"y{k}": channel_context(c, k) for k in count if k})
        self.latent_codec = nn.ModuleDict({f"y{k}": Slice(c, k) for k in count})
