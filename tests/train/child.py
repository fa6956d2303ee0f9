"""A process that trains: `child.py FOLDER PICTURES STEPS float32|float64`, alone or under torchrun."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
from tiny_run import RECIPE, tiny_model

from lalic.train.data import Crops
from lalic.train.distributed import process_group
from lalic.train.loop import Trainer
from lalic.train.recipe import Recipe

QUALITIES = 3


def recipe_for(steps: int) -> Recipe:
    return replace(RECIPE, steps=steps, batch=4)


def main(folder: str, pictures: str, steps: str, dtype: str) -> None:
    torch.set_num_threads(1)
    recipe = recipe_for(int(steps))
    with process_group(torch.device("cpu")) as (share, device):
        crops = Crops([pictures], recipe.patch, recipe.batch, recipe.seed)
        model = tiny_model(QUALITIES).to(getattr(torch, dtype))
        trainer = Trainer(model, crops, recipe, Path(folder), device, share=share)
        trainer.resume()
        trainer.run(every=2, save_every=10, held_out=1)


if __name__ == "__main__":
    main(*sys.argv[1:])
