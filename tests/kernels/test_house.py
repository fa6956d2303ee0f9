"""Rules of the package: its imports, its requirements, and `lalic_kernels.info`."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from op_specs import SPECS, WHY_NO_INTERPRETER

import lalic_kernels
from lalic_kernels import dispatch, info, installed

PACKAGE = Path(lalic_kernels.__file__).parent
CUDA_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module or "")
    return {name.split(".")[0] for name in names}


def test_does_not_import_the_model() -> None:
    files = list(PACKAGE.rglob("*.py"))
    assert len(files) > 20
    assert not [path for path in files if "lalic" in imports(path)]


def test_the_triton_kernels_are_tested_here() -> None:
    """The contract suite skips Triton if it cannot run; this test shows it in the summary."""
    if WHY_NO_INTERPRETER and not torch.cuda.is_available():
        pytest.skip(f"no Triton kernel is run: {WHY_NO_INTERPRETER}")
    assert all("triton" in spec.backends("cuda" if torch.cuda.is_available() else "cpu") for spec in SPECS)


def test_only_kernel_files_import_triton() -> None:
    importing = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if "triton" in imports(path)}
    # An op with many kernels has several such files: kernels.py, kernels_backward.py, ...
    kernels = {name for name in importing if name.rpartition("/")[2].startswith("kernels")}
    assert importing - kernels == {"triton_math.py"}, importing
    assert len(importing) >= 4


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # import triton now raises ImportError, find_spec finds nothing
import torch, lalic_kernels
from lalic_kernels import info
from lalic_kernels import dispatch
w, u, k, v = torch.rand(4), torch.rand(4), torch.randn(1, 9, 4), torch.randn(1, 9, 4, requires_grad=True)
lalic_kernels.biwkv(w, u, k, v).sum().backward()
lalic_kernels.token_shift(torch.randn(1, 3, 3, 2), torch.randn(2, 5, 5))
try:
    lalic_kernels.biwkv(w, u, k, v, backend="triton")
except dispatch.BackendUnavailable as error:
    print(error)
print(info.report())
"""


def test_works_without_triton() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    assert "backend='triton' cannot be used: triton is not installed" in done.stdout
    assert "triton: no kernels on CUDA tensors" in done.stdout


WITHOUT_NUMBA = """
import sys
sys.modules["numba"] = None
import torch, lalic_kernels
from lalic_kernels import info
w, u, k, v = torch.rand(4), torch.rand(4), torch.randn(1, 9, 4), torch.randn(1, 9, 4, requires_grad=True)
y = lalic_kernels.biwkv(w, u, k, v)
y.sum().backward()
assert torch.equal(y, lalic_kernels.biwkv(w, u, k, v, backend="torch"))
try:
    lalic_kernels.biwkv(w, u, k, v, backend="cpu")
except lalic_kernels.BackendUnavailable as error:
    print(error)
print(info.report())
"""


def test_works_without_numba() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_NUMBA], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    assert "biwkv: backend='cpu' cannot be used: numba is not installed" in done.stdout
    assert "numba: no compiled code for the CPU" in done.stdout


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
