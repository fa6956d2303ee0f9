"""What a decode on a GPU takes, counted: records, and the table of the docs made of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from benchmarks import records

ROOT = Path(__file__).parents[2]


def kept() -> dict[tuple[str, str], dict[str, float]]:
    """Bytes a pixel by part, of the last record of each model and precision."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for record in records.load():
        if "decode_memory" in record:
            one: dict[str, Any] = record["decode_memory"]
            assert record["device"] == "static" and one["size"] == [768, 512]
            found[one["model"], one["precision"]] = one["bytes_a_pixel"]
    return found


def test_the_table_in_the_docs_is_the_last_record() -> None:
    text = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    found = kept()
    assert len(found) == 4
    for (model, precision), parts in found.items():
        assert parts["all"] == max(parts.values()) == parts["synthesis"]
        large = 3840 * 2176 * parts["all"] / 1e9
        row = f"| {model} | {precision} | {parts['all']:.0f} | {parts['channel contexts']:.0f} | {large:.1f} GB |"
        assert row in text
        below = parts["all"] / (2 if model == "full" else 1)
        assert parts["channel contexts"] < below, "the docs say that the entropy decoder stays below"


def test_the_command_counts_and_saves(tmp_path: Path) -> None:
    """A small picture takes as much a pixel as Kodak's, but for halos and what is rounded up."""
    command = "-m benchmarks.counting.memory decode --model slim --size 256 128 --save --results"
    done = subprocess.run(
        [sys.executable, *command.split(), str(tmp_path)], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (record,) = map(json.loads, (tmp_path / "static.jsonl").read_text().splitlines())
    found, large = record["decode_memory"]["bytes_a_pixel"], kept()["slim", "float32"]
    assert f"{found['all']:.1f}  bytes a pixel, all" in done.stdout
    for part in ("synthesis", "channel contexts", "all"):
        assert large[part] <= found[part] < 1.2 * large[part]
