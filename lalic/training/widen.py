"""More latent channels for trained weights: `python -m lalic.training.widen FROM DATA... -o TO --groups 48 48`.

The new channels make slices of their own behind the old ones, so old slices are predicted from what they always saw,
and the channels of hyper parameters and contexts stay as many as they were (`Config.context_width`). At first nothing
reads the new channels but their own slices: pictures and old symbols are those of FROM, and training finds what the
new ones are good for.

Where they start: the principal components of what FROM loses, in blocks of 16x16 pixels at quality 100. A least-squares
fit, from what g_a's last convolution sees to these components, gives its new rows. The new gains are the old ones' mean
in shape, and such that a new channel is `SPREAD` steps of the quantiser large at quality 100. New slices start with the
last old slice's context network, as far as their inputs are the same, and with small scales.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lalic.config import Config
from lalic.errors import LalicError
from lalic.model import LALIC
from lalic.nn import checkpoints
from lalic.nn.context import EntropyParametersBlock, Slice
from lalic.nn.gains import HIGHEST
from lalic.training.data import Crops

SPREAD = 0.5  # root mean square of a new channel, in steps of the quantiser at quality 100
SCALE = 0.3  # of new latents, as their slices predict it at first: most will be zero, which then costs little
BATCHES = 12  # of four crops of 256x256 that the command fits to
_SIDE = 16  # pixels that a latent stands for


def widened(config: Config, groups: Sequence[int]) -> Config:
    """The configuration with further slices of these channels behind its own."""
    M = config.M + sum(groups)
    return replace(
        config, M=M, dims=(*config.dims[:3], M, *config.dims[4:]), groups=(*config.groups, *groups),
        context_width=config.hyper_width,
    ).named()  # fmt: skip


@torch.no_grad()
def widen(old: LALIC, groups: Sequence[int], crops: Iterable[Tensor]) -> LALIC:
    """A model with ``groups`` more slices that computes what ``old`` computes, its new channels fitted to ``crops``.

    Args:
        old: in eval mode, with gains. crops: batches (B, 3, H, W) in [0, 1], H and W multiples of 64.

    Raises ``LalicError`` for a model without gains, which say what a step of the quantiser is, and for empty slices.
    """
    if min(groups, default=0) < 1:
        raise LalicError(f"groups: expected one or more positive numbers, got {list(groups)}")
    if old.gains is None:
        raise LalicError("the model to widen has no gains, which tell how large new latents may be")
    new = LALIC.from_config(widened(old.config, groups))
    theirs, own = old.state_dict(), new.state_dict()
    for name, value in own.items():
        if name in theirs and name.rsplit(".", 1)[-1] not in checkpoints.TABLE_BUFFERS:
            if value.shape != theirs[name].shape:  # more channels, behind those that were there
                value.zero_()
                value[tuple(map(slice, theirs[name].shape))] = theirs[name]
            else:
                value.copy_(theirs[name])
    M, last = old.config.M, f"g_a.{len(new.g_a) - 1}"
    weight, bias, spread = _fit(old, sum(groups), crops)
    own[f"{last}.weight"][M:], own[f"{last}.bias"][M:] = weight, bias
    gains, inverses = own["gains.log_gains"], own["gains.log_inverses"]
    gains[:, M:] = gains[:, :M].mean(1, keepdim=True)
    gains[:, M:] += (SPREAD / spread).log() - gains[-1:, M:]
    inverses[:, M:] = -gains[:, M:]
    new.load_state_dict(own)
    for k in range(len(old.config.groups), len(new.config.groups)):
        _start_slice(new, k, len(old.config.groups) - 1)
    return new.eval()


def _start_slice(model: LALIC, k: int, like: int) -> None:
    """Let slice k start with the context network of slice ``like`` > 0 and scales of `SCALE`."""
    stack, groups = model.latent_codec.y, model.config.groups
    if like > 0:
        source, target = (cast(nn.Sequential, stack.channel_context[f"y{i}"]) for i in (like, k))
        for block, other in zip(list(target)[1:-1], list(source)[1:-1], strict=True):
            block.load_state_dict(other.state_dict())
        first, theirs = cast(nn.Conv2d, target[0]), cast(nn.Conv2d, source[0])
        first.weight[:, : theirs.weight.shape[1]] = theirs.weight
        first.weight[:, theirs.weight.shape[1] :] *= 0.1
        cast(nn.Parameter, first.bias).copy_(cast(nn.Parameter, theirs.bias))
    last = cast(EntropyParametersBlock, cast(Slice, stack.latent_codec[f"y{k}"]).entropy_parameters[-1])
    for weight in (last.mix.weight, last.value.weight):
        weight.mul_(0.1)
    scales, means = cast(nn.Parameter, last.mix.bias).split(groups[k])
    scales.fill_(SCALE)
    means.zero_()


def _fit(old: LALIC, count: int, crops: Iterable[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """New rows of g_a's last convolution: weight (count, C, 3, 3), bias (count,) and the rows' RMS (count,)."""
    last = cast(nn.Conv2d, old.g_a[-1])
    size = 3 * _SIDE**2
    inputs = last.weight[0].numel()
    scatter = torch.zeros(size, size, dtype=torch.float64)
    seen: list[Tensor] = []
    missed: list[Tensor] = []
    for x in crops:
        left = x - old(x, HIGHEST)["x_hat"].clamp(0, 1)
        blocks = F.unfold(left, _SIDE, stride=_SIDE).transpose(1, 2).flatten(0, 1)
        scatter += (blocks.mT @ blocks).double()
        seen.append(F.unfold(old.g_a[:-1](x), 3, padding=1, stride=2).transpose(1, 2).flatten(0, 1))
        missed.append(blocks)
    components = torch.linalg.eigh(scatter)[1][:, -count:].flip(1)
    a, b = torch.cat(seen).double(), torch.cat(missed).double() @ components
    middle = a.mean(0)
    a = a - middle
    covariance = a.mT @ a
    covariance += 1e-3 * covariance.diagonal().mean() * torch.eye(inputs, dtype=torch.float64)
    rows = torch.linalg.solve(covariance, a.mT @ (b - b.mean(0))).mT
    spread = (a @ rows.mT).square().mean(0).sqrt()
    weight = rows.reshape(count, *last.weight.shape[1:]).float()
    return weight, (-rows @ middle).float(), spread.float()


def main(argv: Sequence[str] | None = None) -> int:
    """Widen a checkpoint; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lalic.training.widen", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("checkpoint", type=Path, metavar="FROM", help="weights to widen, of a model with gains")
    parser.add_argument("data", nargs="+", help="folders, tar files or pictures that a run is given")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="TO", help="safetensors file to write")
    parser.add_argument("--groups", nargs="+", type=int, required=True, help="channels of each new slice")
    parser.add_argument("--seed", type=int, default=1, help="of crops and of what starts at random (default: 1)")
    args = parser.parse_args(argv)
    old = LALIC.from_state_dict(checkpoints.read(args.checkpoint))
    torch.manual_seed(args.seed)
    batches = Crops(args.data, 256, 4, args.seed)
    new = widen(old, args.groups, (batches[i] for i in range(BATCHES)))
    new.update()
    checkpoints.save_weights(new, args.output)
    print(f"{args.output}: {new.config}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
