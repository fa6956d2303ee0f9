"""Other people's codecs, from their own checkouts or installed: yardsticks, never a dependency.

A checkout is known by its files and imported in a subprocess (`benchmarks/peers/worker.py`), by an interpreter of its
own if `--peer-python` names one: versions may clash, and what a peer sets stays there. The worker answers with one
line of JSON. One that cannot run gives a row that says why. `compressai` instead of a folder stands for the models of
the installed package. All have random weights, which change neither the layers nor, much, the coder's work; their
rates stand beside.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Setting

WORKER = Path(__file__).with_name("worker.py")
TIMEOUT = 1800.0
Row = dict[str, Any]

# Name, files that a checkout of it has, the folder to import from.
KNOWN: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("TCM", ("models/tcm.py",), "."),
    ("FTIC", ("models/flic.py", "models/tca.py"), "."),
    ("MLIC++", ("MLIC++/models/mlicpp.py",), "MLIC++"),
    ("MLIC++", ("models/mlicpp.py",), "."),
    ("DCVC-RT intra", ("src/models/image_model.py", "src/layers/cuda_inference.py"), "."),
    ("DCVC-UF intra", ("src/models/image_model.py", "src/models/video_model_ht.py"), "."),
)
PACKAGE = "compressai"


def recognise(path: Path) -> tuple[str, Path] | None:
    """A peer's name and the folder to import from; None for a folder that is none of them."""
    for name, files, root in KNOWN:
        if all((path / file).is_file() for file in files):
            return name, path / root
    return None


def add_options(parser: argparse.ArgumentParser) -> None:
    """--peers and --peer-python."""
    parser.add_argument(
        "--peers", nargs="+", default=(), metavar="PATH",
        help="checkouts of TCM, MLIC, FTIC or DCVC, or the word compressai for the package's ELIC and mbt2018-mean",
    )  # fmt: skip
    parser.add_argument(
        "--peer-python", type=Path, default=Path(sys.executable), metavar="FILE", help="interpreter for peers (our own)"
    )


def ask(peer: str, python: Path, request: dict[str, Any]) -> list[Row]:
    """Rows of a peer from the worker, or one with "skipped". `request` goes to the worker's `main`."""
    if peer == PACKAGE:
        name, root = "CompressAI", Path()
    else:
        path = Path(peer).resolve()
        found = recognise(path)
        if found is None:
            known = ", ".join(dict.fromkeys(name for name, _, _ in KNOWN))
            return [{"model": path.name, "skipped": f"the folder is no checkout of {known}"}]
        name, root = found
    command = [str(python), str(WORKER), json.dumps({"peer": name, "root": str(root), **request})]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return [{"model": name, "skipped": f"took longer than {TIMEOUT:.0f} s"}]
    except OSError as error:
        return [{"model": name, "skipped": f"--peer-python does not start: {error.strerror}"}]
    answers = [line for line in done.stdout.splitlines() if line.startswith('{"rows"')]
    if done.returncode or not answers:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        return [{"model": name, "skipped": f"ended with code {done.returncode}: {last[:200]}"}]
    rows: list[Row] = json.loads(answers[-1])["rows"]
    return rows


def measured(peer: str, python: Path, size: tuple[int, int], batch: int, setting: Setting) -> list[Row]:
    """Rows of compressing and decompressing `batch` pictures of that (height, width) at a time."""
    request = {
        "height": size[0], "width": size[1], "batch": batch, "device": setting.device.type,
        "threads": torch.get_num_threads(), "rounds": setting.rounds,
    }  # fmt: skip
    return ask(peer, python, request)


def counted(peer: str, python: Path, sizes: Sequence[tuple[int, int]]) -> list[Row]:
    """Rows of a forward pass, counted at each (height, width); the interpreter needs this project beside the peer."""
    return ask(peer, python, {"sizes": list(sizes)})


def passed(
    peer: str, python: Path, sizes: Sequence[tuple[int, int]], device: torch.device, longest: float
) -> list[Row]:
    """Rows of memory and seconds of a forward pass at each (height, width), from `benchmarks.paper.scaling.passes`."""
    request = {
        "sizes": list(sizes), "device": device.type, "threads": torch.get_num_threads(), "longest": longest,
    }  # fmt: skip
    return ask(peer, python, request)
