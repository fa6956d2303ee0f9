"""The weights that a run starts from."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import nn

from lalic.errors import CheckpointError
from lalic.model import LALIC
from lalic.nn import checkpoints
from lalic.nn.gains import anchor_qualities
from lalic.train.qualities import lambdas
from lalic.train.recipe import Recipe


def start_weights(model: LALIC) -> None:
    """Let a fresh model's first output be mid-grey instead of black: a thousand steps of finding the mean saved."""
    with torch.no_grad():
        cast(nn.ConvTranspose2d, model.g_s[-1]).bias.fill_(0.5)  # type: ignore[union-attr]


def start_gains(model: LALIC, recipe: Recipe) -> None:
    """Gains as high-rate theory has them, where a step is proportional to one over the root of lambda.

    Gains are 1 at ``recipe.lmbda``, which the other weights were trained with; nothing happens to a model without.
    """
    if model.gains is not None:
        at = lambdas(recipe, anchor_qualities(model.config.qualities))
        model.gains.start((at / recipe.lmbda).sqrt())


def _trained(name: str) -> bool:
    """Not of the gains, whose anchors may differ, nor a table that is made from the prior."""
    return not name.startswith("gains.") and name.rsplit(".", 1)[-1] not in checkpoints.TABLE_BUFFERS


def init_from(model: LALIC, path: str | Path) -> None:
    """Take the weights of a checkpoint of the same shape; its gains too, if it has as many anchors.

    Raises ``CheckpointError`` if it has another shape.
    """
    sd = checkpoints.normalise(checkpoints.read(path))
    found = checkpoints.infer_config(sd)
    shapes = [
        {name: tuple(value.shape) for name, value in state.items() if checkpoints.matters(name) and _trained(name)}
        for state in (sd, model.state_dict())
    ]
    if shapes[0] != shapes[1]:
        raise CheckpointError(f"{path}: holds a model of another shape than the one to train: {found}")
    if found.qualities not in (0, model.config.qualities):
        raise CheckpointError(
            f"{path}: has gains at {found.qualities} anchors, expected {model.config.qualities} or none"
        )
    for name, value in model.state_dict().items():
        if name.startswith("gains.") and name not in sd:
            sd[name] = value
    # The coding tables are made anew from what training makes of the prior.
    checkpoints.load_into(model, {n: t.float() if t.is_floating_point() else t for n, t in sd.items()})
    prior = model.latent_codec.hyper.entropy_bottleneck
    for name in checkpoints.PRIOR_TABLES:
        setattr(prior, name, torch.empty(0, dtype=torch.int32))
