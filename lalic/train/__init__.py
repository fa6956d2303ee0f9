"""Rate-distortion training, from Python as `train` and as the command `lalic train`.

    >>> lalic.train.train("photos/", "run", lalic.train.preset("slim", steps=100_000))

    data         random crops of pictures from folders and tar files
    recipe       everything a run depends on but its pictures
    start        configuration and initial weights
    objective    the loss
    optimisers   SOAP
    loop         `train`, the training loop, the log
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
    """Import `train` and `Run` on first use: they need torch, which parsing the command line does not."""
    if name not in ("Run", "train"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lalic.train import loop

    return getattr(loop, name)
