"""The allocator setting: its effect on a process."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

MIB = 256
PROBE = f"""
import contextlib, resource, sys, torch
from lalic.memory import apart, give_back, keep_memory
said = None if sys.argv[1] == "default" else keep_memory()

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20

before = resident()
with apart() if sys.argv[1] == "apart" else contextlib.nullcontext():
    large = torch.ones({MIB} << 18)
del large
if sys.argv[1] == "give back":
    give_back()
print(said, resident() - before)
"""


def probe(how: str) -> tuple[str, int]:
    out = subprocess.run([sys.executable, "-c", PROBE, how], capture_output=True, text=True, check=True).stdout
    said, kept = out.split()
    return said, int(kept)


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc on Linux"
)
def test_freed_memory_stays_with_the_process():
    assert probe("default")[1] < MIB // 2
    said, kept = probe("keep")
    assert said == "True" and kept >= MIB - 8
    for how in ("give back", "apart"):
        said, kept = probe(how)
        assert said == "True" and kept < MIB // 2
