"""`pytest benchmarks` and `python -m benchmarks.plots`."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from benchmarks import plots, records
from benchmarks.registry import ENTRIES
from benchmarks.test_ops import KINDS


@pytest.mark.slow
def test_every_operation_is_verified_and_timed_by_pytest(tmp_path):
    pytest.importorskip("pytest_benchmark", reason="needs pytest-benchmark")
    saved = tmp_path / "saved.json"
    command = [sys.executable, "-m", "pytest", "benchmarks", "--quick", "-q", "-p", "no:cacheprovider"]
    command += ["--benchmark-max-time=0", "--benchmark-min-rounds=1", f"--benchmark-json={saved}"]
    # Without what pytest-xdist tells its workers, for under it pytest-benchmark times nothing.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=records.ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-2000:]
    timed = json.loads(saved.read_text())["benchmarks"]
    assert len(timed) == sum(calls for _, _, calls in KINDS)
    names = {(each["group"], each["name"]) for each in timed}
    assert len(names) == len(timed)  # a call that is timed twice would hide one that is not


def test_every_operation_is_in_the_list():
    assert {entry for entry, _, _ in KINDS} == {name for name, entry in ENTRIES.items() if not entry.by_name}


@pytest.mark.parametrize("operation", ["biwkv", "token_shift"])
def test_curves_are_drawn_from_every_size_and_provider(operation, monkeypatch, tmp_path):
    pytest.importorskip("pandas", reason="needs pandas")
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    randn, empty = torch.randn, torch.empty
    monkeypatch.setattr(plots, "TOKENS", [16, 64])
    monkeypatch.setattr(torch, "randn", lambda *size, device: randn(*size))
    monkeypatch.setattr(torch, "empty", lambda *size, device, **options: empty(*size, **options))
    ran = []

    def do_bench(run):
        ran.append(run())
        return 0.001

    monkeypatch.setattr(plots.triton.testing, "do_bench", do_bench)
    plots.report(operation).run(save_path=str(tmp_path))
    assert len(ran) == 6
    assert {path.name for path in tmp_path.glob(f"{operation}*")} == {f"{operation}.csv", f"{operation}.png"}
    table = (tmp_path / f"{operation}.csv").read_text().splitlines()
    assert len(table) == 3
    bytes_moved = float(table[2].split(",")[3]) * 1e6 * 0.001
    assert bytes_moved > 64 * plots.CHANNELS * 4 * 2  # float32, read and written


def test_curves_need_a_gpu(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit):
        plots.main([])
    assert "torch finds no CUDA device" in capsys.readouterr().err
