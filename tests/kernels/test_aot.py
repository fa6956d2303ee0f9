"""Every kernel compiles for every supported architecture, in every launch configuration, without register spills."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="ahead-of-time compilation needs triton, which is not installed")

ROOT = Path(__file__).resolve().parents[2]
# Ampere, Hopper, Blackwell for data centres, Blackwell for desks, and AMD's MI300.
TARGETS = [("cuda", "80"), ("cuda", "90"), ("cuda", "100"), ("cuda", "120"), ("hip", "gfx942")]
# KiB of shared memory per block. 48 is always available; only the matrix products of Hopper and of Blackwell for data
# centres, which have their operands in shared memory, may request more.
SHARED = {"80": 48, "90": 227, "100": 227, "120": 48, "gfx942": 48}


def kernels() -> set[str]:
    """The names of all kernels: functions called ..._kernel in files of kernels."""
    files = (ROOT / "lalic_kernels").rglob("kernels*.py")
    return {name for path in files for name in re.findall(r"^def (\w+_kernel)\(", path.read_text("utf-8"), re.M)}


@pytest.mark.parametrize(("backend", "architecture"), TARGETS)
def test_compiles_without_spills(backend: str, architecture: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.compiled", backend, architecture, "--part"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    parts = [subprocess.Popen([*command, f"{i}/2"], env=environment, cwd=ROOT, **pipes) for i in range(2)]
    try:
        with ThreadPoolExecutor(2) as readers:  # a process blocks if its pipe is not read
            done = list(readers.map(lambda part: part.communicate(timeout=900), parts))
    finally:
        for part in parts:
            part.kill()
    errors = "".join(error for _, error in done)
    if "ROCm linker" in errors:
        pytest.skip("this Triton comes without AMD's linker (newer ones have it)")
    assert all(part.returncode == 0 for part in parts), errors[-2000:]
    results = [json.loads(line) for output, _ in done for line in output.splitlines() if line.startswith("{")]
    # A missing kernel needs an entry in benchmarks/compiled/.
    assert {result["function"] for result in results} == kernels()
    spilled = [result for result in results if result["spills"]]
    assert not spilled, f"{backend} {architecture}: registers spill to memory in {spilled}"
    assert max(result["shared"] for result in results) <= SHARED[architecture] * 1024
