"""The same bits under every instruction set that this processor can emulate, where torch's float ops differ."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import portability
from lalic_kernels.exact import op

SCRIPT = Path(__file__).with_name("exact_inputs.py")
PATHS = ("reference", "cpu") if op.installed.NUMBA else ("reference",)
MACHINES = {
    "default": ({}, 1),
    "least": ({"ATEN_CPU_CAPABILITY": "default", "DNNL_MAX_CPU_ISA": "SSE41", "NUMBA_CPU_NAME": "generic"}, 2),
    "avx2": ({"ATEN_CPU_CAPABILITY": "avx2", "DNNL_MAX_CPU_ISA": "AVX2"}, 2),
    "avx512": ({"ATEN_CPU_CAPABILITY": "avx512", "DNNL_MAX_CPU_ISA": "AVX512_CORE"}, 2),
}


@functools.cache
def report(machine: str) -> dict[str, dict[str, str]]:
    settings, threads = MACHINES[machine]
    command = [sys.executable, str(SCRIPT), str(threads), *PATHS]
    root = str(SCRIPT.parents[2])
    environment = os.environ | settings | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=300)
    return json.loads(done.stdout)


@pytest.mark.parametrize("machine", [name for name in MACHINES if name != "default"])
def test_every_machine_gives_the_same_bits(machine: str) -> None:
    if not portability.runs_here(MACHINES[machine][0]):
        pytest.skip("this processor lacks the instructions")
    expected = report("default")["reference"]
    assert len(expected) > 100
    for path in PATHS:
        result = report(machine)[path]
        assert len(result) > 100 and result.keys() <= expected.keys()
        assert [name for name in result if result[name] != expected[name]] == [], path


def test_the_float_operations_fail_this_test() -> None:
    """Shows that this test can fail; needs a processor with more than the least instruction set."""
    default, least = report("default"), report("least")
    if default["machine"] == least["machine"]:
        pytest.skip("this processor has only the least instruction set")
    assert default["float"] != least["float"]
