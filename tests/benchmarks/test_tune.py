"""The launch table: what is written is what is read, what is chosen, and what the tuner makes of measurements."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import tune
from benchmarks.measure import Case, Setting
from lalic_kernels.biwkv import gpu as launches

ROOT = Path(__file__).resolve().parents[2]


def read(path: Path) -> tuple[launches.Row, ...]:
    return launches.parse(json.loads(path.read_text(encoding="utf-8")))


def test_the_table_is_written_as_it_is_kept(tmp_path: Path) -> None:
    tune.write(reversed(launches.TABLE), tmp_path / "table.json")
    assert set(read(tmp_path / "table.json")) == set(launches.TABLE)
    if all(row.architecture == "any" for row in launches.TABLE):
        assert (tmp_path / "table.json").read_bytes() == launches.FILE.read_bytes()


def test_an_architecture_takes_its_own_rows_by_size() -> None:
    own = [
        launches.Row("forward", "cuda 90", 2, 0, tune.launch_of("forward", (32, 16, 2))),
        launches.Row("forward", "cuda 90", 2, 1001 * 96, tune.launch_of("forward", (64, 32, 8))),
    ]
    with tune.using((*launches.TABLE, *own)):
        assert launches.choose("forward", "cuda 90", 1000, 96, 2).chunk == 128
        assert launches.choose("forward", "cuda 90", 1001, 96, 2).rows == own[1].launch
        assert launches.choose("forward", "cuda 90", 1001, 95, 2).vec == 1
        # Another architecture, another dtype, the backward: as before.
        for arch, itemsize in (("cuda 80", 2), ("cuda 90", 4)):
            assert launches.choose("forward", arch, 1001, 96, itemsize) == launches.choose(
                "forward", "any", 1001, 96, itemsize
            )
        assert launches.choose("backward", "cuda 90", 9, 96, 2) == launches.choose("backward", "any", 9, 96, 2)
    assert launches.choose("forward", "cuda 90", 1000, 96, 2) == launches.choose("forward", "any", 1000, 96, 2)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"num_warps": 3}, "must be powers of two"), ({"start": 7}, "must have start 0")],
)
def test_rows_that_cannot_be_launched_are_refused(change: dict, sentence: str) -> None:
    row = {"use": "forward", "architecture": "any", "itemsize": 2, "start": 0, "GROUPS": 16, "BLOCK_C": 32}
    with pytest.raises(ValueError, match=sentence):
        launches.parse([row | {"num_warps": 4} | change])
    with pytest.raises(ValueError, match="two rows"):
        launches.parse([row | {"num_warps": 4}] * 2)


def test_the_fastest_candidates_become_rows(tmp_path: Path) -> None:
    """With a made-up clock: long sequences like large blocks, short ones small ones."""
    seen = []

    def timed(case: Case) -> list[dict]:
        seen.append(case.name)
        long = int(case.name.split()[2]) >= 1024
        sizes = {call.name: int(call.name.split()[1]) * int(call.name.split()[3]) for call in case.calls}
        return [{"call": name, "seconds": 1 / size if long else float(size)} for name, size in sizes.items()]

    shapes = {use: tuple((start, (1, 2, 8)) for start, _ in sizes) for use, sizes in tune.SIZES.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune, "SIZES", shapes)
        *_, best = tune.tune("cuda 90", Setting(torch.device("cpu")), timed)
    assert len(seen) == 4 * len(tune.FORWARD_SIZES) + len(tune.SIZES["scan"])
    found = [(row.start, row.launch["GROUPS"], row.launch["BLOCK_C"]) for row in best if row.use == "forward"]
    assert found == [(0, 16, 8), (1 << 16, 128, 16)] * 2  # merged: one row for each run of equal winners
    tune.write([*launches.TABLE, *best], tmp_path / "table.json")
    assert set(read(tmp_path / "table.json")) == {*launches.TABLE, *best}


def test_a_candidate_runs_with_its_own_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call of a case is the op under that candidate, and its check is the benchmark's."""
    pytest.importorskip("triton")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    used = []
    choose = launches.choose
    monkeypatch.setattr(launches, "choose", lambda *words: used.append(choose(*words)) or used[-1])
    row = launches.Row("forward", launches.architecture(device), 4, 0, tune.launch_of("forward", (16, 16, 1)))
    candidates = [tune.launch_of("forward", sizes) for sizes in ((16, 16, 1), (32, 16, 2))]
    found = tune.case(row, candidates, (1, 70, 5), Setting(device))
    for call in found.calls:
        assert call.check is not None
        call.check(call.run())
    assert [choice.rows for choice in used] == candidates


def test_a_scan_candidate_is_the_one_that_is_launched() -> None:
    """By the backward, in each class of sizes; the forward adds the sums of so few chunks itself."""
    architecture = "cuda 90"
    begins = [start for start, _ in tune.SIZES["scan"]]
    for start, (_, tokens, channels) in tune.SIZES["scan"]:
        row = launches.Row("scan", architecture, None, start, tune.launch_of("scan", (64, 4, 2)))
        with tune.using(tune.with_row(launches.TABLE, replace(row, start=0))):
            choice = launches.choose("backward", architecture, tokens, channels, 2)
        assert choice.scan == row.launch
        assert max(begin for begin in begins if begin <= launches.blocks(tokens, choice.chunk)) == start
    found = tune.case(row, [row.launch], (1, 70, 5), Setting(torch.device("cpu")))
    assert "gradients" in str(found.calls[0].check)


def test_a_table_is_written_after_each_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a day that is cut short has the rows that were found; for other uses it has those that were there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(launches, "architecture", lambda device: "cuda 90")
    monkeypatch.setattr(tune.records, "environment", lambda device: {})
    forward = launches.Row("forward", "cuda 90", 2, 0, tune.launch_of("forward", (32, 16, 2)))

    def cut(*_: object) -> Iterator[list[launches.Row]]:
        yield [forward]
        raise KeyboardInterrupt

    monkeypatch.setattr(tune, "tune", cut)
    with pytest.raises(KeyboardInterrupt):
        tune.main(["biwkv", "--output", str(tmp_path / "table.json")])
    old = launches.Row("scan", "cuda 90", None, 0, tune.launch_of("scan", (64, 4, 2)))
    assert set(read(tmp_path / "table.json")) == {*launches.TABLE, forward}
    with tune.using((*launches.TABLE, old)), pytest.raises(KeyboardInterrupt):
        tune.main(["biwkv", "--output", str(tmp_path / "table.json")])
    assert set(read(tmp_path / "table.json")) == {*launches.TABLE, forward, old}


def test_refused_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = launches.FILE.read_bytes()
    with pytest.raises(SystemExit) as stop:
        tune.main(["biwkv"])
    assert stop.value.code == 2
    assert "measured on the GPU that it is for" in capsys.readouterr().err
    assert launches.FILE.read_bytes() == before


def test_candidates_compile_without_spills() -> None:
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    words = [sys.executable, "-m", "benchmarks.tune", "biwkv", "--compile", "90"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) >= sum(len(candidates) for candidates in tune.CANDIDATES.values())
    spilled = [(each["kernel"], each["spills"]) for each in found if each["spills"]]
    assert not spilled
