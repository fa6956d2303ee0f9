"""The recipe of a run: everything it depends on but its pictures, its learning rates, and recipes by name."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any


def _setting(default: Any, text: str, choices: tuple[str, ...] = ()) -> Any:
    """A field of `Recipe`. text: help of its option of `lalic train`. choices: allowed values, empty for all."""
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True)
class Recipe:
    """Everything a run depends on but its pictures; saved with the run, and compared when it is resumed.

    metric: the loss of "mse" is ``lmbda * 255^2 * MSE + bits per pixel``. "ms-ssim" has 1 - MS-SSIM in place of 255^2 *
    MSE; lambdas are then some hundred times larger, and training should start from trained weights.

    balance: a sample's loss is multiplied by ``(middle / lambda)^balance``, where middle is the geometric mean of
    lowest and highest. Rate and weighted distortion grow about as the root of lambda. So with 0.5 one percent of rate
    counts the same at every quality, as in a BD-rate; with 0 high lambdas dominate.

    large: so that the model learns sequences of more than one length. shrink: the factor is log-uniform.

    schedule: "cosine" falls to lr / 100 after the warm-up; "trapezoid" is constant, then falls in a line to lr / 100 in
    the last part of the steps, a fraction of ``decay``; "step" is constant, then lr / 10 in that part.
    """

    metric: str = _setting("mse", "distortion", ("mse", "ms-ssim"))
    lmbda: float = _setting(
        0.013, "weight of the distortion; for a model with gains, the lambda that the --init weights were trained with"
    )
    lowest: float = _setting(0.0012, "lambda at quality 1 of a model with gains; log-linear up to --highest")
    highest: float = _setting(0.06, "lambda at quality 100")
    balance: float = _setting(0.5, "the loss at a quality is divided by its lambda to this power")
    start: str = _setting(
        "random", "how weights begin without --init; linear for kernels without overlap", ("random", "linear")
    )
    steps: int = _setting(10000, "updates")
    batch: int = _setting(8, "crops an update, over all processes")
    patch: int = _setting(128, "side of a crop in pixels, a multiple of 64")
    large: int = _setting(0, "every so many updates take crops of twice the side, a quarter as many; 0: never")
    shrink: float = _setting(1.0, "cut crops of up to this many times the side too, and scale them down")
    lr: float = _setting(5e-4, "peak learning rate")
    schedule: str = _setting("cosine", "course of the learning rate", ("cosine", "trapezoid", "step"))
    decay: float = _setting(0.25, "share of the steps, at the end, in which the rate of a trapezoid or step is lower")
    optimizer: str = _setting("adam", "optimiser of the weights", ("adam", "soap"))
    warmup: int = _setting(200, "steps until the peak learning rate")
    auxiliary_lr: float = _setting(1e-2, "learning rate of the prior's quantiles, which move by tens of units")
    clip: float = _setting(1.0, "largest gradient norm")
    ema: float = _setting(0.999, "decay of the averaged weights, which are evaluated and saved; 0: none")
    bf16: bool = _setting(False, "compute matrix products and convolutions in bfloat16")
    seed: int = _setting(1, "of random weights, crops, qualities and noise")

    def __post_init__(self) -> None:
        for name in ("lmbda", "lowest", "highest", "steps", "batch", "patch", "lr", "auxiliary_lr", "decay", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")
        for f in fields(self):
            value, allowed = getattr(self, f.name), f.metadata["choices"]
            if allowed and value not in allowed:
                raise ValueError(f"{f.name}: expected one of {', '.join(allowed)}, got {value!r}")
        if self.decay > 1:
            raise ValueError(f"decay: expected a share of at most 1, got {self.decay}")
        if self.lowest > self.highest:
            raise ValueError(f"lowest: expected at most the highest lambda, {self.highest}, got {self.lowest}")
        for name in ("warmup", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if not self.shrink >= 1:
            raise ValueError(f"shrink: expected at least 1, got {self.shrink}")
        if self.large < 0:
            raise ValueError(f"large: expected 0 for never, or more, got {self.large}")
        if self.large and self.batch % 4:
            raise ValueError(f"batch: expected a multiple of 4 with large crops (large {self.large}), got {self.batch}")
        if self.start == "linear" and self.metric != "mse":
            raise ValueError(f"start: linear is for the metric mse, got {self.metric!r}")
        if self.patch % 64:
            raise ValueError(f"patch: expected a multiple of 64, got {self.patch}")
        if self.metric == "ms-ssim" and self.patch < 192:
            raise ValueError(f"patch: expected at least 192 for the five scales of MS-SSIM, got {self.patch}")
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
