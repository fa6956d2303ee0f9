"""`lalic train`: from arguments to a call of `lalic.train.train`. Imports no torch, so that `lalic --help` is fast."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from lalic.errors import LalicError, one_line
from lalic.memory import KEEP_MIB
from lalic.options import add_machine_options, set_up_process
from lalic.train.recipe import PRESETS, Recipe, option, preset


def register(commands: Any, epilog: str) -> None:
    """Declare the command. commands: from argparse's `add_subparsers`. epilog: of its help."""
    parser = commands.add_parser("train", help="train a model", epilog=epilog)
    add_arguments(parser)
    parser.set_defaults(run=run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `lalic train`. Defaults come from the preset, or else from `Recipe`."""
    parser.description = (
        "Train a model. A run is a folder. Started again with the same arguments it continues where it stopped, with "
        "the result of an uninterrupted run. Documentation: docs/training.md."
    )
    parser.add_argument("data", nargs="+", metavar="DATA", help="folders, tar files or pictures to train on")
    parser.add_argument("-o", "--out", required=True, type=Path, help="folder of the run; an unfinished run is resumed")
    parser.add_argument(
        "--model", default="slim", metavar="NAME",
        help="configuration: slim, full, init for that of the checkpoint to start from, or a JSON file with the fields "
        "of lalic.config.Config in which it differs from slim (default: slim)",
    )  # fmt: skip
    parser.add_argument(
        "--qualities",
        type=int,
        metavar="N",
        help="anchors of the gains, which give one model every quality; 0: one lambda (default: as --model)",
    )
    parser.add_argument("--init", type=Path, metavar="FILE", help="checkpoint to start from, trained with --lambda")
    parser.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        help="recipe in place of the defaults below; options that are given change it",
    )

    recipe = parser.add_argument_group("recipe", "The defaults are those without --preset.")
    for field in fields(Recipe):
        what: dict[str, Any] = {"choices": field.metadata["choices"] or None, "type": type(field.default)}
        if not what["choices"]:
            what["metavar"] = "N" if what["type"] is int else "X"
        if field.default is False:
            what = {"action": "store_const", "const": True}
        text = f"{field.metadata['help']} (default: {field.default})"
        recipe.add_argument(option(field.name), dest=field.name, help=text, **what)

    parser.add_argument(
        "--save-every", type=int, default=500, metavar="N", help="steps between checkpoints (default: 500)"
    )
    parser.add_argument(
        "--log-every", type=int, default=100, metavar="N", help="steps between lines of the log (default: 100)"
    )
    parser.add_argument(
        "--keep-mib", type=int, default=KEEP_MIB, metavar="N",
        help="MiB of decoded pictures that each process keeps in memory; others are decoded for each crop (default: "
        f"{KEEP_MIB})",
    )  # fmt: skip
    parser.add_argument("--compile", dest="compiled", action="store_true", help="compile the model with torch.compile")
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard's files beside log.csv")
    add_machine_options(parser)


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The recipe of the arguments. Raises ``LalicError`` with the option's name for a wrong value."""
    given = {f.name: getattr(args, f.name) for f in fields(Recipe)}
    if args.init is not None and args.start is None:
        given["start"] = "random"  # the start of a preset is for fresh weights
    try:
        return preset(args.preset, **{name: value for name, value in given.items() if value is not None})
    except ValueError as error:
        name, _, problem = str(error).partition(":")
        raise LalicError(f"{option(name)}:{problem}") from None


def _log(message: str) -> None:
    print(one_line(message), flush=True)


def run(args: argparse.Namespace) -> int:
    """Train, or continue. Returns the exit code."""
    set_up_process(args.threads)
    from lalic.train.loop import train

    names = ("qualities", "init", "device", "save_every", "log_every", "compiled", "tensorboard", "keep_mib")
    options: dict[str, Any] = {name: getattr(args, name) for name in names}
    train(args.data, args.out, recipe_of(args), args.model, **options, log=_log)
    return 0
