"""Rate-distortion training, from Python as `train` and as the command `lalic train`.

    >>> lalic.train.train("photos/", "run", lalic.train.preset("slim", steps=100_000))

    data         crops of pictures from folders and tar files, in an order that a seed fixes
    recipe       what a run depends on besides its pictures
    start        the configuration and the weights that a run starts from
    objective    what is minimised
    optimisers   SOAP
    loop         `train`, its loop, its log
    distributed  several processes

Documentation: `docs/training.md`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lalic.train.recipe import PRESETS, Recipe, preset

if TYPE_CHECKING:
    from lalic.train.loop import Run, train

__all__ = ["PRESETS", "Recipe", "Run", "preset", "train"]


def __getattr__(name: str) -> Any:
    """`train` and `Run` are imported on first use: they need torch, and the command line's arguments do not."""
    if name not in ("Run", "train"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lalic.train import loop

    return getattr(loop, name)
