"""The same bits under every instruction set this processor can be told to have; torch's float ops differ there."""

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
PATHS = ("reference", "cpu") if op.NUMBA else ("reference",)
MACHINES = {
    "default": ({}, 1),
    "least": ({"ATEN_CPU_CAPABILITY": "default", "DNNL_MAX_CPU_ISA": "SSE41", "NUMBA_CPU_NAME": "generic"}, 2),
    "avx2": ({"ATEN_CPU_CAPABILITY": "avx2", "DNNL_MAX_CPU_ISA": "AVX2"}, 2),
    "avx512": ({"ATEN_CPU_CAPABILITY": "avx512", "DNNL_MAX_CPU_ISA": "AVX512_CORE"}, 2),
}


@functools.cache
def report(machine: str) -> dict[str, dict[str, str]]:
    settings, threads = MACHINES[machine]
    words = [sys.executable, str(SCRIPT), str(threads), *PATHS]
    root = str(SCRIPT.parents[2])
    environment = os.environ | settings | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(words, env=environment, check=True, capture_output=True, text=True, timeout=300)
    return json.loads(done.stdout)


@pytest.mark.parametrize("machine", [name for name in MACHINES if name != "default"])
def test_every_machine_gives_the_same_bits(machine: str) -> None:
    if not portability.runs_here(MACHINES[machine][0]):
        pytest.skip("this processor lacks the instructions")
    wanted = report("default")["reference"]
    assert len(wanted) > 100
    for path in PATHS:
        found = report(machine)[path]
        assert len(found) > 100 and found.keys() <= wanted.keys()
        assert [name for name in found if found[name] != wanted[name]] == [], path


def test_the_float_operations_fail_this_test() -> None:
    """Or it could not fail. On a processor whose only instruction set is the least there is nothing to compare."""
    here, least = report("default"), report("least")
    if here["machine"] == least["machine"]:
        pytest.skip("this processor has the least instruction set only")
    assert here["float"] != least["float"]
