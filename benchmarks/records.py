"""Records of runs: the machine, a line for `benchmarks/results/`, and all the lines there are.

Commands share their options: `parser` declares them, `check` refuses what cannot be measured or is not worth keeping.
`benchmarks.report` prints a record.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from lalic.eval.measure import device_name

FORMAT = 1
ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
BUSY = 0.5  # load average of a machine that does something else as well
BUSY_GPU = 10  # percent of the last second in which a GPU computed
LOOKS = 5  # at a GPU, a second apart: what ended just now still shows
Record = dict[str, Any]
PACKAGES = ("torch", "triton", "numba", "numpy", "compressai")


def environment(device: torch.device) -> dict[str, Any]:
    """Everything of a record but its rows."""
    commit, dirty = _commit()
    found: dict[str, Any] = {
        "format": FORMAT,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "dirty": dirty,
        "device": device_name(device),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "quick": False,
    }
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    if device.type == "cuda":
        found["runtime"] = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
        driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        found["driver"] = driver and driver.split("\n")[0]
    return found


def counted(**what: Any) -> dict[str, Any]:
    """A record of what does not depend on the machine; it stands with the others of its kind, in `static.jsonl`."""
    return environment(torch.device("cpu")) | {"device": "static", "device_type": "none"} | what


def parser(name: str, about: str, where: bool = True, quick: str = "") -> argparse.ArgumentParser:
    """Of `benchmarks.NAME`: --save and --results; with `where` --device and --threads; quick: the help of --quick."""
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=about)
    if where:
        made.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where (default %(default)s)")
        made.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: as torch chooses)")
    if quick:
        made.add_argument("--quick", action="store_true", help=f"{quick}: to see that all runs, not to measure")
    made.add_argument("--save", action="store_true", help="append what was found to the results")
    made.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="default benchmarks/results")
    return made


def check(parser: argparse.ArgumentParser, options: argparse.Namespace, timed: bool = True) -> torch.device:
    """The device, after threads were set. Exits with 2 where the machine lacks what was asked for.

    So it does where --save would keep what is not worth it: figures of --quick, and times of a busy machine.
    """
    device, threads = getattr(options, "device", "cpu"), getattr(options, "threads", None)
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this machine has no CUDA device that torch can use")
    if threads is not None and threads < 1:
        parser.error(f"--threads is {threads}, expected at least 1")
    if options.save and getattr(options, "quick", False):
        parser.error("--quick is for seeing that everything runs; its figures are not kept: leave out --save")
    if options.save and timed and (load := busy(device)):
        parser.error(f"this machine does something else ({load}); times taken now are not worth keeping")
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.device(device)


def busy(device: str) -> str:
    """What says that the device works for somebody else; "" if nothing does.

    Of a GPU its own load, for the processor is at work before each run. A GPU that does not tell is taken to be idle.
    """
    if device != "cuda":
        load = os.getloadavg()[0]
        return f"load {load:.1f}" if load > BUSY else ""
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    if uuid := getattr(torch.cuda.get_device_properties(0), "uuid", None):  # the one that torch uses, not the first
        query.append(f"--id=GPU-{uuid}")
    for look in range(LOOKS):
        if look:
            time.sleep(1)
        percent = (_output(*query) or "").split("\n")[0].strip()
        if not percent.isdigit() or int(percent) <= BUSY_GPU:
            return ""
    return f"the GPU computes {percent} % of the time"


def _commit() -> tuple[str | None, bool | None]:
    """The commit that is checked out, and whether files differ from it; results aside, for those only grow."""
    changes = _output("git", "status", "--porcelain", "--", ".", ":!benchmarks/results")
    return _output("git", "rev-parse", "HEAD"), None if changes is None else bool(changes)


def _output(*command: str) -> str | None:
    """What a command prints; None without the tool, and where it does not apply: the record says null."""
    try:
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def slug(name: str) -> str:
    """A device's name as a file name: lower case, words joined by hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def append(record: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Add one line to the device's file; what is there already is never touched. Returns the file's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{slug(record['device'])}.jsonl"
    line = json.dumps(record, allow_nan=False) + "\n"
    if path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
        line = "\n" + line  # somebody's editor took the last line's end
    with open(path, "a", encoding="utf-8") as file:
        file.write(line)
    return path


def keep(record: dict[str, Any], options: argparse.Namespace) -> None:
    """`append` if --save was given, and say so beside the command's own output."""
    if options.save:
        print(f"appended to {append(record, options.results)}", file=sys.stderr)


# Reading


def load(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """All records of a folder of results, oldest first. Raises ``ValueError`` naming a line that is none."""
    found = []
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                record = json.loads(line)
                record["date"], record["device"]
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{path.name}:{number} is no record of a run") from None
            found.append(record)
    return sorted(found, key=lambda record: record["date"])


def latest(records: Iterable[dict[str, Any]], key: Callable[[dict[str, Any]], Any]) -> list[dict[str, Any]]:
    """The last record for each value of `key`, in the order in which the values first came."""
    return list({key(record): record for record in records}.values())
