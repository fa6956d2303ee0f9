"""The page of results: every number in its tables is a record's, words are escaped, and what is missing is said."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from benchmarks.records import RESULTS, load

pytest.importorskip("matplotlib")
pytest.importorskip("markdown_it")

PER = (1, 0.01, 1e-9, 1e-6, 1e-3, 1e6, 1e9, 1 << 20, 1 << 30)


def leaves(found: Any) -> Iterator[Any]:
    """Keys and values of a record, all the way down."""
    if isinstance(found, dict):
        for key, value in found.items():
            yield key
            yield from leaves(value)
    elif isinstance(found, list):
        for value in found:
            yield from leaves(value)
    else:
        yield found


def strangers(text: str, records: list[dict[str, Any]]) -> set[str]:
    """Numbers in the tables of a page that are no value of a record, rounded as the page rounds."""
    known = list(leaves(records))
    shown = {
        report.number(value, per, digits)
        for value in {float(x) for x in known if isinstance(x, int | float) and not isinstance(x, bool)}
        for per in PER
        for digits in (2, 3, 4, 6, 9)
    }
    words = sorted({word for word in known if isinstance(word, str) and re.search(r"\d", word)}, key=len, reverse=True)
    parts = "|".join(re.escape(part) for word in words for part in (word, word[:10]))  # commits and dates are cut
    names = re.compile(rf"(?<![\w.])(?:{parts})(?![\w.])")
    tables = "\n".join(line for line in text.splitlines() if line.startswith("| "))
    return set(re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", names.sub("", tables))) - shown


def record(**more: Any) -> dict[str, Any]:
    common = {"format": 1, "date": "2030-01-02T03:04:05+00:00", "commit": "0123456789abcdef", "dirty": False}
    common |= {"device": "Some CPU, 7 cores", "device_type": "cpu", "threads": 7, "system": "Linux x86_64"}
    return common | {"python": "3.12.1", "torch": "2.9.8", "quick": False} | more


def mechanism(name: str, lengths: tuple[int, ...]) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for n in lengths:
        row = {"mechanism": name, "length": n, "width": 96, "runs": "torch", "theoretical": 7 * n * 96}
        row |= {"theoretical an element": 7, "operations": {"total": 10 * n * 96, "an element": 10.0123}}
        if n == max(lengths):
            row["skipped"] = "needs about 99.5 GiB, and 12.5 GiB may be used"
        else:
            row |= {"seconds": 1.2345e-7 * n, "quartiles": [1e-7 * n, 2e-7 * n], "repeats": 5, "memory": "fresh"}
            row |= {"seconds an element": 1.2345e-7 / 96, "peak bytes": 400 * n + 13, "argument bytes": 4}
        rows.append(row)
    return record(mechanism=name, width=96, mechanisms=rows)


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    """The results of this repository, and those of a device with words that are no words of HTML."""
    made = [mechanism(name, (1024, 2048, 4096)) for name in ("AFT-simple", "window <attention>")]
    region = {"size": [4000, 3000], "region": [384, 384], "tiles": 4, "read": 9, "seconds": 2.5}
    made.append(record(regions=[region | {"seconds a tile": 0.625}]))
    return [*load(RESULTS), *made]


@pytest.fixture(scope="module")
def text(records: list[dict[str, Any]]) -> str:
    return report.markdown(records)


def test_every_number_is_a_records(records: list[dict[str, Any]], text: str) -> None:
    assert not strangers(text, records)
    assert text.count("data:image/png") > 10
    assert strangers(text + "| 1.491 |", records) == {"1.491"}
    assert strangers(text.replace("11.13 |", "11.199 |", 1), records) == {"11.199"}


def test_a_command_prints_the_tables_alone(capsys: pytest.CaptureFixture[str]) -> None:
    report.show(mechanism("AFT-simple", (1024, 2048)))
    printed = capsys.readouterr().out
    assert " AFT-simple |" in printed and "not run: needs about 99.5 GiB" in printed and "image" not in printed
    assert len({len(line) for line in printed.splitlines() if line.startswith("|")}) == 1


def test_the_page_is_whole(text: str) -> None:
    page = report.page(text)
    assert "window &lt;attention&gt;" in page and "<attention>" not in page
    links, places = re.findall(r'href="#([^"]+)"', page), re.findall(r'<h2 id="([^"]+)"', page)
    assert links == places and len(places) == len(report.KINDS) + 2
    assert page.count("<table>") == len(re.findall(r"^\| :-", text, re.MULTILINE)) and "| :--" not in page
    assert not re.search(r'src="(?!data:image/png)|<script|<link', page)  # nothing is fetched and nothing runs


def test_what_was_not_measured_is_said(records: list[dict[str, Any]], text: str) -> None:
    assert "12.5 GiB may be used" in text and re.search(r"not run: needs about .*; extrapolated \d", text)
    missing = text[text.index("## What was not measured") :]
    if not any(one["device_type"] == "cuda" for one in records):
        assert "On a GPU: nothing." in missing
    bare = report.markdown([record()])
    for what, command, _ in report.KINDS.values():
        assert what in bare and f"python -m benchmarks.{command} --save" in bare


def test_the_latest_run_counts() -> None:
    old, new = (mechanism("AFT-simple", (1024, 2048, 4096, 8192)) for _ in range(2))
    new["mechanisms"][0]["seconds"] = 0.25
    pieces = report.mechanisms([old, new])
    assert "250 ms" in (shown := "".join(piece for piece in pieces if isinstance(piece, str)))
    assert report.seconds(old["mechanisms"][0]["seconds"]) not in shown
    row = {"entry": "biwkv", "memory": "fresh", "case": "old", "call": "c", "yardstick": False, "seconds": 1.0}
    row |= {"ratios": {}, "metrics": {}}
    first = record(rows=[row, row | {"entry": "rans"}])
    shown = "".join(report.speed([first, record(rows=[row | {"case": "new"}])]))
    assert shown.count("old: c") == shown.count("new: c") == 1 and shown.index("new: c") < shown.index("### rans")


@pytest.mark.parametrize("value", [0, 3, 1234, 98304, 0.00012345, 1.99996, 473659167360, 1e-9, 123456.7, -0.5])
def test_numbers_are_rounded_to_four_digits(value: float) -> None:
    assert float(report.number(value)) == pytest.approx(value, rel=0.5001e-3)


def test_units() -> None:
    assert [report.seconds(x) for x in (None, 2.0, 0.0123456, 1.5e-6)] == ["-", "2 s", "12.35 ms", "1.500 µs"]
    assert [report.size(x) for x in (1 << 20, 3 << 29)] == ["1 MiB", "1.500 GiB"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made.jsonl").write_text(json.dumps(record()) + "\n")
    target = tmp_path / "new" / "report.html"
    assert report.main(["--results", str(tmp_path), "-o", str(target)]) == 0
    assert str(target) in capsys.readouterr().out and "Some CPU, 7 cores" in target.read_text()
    monkeypatch.setitem(sys.modules, "markdown_it", None)
    with pytest.raises(SystemExit) as stop:
        report.main(["--results", str(tmp_path), "-o", str(target)])
    assert stop.value.code == 2 and "lalic[report]" in capsys.readouterr().err


def test_a_broken_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content, said in (("{}\n", "made.jsonl:1 is no record"), ("", "holds no results")):
        (tmp_path / "made.jsonl").write_text(content)
        with pytest.raises(SystemExit) as stop:
            report.main(["--results", str(tmp_path), "-o", str(tmp_path / "x.html")])
        assert stop.value.code == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()
