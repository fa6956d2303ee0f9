"""Rules of the package: what it does without optional packages, its choice of back ends, and `lalic_kernels.info`."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

import lalic_kernels
from lalic_kernels import dispatch, info, installed

PACKAGE = Path(lalic_kernels.__file__).parent
CUDA_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


WITHOUT = """
import sys
missing, backend = sys.argv[1:]
sys.modules[missing] = None  # import raises ImportError, find_spec finds nothing
import torch, lalic, lalic_kernels
from lalic_kernels import exact, info, rans
w, u, k, v = torch.rand(4), torch.rand(4), torch.randn(1, 9, 4), torch.randn(1, 9, 4, requires_grad=True)
y = lalic_kernels.biwkv(w, u, k, v)
y.sum().backward()
assert missing == "triton" or torch.equal(y, lalic_kernels.biwkv(w, u, k, v, backend="torch"))
lalic_kernels.token_shift(torch.randn(1, 3, 3, 2), torch.randn(2, 5, 5))
try:
    lalic_kernels.biwkv(w, u, k, v, backend=backend)
except lalic_kernels.BackendUnavailable as error:
    print(error)
print(info.report())
"""


@pytest.mark.parametrize(
    ("missing", "backend", "said"),
    [
        ("triton", "triton", "triton: no kernels on CUDA tensors"),
        ("numba", "cpu", "numba: no compiled code for the CPU"),
    ],
)
def test_works_without(missing: str, backend: str, said: str) -> None:
    command = [sys.executable, "-c", WITHOUT, missing, backend]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    assert f"biwkv: backend='{backend}' cannot be used: {missing} is not installed" in done.stdout
    assert said in done.stdout


def test_the_first_compilation_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    numba, warnings = pytest.importorskip("numba"), []
    installed.on_compiling(lambda: warnings.append(1))
    compiled = numba.njit(lambda x: x + 1)
    assert not warnings
    assert compiled(1) == 2 and warnings == [1]
    assert compiled(1.5) == 2.5 and warnings == [1]  # compiled again, for another type
    monkeypatch.setattr(installed, "NUMBA", False)
    installed.on_compiling(lambda: pytest.fail("warned without numba"))
    assert numba.njit(lambda x: x + 2)(1) == 3


FLOPS = """
import sys
import torch, lalic_kernels
assert "triton" not in sys.modules and "torch.utils.flop_counter" not in sys.modules
from torch.utils.flop_counter import FlopCounterMode
w, u, k = torch.rand(4), torch.rand(4), torch.randn(1, 9, 4)
early = FlopCounterMode(display=False)
for _ in range(2):
    with FlopCounterMode(display=False) as counter, early:
        lalic_kernels.biwkv(w, u, k, k)
    assert counter.get_total_flops() == early.get_total_flops() > 0
"""


def test_operations_are_counted_though_the_flop_counter_is_imported_last() -> None:
    done = subprocess.run([sys.executable, "-c", FLOPS], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr


def test_the_dispatch_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    with_cpu, without = dispatch.Op("with", cpu=True), dispatch.Op("without")

    def choose(op: dispatch.Op, device: str, dtype: torch.dtype = torch.float32) -> str:
        return dispatch.resolve(op, None, device, dtype)

    monkeypatch.setattr(installed, "TRITON", True)
    monkeypatch.setattr(installed, "NUMBA", True)
    for dtype in CUDA_DTYPES:
        assert choose(with_cpu, "cuda", dtype) == choose(without, "cuda", dtype) == "triton"
        assert choose(with_cpu, "cpu", dtype) == "cpu"
        assert choose(without, "cpu", dtype) == "torch"
    for device in ("cuda", "cpu", "mps"):
        assert choose(with_cpu, device, torch.float64) == "torch"
    assert choose(with_cpu, "mps") == "torch"
    monkeypatch.setattr(installed, "TRITON", False)
    assert choose(with_cpu, "cuda") == "torch"
    monkeypatch.setattr(installed, "NUMBA", False)
    assert choose(with_cpu, "cpu") == "torch"


@pytest.mark.parametrize(
    ("backend", "device", "dtype", "message"),
    [
        ("triton", "cuda", torch.float64, "float64"),
        ("triton", "mps", torch.float32, "needs tensors on a CUDA device, but they are on mps"),
        ("cpu", "cuda", torch.float32, "needs tensors on the CPU, but they are on cuda"),
        ("cpu", "cpu", torch.float64, "float64"),
    ],
)
def test_a_requested_backend_is_never_replaced(
    backend: str, device: str, dtype: torch.dtype, message: str, monkeypatch
) -> None:
    monkeypatch.setattr(installed, "TRITON", True)
    with pytest.raises(dispatch.BackendUnavailable, match=message):
        dispatch.resolve(dispatch.Op("op", cpu=True), backend, device, dtype)


def test_info_names_every_op_and_every_dtype() -> None:
    rows = info.choices()
    for name in ("biwkv", "token_shift", "entropy_params", "gaussian_likelihood"):
        for device in ("cuda", "cpu"):
            dtypes = " ".join(row[2] for row in rows if row[:2] == (name, device))
            assert sorted(dtypes.split()) == ["bfloat16", "float16", "float32", "float64"], (name, device)
        assert info.backwards()[name]
    done = subprocess.run(
        [sys.executable, "-m", "lalic_kernels.info"], capture_output=True, text=True, cwd=PACKAGE.parent
    )
    assert done.returncode == 0, done.stderr
    for part in ("torch " + torch.__version__, "biwkv", "token_shift", "entropy_params", "backward", "missing"):
        assert part in done.stdout
    assert "RuntimeWarning" not in done.stderr


def test_autocast_does_not_reach_inside_an_op() -> None:
    """The result's dtype is x's, as registered, also under autocast."""
    x, weight = torch.randn(1, 4, 4, 3), torch.randn(3, 5, 5)
    expected = lalic_kernels.token_shift(x, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = lalic_kernels.token_shift(x, weight)
        w, u, k, v = torch.rand(3), torch.rand(3), torch.randn(1, 5, 3), torch.randn(1, 5, 3)
        assert lalic_kernels.biwkv(w, u, k, v, backend="torch").dtype == torch.float32
    assert result.dtype == torch.float32 and torch.equal(result, expected)


def test_what_triton_needs_to_start_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a compiler its own error is "Failed to find C compiler", at the first launch."""
    pytest.importorskip("triton")
    from triton.runtime import driver

    class Driver:
        def get_current_device(self) -> int:
            raise RuntimeError("Failed to find C compiler.")

    monkeypatch.setattr(driver, "_active" if "_active" in vars(driver) else "active", Driver())  # Triton 3.3
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CC", raising=False)
    assert any("a C compiler (gcc or clang in PATH" in line for line in info.missing())
    installed.start_triton.cache_clear()
    with pytest.raises(RuntimeError, match=r"^Triton cannot start on this GPU, .*a C compiler") as caught:
        installed.start_triton()
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": "/nowhere"})
    assert installed.missing_to_start() == ["Python's headers (the package python3-dev)"]
    installed.start_triton.cache_clear()


def test_a_triton_that_is_too_old_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    assert not installed.too_old()
    needed = ".".join(map(str, installed.TRITON_FROM))
    assert f"triton>={needed};" in (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "3.2.0")
    assert f"triton: expected {needed} or later, got 3.2.0: no kernels on CUDA tensors" in info.missing()
    installed.start_triton.cache_clear()
    with pytest.raises(RuntimeError, match=rf"^triton: expected {needed} or later, got 3\.2\.0$"):
        installed.start_triton()
    installed.start_triton.cache_clear()
