"""The recipe of a run: everything it depends on but its pictures, its learning rates, and recipes by name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

CHOICES = {
    "metric": ("mse", "ms-ssim"),
    "schedule": ("cosine", "trapezoid", "step"),
    "optimizer": ("adam", "soap"),
    "start": ("random", "linear"),
}


@dataclass(frozen=True)
class Recipe:
    """Everything a run depends on but its pictures; saved with the run, and compared when it is resumed.

    Attributes:
        metric: "mse": the loss is ``lmbda * 255^2 * MSE + bits per pixel``. "ms-ssim": with 1 - MS-SSIM in place of
            255^2 * MSE; lambdas are then some hundred times larger, and training should start from trained weights.
        lmbda: weight of the distortion for a model of one quality. For a model with gains: the lambda that its initial
            weights were trained with.
        lowest, highest: lambda at quality 1 and at quality 100 of a model with gains; log-linear between.
        balance: a sample's loss is multiplied by ``(middle / lambda)^balance``, where middle is the geometric mean of
            lowest and highest. Rate and weighted distortion grow about as the root of lambda. So with 0.5 one percent
            of rate counts the same at every quality, as in a BD-rate; with 0 high lambdas dominate.
        start: of fresh weights: "random", or "linear" (`lalic.train.start`) for kernels without overlap.
        steps, batch, patch: number of updates, crops an update over all processes, side of a crop in pixels.
        large: every ``large``-th update has crops of twice the side, a quarter as many, so that the model learns
            sequences of more than one length; 0: never.
        shrink: crops are taken up to this many times larger, log-uniformly, and scaled down; 1: never.
        lr: peak learning rate, reached after ``warmup`` steps.
        schedule: "cosine" falls to lr / 100 after the warm-up; "trapezoid" is constant, then falls in a line to lr /
            100 in the last part of the steps, a fraction of ``decay``; "step" is constant, then lr / 10 in that part.
        optimizer: "adam", or "soap" (`lalic.train.optimisers`).
        auxiliary_lr: Adam's learning rate for the prior's quantiles, which have to move by tens of units.
        clip: largest gradient norm. ema: decay of the moving average, which is evaluated and saved as weights; 0: none.
        bf16: matrix products and convolutions in bfloat16. seed: of weights, crops, qualities and noise.
    """

    metric: str = "mse"
    lmbda: float = 0.013
    lowest: float = 0.0012
    highest: float = 0.06
    balance: float = 0.5
    start: str = "random"
    steps: int = 10000
    batch: int = 8
    patch: int = 128
    large: int = 0
    shrink: float = 1.0
    lr: float = 5e-4
    schedule: str = "cosine"
    decay: float = 0.25
    optimizer: str = "adam"
    warmup: int = 200
    auxiliary_lr: float = 1e-2
    clip: float = 1.0
    ema: float = 0.999
    bf16: bool = False
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("lmbda", "lowest", "highest", "steps", "batch", "patch", "lr", "auxiliary_lr", "decay", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.decay > 1:
            raise ValueError(f"decay: expected a share of at most 1, got {self.decay}")
        if self.shrink < 1:
            raise ValueError(f"shrink: expected at least 1, got {self.shrink}")
        if self.large < 0:
            raise ValueError(f"large: expected 0 for never, or more, got {self.large}")
        if self.large and self.batch % 4:
            raise ValueError(f"batch: expected a multiple of 4 with large crops (large {self.large}), got {self.batch}")
        if self.start == "linear" and self.metric != "mse":
            raise ValueError(f"start: linear is for the metric mse, got {self.metric!r}")
        if self.patch % 64:
            raise ValueError(f"patch: expected a multiple of 64, got {self.patch}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema: expected 0 or more and less than 1, got {self.ema}")

    def large_crops(self, step: int) -> bool:
        """Whether update ``step`` (from 0) has crops of twice the side, a quarter as many."""
        return self.large > 0 and step % self.large == self.large - 1

    def crops(self, step: int) -> int:
        """How many crops update ``step`` has, over all processes."""
        return self.batch // 4 if self.large_crops(step) else self.batch

    @property
    def decay_start(self) -> int:
        """First step whose learning rate depends on ``steps``."""
        return self.warmup if self.schedule == "cosine" else max(self.warmup, round(self.steps * (1 - self.decay)))


def option(name: str) -> str:
    """The option of `lalic train` for a field of `Recipe`."""
    return "--" + name.replace("lmbda", "lambda").replace("_", "-")


def learning_rate(recipe: Recipe, step: int) -> float:
    """Learning rate of update ``step`` (from 0)."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    if recipe.schedule == "step":
        return recipe.lr * (0.1 if step >= recipe.decay_start else 1.0)
    fraction = min(1.0, (step - recipe.decay_start) / max(1, recipe.steps - recipe.decay_start))
    if recipe.schedule == "cosine":
        return recipe.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fraction)))
    return recipe.lr * (1 - 0.99 * max(0.0, fraction))


PRESETS: dict[str, dict[str, Any]] = {
    "published": {
        "patch": 256, "batch": 8, "optimizer": "adam", "lr": 1e-4, "schedule": "step", "decay": 0.1, "warmup": 0,
        "auxiliary_lr": 1e-3, "clip": 1.0, "ema": 0.0, "seed": 100,
    },
    "slim": {
        "start": "linear", "patch": 128, "batch": 32, "large": 4, "lowest": 0.0005, "highest": 0.08,
        "optimizer": "soap", "lr": 2e-3, "schedule": "trapezoid", "decay": 0.4, "warmup": 100, "bf16": True,
    },
}  # fmt: skip
"""Recipes by name. "published": the script of the paper's authors, a model for each lambda of 0.0018, 0.0035, 0.0067,
0.0130, 0.0250 and 0.0483, and a tenth of the learning rate for the last 4 of 40 epochs. "slim": for the weights that
ship; their card (lalic/weights/README.md) lists what each run changed."""


def preset(name: str | None = None, **changes: Any) -> Recipe:
    """A recipe of `PRESETS`, or the default one (None), with changes by field.

    Raises ``ValueError`` for another name and for values that `Recipe` does not take.

        >>> preset("slim", steps=100_000)
    """
    if name is not None and name not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {name!r}")
    return Recipe(**{**(PRESETS[name] if name else {}), **changes})
