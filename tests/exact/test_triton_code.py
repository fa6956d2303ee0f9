"""The compiled code of the exact kernels rounds as the definition does: no contraction, no approximate instructions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="ahead-of-time compilation needs triton, which is not installed")

ROOT = Path(__file__).resolve().parents[2]


def report(*arguments: str) -> list[dict]:
    """Run in a separate process, because Triton must not be in interpreter mode."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.compiled.exact", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=600)
    if "ROCm linker" in done.stderr:
        pytest.skip("this Triton comes without AMD's linker (newer ones have it)")
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("architecture", ["80", "90", "100", "120"])
def test_nothing_rounds_otherwise(architecture: str) -> None:
    """No fused multiply-add and no approximate instruction in PTX, nor in machine code except for divisions."""
    result = report("cuda", architecture)
    assert len(result) > 20
    assert not [line for line in result if line["faults"]]
    # The assembler makes a correctly rounded division of fused steps.
    assert not [line for line in result if line["fused"] and not line["divisions"]]
    assert {line["kernel"] for line in result if line["divisions"]} == {
        "exact linear gated", "exact linear gated gamma", "exact wkv sums", "exact wkv states", "exact wkv digits",
        "exact wkv digits 128", "exact wkv digits 512",
    }  # fmt: skip


def test_nothing_rounds_otherwise_on_amd() -> None:
    """AMD's assembly already has a division's fused steps, so kernels that divide are not checked."""
    result = report("hip", "gfx942")
    assert len(result) > 20
    assert not [line for line in result if line["faults"] and not line["divisions"]]


def test_sizes_of_one() -> None:
    """Triton compiles sizes of 1 as constants, which do not work in every expression."""
    result = report("cuda", "90", "ones")
    assert len(result) > 20
    assert not [line for line in result if line["faults"]]


def test_the_search_finds_what_it_looks_for() -> None:
    """Compiled with contraction, which is wrong, the same kernels have fused multiply-adds."""
    result = {line["kernel"]: line for line in report("cuda", "90", "contract")}
    for name in ("exact layer_norm", "exact linear gated", "exact linear", "exact wkv sums"):
        assert any(fault.startswith("fma.rn.f") for fault in result[name]["faults"]), name
    assert {"FFMA"} <= set(result["exact layer_norm"]["fused"])


WRONG = """
fma.rn.f32 %f1, %f2, %f3, %f4;
fma.rn.f64 %fd1, %fd2, %fd3, %fd4;
ex2.approx.ftz.f32 %f1, %f2;
ex2.approx.f32 %f1, %f2;
div.full.f32 %f1, %f2, %f3;
rcp.approx.f32 %f1, %f2;
sqrt.approx.f32 %f1, %f2;
mul.ftz.f32 %f1, %f2, %f3;
call.uni (retval0), __nv_expf, (param0);
"""
RIGHT = """
div.rn.f32 %f1, %f2, %f3;
mul.rn.f32 %f1, %f2, %f3;
mad.lo.s32 %r1, %r2, %r3, %r4;
cvt.rn.f32.s64 %f1, %rd1;
mov.b32 %r1, 0; // ex2.approx.f32
"""


def test_which_instructions_are_faults() -> None:
    from benchmarks.compiled.exact import float_faults

    assert all(float_faults(line) for line in WRONG.strip().splitlines())
    assert not float_faults(RIGHT)
