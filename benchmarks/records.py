"""Records of runs: the machine, a table for people, a line for `benchmarks/results/`, and all the lines there are.

Commands share their options: `add_where` and `add_saving` declare them, `check` refuses what cannot be measured or is
not worth keeping.
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
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Row, Setting
from lalic.eval.measure import device_name

FORMAT = 1
ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
BUSY = 0.5  # load average of a machine that does something else as well
PACKAGES = ("torch", "triton", "numba", "numpy", "compressai")


def environment(device: torch.device) -> dict[str, Any]:
    """Everything of a record but its rows."""
    commit, dirty = _commit()
    found = {
        "format": FORMAT,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "dirty": dirty,
        "device": device_name(device),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    if device.type == "cuda":
        found["runtime"] = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
        found["driver"] = _driver()
    return found


def counted(**what: Any) -> dict[str, Any]:
    """A record of what does not depend on the machine; it stands with the others of its kind, in `static.jsonl`."""
    return environment(torch.device("cpu")) | {"device": "static", "device_type": "none", "quick": False} | what


def add_where(parser: argparse.ArgumentParser) -> None:
    """--device and --threads."""
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where (default %(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: as torch chooses)")


def add_saving(parser: argparse.ArgumentParser) -> None:
    """--save and --results."""
    parser.add_argument("--save", action="store_true", help="append what was found to the results")
    parser.add_argument("--results", type=Path, metavar="DIR", help="where --save writes (default benchmarks/results)")


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
    if options.save and timed:
        refuse_if_busy(parser)
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.device(device)


def refuse_if_busy(parser: argparse.ArgumentParser) -> None:
    """Exit with 2 on a machine that does something else, or did in the last minute."""
    load = os.getloadavg()[0]
    if load > BUSY:
        parser.error(f"this machine does something else (load {load:.1f}); times taken now are not worth keeping")


def _commit() -> tuple[str | None, bool | None]:
    """The commit that is checked out, and whether files differ from it; results aside, for those only grow."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", ".", ":!benchmarks/results"))
    except (OSError, subprocess.CalledProcessError):  # no git, or not a checkout: the record says null
        return None, None


def _driver() -> str | None:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")[0].strip()
    except (OSError, subprocess.CalledProcessError):  # not NVIDIA, or no tool: the record says null
        return None


def header(found: dict[str, Any]) -> str:
    """Two lines that name the device, for the times below them mean nothing without it."""
    versions = ", ".join(f"{name} {found[name]}" for name in ("python", *PACKAGES) if found[name])
    commit = "unknown commit" if found["commit"] is None else f"commit {found['commit'][:10]}"
    state = " with changes" if found["dirty"] else ""
    return f"{found['device']}, {found['threads']} threads ({found['date']})\n{versions}, {commit}{state}"


def table(entry: str, rows: Sequence[Row]) -> str:
    """Rows of one entry as text: median time, then ratios and other figures; yardsticks are in parentheses."""
    state = rows[0]["memory"] if rows else "default"
    lines = [entry if state == "default" else f"{entry}, memory {state}"]
    case = None
    for row in rows:
        if row["case"] != case:
            case = row["case"]
            lines.append(f"  {case}")
        low, high = row["quartiles"]
        spread = (high - low) / row["seconds"] if row["seconds"] else 0.0
        figures = [f"{value:.2f} x {name}" for name, value in row["ratios"].items()]
        figures += [f"{name} {value:.4g}" for name, value in row["metrics"].items()]
        label = f"({row['call']})" if row["yardstick"] else row["call"]
        line = f"    {label:48}{_time(row['seconds']):>10}  +-{50 * spread:<3.0f}%  {'; '.join(figures)}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def _time(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


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


def keep(record: dict[str, Any], folder: Path | None = None) -> None:
    """`append`, and say so beside the command's own output."""
    path = append(record) if folder is None else append(record, folder)
    print(f"appended to {path}", file=sys.stderr)


# Reading


def time_rows(
    entry: str, device: torch.device, options: argparse.Namespace, measure_all: Callable[[Setting], list[Row]]
) -> None:
    """Measure an entry of its own command, print the table, and with --save append the record."""
    record = environment(device) | {"quick": options.quick}  # before the measurement: the date is that of its start
    record["rows"] = measure_all(Setting(device, quick=options.quick))
    print(header(record))
    print(table(entry, record["rows"]))
    if options.save:
        keep(record, options.results)


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
