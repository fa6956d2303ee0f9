"""Records are only ever added, and those that are kept are whole: documents take their figures from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import records
from benchmarks.paper.mechanism_modules import MECHANISMS
from benchmarks.paper.published import rows as published_rows
from benchmarks.paper.scaling import COUNTS, fits

Record = dict[str, Any]


def test_a_torn_last_line_is_not_joined_with_the_next(tmp_path: Path) -> None:
    path = records.append({"device": "A B", "n": 1}, tmp_path)
    assert path.name == "a-b.jsonl"
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    records.append({"device": "A B", "n": 2}, tmp_path)
    assert [json.loads(line)["n"] for line in path.read_text().splitlines()] == [1, 2]


def counted(record: Record) -> None:
    """On no device."""
    assert record["device"] == "static" and record["device_type"] == "none"


def check_resources(record: Record) -> None:
    counted(record)
    found = record["resources"]
    assert found["specialisations"] == len(found["kernels"]) and found["spills"] == 0 and found["steps"]


def check_rd(record: Record) -> None:
    assert record["pictures"] and record["picture_names"] and record["comparisons"]
    assert all({"codec", "title", "points"} <= set(curve) and curve["points"] for curve in record["rd"])


def check_launches(record: Record) -> None:
    counted(record)
    assert record["launches"]["total"] == sum(record["launches"]["parts"].values())


def check_training_memory(record: Record) -> None:
    assert (record["device"] == "static") == all(name.startswith("counted") for name in record["memory"])
    for row in record["memory"].values():
        assert row["ratio"] == row["ours"]["peak"] / row["plain"]["peak"]


def check_published(record: Record) -> None:
    counted(record)
    for kept, row in zip(record["published"], published_rows(), strict=True):
        assert kept.keys() == row.keys()


def test_the_newest_published_rates_are_computed_today() -> None:
    """Older ones may be of points that were corrected since."""
    newest = [record for record in records.load() if "published" in record][-1]
    for kept, row in zip(newest["published"], published_rows(), strict=True):
        assert kept == {key: pytest.approx(x) if isinstance(x, float) else x for key, x in row.items()}


def check_codec(record: Record) -> None:
    assert record["quick"] is False
    for row in record["codec"]:
        assert row["model"] and ("seconds" in row) != ("skipped" in row)
        shares = [part["share"] for part in row.get("parts", {}).values()]
        assert not shares or abs(sum(shares) - 1) < 1e-6


def check_cold(record: Record) -> None:
    assert record["quick"] is False and set(record["cold start"]) == {"nothing cached", "code cached"}
    assert all(found["first decode"] for found in record["cold start"].values())


def check_mechanisms(record: Record) -> None:
    """Every row is counted, and measured or left out for a reason."""
    assert record["mechanism"] in MECHANISMS and record["quick"] is False and record["commit"]
    for row in record["mechanisms"]:
        assert (row["mechanism"], row["width"]) == (record["mechanism"], record["width"])
        counts, elements = row["operations"], row["length"] * row["width"]
        assert counts["total"] == counts["formula"] + counts["elementwise"]
        assert counts["an element"] == counts["total"] / row["length"] / row["width"]
        assert row["theoretical"] == row["theoretical an element"] * elements
        assert ("skipped" in row) != ("seconds" in row)
        assert "skipped" in row or row["seconds an element"] == row["seconds"] / elements
        assert "skipped" in row or {"quartiles", "repeats", "memory", "peak bytes", "argument bytes"} < set(row)


def check_scaling(record: Record) -> None:
    """Whole rows; lines are those of the rows; what is extrapolated has no measurement."""
    static = record["device"] == "static"
    assert record["commit"] and record["scaling"]
    for row in record["scaling"]:
        if static:
            assert ("operations" in row) != ("skipped" in row)
        else:
            assert ("peak bytes" in row) != ("skipped" in row)
            assert "extrapolated bytes" not in row or "skipped" in row
    again = fits(record["scaling"], COUNTS if static else (("peak bytes",),))
    assert again.keys() == record["fits"].keys()
    for name, lines in again.items():
        assert lines.keys() == record["fits"][name].keys()
        for quantity, line in lines.items():
            # Another machine's LAPACK rounds otherwise; an intercept of zero, by less than an operation or a byte.
            kept = dict(record["fits"][name][quantity])
            assert kept.pop("intercept") == pytest.approx(line.pop("intercept"), rel=1e-6, abs=1)
            assert kept == pytest.approx(line, rel=1e-6, abs=1e-9)


def check_complexity(record: Record) -> None:
    """Every model is counted, and measured in both directions; a peer that was not says why."""
    assert record["commit"] and record["quick"] is False and record["complexity"]
    for row in record["complexity"]:
        ours = row["model"].startswith("LALIC")
        if ours or "operations" in row:
            assert set(row["operations"]) == {"complete", "formulas", "layers", "thop"} and row["parameters"] > 0
        if not ours and "encode" not in row:
            assert row["skipped"]
            continue
        assert row["weights"] in ("random", "shipped") and row["parameters"] > 0 and row["bits per pixel"] > 0
        assert not ours or row["bytes"]["peak"] > row["bytes"]["weights"]
        for direction in ("encode", "decode"):
            low, high = row[direction]["quartiles"]
            assert low <= high and row[direction]["seconds"] > 0 and row[direction]["repeats"] > 0
            assert row[direction]["peak bytes"] is None or row[direction]["peak bytes"] >= 0


def check_load(record: Record) -> None:
    """Memory is flat: what a process needs, it needs for the first half of its work."""
    has("load", "process", "pictures", "tenth MiB", "half MiB", "end MiB")(record)
    assert all(row["end MiB"] <= 1.05 * row["half MiB"] for row in record["load"])


def of_older_commands(record: Record) -> None:
    """No more of them are made, and lines never change."""


def has(key: str, *names: str) -> Callable[[Record], None]:
    """A check that there are rows, each with just these keys."""

    def rows(record: Record) -> None:
        assert record[key] and all(set(row) == set(names) for row in record[key])

    return rows


ROW = ("entry", "memory", "case", "call", "yardstick", "seconds", "quartiles", "repeats", "ratios", "metrics")
KINDS = {
    "rd": check_rd, "launches": check_launches, "steps": counted, "resources": check_resources,
    "memory": check_training_memory, "published": check_published,
    "codec": check_codec, "cold start": check_cold, "mechanisms": check_mechanisms, "scaling": check_scaling,
    "complexity": check_complexity, "decode_memory": counted, "counted": counted, "compiled": counted,
    "portability": has("portability", "setting", "exact", "float"), "rows": has("rows", *ROW),
    "against": has("against", "call", "commit", "seconds before", "seconds", "ratio"),
    "large pictures": has(
        "large pictures", "size", "picture MiB", "compress MiB", "decompress MiB", "bits per pixel"
    ),
    "load": check_load,
    "page": has(
        "page", "other", "size", "releases", "seconds", "largest seconds", "all seconds", "largest all seconds"
    ),
    "regions": has("regions", "size", "region", "tiles", "read", "seconds", "seconds a tile"),
    "seams": has(
        "seams", "picture", "size", "quality", "rate", "one tile dB", "one tile at borders dB", "one tile elsewhere dB",
        "tiles dB", "tiles at borders dB", "tiles elsewhere dB",
    ),
    "ideal_bits": has("ideal_bits", "picture", "exact", "float"),
    **dict.fromkeys(("rate", "race", "exception_lists", "training"), of_older_commands),
}  # fmt: skip


def check(record: Record) -> None:
    """A record is of exactly one kind, and whole."""
    kinds = KINDS.keys() & record.keys()
    assert len(kinds) == 1, f"expected one kind that benchmarks/results/README.md names, found {sorted(kinds)}"
    KINDS[kinds.pop()](record)


@pytest.mark.parametrize("path", sorted(records.RESULTS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_kept_records_are_whole(path: Path) -> None:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        record = json.loads(line)
        assert record["format"] == 1 and record["commit"] and record["date"] and record["torch"], number
        assert path.stem == records.slug(record["device"]), number
        check(record)


def test_a_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "made.jsonl").write_text('{"date": "2030-01-01", "device": "A"}\n{}\n')
    with pytest.raises(ValueError, match=r"made\.jsonl:2 is no record of a run"):
        records.load(tmp_path)
