"""What a run says: the machine, a table for people, and a record for `benchmarks/results/`."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Row
from lalic.eval.machine import device_name

FORMAT = 1
ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
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


def _commit() -> tuple[str | None, bool | None]:
    """The commit that is checked out, and whether files differ from it; results aside, for those only grow."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", ".", ":!benchmarks/results"))
    except (OSError, subprocess.CalledProcessError):  # no git, or not a checkout: the record says null
        return None, None


def _driver() -> str | None:
    try:
        words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.split("\n")[0].strip()
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
