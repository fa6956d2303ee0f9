"""A model and a run of seconds, for the tests of this folder and the processes that they start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from shapes import SHAPES

from lalic.model import LALIC
from lalic.train.data import Crops
from lalic.train.loop import Trainer
from lalic.train.recipe import Recipe
from lalic.train.start import start_gains, start_weights

RECIPE = Recipe(lmbda=0.01, steps=6, batch=2, patch=64, lr=1e-3, warmup=2, seed=3)


def tiny_model(qualities: int = 0, shape: str = "published") -> LALIC:
    torch.manual_seed(5)
    model = LALIC(3, 8, (4, 6, 8, 8, 6, 5), (1, 0, 0, 1), (3, 5), qualities=qualities, **SHAPES[shape])
    start_weights(model)
    start_gains(model, RECIPE)
    return model


def trainer(
    pictures: Path,
    folder: Path,
    recipe: Recipe = RECIPE,
    qualities: int = 0,
    shape: str = "published",
    **options: Any,
) -> Trainer:
    crops = Crops([pictures], recipe.patch, recipe.batch, recipe.seed, shrink=recipe.shrink)
    return Trainer(tiny_model(qualities, shape), crops, recipe, folder, **options)


def same(a: Trainer, b: Trainer) -> bool:
    """Equal weights and averages, to the last bit."""
    states = zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
    return all(torch.equal(*pair) for pair in [*states, *zip(a.average, b.average, strict=True)])
