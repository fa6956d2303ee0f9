"""What a decode on a GPU launches, counted on the CPU: no wait for the device before the picture is done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from benchmarks import records
from benchmarks.counting import launches

ROOT = Path(__file__).parents[2]
WORDS = [sys.executable, "-m", "benchmarks.counting.launches"]


def run(*words: str, cwd: Path = ROOT) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*WORDS, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("model", "most"), [("slim", 329), ("full", 522)])
def test_launches_of_a_decode(model: str, most: int, tmp_path: Path) -> None:
    """The bounds only ever go down."""
    printed = run("--model", model, "--size", "128", "64", "--save", "--results", str(tmp_path))
    found = json.loads((tmp_path / "static.jsonl").read_text())["launches"]
    assert found["total"] == sum(found["parts"].values()) <= most and found["waits"] == {}
    assert f"{found['total']}  in all; waits for the device: none" in printed
    assert found["parts"]["entropy decoding"] == 3 * 11, "not all is seen"  # z and five slices twice


def test_the_coders_page_is_the_newest_record() -> None:
    newest = {r["launches"]["model"]: r["launches"] for r in records.load() if r.get("launches")}
    steps = next(r["steps"] for r in reversed(records.load()) if r.get("steps") and r["steps"]["model"] == "full")
    text = " ".join((ROOT / "lalic" / "coder" / "README.md").read_text(encoding="utf-8").split())
    full, slim = newest["full"], newest["slim"]
    assert f"launches at most {full['total']} kernels for the full model at 768x512 and {slim['total']} for" in text
    steps_of = {
        "aggregation": steps["parts"]["aggregation"],
        "channel contexts": steps["parts"]["contexts"],
        "hyper synthesis": steps["parts"]["h_s"],
        "entropy decoding": sum(steps["kernels"]["entropy decoding"].values()),
        "rest": steps["parts"]["rest"],
    }
    for part, count in full["parts"].items():
        name = "between the parts" if part == "rest" else part
        row = f"| {name} | {count} | {f'{steps_of[part]} ' if part in steps_of else ''}| "
        assert row in text, row


def test_the_size_does_not_matter() -> None:
    assert (
        run("--model", "slim", "--size", "128", "64").splitlines()[1:]
        == (run("--model", "slim", "--size", "768", "512").splitlines()[1:])
    )


def test_a_wait_is_seen() -> None:
    """A decoder that looks at a value between its parts would be found out."""
    code = """
import os
os.environ.pop("TRITON_INTERPRET", None)
import torch
import lalic
from benchmarks.counting import launches
from lalic.coder.gpu_slices import GpuSliceState
from lalic.model import LALIC

joint = GpuSliceState.joint_parameters
GpuSliceState.joint_parameters = lambda self: (bool(self._hyper[0].sum() > 0), joint(self))[1]
model = LALIC.from_config(lalic.config.SLIM).eval()
model.update()
print(sum(launches.decode(model, 64, 64).waits.values()))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "10"  # one look a pass


def test_only_where_triton_does_not_interpret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET: expected unset"), launches.counting():
        pass
