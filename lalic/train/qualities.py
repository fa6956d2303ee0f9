"""Qualities that training draws, and the weight of the distortion at each."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from lalic.nn.gains import HIGHEST, LOWEST
from lalic.train.recipe import Recipe


def lambdas(recipe: Recipe, quality: Tensor) -> Tensor:
    """Weight of the distortion at each quality, the same shape."""
    along = (quality - LOWEST) / (HIGHEST - LOWEST)
    return recipe.lowest * (recipe.highest / recipe.lowest) ** along


def balances(recipe: Recipe, weights: Tensor) -> Tensor:
    """What a sample's loss is multiplied by, for its lambda."""
    return (math.sqrt(recipe.lowest * recipe.highest) / weights) ** recipe.balance


def draw_qualities(recipe: Recipe, step: int, count: int) -> Tensor:
    """Qualities of the ``count`` samples of update ``step``, float32.

    One out of each of ``count`` equal parts of [1, 100], in random order: no batch is all of one kind.
    """
    draw = np.random.default_rng((recipe.seed, step, count))
    along = (draw.permutation(count) + draw.random(count)) / count
    return torch.from_numpy(LOWEST + (HIGHEST - LOWEST) * along).float()
