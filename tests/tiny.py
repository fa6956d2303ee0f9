"""A tiny real model, for tests of what surrounds a model: it codes 64x64 pixels in some 10 ms, at about 28 dB."""

from __future__ import annotations

import functools
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lalic import images
from lalic.model import LALIC
from lalic.train.recipe import Recipe
from lalic.train.start import linear_start, start_gains

CHANNELS = 48


def astronaut(left: int = 0, top: int = 0, width: int = 512, height: int = 512) -> Image.Image:
    """A part of the picture that ships, at this position and of this size."""
    with Image.open(resources.files("lalic").joinpath("assets", "astronaut.png").open("rb")) as picture:
        return picture.convert("RGB").crop((left, top, left + width, top + height))


def noise(seed: int = 0, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> Image.Image:
    """A picture of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], len(mode)), dtype=np.uint8)
    return Image.fromarray(pixels)


@functools.cache
def tiny(name: str = "slim", qualities: int = 0, lmbda: float = 0.013) -> LALIC:
    """A model that codes like a linear transform: files get larger and better with lambda, or with quality.

    name: in its files. qualities: anchors of the gains; 0: one quality. lmbda: of a model of one quality. Equal
    arguments return the same object: treat it as read-only, or change a copy.
    """
    torch.manual_seed(0)
    model = LALIC(
        3, CHANNELS, (24, 48, 48, CHANNELS, 6, 5), (0, 0, 0, 0), (16, CHANNELS - 16), context_depth=1, context_rate=1,
        context_width=9, kernels=(4, 2, 2, 1), aggregation_widths=(6,), qualities=qualities,
    )  # fmt: skip
    start_gains(model, Recipe(lowest=1e-4, highest=0.5))
    linear_start(model, images.to_tensor(astronaut()), lmbda)
    model.update()
    model.config = replace(model.config, name=name)
    return model.eval()


def save(path: Path, model: LALIC) -> Path:
    """Write a checkpoint, whose model is called "custom" when it is loaded. Returns the path."""
    torch.save(model.state_dict(), path)
    return path
