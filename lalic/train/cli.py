"""`lalic train`: from arguments to a call of `lalic.train.train`. Needs no torch, so `lalic --help` answers at once."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from lalic.errors import LalicError
from lalic.options import add_machine_options, set_up_process
from lalic.train.recipe import CHOICES, PRESETS, Recipe, preset


def register(commands: Any) -> None:
    """Declare the command; `commands` is what argparse's `add_subparsers` gives."""
    parser = commands.add_parser("train", help="train a model")
    add_arguments(parser)
    parser.set_defaults(run=run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `lalic train`. What is not given is the preset's, or else `Recipe`'s."""
    parser.description = (
        "Train a model. A run lies in a folder: started again with the same words it goes on where it stopped, with "
        "the same result as if it had not. docs/training.md says more."
    )
    parser.add_argument("data", nargs="+", help="folders, tar files or pictures to train on")
    parser.add_argument("-o", "--out", required=True, type=Path, help="folder of the run; an unfinished run is resumed")
    parser.add_argument(
        "--model", default="slim", metavar="NAME",
        help="configuration: slim, full, init for that of the checkpoint to start from, or a JSON file with the fields "
        "of lalic.config.Config in which it differs from slim (default: slim)",
    )  # fmt: skip
    parser.add_argument("--qualities", type=int, help="anchors of the gains; 0: one lambda (default: the model's own)")
    parser.add_argument("--init", type=Path, metavar="FILE", help="checkpoint to start from; --lambda says its lambda")
    parser.add_argument("--preset", choices=tuple(PRESETS), help="recipe to start from; other arguments change it")

    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--metric", choices=CHOICES["metric"], help="distortion (default: mse)")
    recipe.add_argument("--lambda", dest="lmbda", type=float, help="weight of the distortion (default: 0.013)")
    recipe.add_argument("--lowest", type=float, help="lambda at quality 1 of a model with gains (default: 0.0012)")
    recipe.add_argument("--highest", type=float, help="lambda at quality 100 (default: 0.06)")
    recipe.add_argument("--balance", type=float, help="losses are divided by lambda to this power (default: 0.5)")
    recipe.add_argument("--start", choices=CHOICES["start"], help="of fresh weights (default: random)")
    recipe.add_argument("--steps", type=int, help="updates (default: 10000)")
    recipe.add_argument("--batch", type=int, help="crops an update, over all processes (default: 8)")
    recipe.add_argument("--patch", type=int, help="side of a crop in pixels, a multiple of 64 (default: 128)")
    recipe.add_argument(
        "--large", type=int, help="every so many updates have crops of twice the side; 0: none (default)"
    )
    recipe.add_argument(
        "--shrink", type=float, help="crops of up to this many times the side, scaled down (default: 1)"
    )
    recipe.add_argument("--optimizer", choices=CHOICES["optimizer"], help="of the weights (default: adam)")
    recipe.add_argument("--lr", type=float, help="peak learning rate (default: 5e-4)")
    recipe.add_argument("--auxiliary-lr", type=float, help="learning rate of the prior's quantiles (default: 1e-2)")
    recipe.add_argument("--schedule", choices=CHOICES["schedule"], help="of the learning rate (default: cosine)")
    recipe.add_argument("--warmup", type=int, help="steps to the peak learning rate (default: 200)")
    recipe.add_argument("--decay", type=float, help="share of the steps in which a trapezoid falls (default: 0.25)")
    recipe.add_argument("--clip", type=float, help="largest gradient norm (default: 1)")
    recipe.add_argument("--ema", type=float, help="decay of the average that is kept; 0: none (default: 0.999)")
    recipe.add_argument("--seed", type=int, help="of weights, crops, qualities and noise (default: 1)")
    recipe.add_argument("--bf16", action="store_true", default=None, help="matrix products in bfloat16")

    parser.add_argument("--save-every", type=int, default=500, help="steps between checkpoints (default: 500)")
    parser.add_argument("--log-every", type=int, default=100, help="steps a line of the log stands for (default: 100)")
    parser.add_argument("--compile", action="store_true", help="through torch.compile")
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard's files beside log.csv")
    add_machine_options(parser)


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The recipe that the arguments ask for. Raises ``LalicError`` with the option's name for a wrong value."""
    given = {f.name: getattr(args, f.name) for f in fields(Recipe)}
    if args.init is not None and args.start is None:
        given["start"] = "random"  # a preset's start is that of fresh weights
    try:
        return preset(args.preset, **{name: value for name, value in given.items() if value is not None})
    except ValueError as error:
        raise LalicError("--" + str(error).replace("lmbda", "lambda").replace("_", "-", 1)) from None


def run(args: argparse.Namespace) -> int:
    """Train, or continue. Returns the exit code."""
    set_up_process(args.threads)
    from lalic.train.loop import train

    train(
        args.data,
        args.out,
        recipe_of(args),
        args.model,
        qualities=args.qualities,
        init=args.init,
        device=args.device,
        save_every=args.save_every,
        log_every=args.log_every,
        compiled=args.compile,
        tensorboard=args.tensorboard,
        log=lambda message: print(message, flush=True),
    )
    return 0
