"""The loss of training: rate plus weighted distortion at random qualities, and the loss of the prior's quantiles."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lalic.errors import LalicError
from lalic.metrics import MIN_SIDE, ms_ssim
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


def distortion(metric: str, x_hat: Tensor, x: Tensor) -> Tensor:
    """Distortion of each picture, (B,): 255^2 MSE for "mse", 1 - MS-SSIM for "ms-ssim", as published. x in [0, 1]."""
    if metric == "mse":
        return 255**2 * mean_square(x_hat, x)
    return 1 - ms_ssim(x_hat, x)


def mean_square(x_hat: Tensor, x: Tensor) -> Tensor:
    """MSE of each picture, (B,)."""
    return ((x_hat - x) ** 2).flatten(1).mean(1)


def check_patch(metric: str, patch: int) -> None:
    """Raise ``LalicError`` if crops are too small for the metric."""
    if metric == "ms-ssim" and patch < MIN_SIDE:
        raise LalicError(f"patch is {patch}, but MS-SSIM has five scales: expected at least {-(-MIN_SIDE // 64) * 64}")


def rate_distortion(
    out: dict[str, Any], x: Tensor, weights: float | Tensor, factors: float | Tensor = 1.0, metric: str = "mse"
) -> Parts:
    """Means of ``loss``, ``bpp`` (bits per pixel) and ``mse`` (values in [0, 1]), for "ms-ssim" of ``ms_ssim`` too.

    out: output of `LALIC.forward` for pictures x. weights: lambda, one or (B,). factors: of each sample's loss.
    """
    pixels = x.shape[2] * x.shape[3]
    bpp = -torch.stack([torch.log2(p).flatten(1).sum(1) for p in out["likelihoods"].values()]).sum(0) / pixels
    x_hat = out["x_hat"].to(x.dtype)
    distortions = distortion(metric, x_hat, x)
    loss = (factors * (weights * distortions + bpp)).mean()
    parts = {"loss": loss, "bpp": bpp.mean(), "mse": mean_square(x_hat, x).mean()}
    return parts if metric == "mse" else {**parts, "ms_ssim": 1 - distortions.mean()}


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
