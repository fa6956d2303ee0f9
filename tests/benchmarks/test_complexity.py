"""`python -m benchmarks.paper.complexity`: whole rows, nothing wrong timed, nothing of a busy machine saved."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from test_records import check_complexity

from benchmarks import codec, measure
from benchmarks.cases.transforms import TINY
from benchmarks.counting import operations
from benchmarks.measure import Setting, WrongResult
from benchmarks.paper import complexity
from lalic.config import SLIM
from lalic.model import LALIC


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model and picture, two rounds, no processes: what is left is what the command does."""
    monkeypatch.setattr(complexity, "CONFIGS", {"tiny": TINY})
    monkeypatch.setattr(complexity, "SIZE", complexity.QUICK)
    monkeypatch.setattr(Setting, "rounds", (2, 2, 0.0))
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 0.0, 0.0))
    monkeypatch.setattr(complexity, "in_fresh_process", lambda call, *words, memory="default": call(*words))
    monkeypatch.setitem(codec.MODELS, "tiny", TINY)


def test_the_command_saves_whole_rows(small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert complexity.main(["--save", "--results", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("*.jsonl")
    (record,) = map(json.loads, path.read_text().splitlines())
    check_complexity(record)
    assert "LALIC tiny, 128 x 64" in capsys.readouterr().out


def test_what_is_wrong_is_not_timed(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self, x_hat):
        raise WrongResult("spoiled")

    monkeypatch.setattr(codec.Subject, "check", wrong)
    monkeypatch.setattr(measure, "_clock_rounds", lambda *a: pytest.fail("timed"))
    assert complexity.main(["--save", "--results", str(tmp_path)]) == 1
    assert not list(tmp_path.iterdir())


def test_counts_of_slim() -> None:
    row = complexity.counts("slim", (64, 128))
    model = LALIC.from_config(SLIM)
    own = sum(p.numel() for name, p in model.named_parameters() if "conv5x5_reparam" not in name)
    assert row["parameters"] == own  # the kernel that four branches make up is derived, not one more
    assert row["operations"] == next(operations.operations(model.eval(), model, [(64, 128)]))


@pytest.mark.gpu
def test_it_runs_on_a_gpu() -> None:
    found = complexity.measured("slim", complexity.QUICK, Setting(torch.device("cuda"), quick=True))
    assert found["encode"]["seconds"] > 0 and found["decode"]["peak bytes"] > 0
