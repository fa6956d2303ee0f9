"""`lalic train`: arguments and the run they start."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from lalic.memory import keep_memory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `lalic train`; needs no torch."""
    parser.add_argument("data", nargs="+", help="folders, tar files or pictures to train on")
    parser.add_argument("-o", "--out", required=True, type=Path, help="folder of the run; an unfinished run is resumed")
    parser.add_argument("--model", choices=("slim", "full"), default="slim", help="configuration (default: slim)")
    parser.add_argument("--lambda", dest="lmbda", type=float, help="weight of the distortion (default: 0.013)")
    parser.add_argument("--steps", type=int, help="updates (default: 10000)")
    parser.add_argument("--batch", type=int, help="crops an update (default: 8)")
    parser.add_argument("--patch", type=int, help="side of a crop in pixels, a multiple of 64 (default: 128)")
    parser.add_argument("--lr", type=float, help="peak learning rate (default: 5e-4)")
    parser.add_argument("--warmup", type=int, help="steps to the peak learning rate (default: 200)")
    parser.add_argument("--seed", type=int, help="of weights, crops and noise (default: 1)")
    parser.add_argument("--bf16", action="store_true", default=None, help="matrix products in bfloat16")
    parser.add_argument("--save-every", type=int, default=500, help="steps between checkpoints (default: 500)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")


def run(args: argparse.Namespace) -> int:
    """Train, or continue. Returns the exit code."""
    import torch

    keep_memory()
    from lalic.codec import resolve_device
    from lalic.config import FULL, SLIM
    from lalic.errors import LalicError
    from lalic.model import LALIC
    from lalic.training.data import Crops
    from lalic.training.loop import Recipe, Trainer, start_weights

    given = {f.name: getattr(args, f.name, None) for f in fields(Recipe)}
    recipe = Recipe(**{k: v for k, v in given.items() if v is not None})
    if recipe.patch < 64 or recipe.patch % 64:
        raise LalicError(f"--patch: expected a positive multiple of 64, got {recipe.patch}")
    for name in ("steps", "batch", "lr", "lmbda"):
        if not getattr(recipe, name) > 0:
            raise LalicError(f"--{name.replace('lmbda', 'lambda')}: expected more than 0, got {getattr(recipe, name)}")
    device = resolve_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(recipe.seed)
    model = LALIC.from_config(SLIM if args.model == "slim" else FULL)
    start_weights(model)
    crops = Crops(args.data, recipe.patch, recipe.batch, recipe.seed)
    trainer = Trainer(model, crops, recipe, args.out, device)
    resumed = f", resumed at step {trainer.step}" if trainer.resume() else ""
    print(f"{model.config.name}: {len(crops)} pictures, {recipe.steps} steps{resumed}; {recipe}")
    trainer.run(save_every=args.save_every)
    print(f"weights: {args.out / 'weights.safetensors'}")
    return 0
