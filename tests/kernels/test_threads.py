"""How compiled loops share the cores: ranges that no other thread has begun, and threads that outlive the main one."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lalic_kernels import threads as kernel_threads
from lalic_kernels.threads import run_each, run_ranges, submit, workers

OUTLIVES = """
import atexit, threading, time
import numpy as np
from lalic_kernels.threads import run_each, run_ranges
import torch

torch.set_num_threads(4)

def work(name):
    seen = np.zeros(10, int)
    def count(start, stop):
        seen[start:stop] += 1
    run_ranges(count, 5)
    run_each(lambda i: count(i, i + 1), range(5, 10))
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


def test_each_item_is_done_once_by_threads_with_one_core_each(threads) -> None:
    threads(3)
    if workers() == 1:
        pytest.skip("this build of torch has no number of threads for each thread")
    met, seen = threading.Barrier(3), []

    def note(item: int) -> None:
        if item < 3:
            met.wait(60)  # three threads have begun
        seen.append((item, torch.get_num_threads(), torch.is_grad_enabled(), threading.get_ident()))

    run_each(note, range(20))
    items, numbers, grad, idents = zip(*seen, strict=True)
    assert (sorted(items), set(numbers), set(grad)) == ([*range(20)], {1}, {False})
    assert len(set(idents)) == 3 and threading.get_ident() not in idents


def test_the_programs_number_of_threads_stays(threads) -> None:
    """In the calling thread, and in threads that start later: torch.set_num_threads would change it there."""
    threads(3)
    run_each(lambda item: torch.rand(64, 64) @ torch.rand(64, 64), range(6))
    with ThreadPoolExecutor(1) as pool:
        assert (torch.get_num_threads(), pool.submit(torch.get_num_threads).result()) == (3, 3)


def test_without_a_number_for_each_thread_the_caller_does_all(threads, monkeypatch: pytest.MonkeyPatch) -> None:
    threads(3)
    monkeypatch.setattr(kernel_threads, "_can_limit", lambda: False)
    seen: list[tuple[int, int]] = []
    run_each(lambda item: seen.append((item, threading.get_ident())), range(6))
    assert seen == [(item, threading.get_ident()) for item in range(6)]


def test_errors_of_any_item_are_raised(threads) -> None:
    threads(2)

    def fails(item: int) -> None:
        if item == 3:
            raise ArithmeticError("from the fourth item")

    with pytest.raises(ArithmeticError, match="fourth item"):
        run_each(fails, range(6))
