"""How many pixels a training step takes in a second of processor time: `python -m benchmarks.training`.

A step is most of `lalic train --preset slim`'s: batch 32 of 128x128 in bfloat16, SOAP with a renewal of its bases every
tenth step, random weights. One thread. --beside CHECKOUT times the same model and recipe by the code of another
checkout too, turn by turn in processes of their own, so that a machine whose speed varies does not decide; the figure
is the ratio. The other checkout must know the configuration (any since `Config.kernels`).

A record holds every round's figures, thousand pixels per second of processor time, and both commits.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import records
from lalic.config import SLIM

ROOT = Path(__file__).parents[1]
BATCH, PATCH = 32, 128
WARM, STEPS = 3, 10  # ten steps hold one renewal of SOAP's bases
TIMEOUT = 600.0

# Runs by the code of either checkout, so it uses what both have.
_PROGRAM = """
import json, sys, tempfile, time
from pathlib import Path
import numpy, torch
from PIL import Image
torch.set_num_threads(1)
from lalic.memory import keep_memory
keep_memory()
from lalic.model import LALIC
from lalic.train.data import Crops
from lalic.train.loop import Trainer
from lalic.train.recipe import Recipe
shape, batch, patch, warm, steps = json.loads(sys.argv[1])
recipe = Recipe(batch=batch, patch=patch, optimizer="soap", lr=1e-3, bf16=True)
torch.manual_seed(0)
with tempfile.TemporaryDirectory() as folder:
    draw = numpy.random.default_rng(0)
    for i in range(8):
        coarse = Image.fromarray(draw.integers(0, 256, (24, 36, 3), numpy.uint8))
        coarse.resize((480, 320), Image.Resampling.BICUBIC).save(f"{folder}/{i}.png")
    crops = Crops([folder], patch, batch, 1)
    trainer = Trainer(LALIC(**shape), crops, recipe, Path(folder) / "run")
    for _ in range(warm):
        loss = trainer.update()["loss"]
    start = time.process_time()
    for _ in range(steps):
        loss = trainer.update()["loss"]
    spent = time.process_time() - start
assert loss == loss
print(json.dumps({"kilopixels": steps * batch * patch * patch / spent / 1e3, "loss": loss}))
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Print figures and with --save keep them. Returns 0; usage errors and a busy machine exit with 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description="Pixels a training step takes.")
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="time this checkout's code too")
    parser.add_argument("--rounds", type=int, default=3, help="processes a side (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one small step: to see that all runs")
    records.add_saving(parser)
    options = parser.parse_args(argv)
    device = records.check(parser, options)
    sides = {"here": ROOT} | ({} if options.beside is None else {"beside": options.beside.resolve()})
    record = records.environment(device) | {"threads": 1, "quick": options.quick}
    rows = measure(sides, 1 if options.quick else options.rounds, options.quick)
    medians = {side: statistics.median(values) for side, values in rows.items()}
    for side, value in medians.items():
        print(f"{side:8}{value:8.0f} thousand pixels per second of processor time  {_commit(sides[side])[:10]}")
    found: dict[str, Any] = {"kilopixels": rows, "commits": {side: _commit(path) for side, path in sides.items()}}
    if "beside" in rows:
        # Neighbours in time are compared with each other.
        found["ratio"] = statistics.median(a / b for a, b in zip(rows["here"], rows["beside"], strict=True))
        print(f"{found['ratio']:.2f} times the other's")
    if options.save:
        records.keep(record | {"training": {"model": "slim", "batch": BATCH, "patch": PATCH} | found}, options.results)
    return 0


def measure(sides: dict[str, Path], rounds: int, quick: bool = False) -> dict[str, list[float]]:
    """Thousand pixels per second of processor time of each round, by side; sides take turns."""
    found: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, path in sides.items():
            found[side].append(_process(path, quick))
    return found


def _process(checkout: Path, quick: bool) -> float:
    numbers = (1, 64, 1, 1) if quick else (BATCH, PATCH, WARM, STEPS)
    shape = {name: value for name, value in vars(SLIM).items() if name != "name"}
    if quick:
        shape |= {"M": 8, "dims": (8, 8, 8, 8, 8, 8), "depths": (0, 0, 1, 0), "groups": (3, 5)}
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _PROGRAM, json.dumps((shape, *numbers))]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    if done.returncode:
        raise RuntimeError(f"{checkout}: {done.stderr.strip()[-500:]}")
    return float(json.loads(done.stdout)["kilopixels"])


def _commit(checkout: Path) -> str:
    done = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown commit"


if __name__ == "__main__":
    raise SystemExit(main())
