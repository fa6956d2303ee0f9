"""What the first call of the compiled CPU code costs, in a fresh process: with and without compiled code in the cache.

A first call loads numba, and compiles or loads the kernels; a later call is what all other rows time. Each figure is
the median of a few processes, which have a cache folder of their own (NUMBA_CACHE_DIR), so nothing of this machine's
is used.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Row, Setting, WrongResult
from lalic_kernels._core import numba_support

SHAPE, QUICK_SHAPE = (1, 24576, 144), (1, 67, 5)  # a stage of the model for 768x512
REPEATS = 3
TIMEOUT = 300.0

# Runs in the fresh process. The inputs are made before the clock runs, and the result is checked after.
_PROGRAM = """
import json, sys, time
import torch
torch.set_num_threads(int(sys.argv[2]))
import lalic_kernels
from benchmarks.biwkv import biwkv_arguments, check_biwkv
from benchmarks.measure import Setting
arguments = biwkv_arguments(tuple(json.loads(sys.argv[1])), torch.float32, Setting(torch.device("cpu")))
times = []
for _ in range(3):
    start = time.perf_counter()
    y = lalic_kernels.biwkv(*arguments, backend="cpu")
    times.append(time.perf_counter() - start)
check_biwkv(arguments, y)
print(json.dumps(times))
"""


def biwkv(setting: Setting) -> list[Row]:
    """Rows of BiWKV's forward; none where the compiled code does not run. Memory's state is of no matter: once."""
    if setting.device.type != "cpu" or setting.memory == "reused" or not numba_support.INSTALLED:
        return []
    shape = QUICK_SHAPE if setting.quick else SHAPE
    found: dict[str, list[float]] = {
        "first call, nothing cached": [],
        "first call, code cached": [],
        "a later call": [],
    }
    for _ in range(1 if setting.quick else REPEATS):
        with tempfile.TemporaryDirectory() as folder:
            empty, *_ = _process(shape, folder)
            warm, *later = _process(shape, folder)
        found["first call, nothing cached"].append(empty)
        found["first call, code cached"].append(warm)
        found["a later call"].append(later[-1])
    medians = {name: statistics.median(times) for name, times in found.items()}
    return [
        {
            "entry": "biwkv",
            "memory": setting.memory,
            "case": f"cold start {shape} float32",
            "call": name,
            "yardstick": name == "a later call",
            "seconds": medians[name],
            "quartiles": [min(times), max(times)] if len(times) < 4 else statistics.quantiles(times, n=4)[::2],
            "repeats": len(times),
            "ratios": {} if name == "a later call" else {"a later call": medians[name] / medians["a later call"]},
            "metrics": {},
        }
        for name, times in found.items()
    ]


def _process(shape: tuple[int, int, int], cache: str) -> list[float]:
    """Seconds of the first calls in a fresh process. Raises `WrongResult` where it ends with an error."""
    import torch

    words = [sys.executable, "-c", _PROGRAM, json.dumps(shape), str(torch.get_num_threads())]
    environment = os.environ | {"NUMBA_CACHE_DIR": cache}
    root = Path(__file__).parents[1]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=root, timeout=TIMEOUT)
    if done.returncode:
        raise WrongResult(f"cold start: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout)
