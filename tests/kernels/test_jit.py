"""Triton's JIT as a launch on a GPU meets it, without one: real specialisation, front end and grids; nothing is run.

`benchmarks.counting.jit` has the driver that records launches; `jit_cases.py` runs in processes of its own.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton's JIT needs triton, which is not installed")

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def results(part: str) -> Any:
    """What a part of jit_cases.py finds. Fusion is asked for by each launch, so the default must not matter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))  # which may have another Triton
    environment |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TRITON_DEFAULT_FP_FUSION": "0"}
    command = [sys.executable, str(Path(__file__).with_name("jit_cases.py")), part]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_the_front_end_accepts_every_shape() -> None:
    """All shapes of the contract suite, and each dimension 1: what is 1 may become a constant without a type."""
    found = results("contract")
    assert len(found) > 150
    assert not {case: error for case, error in found.items() if error}


def test_large_counts_fit_the_grid() -> None:
    assert not {case: error for case, error in results("large").items() if error}


# Compilations of a first decode, and of a first encode after it. The bounds only ever go down.
@pytest.mark.parametrize(("model", "decode", "encode"), [("slim", 42, 4), ("full", 59, 3)])
def test_only_the_first_picture_compiles(model: str, decode: int, encode: int) -> None:
    first, second, *later = results(model)["pictures"]
    assert first["what"].startswith("decode") and sum(first["compiled"].values()) <= decode, first
    assert second["what"].startswith("encode") and sum(second["compiled"].values()) <= encode, second
    assert len(later) == 22 and all(each["launches"] > 100 for each in later)
    assert not {each["what"]: each["compiled"] for each in later if each["compiled"]}


@pytest.mark.parametrize("model", ["slim", "full"])
def test_fusion_does_not_depend_on_the_default(model: str) -> None:
    """Exact kernels round every operation, all others fuse: each launch says so."""
    found = {kernel: fused for each in results(model)["pictures"] for kernel, fused in each["fusion"]}
    assert len(found) > 20
    assert found == {kernel: not kernel.startswith("exact_") for kernel in found}


def test_constants_cost_nothing_at_a_launch() -> None:
    found = results("slim")["constants"]
    assert len(found) > 15
    assert not {kernel: names for kernel, names in found.items() if names}


@pytest.mark.slow
def test_what_is_launched_does_not_spill() -> None:
    """test_aot.py compiles without the facts of a launch (ones, alignment); this is what really runs, for sm_90."""
    found = results("machine code")
    assert len(found) > 30
    spilt = [each for each in found if each["spills"]]
    if tuple(map(int, version("triton").split(".")[:2])) < (3, 6):
        # Older assemblers keep two programs of BiWKV's rows on a processor at the price of one value a thread.
        assert {each["kernel"] for each in spilt} <= {"rows_kernel"}
        assert all(each["spills"] <= 8 and each["warps"] == 8 and each["warps a processor"] == 16 for each in spilt)
    else:
        assert not spilt
    assert max(each["shared"] for each in found) <= 227 * 1024
