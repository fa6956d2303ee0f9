"""`python -m benchmarks.paper.context`: its counts against counts by hand, and nothing wrong is timed or saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import records
from benchmarks.measure import Setting, WrongResult
from benchmarks.paper import context
from lalic.config import SLIM

ROOT = Path(__file__).parents[2]

QUICK = Setting(torch.device("cpu"), quick=True)


def test_counts_of_the_published_model() -> None:
    """Against the published network's parameters by module, and its multiply-adds at 768x512."""
    found = context.count_model("rwkv", {})
    contexts = 4_439_408 + 4_495_760 + 4_608_464 + 4_874_960 - 4 * 2 * 2 * 25 * 320  # less the derived kernels
    spatial = 12_832 + 12_832 + 51_264 + 204_928 + 1_843_584
    aggregation = 825_952 + 866_674 + 1_103_744 + 1_774_272 + 7_983_040
    assert found["parameters"] == contexts + spatial + aggregation
    # Channel contexts 27.981 G, spatial contexts on the full grid 3.264 G, aggregations 19.262 G less the spatial
    # context's share of the first product at anchors, 0.322 G. Ours counts BiWKV and norms as well: 0.2 %.
    by_hand = 27.981e9 + 3.264e9 + 19.262e9 - 0.322e9
    assert by_hand < sum(found["macs"]) < 1.005 * by_hand


def test_counts_of_the_transformer() -> None:
    cached, prefix, whole = context.count_transformer()
    assert round(2 * sum(cached["macs"]) / 1e9, 1) == 97.4 and cached["cache MiB"] == 180
    assert round(2 * sum(whole["macs"]) / 1e9) == 502
    assert cached["macs"][0] == prefix["macs"][0] and prefix["macs"][-1] == whole["macs"][-1]
    assert prefix["macs"] == sorted(prefix["macs"])
    assert len(set(cached["calls"][1:])) == 1, "a later slice takes no more calls than an earlier one"
    assert cached["calls"][1] < whole["calls"][1]


def test_calls_are_counted_without_views() -> None:
    x = torch.zeros(4, 6)
    macs, calls, result = context.count(lambda: torch.relu(x.t().reshape(3, 8).view(8, 3) @ x[:3].add_(1)))
    assert result.shape == (8, 6)
    assert macs == 8 * 3 * 6
    assert calls == 4  # the copy that reshape needs, add_, mm, relu


def test_the_command_prints_and_saves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert context.main(["--save", "--results", str(tmp_path)]) == 0
    (record,) = map(json.loads, (tmp_path / "static.jsonl").read_text().splitlines())
    assert context.markdown(record["counted"]) in capsys.readouterr().out
    names = [found["model"].split()[0] for found in record["counted"]]
    assert names[:6] == ["conv", "conv-plus", "conv-plus", "conv-plus", "rwkv", "transformer"]
    assert record["device"] == "static" and record["op"] == "context"


def test_the_table_in_the_docs_is_the_last_record() -> None:
    last = [record for record in records.load() if record.get("op") == "context"][-1]
    assert context.markdown(last["counted"]) in (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")


def test_a_slice_can_be_predicted_again() -> None:
    """Out of order and twice: what is timed is that slice and no other."""
    for name, options in (("rwkv", {}), ("transformer", {})):
        subject = context.Subject(name, options, SLIM, (8, 12), torch.device("cpu"))
        with torch.no_grad():
            for k in (2, 0, 3, 3, 1):
                subject.check(k, subject.predict(k))
            with pytest.raises(WrongResult, match="expected"):
                subject.check(2, subject.predict(1))
