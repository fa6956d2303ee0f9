"""The start of a run: its configuration, and random, linear or trained weights.

The linear start sets the transforms to a principal component analysis of training pictures, stage by stage, as the
linear part of an image transform needs no training. Each convolution of g_a becomes the projection of its patches to
their principal components, each of g_s the exact inverse. Between stages components are partly whitened, so that weak
ones reach the blocks too; the latents are components divided by the quantiser's step for one lambda. Blocks start with
small gammas, and the networks of the slices predict the scales of the components. Then the model codes like a good
block transform from its first step.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lalic.config import FULL, SLIM, Config, stride
from lalic.errors import CheckpointError, LalicError
from lalic.files import Name
from lalic.model import LALIC
from lalic.nn import checkpoints
from lalic.nn.blocks import RWKVBlock
from lalic.nn.context import EntropyParametersBlock, Slice
from lalic.nn.gains import anchor_qualities
from lalic.train.objective import lambdas
from lalic.train.recipe import Recipe

BLOCKS = 32768  # number of 16x16 blocks for the analysis
GAMMA = 0.1  # of every block: small beside the linear part, large enough for gradients
LEVEL = 0.3  # RMS of the largest component between stages, in steps of the quantiser
WHITENING = 0.5  # between stages components are divided by this power of their standard deviation
_MIN_RATIO = 0.01  # of a standard deviation to the largest
_SCALES = 0.2, 20.0  # range of the initial scales
_PREDICTED = 0.7  # initial scale over standard deviation: contexts will predict half of the variance


def configuration(name: Name, init: Name | None = None) -> Config:
    """The configuration "slim" or "full", that of the checkpoint `init` for "init", or one of a JSON file.

    A JSON file has the fields of `lalic.config.Config` that differ from slim. Raises ``LalicError`` if there is no such
    configuration.
    """
    if name == "init":
        if init is None:
            raise LalicError("model is init, the configuration of a checkpoint, expected one to start from (--init)")
        return checkpoints.infer_config(checkpoints.normalise(checkpoints.read(init)))
    if name in ("slim", "full"):
        return SLIM if name == "slim" else FULL
    try:
        given = json.loads(Path(name).read_text())
    except OSError as error:
        raise LalicError(
            f"model: expected slim, full, init or a JSON file, got {os.fspath(name)!r} ({error})"
        ) from None
    except (ValueError, RecursionError) as error:
        raise LalicError(f"model: {name} is no JSON file ({error})") from None
    names = [f.name for f in fields(Config) if f.name != "name"]
    unknown = sorted(set(given) - set(names)) if isinstance(given, dict) else []
    if unknown or not isinstance(given, dict):
        what = f"has {', '.join(unknown)}" if unknown else f"is {type(given).__name__}"
        raise LalicError(f"model: {name} {what}, expected an object with some of {', '.join(names)}")
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in given.items()}
    try:
        return replace(SLIM, **values).named()
    except ValueError as error:
        raise LalicError(f"model: {name}: {error}") from None


def start_weights(model: LALIC) -> None:
    """Set the bias of g_s so that a new model's output is mid-grey, not black; this saves a thousand steps."""
    with torch.no_grad():
        cast(nn.ConvTranspose2d, model.g_s[-1]).bias.fill_(0.5)  # type: ignore[union-attr]


def start_gains(model: LALIC, recipe: Recipe) -> None:
    """Set the gains of high-rate theory, the root of lambda / ``recipe.lmbda``. No change to a model without gains.

    ``recipe.lmbda`` is the lambda that the other weights were trained with.
    """
    if model.gains is not None:
        anchors = lambdas(recipe, anchor_qualities(model.config.qualities))
        model.gains.start((anchors / recipe.lmbda).sqrt())


def _trained(name: str) -> bool:
    """Whether it is trained and has one shape in all models: not the gains, nor tables made from the prior."""
    return not name.startswith("gains.") and name.rsplit(".", 1)[-1] not in checkpoints.TABLE_BUFFERS


def init_from(model: LALIC, path: Name) -> None:
    """Copy the weights of a checkpoint of the same shape, and its gains if it has any. Coding tables become empty.

    Raises ``CheckpointError`` for another shape or another number of anchors.
    """
    sd = checkpoints.normalise(checkpoints.read(path))
    config = checkpoints.infer_config(sd)
    shapes = [
        {name: tuple(value.shape) for name, value in state.items() if checkpoints.matters(name) and _trained(name)}
        for state in (sd, model.state_dict())
    ]
    if shapes[0] != shapes[1]:
        raise CheckpointError(f"{path}: holds a model of another shape than the one to train: {config}")
    if config.qualities not in (0, model.config.qualities):
        raise CheckpointError(
            f"{path}: has gains at {config.qualities} anchors, expected {model.config.qualities} or none"
        )
    for name, value in model.state_dict().items():
        if name.startswith("gains.") and name not in sd:
            sd[name] = value
    # The coding tables are made from the trained prior, later.
    checkpoints.load_into(model, {n: t.float() if t.is_floating_point() else t for n, t in sd.items()})
    empty = torch.empty(0, dtype=torch.int32)
    model.latent_codec.hyper.entropy_bottleneck.set_tables(empty, empty, empty)


# The linear start


def quantiser_step(lmbda: float) -> float:
    """Step of a uniform quantiser that minimises lambda 255^2 MSE + bits per pixel at high rate, for values in [0, 1].

    The squared error of a component is step^2 / 12, a quarter for each bit more; MSE is a mean over three channels.
    """
    return math.sqrt(12 * 3 / (2 * math.log(2) * lmbda * 255**2))


def check_kernels(config: Config) -> None:
    """Raise ``LalicError`` if kernels of a model overlap."""
    if any(kernel > stride(kernel) for kernel in config.kernels):
        raise LalicError(
            f"start: linear needs kernels that do not overlap (1, 2, 4, 8), but the model has {config.kernels}; "
            "start it at random"
        )


@torch.no_grad()
def linear_start(model: LALIC, pictures: Tensor, lmbda: float) -> None:
    """Set a model's transforms and initial scales to a principal component analysis of pictures.

    Args:
        model: with kernels without overlap (1, 2, 4 or 8). Hyper transforms, contexts and prior are not changed; gains
            should be one at ``lmbda`` (`start_gains`).
        pictures: (n, 3, H, W) float in [0, 1], H and W multiples of 16; ten thousand 16x16 blocks in all are enough.
        lmbda: weight of the distortion, which determines the quantiser's step.

    With gammas of 0, g_s(g_a(x)) would be the projection of x to M components. Raises ``LalicError`` for kernels that
    overlap, pictures of another shape, and pictures of one colour.
    """
    check_kernels(model.config)
    kernels = model.config.kernels
    if pictures.ndim != 4 or pictures.shape[1] != 3 or pictures.shape[2] % 16 or pictures.shape[3] % 16:
        raise LalicError(f"pictures: expected (n, 3, H, W) with H and W multiples of 16, got {tuple(pictures.shape)}")
    downs = [m for m in model.g_a if isinstance(m, nn.Conv2d)]
    ups = [m for m in model.g_s if isinstance(m, nn.ConvTranspose2d)][::-1]
    step = quantiser_step(lmbda)
    mean = pictures.mean((0, 2, 3))
    x = (pictures - mean[:, None, None]).permute(0, 2, 3, 1)
    before = torch.ones(3)  # factors of the previous stage's components
    for down, up, kernel in zip(downs, ups, kernels, strict=True):
        x = F.pixel_unshuffle(x.permute(0, 3, 1, 2), kernel).permute(0, 2, 3, 1)  # channels by (c, dy, dx)
        deviations, basis = _components(x.flatten(0, 2), down.out_channels)
        if down is downs[-1]:
            scales = torch.full_like(deviations, 1 / step)
        else:
            ratios = (deviations / deviations[0]).clamp_min(_MIN_RATIO)
            scales = LEVEL / step * ratios**-WHITENING
        _set(down.weight, basis.T * scales[:, None] / before.repeat_interleave(kernel**2), unread=1)
        _set(up.weight, basis.T / scales[:, None] * before.repeat_interleave(kernel**2), unread=0)
        cast(nn.Parameter, down.bias).zero_()
        cast(nn.Parameter, up.bias).zero_()
        x, before = x @ basis, scales
    first = downs[0]
    cast(nn.Parameter, first.bias).copy_(-(first.weight.sum((2, 3)) @ mean))
    cast(nn.Parameter, ups[0].bias).copy_(mean)
    for module in [*model.g_a, *model.g_s]:
        if isinstance(module, RWKVBlock):
            module.gamma1.fill_(GAMMA)
            module.gamma2.fill_(GAMMA)
    _set_scales(model, deviations / step)


def _components(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Standard deviations (n,) and directions (K, n) of the n = min(count, K) largest components of x (rows, K)."""
    covariance = x.double().T @ x.double() / x.shape[0]
    variances, vectors = torch.linalg.eigh(covariance)
    if not float(variances[-1]) > 1e-12:  # for values in [0, 1], less is rounding only
        raise LalicError("pictures: expected some with a structure, but all are of one colour")
    n = min(count, x.shape[1])
    largest = variances.flip(0)[:n].clamp_min(torch.finfo(torch.float32).eps * float(variances[-1]))
    return largest.sqrt().float(), vectors.flip(1)[:, :n].float().contiguous()


def _set(weight: Tensor, rows: Tensor, unread: int) -> None:
    """Set weight (d, C, k, k) to rows (n, c k k), n <= d and c <= C; there may be more channels than components.

    The other channels get small weights in the layer that makes them, and weights of 0 in the one that reads them,
    along dimension ``unread``. So the inverse stays exact, and both layers have gradients.
    """
    n, inputs = rows.shape[0], rows.shape[1] // weight[0, 0].numel()
    weight.mul_(0.1)
    (weight[n:] if unread == 0 else weight[:, inputs:]).zero_()
    weight[:n, :inputs] = rows.reshape(n, inputs, *weight.shape[2:])


def _set_scales(model: LALIC, deviations: Tensor) -> None:
    """Set the last biases of the slices' networks to scales for these standard deviations, and to means of 0."""
    predicted = torch.full((model.config.M,), _SCALES[0])
    predicted[: len(deviations)] = deviations * _PREDICTED
    for k, scales in enumerate(predicted.clamp(*_SCALES).split(list(model.config.groups))):
        part = cast(Slice, model.latent_codec.y.latent_codec[f"y{k}"])
        bias = cast(nn.Parameter, cast(EntropyParametersBlock, part.entropy_parameters[-1]).mix.bias)
        bias[: len(scales)] = scales
        bias[len(scales) :] = 0
