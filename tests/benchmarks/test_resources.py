"""Occupancy from registers and memory, and the command that records it; what it compiles is tested in test_jit.py."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.counting import resources


@pytest.mark.parametrize(
    ("warps", "registers", "shared", "columns", "held"),
    [
        (4, 32, 0, 0, 64),
        (4, 33, 0, 0, 48),  # 40 registers a lane: 12 warps a scheduler
        (8, 255, 0, 0, 8),
        (4, 128, 0, 0, 16),
        (8, 168, 0, 0, 8),  # 12 warps have room, in programs of 8
        (1, 16, 0, 0, 32),  # no more than 32 programs
        (4, 64, 98 << 10, 0, 8),  # two programs of 98 + 1 KiB of 228
        (4, 64, 0, 256, 8),
    ],
)
def test_occupancy(warps: int, registers: int, shared: int, columns: int, held: int) -> None:
    assert resources.occupancy("cuda 90", warps, registers, shared, columns) == held


def test_other_processors() -> None:
    assert resources.occupancy("cuda 120", 8, 64, 0) == 32
    assert resources.occupancy("cuda 120", 4, 32, 48 << 10) == 8
    assert resources.occupancy("hip gfx942", 4, 128, 16384) == 16


def test_the_command_keeps_a_line_an_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = [
        {"kernel": "a", "registers": 255, "spills": 0, "shared": 8, "warps a processor": 8},
        {"kernel": "b", "registers": 64, "spills": 4, "shared": 16, "warps a processor": 4},
    ]
    asked = []

    def run(command: list[str], **_: Any) -> Any:
        asked.append(command[command.index("--architecture") + 1])
        line = {"architecture": asked[-1], **resources.summary(kernels), "steps": {"slim": 9}, "kernels": kernels}
        return SimpleNamespace(stdout=json.dumps(line) + "\n")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(resources.records, "environment", lambda _: {"date": ""})
    arguments = ["--architecture", "cuda 80", "hip gfx942", "--save", "--results", str(tmp_path)]
    assert resources.main(arguments) == 1  # something spills
    kept = [json.loads(line)["resources"] for line in (tmp_path / "static.jsonl").read_text().splitlines()]
    assert asked == [line["architecture"] for line in kept] == ["cuda 80", "hip gfx942"]
    expected = {"specialisations": 2, "registers": 255, "of": "a", "shared": 16, "warps a processor": 4,
                "held by": "b", "spills": 4}  # fmt: skip
    assert {key: kept[0][key] for key in expected} == expected
