"""Set-up shared by all tests: Triton's interpreter where there is no GPU, the `gpu` mark, memory that starts as NaN."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from gpu_tests import runs_on_either

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks/ and scripts/ are not part of the installed packages

# Triton reads this when it is first imported. On a machine with a GPU the kernels run there instead.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Processes of one test reach each other without a network, whatever this machine's name stands for.
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def _quicken_interpreter() -> None:
    """One jit function calling another patches all of triton.language anew, 4 ms a call: do it once a launch."""
    try:
        from triton.language import standard
        from triton.runtime import interpreter
    except ImportError:
        return
    launch = interpreter.GridExecutor.__call__

    def run(self, *args, **kwargs):
        # A launch patches what its own file sees, `tl`; this is what Triton's own jit functions see.
        scope = interpreter._patch_lang(standard.zeros.fn)
        try:
            return launch(self, *args, **kwargs)
        finally:
            if hasattr(scope, "restore"):
                scope.restore()

    interpreter.GridExecutor.__call__ = run
    interpreter.InterpretedFunction.__call__ = lambda self, *args, **kwargs: self.rewrite()(*args, **kwargs)


if os.environ.get("TRITON_INTERPRET") == "1":
    _quicken_interpreter()

# Processes that share the tests share the cores: with all of torch's threads in each they would wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


# What `make test` leaves to `make test-all`: kernels in Triton's interpreter, ahead-of-time compilation, tests in other
# processes, the page in a browser, the benchmarks' own tests.
SLOW = (
    "tests/benchmarks/",
    "tests/coder/test_decode_graph.py",
    "tests/coder/test_encode_graph.py",
    "tests/coder/test_exact_portable.py",
    "tests/exact/test_machines.py",
    "tests/exact/test_triton.py",
    "tests/exact/test_triton_code.py",
    "tests/exact/test_triton_slices.py",
    "tests/kernels/test_aot.py",
    "tests/kernels/test_rans_gpu.py",
    "tests/train/test_runs.py",
    "tests/web/test_browser.py",
    "tests/web/test_page.py",
    "tests/web/test_server.py",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        place = item.path.relative_to(config.rootpath).as_posix()
        if place.startswith(SLOW) or ("triton" in item.name and place.startswith(("tests/kernels/", "tests/exact/"))):
            item.add_marker(pytest.mark.slow)
        if torch.cuda.is_available() and runs_on_either(place, item.name):
            item.add_marker(pytest.mark.gpu)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True, scope="session")
def exact_float32_from_the_start():
    """No TF32 in torch's own operations, which tests compare with; the first of all fixtures, of modules too."""
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(autouse=True)
def exact_float32():
    """Torch's settings for TF32 are after a test as they were before it."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """torch.set_num_threads, undone at the end."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def poisoned_memory():
    """torch.empty and its kin return NaN, so that a result somebody forgot to write shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]
