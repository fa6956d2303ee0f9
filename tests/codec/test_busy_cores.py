"""A model beside another program on the same cores: torch's threads spin while one of them is not running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import lalic

NEIGHBOUR = """
import torch
torch.set_num_threads(2)
a = torch.rand(2000, 2000)
print("ready", flush=True)
while True:
    a @ a
"""
ROUNDS = 4


@pytest.fixture
def neighbour() -> Iterator[subprocess.Popen[bytes]]:
    """A process that multiplies matrices on two threads; stopped until it gets SIGCONT."""
    process = subprocess.Popen([sys.executable, "-c", NEIGHBOUR], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGSTOP)
        yield process
    finally:
        process.kill()
        process.wait()


def _busy() -> float:
    """Seconds that the processors have worked for all programs."""
    user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc/stat")
def test_a_busy_neighbour_slows_a_forward_at_most_4_times(threads, neighbour: subprocess.Popen[bytes]) -> None:
    """The best of some rounds each."""
    if os.cpu_count() != 2 or len(os.sched_getaffinity(0)) != 2:
        pytest.skip("needs exactly two cores, which this process and another one share")
    threads(2)
    model, x = lalic.LALIC().eval(), torch.rand(1, 3, 256, 384)

    def seconds() -> float:
        start = time.perf_counter()
        with torch.no_grad():
            model(x)
        return time.perf_counter() - start

    seconds()  # compiles
    others, start = _busy() - time.process_time(), time.perf_counter()
    alone = min(seconds() for _ in range(ROUNDS))
    others = (_busy() - time.process_time() - others) / (time.perf_counter() - start)
    if others > 0.2:
        pytest.skip(f"other programs use {others:.1f} of the two cores")
    neighbour.send_signal(signal.SIGCONT)
    time.sleep(0.5)
    beside = min(seconds() for _ in range(ROUNDS))
    assert beside <= 4 * alone, f"alone {alone:.2f} s, beside the neighbour {beside:.2f} s"
