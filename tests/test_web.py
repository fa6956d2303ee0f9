"""The page of results: every number on it stands in a results file, nothing is fetched, a browser shows it whole."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks/ is not part of the installed packages

from benchmarks import published  # noqa: E402
from benchmarks.report import RESULTS  # noqa: E402
from benchmarks.web import __main__ as web  # noqa: E402
from benchmarks.web import paper, plots, text  # noqa: E402
from benchmarks.web.records import latest_rows, load  # noqa: E402

# Words of the page itself with a digit in them: none of them is a figure.
FIXED = re.compile(r"Table [145]|Figure 1[01]|float(32|64)|bfloat16")
VOID = ("meta", "br", "path", "circle", "link", "img")


class Read(html.parser.HTMLParser):
    """The page taken apart: numbers with their values, words of records, points of plots, and all other text."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: list[tuple[float, float, str]] = []
        self.names: list[str] = []
        self.points: list[tuple[float, float]] = []
        self.ticks: list[str] = []
        self.other: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.tags.append((tag, found))
        if tag == "circle":
            self.points.append((float(found["data-x"] or ""), float(found["data-y"] or "")))
        if tag not in VOID:
            self._open.append((tag, found))

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop()[0] == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        kinds = [found.get("class") for _, found in self._open]
        if self._open and self._open[-1][0] == "data":
            found = self._open[-1][1]
            self.numbers.append((float(found["value"] or ""), float(found["data-per"] or ""), data))
        elif "name" in kinds:
            self.names.append(data)
        elif "tick" in kinds:
            self.ticks.append(data)
        elif not any(tag == "style" for tag, _ in self._open):
            self.other.append(data)

    def close(self) -> None:
        super().close()
        assert not self._open, f"left open: {self._open}"


def read(page: str) -> Read:
    found = Read()
    found.feed(page)
    found.close()
    return found


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


def check(page: str, folder: Path) -> Read:
    """Fail unless each number and each word with a digit comes from the folder's files."""
    known = [leaf for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()
             for leaf in leaves(json.loads(line))]  # fmt: skip
    values = {float(leaf) for leaf in known if isinstance(leaf, int | float) and not isinstance(leaf, bool)}
    words = {leaf for leaf in known if isinstance(leaf, str)}
    found = read(page)
    for value, per, shown in found.numbers:
        assert value in values, f"{value} ({shown}) stands in no results file"
        step = 10.0 ** -len(shown.partition(".")[2])
        # Half of the last digit shown; float64 may put a tie on either side.
        assert abs(float(shown) - value / per) <= 0.5001 * step, f"{shown} is not {value} / {per}"
    for x, y in found.points:
        assert x in values and y in values, f"the point ({x}, {y}) stands in no results file"
    for name in found.names:
        assert any(name in word for word in words), f"{name!r} stands in no results file"
    said = FIXED.sub("", " ".join(found.other))
    assert not re.search(r"\d", said), (
        f"a number that comes from nowhere: {re.findall(r'.{0,40}[0-9].{0,20}', said)[:3]}"
    )
    return found


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


def scaled(static: bool) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for n in (256, 512, 1024):
        row: dict[str, Any] = {"model": "LALIC full", "height": n, "width": n, "pixels": n * n}
        if static:
            row |= {"operations": dict.fromkeys(("complete", "formulas", "layers", "thop"), 1.204e6 * n * n)}
            row |= {"bytes": {"weights": 314159265, "peak": 314159265 + 800 * n * n}}
        elif n < 1024:
            row |= {"peak bytes": 900 * n * n, "seconds": 0.7654321}
        else:
            row |= {"skipped": "would take about 77 s by the size before, more than 60 s", "extrapolated bytes": 9.4e8}
        rows.append(row)
    fits = {"LALIC full": {"peak bytes": {"slope": 900.25, "r2": 0.99999912, "worst": 0.0123, "points": 3}}}
    more = {"device": "static", "device_type": "none"} if static else {}
    return record(scaling=rows, fits=fits, **more)


def costs() -> dict[str, Any]:
    direction = {"seconds": 0.123456, "quartiles": [0.12, 0.13], "repeats": 9, "peak bytes": 123456789}
    row = {"model": "LALIC slim", "height": 512, "width": 768, "parameters": 2926543, "weights": "shipped"}
    row |= {"operations": dict.fromkeys(("complete", "formulas", "layers", "thop"), 32745841364)}
    row |= {"bytes": {"weights": 1, "peak": 2}, "bits per pixel": 0.456, "encode": direction, "decode": direction}
    peer = {"model": "A peer", "height": 512, "width": 768, "parameters": 45123456, "weights": "random"}
    peer |= {"encode": direction | {"peak bytes": None}, "decode": direction | {"peak bytes": None}}
    other = {"model": "Another peer", "height": 512, "width": 768, "skipped": "it does not import here: No module"}
    return record(complexity=[row, peer, other])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The results of this repository, and a device with records of the kinds that it may not have yet."""
    for path in RESULTS.glob("*.jsonl"):
        shutil.copy(path, tmp_path)
    made = [mechanism("AFT-simple", (1024, 2048, 4096)), mechanism("window <attention>", (1024, 2048, 4096))]
    made += [scaled(True), scaled(False), costs(), record(published=published.rows())]
    (tmp_path / "made.jsonl").write_text("".join(json.dumps(one) + "\n" for one in made))
    return tmp_path


@pytest.fixture
def page(folder: Path) -> str:
    return web.page(load(folder), web.STYLE.read_text())


def test_every_number_stands_in_a_results_file(folder: Path, page: str) -> None:
    found = check(page, folder)
    assert len(found.numbers) > 200 and len(found.points) >= 4 * 2 and found.ticks
    assert "window <attention>" in found.names  # escaped, not taken for a tag


def test_the_page_of_this_repository(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "new" / "report.html"
    assert web.main(["-o", str(target)]) == 0
    assert str(target) in capsys.readouterr().out
    check(target.read_text(), RESULTS)


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda page: page.replace("</main>", "<p>1.49 times</p></main>"), "comes from nowhere"),
        (lambda page: page.replace("</main>", text.number(0.123321) + "</main>"), "stands in no results file"),
        (lambda page: page.replace("</main>", text.name("torch 9.9.9") + "</main>"), "stands in no results file"),
        (lambda page: page.replace('data-per="1000000.0">2.927<', 'data-per="1000000.0">2.937<'), "is not"),
        (lambda page: re.sub(r'data-y="[^"]+"', 'data-y="1.75e-3"', page, count=1), "the point"),
    ],
)
def test_a_number_from_elsewhere_is_seen(folder: Path, page: str, spoil: Any, what: str) -> None:
    spoiled = spoil(page)
    assert spoiled != page
    with pytest.raises(AssertionError, match=what):
        check(spoiled, folder)


def test_nothing_is_fetched_and_nothing_runs(page: str) -> None:
    found = read(page)
    for tag, attributes in found.tags:
        assert tag not in ("script", "link", "img", "iframe", "object", "embed", "base", "form")
        assert not {"src", "srcset", "style"} & set(attributes) and not any(key.startswith("on") for key in attributes)
        assert (attributes.get("href") or "#").startswith("#")
    assert "url(" not in page and "@import" not in page
    targets = {a["id"] for _, a in found.tags if "id" in a}
    assert {(a["href"] or "")[1:] for tag, a in found.tags if tag == "a"} == targets


def test_it_is_made_for_phones_and_paper(page: str) -> None:
    found = read(page)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in found.tags
    assert "@media print" in page and ".wide { overflow-x: auto" in page
    tables = [place for place, (tag, _) in enumerate(found.tags) if tag == "table"]
    assert tables and all(found.tags[place - 1] == ("div", {"class": "wide"}) for place in tables)
    assert all(a.get("role") == "img" or "aria-hidden" in a for tag, a in found.tags if tag == "svg")


def test_what_was_not_measured_is_said(folder: Path, page: str) -> None:
    missing = page[page.index('id="missing"') :]
    assert "12.5 GiB may be used" in missing and "would take about 77 s" in missing
    assert "not run; extrapolated" in page and "Another peer" in missing
    if not any(one["device_type"] == "cuda" for one in load(folder)):
        assert "On a GPU: nothing." in missing
    bare = web.page([record()], "")
    for what in ("speed of", "linear mechanisms", "cost against pixels", "what our models cost", "portability"):
        assert what in bare.lower()


def test_every_model_is_in_the_plots() -> None:
    """More models than a chart can tell apart go to several; ours are in each."""
    found = scaled(True)
    peers = [f"Peer {letter}" for letter in "ABCDEFGHIJ"]
    found["scaling"] += [row | {"model": peer} for peer in peers for row in found["scaling"]]
    legends = re.findall(r'<ul class="legend">.*?</ul>', paper.scaling([found]))
    assert len(legends) > 2 and all("LALIC full" in legend for legend in legends)
    for peer in peers:
        assert sum(f">{peer}<" in legend for legend in legends) >= 2  # operations and memory at least
    last = [one for one in load(RESULTS) if "scaling" in one and one["device"] == "static"][-1]
    drawn = " ".join(re.findall(r'<ul class="legend">.*?</ul>', paper.scaling([last])))
    assert all(f">{row['model']}<" in drawn for row in last["scaling"] if "skipped" not in row)


def test_the_latest_run_counts() -> None:
    old, new = (mechanism("AFT-simple", (1024, 2048, 4096, 8192)) for _ in range(2))
    new["mechanisms"][0]["seconds"] = 0.25
    shown = read(paper.mechanisms([old, new])).numbers
    assert 0.25 in [value for value, _, _ in shown]
    assert old["mechanisms"][0]["seconds"] not in [value for value, _, _ in shown]
    row = {"entry": "biwkv", "memory": "fresh", "case": "a"}
    first = record(rows=[row, row | {"entry": "rans"}])
    second = record(rows=[row | {"case": "b"}])
    assert latest_rows([first, second]) == [(first, [row | {"entry": "rans"}]), (second, [row | {"case": "b"}])]


@pytest.mark.parametrize("value", [0, 3, 1234, 98304, 0.00012345, 1.99996, 473659167360, 1e-9, 123456.7])
def test_numbers_are_rounded_to_four_digits(value: float) -> None:
    ((raw, per, shown),) = read(text.number(value)).numbers
    assert (raw, per) == (value, 1)
    assert abs(float(shown) - value) <= 0.5e-3 * abs(value)


def test_the_axes() -> None:
    assert plots._steps([0.0, 5.3]) == [0, 1, 2, 3, 4, 5, 6]
    assert plots._steps([26.3, 33.8], from_zero=False) == [26, 28, 30, 32, 34]
    assert plots._powers([1024, 4096], 2) == [1024, 2048, 4096]
    assert plots._powers([0.02, 30], 10) == pytest.approx([0.01, 0.1, 1, 10, 100])
    assert plots.chart("t", "x", "y", [("nothing", [])], log=True) == ""
    with pytest.raises(ValueError, match="positive values"):
        plots.chart("t", "x", "y", [("a", [(0, 1)])], log=True)


def test_a_broken_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content, said in (("{}\n", "made.jsonl:1 is no record"), ("", "holds no results")):
        (tmp_path / "made.jsonl").write_text(content)
        with pytest.raises(SystemExit) as stop:
            web.main(["--results", str(tmp_path), "-o", str(tmp_path / "x.html")])
        assert stop.value.code == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()


# In a browser

CHROMIUM = next(
    filter(
        None,
        map(
            shutil.which,
            (
                "chromium",
                "chromium-browser",
                "google-chrome",
                "chrome",
                "chrome-headless-shell",
                "chromium-headless-shell",
            ),
        ),
    ),
    None,
)
HEADLESS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=2000")
# The page itself has no script; the copy that is looked at has one, which writes down what it sees.
PROBE = """<script>
const texts = [...document.querySelectorAll("svg text")].filter(t => t.getBoundingClientRect().width === 0);
const out = [...document.querySelectorAll("svg[role=img] text, svg[role=img] circle")].filter(t => {
  const a = t.getBoundingClientRect(), b = t.closest("svg").getBoundingClientRect();
  return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1;
});
document.body.dataset.seen = JSON.stringify({
  wide: document.documentElement.scrollWidth, window: innerWidth,
  empty: texts.length, outside: out.length,
  font: getComputedStyle(document.querySelector("td")).fontSize,
  plots: document.querySelectorAll("figure > svg").length,
});
</script>"""


def browse(page: Path, tmp_path: Path, *words: str) -> str:
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run(
        [str(CHROMIUM), *HEADLESS, profile, *words, page.as_uri()], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
@pytest.mark.parametrize("width", [500, 1280])  # 500: the narrowest window that Chromium makes
def test_chromium_shows_it_whole(page: str, tmp_path: Path, width: int) -> None:
    probed = tmp_path / "probed.html"
    probed.write_text(re.sub(r"<meta http-equiv[^>]*>", "", page).replace("</body>", PROBE + "</body>"))
    dom = browse(probed, tmp_path, f"--window-size={width},900", "--dump-dom")
    found = re.search(r'data-seen="([^"]*)"', dom)
    assert found, "the probe did not run"
    seen = json.loads(html.unescape(found[1]))
    assert seen["wide"] <= seen["window"], "the page is wider than the window"
    assert seen["plots"] >= 4 and not seen["empty"] and not seen["outside"]
    assert float(seen["font"].removesuffix("px")) >= 12, "too small to read on a phone"


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_chromium_prints_it(page: str, tmp_path: Path) -> None:
    source, target = tmp_path / "page.html", tmp_path / "page.pdf"
    source.write_text(page)
    browse(source, tmp_path, f"--print-to-pdf={target}", "--no-pdf-header-footer")
    assert target.read_bytes().startswith(b"%PDF") and target.stat().st_size > 20_000
