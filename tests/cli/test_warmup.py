"""lalic warmup: what it compiles is what coding then needs, and nothing of the model changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import lalic
from lalic import cli
from lalic_kernels import compiling, installed

ROOT = Path(__file__).parents[2]
TRITON = pytest.mark.skipif(not installed.TRITON, reason="triton is not installed")


def test_on_a_cpu(run) -> None:
    done = run("warmup", "--size", "40x30", "--size", "128x64")
    assert done.code == 0 and done.err == []
    assert done.out[0].startswith("slim in float32 on this processor, ")
    assert [line.split(" ")[0] for line in done.out[1:]] == ["64x64", "128x64"]
    assert all("encoded and decoded" in line and line.endswith(" s") for line in done.out[1:])


@pytest.mark.parametrize("size", ["40", "0x4", "4x", "x"])
def test_a_size_that_is_none(run, size: str) -> None:
    done = run("warmup", "--size", size)
    assert done.code == 2 and len(done.err) == 1
    assert f"--size: expected width and height such as 768x512, got {size!r}" in done.err[0]


def test_a_device_that_is_not_there(run) -> None:
    done = run("warmup", "--device", "cuda:99")
    assert done.code == 2 and "cuda:99" in done.err[0]


@pytest.mark.slow
def test_functions_that_numba_compiles_are_counted(tmp_path: Path) -> None:
    """In a process whose cache is empty, and in the next, for which nothing is left to do."""
    if not installed.NUMBA:
        pytest.skip("numba is not installed")
    words = [sys.executable, "-m", "lalic", "warmup", "--size", "64x64"]
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    first, second = (
        subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600).stdout for _ in range(2)
    )
    assert "functions compiled" in first and "64x64 encoded and decoded, " in second


@TRITON
def test_the_first_compilation_for_a_gpu_is_said(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Once, on a terminal; a kernel in Triton's cache asks no back end for its stages."""
    from triton import backends

    class Backend:
        stages = 0

        def add_stages(self, *words: object) -> None:
            Backend.stages += len(words)

    monkeypatch.setattr(backends, "backends", {"some": SimpleNamespace(compiler=Backend)})
    cli._announce_compiling("cuda")
    Backend().add_stages(1, 2)
    assert capsys.readouterr().err == "", "it is no terminal"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    cli._announce_compiling("cuda")
    for _ in range(2):
        Backend().add_stages(1, 2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "compiling for this GPU" in lines[0] and Backend.stages == 6


# Triton's own JIT, behind a driver that records launches, in a process that does not interpret kernels
CODE = """
import json, sys
sys.path.insert(0, "tests")
import torch
from benchmarks.counting import jit
from benchmarks.counting.launches import some_stream
from lalic import warmup
from lalic.coder.gpu import GpuCoder
from lalic.model import LALIC
from shapes import SHAPES

torch.manual_seed(0)
shape = SHAPES["published"]
model = LALIC(8, 32, (8, 8, 16, 32, 8, 8), (1, 1, 1, 1), (11, 21), context_depth=1, context_rate=2, **shape).eval()
model.update()
found = []
with torch.no_grad(), jit.recording(compile=sys.argv[1]) as record:
    def note():
        found.append([sum(record.compiled_kernels().values()), len(record.launches)])
        record.clear()

    warmup.compile_kernels(model, [(64, 128)], 4)
    note()
    held = list(model.cache) + list(model.latent_codec.cache)
    warmup.compile_kernels(model, [(64, 128)], 4)
    note()
    GpuCoder(model, False).decode([some_stream(model)], (1, 2), [None])
    note()
print(json.dumps({"found": found, "held": [str(name) for name in held]}))
"""


@TRITON
@pytest.mark.parametrize("compiled", ["none", pytest.param("all", marks=pytest.mark.slow)])
def test_kernels_are_compiled_in_threads_and_not_launched(compiled: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", CODE, compiled]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    (first, launched), (second, launched_again), (decode, launches) = result["found"]
    assert first > 20 and launched == launched_again == 0
    assert second == 0, "a second time there is nothing to compile"
    assert decode == 0 and launches > 50, "a decode finds all of its kernels"
    assert result["held"] == [], "the model has cached what was never computed"


@TRITON
def test_what_distinguishes_launches() -> None:
    free, fixed = (SimpleNamespace(do_not_specialize=x, is_constexpr=False) for x in (False, True))
    constant = SimpleNamespace(do_not_specialize=False, is_constexpr=True)
    assert len({compiling._kind(free, n) for n in (1, 2, 16, 32, 2**31)}) == 4
    assert len({compiling._kind(fixed, n) for n in (1, 2, 16, 2**31)}) == 2
    assert len({compiling._kind(constant, n) for n in (2, 3, True)}) == 3
    x = torch.zeros(8)
    assert len({compiling._kind(free, y) for y in (x, x[4:], x[1:], x.int(), None, 0.5)}) == 5


@pytest.mark.gpu
def test_on_a_gpu(capsys) -> None:
    """Coding afterwards gives what a CPU gives, so nothing that was never computed is used."""
    from lalic.warmup import warm_up

    model, here = lalic.slim().to("cuda"), lalic.slim()
    warm_up(model, [(128, 64)])
    assert "kernels compiled in parallel" in capsys.readouterr().out
    x = torch.rand(1, 3, 64, 128)
    with torch.inference_mode():
        file = here.encode(x, 50.0)
        assert model.read(file, 64, 128).symbols_sha256 == here.read(file, 64, 128).symbols_sha256
        assert (model.decode(file, 64, 128, 50.0).cpu() - here.decode(file, 64, 128, 50.0)).abs().max() < 1e-3
