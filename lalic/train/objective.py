"""The loss of training: rate plus weighted distortion at random qualities, and the loss of the prior's quantiles."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lalic.metrics import ms_ssim
from lalic.model import LALIC
from lalic.nn.gains import HIGHEST, LOWEST
from lalic.train.recipe import Recipe

Parts = dict[str, Tensor]


def lambdas(recipe: Recipe, quality: Tensor) -> Tensor:
    """Weight of the distortion (lambda) at each quality, same shape."""
    fraction = (quality - LOWEST) / (HIGHEST - LOWEST)
    return recipe.lowest * (recipe.highest / recipe.lowest) ** fraction


def balances(recipe: Recipe, weights: Tensor) -> Tensor:
    """Factor of each sample's loss, from its lambda, same shape (`Recipe.balance`)."""
    return (math.sqrt(recipe.lowest * recipe.highest) / weights) ** recipe.balance


def draw_qualities(recipe: Recipe, step: int, count: int) -> Tensor:
    """Random qualities of the ``count`` samples of update ``step``, float32 (count,).

    One from each of ``count`` equal parts of [1, 100], in random order, so that every batch has high and low ones.
    """
    draw = np.random.default_rng((recipe.seed, step, count))
    fractions = (draw.permutation(count) + draw.random(count)) / count
    return torch.from_numpy(LOWEST + (HIGHEST - LOWEST) * fractions).float()


def psnr(mse: float) -> float:
    """PSNR in dB of a mean square error of values in [0, 1]; at most 100."""
    return -10 * math.log10(max(mse, 1e-10))


def rate_distortion(
    out: dict[str, Any], x: Tensor, weights: float | Tensor, factors: float | Tensor = 1.0, metric: str = "mse"
) -> Parts:
    """Means of ``loss``, ``bpp`` (bits per pixel) and ``mse`` (values in [0, 1]), for "ms-ssim" of ``ms_ssim`` too.

    out: output of `LALIC.forward` for pictures x. weights: lambda, one or (B,). factors: of each sample's loss. metric:
    distortion is 255^2 MSE for "mse", 1 - MS-SSIM for "ms-ssim", as published.
    """
    pixels = x.shape[2] * x.shape[3]
    bpp = -torch.stack([torch.log2(p).flatten(1).sum(1) for p in out["likelihoods"].values()]).sum(0) / pixels
    x_hat = out["x_hat"].to(x.dtype)
    mse = ((x_hat - x) ** 2).flatten(1).mean(1)
    distortion = 255**2 * mse if metric == "mse" else 1 - ms_ssim(x_hat, x)
    loss = (factors * (weights * distortion + bpp)).mean()
    parts = {"loss": loss, "bpp": bpp.mean(), "mse": mse.mean()}
    return parts if metric == "mse" else {**parts, "ms_ssim": 1 - distortion.mean()}


class Objective(nn.Module):
    """A model and its loss in one module, to be wrapped by `torch.compile` and DistributedDataParallel.

    Every trained parameter contributes to ``loss + aux``. Only the prior's quantiles contribute to ``aux``, and they
    contribute to nothing else.
    """

    def __init__(self, model: LALIC, metric: str, bf16: bool):
        super().__init__()
        self.model, self.metric, self.bf16 = model, metric, bf16

    def forward(self, x: Tensor, quality: Tensor | None, weights: float | Tensor, factors: float | Tensor) -> Parts:
        """Scalars ``loss``, ``bpp``, ``mse``, ``aux``. quality: (B,), None for a model without gains."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            out = self.model(x, quality)
        return {**rate_distortion(out, x, weights, factors, self.metric), "aux": self.model.aux_loss()}
