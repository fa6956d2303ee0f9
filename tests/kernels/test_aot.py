"""Every kernel compiles for every architecture we name, in every launch configuration, without spilling registers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="ahead-of-time compilation needs triton, which is not installed")

HERE = Path(__file__).resolve().parent
# Ampere, Hopper, Blackwell for data centres, Blackwell for desks, and AMD's MI300.
TARGETS = [("cuda", "80"), ("cuda", "90"), ("cuda", "100"), ("cuda", "120"), ("hip", "gfx942")]
KERNELS = {
    *("factors", "chunk_sums", "chunk_scan", "rows", "grad_sums", "grad_scan", "grad_join", "grad_rows"),
    *("token_shift", "linear", "layer_norm", "gated_sum"),
}


@pytest.mark.parametrize(("backend", "architecture"), TARGETS)
def test_compiles_without_spills(backend: str, architecture: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(HERE / "aot.py"), backend, architecture],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    if "ROCm linker" in done.stderr:
        pytest.skip("this Triton does not bring AMD's linker along (newer ones do)")
    assert done.returncode == 0, done.stderr[-2000:]
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert {result["kernel"].split()[0] for result in results} == KERNELS
    spilled = [result for result in results if result["spills"]]
    assert not spilled, f"{backend} {architecture}: registers spill to memory in {spilled}"
    # 48 KiB is what every block gets without asking; all our tiles are meant to fit.
    assert max(result["shared"] for result in results) <= 48 * 1024
