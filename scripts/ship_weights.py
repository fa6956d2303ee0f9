"""Put the weights of a run into the package: `python scripts/ship_weights.py RUN [RUN...] --device-time TEXT`.

The averaged weights of the last RUN go to lalic/weights/ under the name of their configuration, with the logs of all
runs, in the order in which one started from the other, and a model card. The card's texts on data and limits are in
this file.

--after TEXT continues from the weights in the package: recipes, steps and logs of their runs are taken from card and
log, and TEXT describes what was done to the weights in between, or is "no change".
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import lalic
from lalic.errors import CheckpointError
from lalic.files import write_atomic
from lalic.nn import checkpoints
from lalic.train.recipe import Recipe, option

MAX_BYTES = 24_000_000  # of a file of weights
WEIGHTS = Path(__file__).parents[1] / "lalic" / "weights"

_TABLE = {
    "model": "`lalic.{name}()`: M {M} in groups of {groups}, kernels {kernels}, dims {dims}, depths {depths}, contexts "
    "of width {context_width}, aggregation networks of width {aggregation}; {parameters:.2f} M parameters; {gains}",
    "weights hash": "`{weights_hash}`",
    "file": "{size} bytes, SHA-256 `{sha256}`; safetensors: matrices in half precision, vectors, gains and the prior "
    "in float32, coding tables of z as integers",
    "data": "1516 photos for research use (web photos scaled down by a quarter, the BSDS500 photos, larger scenes and "
    "buildings), JPEG at quality 92; none of them is in the repository. Every 50th of 1547 was held out, to choose by. "
    "Kodak was never used to train or to choose",
    "objective": "{objective}",
    "recipe": "{recipe}",
    "steps": "{steps}",
    "device time": "{device_time}",
    "log": "`training-log.csv`: each run's means between its rows; `held_out_...` are estimates of the averaged "
    "weights on held-out crops of up to 256 x 256, `..._q` at quality q",
    "held out at the end": "{held_out}",
    "results": "`benchmarks/results/`, records that name the weights' hash",
    "limits": "{limits}",
    "licence": "MIT, as the code; made by this project",
}
CARD = """# {name}.safetensors

Model card of the weights that ship. A file names the weights it was written with by a hash and is refused by others.
This card is made by `python scripts/ship_weights.py`.

| | |
|---|---|
""" + "".join(f"| {field} | {words} |\n" for field, words in _TABLE.items())
LIMITS = "trained for hours on one CPU core, where such models train for days on a GPU: expect soft textures. MSE only"


def main(argv: Sequence[str] | None = None) -> int:
    """Write weights, log and card. Returns the exit code. Raises ``CheckpointError`` for a run without a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs, the last one ships")
    parser.add_argument("--device-time", required=True, help='such as "5 hours on one core of an AMD EPYC server"')
    parser.add_argument("--limits", default=LIMITS, help="limits of the weights, for the card")
    parser.add_argument("--after", metavar="TEXT", help="what was done to the weights in the package before")
    parser.add_argument("--to", type=Path, default=WEIGHTS, help="folder to write to (default: the package's)")
    args = parser.parse_args(argv)
    print(ship(args.runs, args.device_time, args.limits, args.to, args.after))
    return 0


def ship(runs: Sequence[Path], device_time: str, limits: str, to: Path, after: str | None = None) -> str:
    """Write the last run's weights, the logs of all runs and the card to the folder `to`.

    device_time, limits: texts of the card. after: what was done to the weights in `to` before these runs; None: the
    runs started from random weights. Returns a line on what was written. Raises ``CheckpointError`` for a run without a
    checkpoint, for weights that are too large, and for a card without a field that is to be continued.
    """
    states = [checkpoints.read(run / "last.pt") for run in runs]
    data = (runs[-1] / "weights.safetensors").read_bytes()
    if len(data) > MAX_BYTES:
        raise CheckpointError(f"{runs[-1]}: weights of {len(data)} bytes, expected at most {MAX_BYTES}")
    model = lalic.load(runs[-1] / "weights.safetensors")
    config = model.config
    rows = [_rows(run / "log.csv") for run in runs]
    counted = sum(p.numel() for n, p in model.named_parameters() if "conv5x5_reparam" not in n)
    recipes = [_recipe(state["recipe"]) for state in states]
    done, steps = [_changes(recipe) for recipe in recipes], [str(state["step"]) for state in states]
    earlier: list[dict[str, str]] = []
    if after is not None:
        earlier = _rows(to / "training-log.csv")
        card = (to / "README.md").read_text("utf-8")
        done, steps = [_field(card, "recipe"), after, *done], [_field(card, "steps"), *steps]
    card = CARD.format(
        name=config.name,
        M=config.M,
        kernels=_list(config.kernels),
        context_width=config.hyper_width,
        aggregation=_list(config.aggregation_widths) or f"at least {2 * config.N}",
        groups=_list(config.groups),
        dims=_list(config.dims),
        depths=_list(config.depths),
        parameters=counted / 1e6,
        gains=f"gains at {config.qualities} anchors" if config.qualities else "one quality",
        weights_hash=model.weights_hash().hex(),
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        objective=_objective(recipes[-1], bool(config.qualities)),
        recipe="; then ".join(done),
        steps=" + ".join(steps),
        device_time=device_time,
        held_out=_held_out(rows[-1]),
        limits=limits,
    )
    first = max((int(row["run"]) for row in earlier), default=0) + 1
    numbered = [{"run": str(number), **row} for number, run in enumerate(rows, first) for row in run]
    columns = list(dict.fromkeys(name for row in [*earlier, *numbered] for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows([*earlier, *numbered])
    to.mkdir(parents=True, exist_ok=True)
    write_atomic(to / f"{config.name}.safetensors", data)
    write_atomic(to / "training-log.csv", text.getvalue().encode())
    write_atomic(to / "README.md", card.encode())
    return f"{to}: {config.name}, hash {model.weights_hash().hex()}, {len(data)} bytes"


def _rows(log: Path) -> list[dict[str, str]]:
    with log.open(newline="") as file:
        return list(csv.DictReader(file))


def _field(card: str, name: str) -> str:
    """The text of a card's field. Raises ``CheckpointError`` if there is no such field."""
    for line in card.splitlines():
        if line.startswith(f"| {name} | "):
            return line.removeprefix(f"| {name} | ").removesuffix(" |")
    raise CheckpointError(f"the card of the weights to go on from has no field {name!r}")


def _recipe(saved: dict[str, Any]) -> Recipe:
    names = {f.name for f in fields(Recipe)}
    return Recipe(**{name: value for name, value in saved.items() if name in names})


def _changes(recipe: Recipe) -> str:
    """The options of `lalic train` for a recipe's differences from the default."""
    options = []
    for f in fields(Recipe):
        value = getattr(recipe, f.name)
        if value != f.default:
            options.append(option(f.name))
            if value is not True:
                options.append(f"{value:g}" if isinstance(value, float) else str(value))
    return f"`lalic train {' '.join(options)}`"


def _objective(recipe: Recipe, gains: bool) -> str:
    distortion = "255^2 * MSE" if recipe.metric == "mse" else "(1 - MS-SSIM)"
    if not gains:
        return f"{recipe.lmbda:g} * {distortion} + bits per pixel: one point of the rate-distortion curve"
    return (
        f"lambda * {distortion} + bits per pixel, every sample at its own quality; lambda {recipe.lowest:g} at quality "
        f"1 to {recipe.highest:g} at 100, log-linear"
    )


def _held_out(rows: Sequence[dict[str, str]]) -> str:
    last = next((row for row in reversed(rows) if row.get("held_out_bpp")), None)
    if last is None:
        return "not measured"
    points = [name.rsplit("_", 1)[1] for name in last if name.startswith("held_out_bpp_")]
    at = [f"q{q} {last[f'held_out_bpp_{q}']} bpp {last[f'held_out_psnr_{q}']} dB" for q in points]
    return ", ".join(at) or f"{last['held_out_bpp']} bpp {last['held_out_psnr']} dB"


def _list(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))


if __name__ == "__main__":
    raise SystemExit(main())
