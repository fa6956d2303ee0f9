"""Smaller files for more encoding time: the latents of one picture are refined by gradient steps before they are coded.

Analysis gives every picture its latents in one pass, and these are not the best ones for the picture. So the encoder
changes them, by Adam, to lower R + lambda D of this picture: R are the bits of the entropy model, D is the squared
error of the synthesis. Stochastic Gumbel annealing (Yang, Bamler and Mandt, "Improving inference for neural image
compression", NeurIPS 2020) stands for rounding: each latent is drawn between the whole numbers below and above it, more
sharply with each step. Hyper latents stay as they are.

Gradients need floating point. Symbols do not depend on that: the refined latents are coded in exact arithmetic, as all
are, and a decoder sees an ordinary file. Of the real streams before and after, the one with the lower R + lambda D is
kept. lambda is the slope of the picture's own rate-distortion curve at the quality, from files a little coarser and
finer. Less R + lambda D is then less rate at equal PSNR.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import lalic_kernels
from lalic.coder.engines import float_state
from lalic.coder.host import stream_of, symbols_of_gained
from lalic.coder.schedule import Estimate, code_slices
from lalic.coder.stream import Stream
from lalic.errors import LalicError
from lalic.model import LALIC
from lalic.nn.context import pack
from lalic.nn.gains import HIGHEST, LOWEST
from lalic.tiles import Box

__all__ = ["Refined", "Refiner", "check_effort"]

STEPS = 200  # more bring little
RATE = 0.008  # of Adam, in units of a symbol; falls to a twentieth as a cosine
WARMEST, COLDEST = 0.3, 0.05  # temperatures of the first and the last step
APART = 3.0  # qualities on both sides between which the slope is measured
LEVELS = 255  # of a decoded picture's values


def check_effort(model: LALIC, effort: float | None) -> None:
    """Raise `LalicError` for seconds that are not above 0, and for a model whose lambda cannot be measured."""
    if effort is None:
        return
    if not effort > 0:
        raise LalicError(f"effort is {effort:g} seconds, expected more than 0")
    if model.gains is None:
        raise LalicError(
            f"effort: expected a model of every quality, whose files show what a decibel costs; {model.config.name!r} "
            "was trained for one quality"
        )


@dataclass(frozen=True)
class Refined:
    """A stream, and how it came. steps: gradient steps done. weight: lambda, bits for a squared error of 1, values in
    [0, 1]; 0 if there was no time for it, or the picture has no slope. before, after: R + lambda D in bits, of the
    plain stream and of this one.
    """

    stream: Stream
    steps: int
    weight: float
    before: float
    after: float


@dataclass(frozen=True)
class _Candidate:
    stream: Stream
    error: float  # sum of squares

    def cost(self, weight: float) -> float:
        return 8 * len(self.stream.data) + weight * self.error


class Refiner:
    """Refines pictures, or tiles of one, for a model at a quality. The model is not changed."""

    def __init__(self, model: LALIC, quality: float):
        self.model, self.quality = model, quality
        with torch.inference_mode(False):
            # Without gradients of weights, which take time, and would be added to those of a caller who trains.
            self._constant = copy.deepcopy(model).requires_grad_(False)

    def __call__(
        self, x: Tensor, tile: Box, seconds: float, progress: Callable[[float], None] = lambda share: None
    ) -> Refined:
        """The stream of a tile of a window, refined for about so many seconds, or less.

        x: the window's pixels (1, 3, H, W) in [0, 1]. tile: its place in latents. Latents around the tile stay plain.
        progress: called after each step with the share that is done.
        """
        end = time.perf_counter() + seconds
        with torch.inference_mode(False):
            return self._refined(x.clone(), tile, end, progress)

    def _refined(self, x: Tensor, tile: Box, end: float, progress: Callable[[float], None]) -> Refined:
        start = time.perf_counter()
        with torch.no_grad():
            latents = self.model.latents(x)
            window = _Window(self.model, x, latents, tile, self.quality)
            plain = window.code(window.gained)
        took = time.perf_counter() - start
        if time.perf_counter() + 3 * took > end:  # two more codings for the slope, and one of the result
            return Refined(plain.stream, 0, 0, plain.cost(0), plain.cost(0))
        with torch.no_grad():
            ends = [
                _Window(self.model, x, latents, tile, min(HIGHEST, max(LOWEST, self.quality + apart)))
                for apart in (-APART, APART)
            ]
            coarse, fine = (each.code(each.gained) for each in ends)
        weight = _slope(coarse, fine)
        if weight == 0:
            return Refined(plain.stream, 0, 0, plain.cost(0), plain.cost(0))
        with torch.enable_grad():
            gained, steps = self._descend(window, weight, end - took, progress)  # the result has to be coded as well
        with torch.no_grad():
            better = min(plain, window.code(gained), key=lambda each: each.cost(weight))
        return Refined(better.stream, steps, weight, plain.cost(weight), better.cost(weight))

    def _descend(
        self, window: _Window, weight: float, end: float, progress: Callable[[float], None]
    ) -> tuple[Tensor, int]:
        """Refined gained latents of the tile, and the number of steps."""
        model, start = self._constant, time.perf_counter()
        params = model.latent_codec.hyper_parameters(torch.round(window.z - model.medians) + model.medians)
        y = window.gained.clone().requires_grad_(True)
        optimiser = torch.optim.Adam([y], lr=RATE)
        draw = torch.Generator().manual_seed(0)  # on the CPU: alike for every device
        steps = 0
        while (done := max(steps / STEPS, _share(start, end))) < 1:
            for group in optimiser.param_groups:
                group["lr"] = RATE * (0.05 + 0.95 * (1 + math.cos(math.pi * done)) / 2)
            coder = _Annealed(y, model.config.groups, WARMEST * (COLDEST / WARMEST) ** done, draw)
            y_hat = code_slices(float_state(model.latent_codec.y, params), coder)
            bits = -torch.log2(coder.likelihoods()).sum()
            error = ((model.synthesise(window.filled(y_hat), window.qualities) - window.x) ** 2).sum()
            (y.grad,) = torch.autograd.grad(bits + weight * error, y)
            optimiser.step()
            steps += 1
            progress(done)
        return y.detach(), steps


class _Window:
    """A window at one quality: the gained latents and hyper latents of its tile, and how the tile is coded."""

    def __init__(self, model: LALIC, x: Tensor, latents: Tensor, tile: Box, quality: float):
        self.model, self.x, self.tile = model, x, tile
        self.qualities = model.as_qualities(quality, 1)
        gained = model.gain(latents, self.qualities)
        self.gained = gained[:, :, tile.top : tile.bottom, tile.left : tile.right].contiguous()
        self.z = model.hyper_latents(self.gained)
        self._around = torch.round(gained)

    def filled(self, y_hat: Tensor) -> Tensor:
        """Decoded latents of the tile among those of the window."""
        if y_hat.shape == self._around.shape:
            return y_hat
        joined = self._around.clone()
        joined[:, :, self.tile.top : self.tile.bottom, self.tile.left : self.tile.right] = y_hat
        return joined

    def code(self, gained: Tensor) -> _Candidate:
        """The real stream of the tile with these gained latents, and the error of the decoded window."""
        coded = symbols_of_gained(self.model, gained, self.z)
        x_hat = self.model.synthesise(self.filled(coded.y_hat), self.qualities).clamp(0, 1)
        decoded = torch.round(x_hat * LEVELS) / LEVELS
        return _Candidate(stream_of(self.model, coded), float(((decoded - self.x) ** 2).sum(dtype=torch.float64)))


class _Annealed(Estimate):
    """A pass coder that draws values near the whole numbers around each latent, by stochastic Gumbel annealing."""

    def __init__(self, y: Tensor, groups: tuple[int, ...], temperature: float, draw: torch.Generator):
        super().__init__(y, groups, training=True)
        self.temperature, self.draw = temperature, draw

    def __call__(self, k: int, parity: int, scales: Tensor, means: Tensor) -> Tensor:
        difference = pack(self.slices[k], parity) - means
        below = torch.floor(difference.detach())
        part = (difference - below).clamp(1e-4, 1 - 1e-4)
        # The logit of rounding up, and the difference of two Gumbel variables.
        logit = (torch.atanh(part) - torch.atanh(1 - part)) / self.temperature
        uniform = torch.rand(part.shape, generator=self.draw, dtype=torch.float32, device="cpu").to(part)
        y_hat = below + torch.sigmoid((logit + torch.logit(uniform, 1e-6)) / self.temperature) + means
        self._likelihoods.append(lalic_kernels.gaussian_likelihood(y_hat, scales, means))
        return y_hat


def _slope(coarse: _Candidate, fine: _Candidate) -> float:
    """Bits that a squared error of 1 less costs; 0 if more bits bring nothing, as in a picture of one colour."""
    bits, error = 8 * (len(fine.stream.data) - len(coarse.stream.data)), coarse.error - fine.error
    return bits / error if bits > 0 and error > 0 else 0.0


def _share(start: float, end: float) -> float:
    """How much of the time between has passed."""
    return 1.0 if end <= start else (time.perf_counter() - start) / (end - start)
