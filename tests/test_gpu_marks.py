"""`pytest -m gpu` on a machine with a GPU selects every test whose kernels run there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from gpu_tests import EITHER, runs_on_either

ROOT = Path(__file__).parents[1]
CHOICE = re.compile(r"cuda\b.*\bif\b.*torch\.cuda\.is_available\(\)")


def test_every_file_that_chooses_a_device_is_in_the_list() -> None:
    files = {file for file, _ in EITHER}
    assert all((ROOT / file).is_file() for file in files)
    choosing = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "tests").rglob("test_*.py")
        if any(CHOICE.search(line) for line in path.read_text(encoding="utf-8").splitlines())
    }
    assert "tests/exact/test_paths.py" in choosing
    assert choosing - {"tests/test_gpu_marks.py"} <= files


@pytest.mark.slow
def test_what_is_selected_where_there_is_a_gpu() -> None:
    """Collected by a process that is told of a GPU: fused exact kernels, the coder on the device, golden streams."""
    code = """
import sys, torch
torch.cuda.is_available = lambda: True
import pytest
sys.exit(pytest.main(["tests", "-m", "gpu", "--collect-only", "-q", "-p", "no:cacheprovider"]))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    selected = [line.partition("::") for line in done.stdout.splitlines() if "::" in line]
    for file, part in EITHER:
        assert any(file == place and part in name for place, _, name in selected), (file, part)
    assert any(place == "tests/coder/test_on_a_gpu.py" for place, _, _ in selected)
    assert any(place == "tests/kernels/test_contract.py" for place, _, _ in selected)
    assert not any("-cpu-" in name and not runs_on_either(place, name) for place, _, name in selected)
