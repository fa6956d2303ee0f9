"""`lalic train`: arguments and the run they start."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from lalic.config import FULL, SLIM, Config
from lalic.errors import LalicError
from lalic.memory import keep_memory
from lalic.train.recipe import CHOICES, PRESETS, Recipe


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
    parser.add_argument("--device", default="cpu", help="cpu or cuda; torchrun's processes take one GPU each")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The recipe that the arguments ask for. Raises ``LalicError`` with the option's name for a wrong value."""
    given = {f.name: getattr(args, f.name, None) for f in fields(Recipe)}
    preset = PRESETS[args.preset] if args.preset else {}
    try:
        return Recipe(**{**preset, **{k: v for k, v in given.items() if v is not None}})
    except ValueError as error:
        raise LalicError("--" + str(error).replace("lmbda", "lambda").replace("_", "-", 1)) from None


def configuration(name: str, init: Path | None = None) -> Config:
    """The configuration that ``--model`` names. Raises ``LalicError`` if there is none."""
    from lalic.nn import checkpoints

    if name == "init":
        if init is None:
            raise LalicError("--model: init is the configuration of a checkpoint, which --init must name")
        return checkpoints.infer_config(checkpoints.normalise(checkpoints.read(init)))
    if name in ("slim", "full"):
        return SLIM if name == "slim" else FULL
    try:
        given = json.loads(Path(name).read_text())
    except OSError as error:
        raise LalicError(f"--model: expected slim, full, init or a JSON file, got {name!r} ({error})") from None
    except (ValueError, RecursionError) as error:
        raise LalicError(f"--model: {name} is no JSON file ({error})") from None
    known = [f.name for f in fields(Config) if f.name != "name"]
    unknown = sorted(set(given) - set(known)) if isinstance(given, dict) else []
    if unknown or not isinstance(given, dict):
        what = f"has {', '.join(unknown)}" if unknown else f"is {type(given).__name__}"
        raise LalicError(f"--model: {name} {what}, expected an object with some of {', '.join(known)}")
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in given.items()}
    try:
        return replace(SLIM, **values).named()
    except ValueError as error:
        raise LalicError(f"--model: {name}: {error}") from None


def run(args: argparse.Namespace) -> int:
    """Train, or continue. Returns the exit code."""
    import torch

    keep_memory()
    from lalic.codec import resolve_device
    from lalic.model import LALIC
    from lalic.train.data import Crops
    from lalic.train.linear import BLOCKS, check_kernels, linear_start
    from lalic.train.loop import Trainer
    from lalic.train.processes import together
    from lalic.train.start import init_from, start_gains, start_weights

    recipe = recipe_of(args)
    for name in ("save_every", "log_every"):
        if getattr(args, name) < 1:
            raise LalicError(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(args, name)}")
    if args.threads:
        torch.set_num_threads(args.threads)
    config = configuration(args.model, args.init)
    if args.init is not None:
        if args.start == "linear":
            raise LalicError("--start: expected random beside --init, whose weights are not fresh, got linear")
        recipe = replace(recipe, start="random")
    elif recipe.start == "linear":
        check_kernels(config)
    with together(resolve_device(args.device)) as (share, device):
        torch.manual_seed(recipe.seed)
        model = LALIC.from_config(config if args.qualities is None else replace(config, qualities=args.qualities))
        crops = Crops(args.data, recipe.patch, recipe.batch, recipe.seed, shrink=recipe.shrink)
        start_weights(model)
        start_gains(model, recipe)
        if args.init is not None:
            init_from(model, args.init)
        elif recipe.start == "linear" and not (args.out / "last.pt").exists():
            count = -(-BLOCKS * 16**2 // recipe.patch**2)
            pictures = Crops(args.data, recipe.patch, count, recipe.seed, shrink=recipe.shrink)[0]
            linear_start(model, pictures, recipe.lmbda)
        trainer = Trainer(
            model, crops, recipe, args.out, device, share=share, compiled=args.compile, tensorboard=args.tensorboard
        )
        resumed = f", resumed at step {trainer.step}" if trainer.resume() else ""
        if share[0] == 0:
            print(f"{model.config.name}: {len(crops)} pictures, {recipe.steps} steps{resumed}; {recipe}", flush=True)
        trainer.run(every=args.log_every, save_every=args.save_every)
        if share[0] == 0:
            print(f"weights: {args.out / 'weights.safetensors'}")
    return 0
