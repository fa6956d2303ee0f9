"""LALIC among CompressAI's models: importing this module registers it there.

    from lalic.compressai import LALIC         # for `from models import LALIC` in the published eval.py and train.py
    from lalic.compressai import image_models  # for `from compressai.zoo import image_models` in examples/train.py

    python -m lalic.compressai eval_model pretrained photos/ -a lalic-slim -q 25,50,75
    python -m lalic.compressai eval_model checkpoint photos/ -a LALIC -p lalic_q4.pth

The second form runs `python -m compressai.utils.eval_model` (or update_model) after the import.

There are two names, in `compressai.registry.MODELS` and in `compressai.zoo`:

    LALIC        the class, in its published configuration; checkpoints of any configuration load under this name
    lalic-slim   the small model; pretrained=True gives the weights that ship, and quality, 1 to 100, the point on their
                 curve. Without, it is a model of one quality with random weights, to be trained with one lambda

Needs `pip install lalic[compressai]`.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

try:
    import compressai.zoo.image
    from compressai.registry import MODELS
    from compressai.zoo import image_models
except ImportError as error:
    raise ImportError(f"lalic.compressai needs CompressAI ({error}): pip install lalic[compressai]") from error

from lalic.config import SLIM
from lalic.hub import slim
from lalic.model import LALIC

__all__ = ["LALIC", "MODELS", "image_models", "lalic", "lalic_slim", "main"]


def lalic(
    quality: float = 0, metric: str = "mse", pretrained: bool = False, progress: bool = True, **config: Any
) -> LALIC:
    """LALIC with random weights. config: of its constructor. quality: ignored, a checkpoint's lambda decides.

    Raises ``ValueError`` for another metric than "mse", ``RuntimeError`` for pretrained=True.
    """
    _check_metric(metric)
    if pretrained:
        raise RuntimeError('LALIC: no weights of the published size ship; load a checkpoint, or take "lalic-slim"')
    return LALIC(**config)


def lalic_slim(quality: float = 50, metric: str = "mse", pretrained: bool = False, progress: bool = True) -> LALIC:
    """The small model. quality: with pretrained=True, what its methods take for quality=None; 1 to 100.

    Raises ``ValueError`` for another quality, and for another metric than "mse".
    """
    _check_metric(metric)
    if not pretrained:
        return LALIC.from_config(replace(SLIM, name="custom", qualities=0))
    model = slim()
    model.as_qualities(quality, 1)
    model.default_quality = float(quality)
    return model


def _check_metric(metric: str) -> None:
    if metric != "mse":
        raise ValueError(f'metric: expected "mse", got {metric!r}')


def _register() -> None:
    for name, make in (("LALIC", lalic), ("lalic-slim", lalic_slim)):
        MODELS[name] = LALIC if name == "LALIC" else make
        image_models[name] = compressai.zoo.models[name] = make
        compressai.zoo.image.model_architectures[name] = LALIC
        # It copies the architectures when it is imported, which may have been before.
        if updater := sys.modules.get("compressai.utils.update_model.__main__"):
            updater.models[name] = LALIC


_register()

TOOLS = ("eval_model", "update_model")


def main(argv: Sequence[str] | None = None) -> None:
    """Run a tool of CompressAI with LALIC registered: its name, then its own arguments."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] not in TOOLS:
        sys.exit(f"usage: python -m lalic.compressai {{{','.join(TOOLS)}}} ...  (the tool's own arguments follow)")
    before = sys.argv
    sys.argv = arguments
    try:
        runpy.run_module(f"compressai.utils.{arguments[0]}", run_name="__main__", alter_sys=True)
    finally:
        sys.argv = before


if __name__ == "__main__":
    main()
