"""docs/gpu-prediction.md is what `python -m benchmarks.prediction` makes of today's counts, and its sums are right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import prediction

ROOT = Path(__file__).parents[2]

COUNTED = {name: {"macs": 10**9, "bytes": 10**6} for name in ("g_a", "h_a", "h_s", "contexts", "aggregation", "rest")}
COUNTED["g_s"] = {"macs": 10**9, "bytes": 10**10}


def test_the_document_is_todays() -> None:
    """Made again by `python -m benchmarks.prediction > docs/gpu-prediction.md` when counts or assumptions change."""
    text = (ROOT / "docs" / "gpu-prediction.md").read_text(encoding="utf-8")
    assert text == "\n".join(prediction.document()) + "\n"


def test_the_largest_of_products_memory_and_steps() -> None:
    sheet, middle = prediction.SHEET, 1
    assert prediction.part_ms("g_a", COUNTED["g_a"], middle) == pytest.approx(1e12 / (sheet["bfloat16"] * 0.35))
    assert prediction.part_ms("contexts", COUNTED["contexts"], middle) == pytest.approx(4e12 / (sheet["int8"] * 0.35))
    assert prediction.part_ms("g_s", COUNTED["g_s"], middle) == pytest.approx(5e12 / (sheet["memory"] * 0.7))
    assert prediction.part_ms("h_s", COUNTED["h_s"] | {"steps": 10**6}, middle) == pytest.approx(250)


def test_rows_add_up_and_get_worse() -> None:
    rows = prediction.predict("decode", 4 * 100, 100, COUNTED, 300)
    found = {name: values for name, *values in rows}
    assert found["300 launches"] == pytest.approx([0.36, 0.6, 1.05])
    assert found["rANS chain"] == pytest.approx([1e-6 * 850 * 60, 1e-6 * 2200 * 2 * 150, 1e-6 * 3080 * 4 * 400])
    for i in range(3):
        assert found["sum"][i] == pytest.approx(sum(values[i] for name, values in found.items() if name != "sum"))
    assert all(good <= middle <= bad for good, middle, bad in found.values())
    assert "g_s" not in {row[0] for row in prediction.predict("encode", 100, 100, COUNTED, 300)}


def test_the_newest_record_of_the_full_model_counts(tmp_path: Path) -> None:
    rows = [{"launches": {"model": m, "total": n}} for m, n in (("full", 774), ("full", 298), ("slim", 250))]
    common = {"date": "2030-01-02", "device": "static"}
    (tmp_path / "static.jsonl").write_text("".join(json.dumps(common | row) + "\n" for row in rows))
    assert prediction.newest("launches", tmp_path)["launches"]["total"] == 298
    (tmp_path / "static.jsonl").write_text(json.dumps(common | {"op": "slices"}) + "\n")
    with pytest.raises(ValueError, match=r"expected a record of `python -m benchmarks.counting.launches --save`"):
        prediction.newest("launches", tmp_path)
