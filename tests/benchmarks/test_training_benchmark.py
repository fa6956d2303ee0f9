"""The benchmark of training steps: both sides run their own code, and a record is whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import records, training


def test_a_step_is_timed_and_sides_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    assert training._process(training.ROOT, quick=True) > 0
    seen: list[Path] = []
    monkeypatch.setattr(training, "_process", lambda path, quick: float(seen.append(path) or len(seen)))
    sides = {"here": Path("a"), "beside": Path("b")}
    assert training.measure(sides, 2) == {"here": [1.0, 3.0], "beside": [2.0, 4.0]}
    assert seen == [Path("a"), Path("b")] * 2


def test_a_record_has_both_sides_and_their_ratio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(records, "refuse_if_busy", lambda parser: None)
    monkeypatch.setattr(training, "measure", lambda sides, *_: {"here": [200.0, 300.0], "beside": [100.0, 100.0]})
    assert training.main(["--beside", str(training.ROOT), "--save", "--results", str(tmp_path)]) == 0
    (record,) = (json.loads(line) for path in tmp_path.iterdir() for line in path.read_text().splitlines())
    assert record["threads"] == 1 and record["training"]["ratio"] == 2.5
    assert set(record["training"]["commits"]) == {"here", "beside"}
    assert "2.50 times the other's" in capsys.readouterr().out


def test_code_that_fails_is_no_figure(tmp_path: Path) -> None:
    (tmp_path / "lalic.py").write_text("raise ImportError('not this one')")
    with pytest.raises(RuntimeError, match="not this one"):
        training._process(tmp_path, quick=True)
