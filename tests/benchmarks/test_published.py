"""The paper's BD-rates come out of its own points, and records hold what the code computes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.paper import published


def test_the_paper_figures_within_a_third_of_a_point() -> None:
    found = published.rows()
    assert [(row["pictures"], row["metric"], row["paper"]) for row in found] == [*published.PAPER]
    for row in found:
        assert row["pchip"] == pytest.approx(row["paper"], abs=0.3)
        assert row["low"] < row["high"] and 0 < row["share"] <= 1


def test_the_command_saves_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert published.main(["--save", "--results", str(tmp_path)]) == 0
    (record,) = map(json.loads, (tmp_path / "static.jsonl").read_text().splitlines())
    assert record["published"] == published.rows() and record["device_type"] == "none"
    printed = capsys.readouterr().out
    assert "-51.23" in printed and "VTM-9.1" in printed


def test_without_the_package_there_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "bjontegaard", None)
    with pytest.raises(SystemExit) as stop:
        published.main([])
    assert stop.value.code == 2 and "need the package bjontegaard" in capsys.readouterr().err
