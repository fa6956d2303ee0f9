"""What the compiler makes of the exact kernels rounds as the definition says: no contraction, nothing approximate."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="ahead-of-time compilation needs triton, which is not installed")

ROOT = Path(__file__).resolve().parents[2]


def report(*words: str) -> list[dict]:
    """A process of its own, since Triton must not be in interpreter mode."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.compiled.exact", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=600)
    if "ROCm linker" in done.stderr:
        pytest.skip("this Triton does not bring AMD's linker along (newer ones do)")
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("architecture", ["80", "90", "100", "120"])
def test_nothing_rounds_otherwise(architecture: str) -> None:
    """PTX has no fused multiply-add and nothing approximate; machine code neither, but for what divides."""
    found = report("cuda", architecture)
    assert len(found) > 20
    assert not [line for line in found if line["faults"]]
    # A correctly rounded division is made of fused steps by the assembler; everything else is as PTX has it.
    assert not [line for line in found if line["fused"] and not line["divisions"]]
    assert {line["kernel"] for line in found if line["divisions"]} == {
        "exact linear gated", "exact wkv sums", "exact wkv chain", "exact wkv values False", "exact wkv values True",
        "exact shift channel False", "exact shift channel True",
        "exact aggregation partial", "exact aggregation spatial", "exact aggregation rows",
    }  # fmt: skip


def test_nothing_rounds_otherwise_on_amd() -> None:
    """There a division stands in the assembly as its fused steps already, so kernels that divide are not judged."""
    found = report("hip", "gfx942")
    assert len(found) > 20
    assert not [line for line in found if line["faults"] and not line["divisions"]]


def test_sizes_of_one() -> None:
    """Triton compiles a launch's sizes of 1 in as constants, which not every expression takes."""
    found = report("cuda", "90", "ones")
    assert len(found) > 20
    assert not [line for line in found if line["faults"]]


def test_the_search_finds_what_it_looks_for() -> None:
    """Compiled with contraction, as it must not be, the same kernels show fused multiply-adds."""
    found = {line["kernel"]: line for line in report("cuda", "90", "contract")}
    for name in ("exact layer_norm", "exact linear gated", "exact linear", "exact wkv sums"):
        assert any(fault.startswith("fma.rn.f") for fault in found[name]["faults"]), name
    assert {"FFMA"} <= set(found["exact layer_norm"]["fused"])


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("fma.rn.f32 %f1, %f2, %f3, %f4;", True),
        ("fma.rn.f64 %fd1, %fd2, %fd3, %fd4;", True),
        ("ex2.approx.ftz.f32 %f1, %f2;", True),
        ("ex2.approx.f32 %f1, %f2;", True),
        ("div.full.f32 %f1, %f2, %f3;", True),
        ("rcp.approx.f32 %f1, %f2;", True),
        ("sqrt.approx.f32 %f1, %f2;", True),
        ("mul.ftz.f32 %f1, %f2, %f3;", True),
        ("call.uni (retval0), __nv_expf, (param0);", True),
        ("div.rn.f32 %f1, %f2, %f3;", False),
        ("mul.rn.f32 %f1, %f2, %f3;", False),
        ("mad.lo.s32 %r1, %r2, %r3, %r4;", False),
        ("cvt.rn.f32.s64 %f1, %rd1;", False),
        ("mov.b32 %r1, 0; // ex2.approx.f32", False),
    ],
)
def test_which_instructions_are_faults(line: str, wrong: bool) -> None:
    from benchmarks.compiled.exact import float_faults

    assert bool(float_faults(line)) is wrong
