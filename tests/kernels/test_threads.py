"""How compiled loops share the cores: ranges that no other thread has begun, and threads that outlive the main one."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from lalic_kernels import threads as kernel_threads
from lalic_kernels.threads import run_ranges, submit

OUTLIVES = """
import atexit, threading, time
import numpy as np
from lalic_kernels.threads import run_ranges
import torch

torch.set_num_threads(4)

def work(name):
    seen = np.zeros(10, int)
    def count(start, stop):
        seen[start:stop] += 1
    run_ranges(count, 10)
    print(name, bool((seen == 1).all()), flush=True)

def later():
    threading.main_thread().join()
    time.sleep(0.1)
    work("thread")

work("main")
threading.Thread(target=later).start()
atexit.register(work, "atexit")
"""


def test_a_thread_may_outlive_the_main_thread() -> None:
    done = subprocess.run([sys.executable, "-c", OUTLIVES], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.split("\n")[:3]) == (0, ["main True", "thread True", "atexit True"]), done


def test_ranges_that_no_thread_has_begun_run_in_the_caller(threads, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the other thread held up, as by a busy machine, the call still ends."""
    threads(2)
    free, ran = threading.Event(), []
    with ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(kernel_threads, "_executor", lambda count: pool)
        pool.submit(free.wait, 60)
        try:
            run_ranges(lambda start, stop: ran.append((threading.get_ident(), start, stop)), 10)
        finally:
            free.set()
    assert ran == [(threading.get_ident(), 0, 5), (threading.get_ident(), 5, 10)]


def test_errors_of_any_range_are_raised(threads) -> None:
    threads(2)

    def fails(start: int, stop: int) -> None:
        if start:
            raise ArithmeticError("from the second range")

    with pytest.raises(ArithmeticError, match="second range"):
        run_ranges(fails, 10)


def test_a_pool_that_has_ended_runs_work_in_this_thread() -> None:
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    assert submit(pool, divmod, 7, 2).result() == (3, 1)
    with pytest.raises(ZeroDivisionError):
        submit(pool, divmod, 7, 0).result()
