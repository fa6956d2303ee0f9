"""Records as tables: of one run on the terminal (`show`), of all results as one page (`python -m benchmarks.report`).

The latest record of each kind becomes a section of Markdown, with tables and plots; markdown-it-py makes one HTML file
of it that needs nothing beside it. Every figure is a value of a record, rounded to four digits.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import itertools
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.records import PACKAGES, RESULTS, ROOT, latest, load, slug

DEFAULT = ROOT / "build" / "report.html"
DIGITS = 4  # that are shown of a measurement
Record = dict[str, Any]
Series = tuple[str, Sequence[tuple[float, float]]]  # name, points
Piece = str | Callable[[], str]  # Markdown; of a picture what makes it

# Pieces of Markdown


def number(value: float | None, per: float = 1, digits: int = DIGITS) -> str:
    """A value of a record over `per`, in so many digits; a dash where there is none."""
    if value is None:
        return "-"
    shown = value / per
    if shown == round(shown) and abs(shown) < 10**digits:
        return str(round(shown))
    text = f"{shown:#.{digits}g}".rstrip(".")
    return f"{float(text):.0f}" if "e+" in text else text


def seconds(value: float | None) -> str:
    """In s, ms or µs."""
    if value is None:
        return "-"
    unit, per = ("s", 1.0) if value >= 1 else ("ms", 1e-3) if value >= 1e-3 else ("µs", 1e-6)
    return f"{number(value, per)} {unit}"


def size(value: float | None) -> str:
    """Bytes in MiB, from one GiB on in GiB."""
    if value is None:
        return "-"
    return f"{number(value, 1 << 30)} GiB" if value >= 1 << 30 else f"{number(value, 1 << 20)} MiB"


def table(head: Sequence[str], body: Iterable[Sequence[object]], run: Record | None = None) -> str:
    """Rows with what names them first, and under them the run that they come from; nothing without rows.

    Columns are as wide as their cells; one that holds dashes alone is left out.
    """
    rows = [[str(cell).replace("|", "\\|") for cell in row] for row in body]
    if not rows:
        return ""
    columns = [column for column in zip(head, *rows, strict=True) if set(column[1:]) != {"-"}]
    lines = []
    for place, column in enumerate(columns):
        width = max(2, *map(len, column))
        align = str.rjust if place else str.ljust
        rule = f"{'-' * (width - 1)}:" if place else f":{'-' * (width - 1)}"
        cells = [align(cell, width) for cell in column]
        lines.append([cells[0], rule, *cells[1:]])
    text = "\n".join(f"| {' | '.join(row)} |" for row in zip(*lines, strict=True))
    return text if run is None else f"{text}\n\n*{run_of(run)}*"


def run_of(record: Record) -> str:
    """Where and when."""
    changed = " with changes" if record.get("dirty") else ""
    made = f"{record['date'][:10]}, commit {(record['commit'] or 'unknown')[:10]}{changed}"
    if record["device"] == "static":
        return f"Counted, on no device; {made}"
    return f"{record['device']}, {record['threads']} thread{'' if record['threads'] == 1 else 's'}; {made}"


def plot(title: str, x: str, y: str, series: Iterable[Series]) -> str:
    """Lines on logarithmic axes, as a picture inside the text; nothing if there is no point."""
    from matplotlib.figure import Figure

    kept = [(name, sorted(points)) for name, points in series if points]
    if not kept:
        return ""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log", title=title, xlabel=x, ylabel=y)
    for place, (name, points) in enumerate(kept):
        axes.plot(*zip(*points, strict=True), marker="osv^Dx+*"[place % 8], markersize=4, linewidth=1.4, label=name)
    axes.grid(alpha=0.35)
    axes.legend(fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
    return picture(title, file.getvalue())


def picture(title: str, png: bytes) -> str:
    return f"![{title}](data:image/png;base64,{base64.b64encode(png).decode()})"


# Which records count


def of_kind(records: Sequence[Record], key: str, by: Callable[[Record], Any] | None = None) -> list[Record]:
    """The latest records that hold `key`, one for each value of `by`: by default each device and number of threads.

    What was counted on no device has no threads.
    """
    return latest(
        [r for r in records if r.get(key)], by or (lambda r: (r["device"], r["device"] == "static" or r["threads"]))
    )


# Sections: each yields pieces of Markdown, none if there is no record of its kind


def machines(records: Sequence[Record]) -> Iterator[Piece]:
    """Devices, and the versions of their last run."""
    body = []
    for last in latest([r for r in records if r["device"] != "static"], lambda r: r["device"]):
        keys = ("python", *PACKAGES, "runtime", "driver")
        versions = ", ".join(f"{key} {last[key]}" for key in keys if last.get(key))
        body.append([last["device"], last["system"], versions, last["date"][:10]])
    yield table(["device", "system", "versions, last run", "last run"], body)


def curves(records: Sequence[Record]) -> Iterator[Piece]:
    """Rate against distortion of real files, and BD-rates of ours, by set of pictures."""
    for record in of_kind(records, "rd", lambda r: r["pictures"]):
        yield f"### {record['pictures']}"
        yield partial(_curves, record)
        body = []
        for found in record["comparisons"]:
            percent = found["percent"] or {}
            span = "-" if found["low"] is None else f"{number(found['low'])} to {number(found['high'])}"
            rates = [number(percent.get(method)) for method in ("pchip", "akima")]
            body.append([f"{found['test']} against {found['anchor']}, {found['metric']}", *rates, span])
        yield table(["rate at equal quality", "PCHIP, %", "Akima, %", "between, dB"], body, record)
        body = []
        for codec in record["rd"]:
            finest = max(codec["points"], key=lambda point: point["bits_per_pixel"])
            took = [seconds(finest[key]) for key in ("encode_seconds", "decode_seconds")]
            body.append([codec["title"], *took, codec["version"]])
        yield table(["codec", "encode, finest point", "decode, finest point", "version"], body)


def _curves(record: Record) -> str:
    from benchmarks import rd

    with tempfile.TemporaryDirectory() as folder:
        paths = [path for path in rd.draw(record, Path(folder) / "curve") if path.suffix == ".png"]
        metrics = [path.stem.removeprefix("curve-") for path in paths]
        return "\n\n".join(
            picture(f"{record['pictures']}: {metric} against rate", path.read_bytes())
            for metric, path in zip(metrics, paths, strict=True)
        )


def published(records: Sequence[Record]) -> Iterator[Piece]:
    """What the paper says, and what this project's code computes from the points that it published."""
    for record in of_kind(records, "published"):
        body = []
        for row in record["published"]:
            cells = [number(row[key]) for key in ("paper", "pchip", "akima")]
            body.append([f"{row['test']} against {row['anchor']}, {row['pictures']}, {row['metric']}", *cells])
        yield table(["rate at equal quality", "paper, %", "PCHIP, %", "Akima, %"], body, record)


def mechanisms(records: Sequence[Record]) -> Iterator[Piece]:
    """Operations as the paper gives them and as executed, an element of an L by D input; then seconds and memory added
    at the peak. Projections are left out in every row. How it is counted: `docs/paper.md`."""
    chosen = of_kind(records, "mechanisms", lambda r: (r["device"], r["threads"], r["mechanism"], r["width"]))
    for device, threads, width in sorted({(r["device"], r["threads"], r["width"]) for r in chosen}):
        own = [r for r in chosen if (r["device"], r["threads"], r["width"]) == (device, threads, width)]
        yield f"### D = {width}"
        first = [r["mechanisms"][0] for r in own]
        body = [
            ["runs in", *(row["runs"] for row in first)],
            ["operations given", *(number(row["theoretical an element"]) for row in first)],
            ["operations executed", *(number(row["operations"]["an element"]) for row in first)],
        ]
        for length in sorted({row["length"] for r in own for row in r["mechanisms"]}):
            cells = [next(map(_spent, (row for row in r["mechanisms"] if row["length"] == length)), "-") for r in own]
            body.append([f"L = {length}", *cells])
        yield table(["mechanism", *(r["mechanism"] for r in own)], body, own[-1])
        for what, label, key in (("Time", "seconds", "seconds"), ("Memory", "bytes above arguments", "peak bytes")):
            series = [
                (r["mechanism"], [(row["length"], row[key]) for row in r["mechanisms"] if row.get(key)]) for r in own
            ]
            yield partial(plot, f"{what} of a call against tokens, D = {width}", "tokens L", label, series)


def _spent(row: Record) -> str:
    """Seconds and memory of a row, or why there are none."""
    return _not_run(row) if "skipped" in row else f"{seconds(row['seconds'])}, {size(row['peak bytes'])}"


def _not_run(row: Record) -> str:
    return f"not run: {row['skipped']}"


QUANTITIES = (
    ("Operations of a forward pass", "GFLOP", 1e9, ("operations", "complete")),
    ("Memory of a forward pass, counted", "GiB", 2**30, ("bytes", "peak")),
    ("Memory of a forward pass, measured", "GiB", 2**30, ("peak bytes",)),
)


def scaling(records: Sequence[Record]) -> Iterator[Piece]:
    """Figure 10 of the supplement: `docs/paper.md`."""
    for record in of_kind(records, "scaling"):
        rows = record["scaling"]
        yield f"### {'Counted' if record['device'] == 'static' else 'Measured'}"
        head = ["model, size", *COUNTS, "peak memory", "memory above weights and picture", "one pass"]
        body = []
        for row in rows:
            measured = [_memory(row), seconds(row.get("seconds"))]
            body.append([_where(row), *_counts(row), size(at(row, ("bytes", "peak"))), *measured])
        yield table(head, body, record)
        for title, label, per, path in QUANTITIES:
            points: dict[str, list[tuple[float, float]]] = {}
            for row in rows:
                if value := at(row, path):
                    points.setdefault(row["model"], []).append((row["pixels"] / 1e6, value / per))
            yield partial(plot, title, "megapixels", label, list(points.items()))
        body = [
            [f"{model}: {quantity}", number(fit["r2"], digits=9), number(fit["worst"], digits=2), number(fit["slope"]),
             fit["points"]]
            for model, fits in record["fits"].items() for quantity, fit in fits.items()
        ]  # fmt: skip
        yield table(["straight line", "R²", "largest distance, share", "a pixel", "sizes"], body)


COUNTS = ("GFLOP", "by formulas", "GMAC of layers", "as thop sees them")


def at(row: Record, path: Sequence[str]) -> Any:
    """A value inside a row by its keys; None where one is missing."""
    value: Any = row
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _counts(row: Record) -> list[str]:
    return [number(at(row, ("operations", key)), 1e9) for key in ("complete", "formulas", "layers", "thop")]


def _where(row: Record) -> str:
    return f"{row['model']}, {row['width']} x {row['height']}" if "width" in row else row["model"]


def _memory(row: Record) -> str:
    if "skipped" not in row:
        return size(row.get("peak bytes"))
    guess = f"; extrapolated {size(row['extrapolated bytes'])}" if "extrapolated bytes" in row else ""
    return _not_run(row) + guess


def complexity(records: Sequence[Record]) -> Iterator[Piece]:
    """Times hold from a tensor to streams and back, entropy coding and checksums included."""
    for record in of_kind(records, "complexity"):
        body = []
        for row in record["complexity"]:
            both = ("encode", "decode")
            times = [seconds(at(row, (direction, "seconds"))) for direction in both]
            held = [size(at(row, (direction, "peak bytes"))) for direction in both]
            why = _not_run(row) if "skipped" in row else "-"
            body.append([_where(row), number(row.get("parameters"), 1e6), *_counts(row), *times, *held, why])
        head = ["model, picture", "M parameters", *COUNTS, "encode", "decode", "memory encoding", "memory decoding", ""]
        yield table(head, body, record)


def context(records: Sequence[Record]) -> Iterator[Piece]:
    """Figure 11 of the supplement: `docs/paper.md`."""
    for record in of_kind([r for r in records if r.get("op") == "context"], "counted"):
        body = [
            [row["model"], number(row["parameters"], 1e6), " ".join(number(macs, 1e9) for macs in row["macs"])]
            for row in record["counted"]
        ]
        yield table(["context model", "M parameters", "GMAC, slice by slice"], body, record)


def codec(records: Sequence[Record]) -> Iterator[Piece]:
    """The baseline is the same model in plain PyTorch with a floating-point entropy model. A part's floor is what its
    products or its bytes take at the rates that this machine reaches: `benchmarks/parts.py`."""
    for record in _by_run(records, "codec", ("model", "width", "height", "batch")):
        body = []
        for row in record["codec"]:
            took = seconds(row["seconds"]) if "seconds" in row else _not_run(row)
            held = size(row.get("peak bytes", row.get("process peak")))
            body.append([_call(row), took, number(row.get("Mpixel/s")), number(row.get("bits per pixel")), held])
        head = ["model, picture, side, direction", "median", "Mpixel a second", "bits per pixel", "memory"]
        yield table(head, body, record)
        for row in record["codec"]:
            own = [
                [part, seconds(found["seconds"]), number(found["share"], 0.01), seconds(found.get("floor")),
                 number(found.get("of floor"), 0.01)]
                for part, found in row.get("parts", {}).items()
            ]  # fmt: skip
            yield table([_call(row), "time", "% of the call", "floor", "floor, % of its time"], own)


def _call(row: Record) -> str:
    together = "" if row["batch"] == 1 else f", {row['batch']} pictures"
    what = " ".join(row[key] for key in ("side", "direction", "way") if row.get(key))
    return f"{_where(row)}{together}: {what}"


def _by_run(records: Sequence[Record], key: str, names: Sequence[str]) -> list[Record]:
    """Records with the rows under `key` that are the latest of their device, threads and `names`, joined by run.

    A command appends a record for each thing that it measures, and all of one run have its date.
    """
    runs: dict[Any, Record] = {}
    parts = []
    for record in records:
        by_name: dict[Any, list[Record]] = {}
        for row in record.get(key, ()):
            by_name.setdefault(tuple(row.get(name) for name in names), []).append(row)
        parts += [record | {key: rows, "part": name} for name, rows in by_name.items()]
    for part in latest(parts, lambda r: (r["device"], r["threads"], r["part"])):
        run = runs.setdefault((part["device"], part["threads"], part["date"], part["commit"]), part | {key: []})
        run[key] = run[key] + part[key]
    return list(runs.values())


def cold(records: Sequence[Record]) -> Iterator[Piece]:
    """Medians of fresh processes of the shipped model, with compiled code in their caches and without."""
    for record in of_kind(records, "cold start"):
        states = record["cold start"].values()
        body = []
        for part in dict.fromkeys(part for state in states for part in state):
            medians = [statistics.median_low(state[part]) if state.get(part) else None for state in states]
            body.append([part, *map(seconds, medians)])
        yield table(["part", *record["cold start"]], body, record)


def large(records: Sequence[Record]) -> Iterator[Piece]:
    """Largest resident size of a command on a large picture, and the picture itself at 4 bytes a pixel."""
    yield from _rows(of_kind(records, "large pictures"), "large pictures")


def long_use(records: Sequence[Record]) -> Iterator[Piece]:
    """Resident size of a process that codes many small pictures, after a tenth and half of them, and at the end."""
    yield from _rows(of_kind(records, "load"), "load")


def page_answers(records: Sequence[Record]) -> Iterator[Piece]:
    """From the release of the slider to the picture of lalic in the browser, and to the match of the other codec, the
    figures and the map of bits. Medians and the largest of several releases."""
    yield from _rows(of_kind(records, "page"), "page")


def regions(records: Sequence[Record]) -> Iterator[Piece]:
    """Time of decoding a region, and of the whole. Its tiles are synthesised; of those that are read the windows see
    latents."""
    yield from _rows(of_kind(records, "regions"), "regions")


def seams(records: Sequence[Record]) -> Iterator[Piece]:
    """A picture in tiles against the same in one tile: rate, and PSNR within 8 pixels of the borders and elsewhere."""
    yield from _rows(of_kind(records, "seams"), "seams")


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return "x".join(map(str, value))
    return number(value, digits=4) if isinstance(value, float) else str(value)


def _rows(records: Sequence[Record], key: str) -> Iterator[Piece]:
    for record in records:
        names = list(record[key][0])
        body = [[_cell(value) for value in row.values()] for row in record[key]]
        yield table(names, body, record)


def speed(records: Sequence[Record]) -> Iterator[Piece]:
    """A result is verified before it is timed. Ratios are one median over another of the same run; a yardstick is in
    parentheses. Bare times mean nothing but beside their device."""
    runs: list[Record] = []  # one for each entry and memory state of a record
    for record in records:
        by_entry: dict[Any, list[Record]] = {}
        for row in record.get("rows", ()):
            by_entry.setdefault((row["entry"], row["memory"]), []).append(row)
        runs += [record | {"entry": entry, "rows": rows} for entry, rows in by_entry.items()]
    for run in latest(runs, lambda r: (r["device"], r["threads"], r["entry"])):
        entry, memory = run["entry"]
        yield f"### {entry}{'' if memory == 'default' else f', memory {memory}'}"
        body = []
        for row in run["rows"]:
            call = f"({row['call']})" if row["yardstick"] else row["call"]
            ratios = "; ".join(f"{number(value, digits=3)} x {name}" for name, value in row["ratios"].items())
            metrics = "; ".join(f"{name} {number(value)}" for name, value in row["metrics"].items())
            body.append([f"{row['case']}: {call}", seconds(row["seconds"]), ratios or "-", metrics or "-"])
        yield table(["case: call", "median", "ratios", "more"], body, run)


def exactness(records: Sequence[Record]) -> Iterator[Piece]:
    """The ideal code length of the exact entropy model over floating point's: `docs/exact-arithmetic.md`."""
    body = [
        [f"{r['pictures']}, {r['model']}, weights {r['weights']}", number(r["mean_bits_ratio"], digits=6),
         number(r.get("time_ratio")), r["date"][:10]]
        for r in of_kind(records, "ideal_bits", lambda r: (r["pictures"], r["model"]))
    ]  # fmt: skip
    yield table(["exact entropy model over floating point", "bits", "CPU time", "run"], body)


def portability(records: Sequence[Record]) -> Iterator[Piece]:
    """Which files decode alike under which setting of a machine: `docs/exact-arithmetic.md`."""
    for record in of_kind(records, "portability", lambda r: (r["device"], r["pictures"], r["model"])):
        body = []
        for row in record["portability"]:
            setting = ", ".join(f"{key} {value}" for key, value in row["setting"].items() if value)
            body.append([setting, *(f"{row[k]['equal']} of {row[k]['pictures']}" for k in ("exact", "float"))])
        yield table(["setting", "exact: decoded alike", "floating point"], body, record)


def training(records: Sequence[Record]) -> Iterator[Piece]:
    """Peak memory of a training step."""
    for record in of_kind(records, "memory", lambda r: r["device"]):
        body = [
            [what, size(row["plain"]["peak"]), size(row["ours"]["peak"]), number(row["ratio"])]
            for what, row in record["memory"].items()
        ]
        yield table(["training step", "plain PyTorch", "ours", "ratio"], body, record)


Make = Callable[[Sequence[Record]], Iterator[Piece]]
# By the key that only records of the kind have: title, the command that makes one, the section.
KINDS: dict[str, tuple[str, str, Make]] = {
    "rd": ("Rate against distortion", "rd FOLDER", curves),
    "published": ("Table 4: published BD-rates", "paper.published", published),
    "mechanisms": ("Table 5: linear mechanisms", "paper.mechanisms", mechanisms),
    "scaling": ("Figure 10: cost against pixels", "paper.scaling --measure", scaling),
    "complexity": ("Table 1: what our models cost", "paper.complexity", complexity),
    "counted": ("Figure 11: context models", "paper.context", context),
    "codec": ("Whole models and their parts", "codec", codec),
    "cold start": ("The first picture of a process", "cold", cold),
    "large pictures": ("Memory of large pictures", "large", large),
    "load": ("Memory of long use", "load", long_use),
    "page": ("Answers of the page", "page", page_answers),
    "regions": ("Regions of large pictures", "large --megapixels 24 --regions", regions),
    "seams": ("Tiles of large pictures", "large --seams PICTURE", seams),
    "rows": ("Speed", "run", speed),
    "ideal_bits": ("Exact arithmetic", "exact_model FOLDER", exactness),
    "portability": ("Portability", "portability FOLDER", portability),
    "memory": ("Memory of training", "counting.memory training", training),
}


def missing(records: Sequence[Record]) -> Iterator[Piece]:
    """What no record holds, and what is not shown here."""
    if not any(r["device_type"] == "cuda" for r in records):
        yield "- On a GPU: nothing. No results file comes from one."
    for key, (title, command, _) in KINDS.items():
        if not any(r.get(key) for r in records):
            yield f"- {title}: not recorded yet; `python -m benchmarks.{command} --save` does it."
    yield "- Not shown: counts of machine code, launches and slices, memory of a decode, and records of older commands."


def show(record: Record) -> None:
    """Print the tables of one record."""
    for key, (_, _, make) in KINDS.items():
        if record.get(key):
            print(*(f"{piece}\n" for piece in make([record]) if isinstance(piece, str) and piece), sep="\n", flush=True)


# The page

STYLE = """:root { color-scheme: light dark; }
body { margin: 0 auto; padding: 1rem; max-width: 62rem; font: 16px/1.5 system-ui, sans-serif; }
table { display: block; overflow-x: auto; border-collapse: collapse; font-size: .875rem; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid #8886; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; height: auto; }
"""


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{body}</body>
</html>
"""


def markdown(records: Sequence[Record]) -> str:
    """The page as Markdown."""
    sections: dict[str, Make] = {"Machines": machines, **{title: make for title, _, make in KINDS.values()}}
    sections["What was not measured"] = missing
    found = {}
    for title, make in sections.items():
        parts = [part if isinstance(part, str) else part() for part in make(records)]
        found[title] = [part for part in parts if part]
    links = [f"- [{title}](#{slug(title)})" for title, parts in found.items() if parts]
    pieces = [
        "# lalic: what was measured",
        "Made from the records in `benchmarks/results/`, the latest of each kind; every number stands in one of them. "
        "How each was taken is written in `benchmarks/results/README.md`.",
        "\n".join(links),
    ]
    for title, parts in found.items():
        if parts:
            about = " ".join((sections[title].__doc__ or "").split())
            pieces += [f"## {title}", about, *parts]
    return "\n\n".join(pieces) + "\n"


def page(text: str) -> str:
    """Markdown as one HTML file."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("js-default")  # tables, and no HTML of a record's words
    tokens = parser.parse(text)
    for heading, inline in itertools.pairwise(tokens):
        if heading.type == "heading_open":
            heading.attrSet("id", slug(inline.content))
    body = parser.renderer.render(tokens, parser.options, {})
    title = html.escape(text.partition("\n")[0].removeprefix("# "))
    return PAGE.format(title=title, style=STYLE, body=body)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page and say where. Returns 0; usage errors exit with 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description="The results as one page.")
    parser.add_argument("-o", "--output", type=Path, default=DEFAULT, help="default build/report.html")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="default benchmarks/results")
    options = parser.parse_args(argv)
    try:
        records = load(options.results)
    except ValueError as error:
        parser.error(str(error))
    if not records:
        parser.error(f"{options.results} holds no results")
    try:
        text = page(markdown(records))
    except ImportError as error:
        parser.error(f'the page needs a package that is not installed (pip install "lalic[report]"): {error}')
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text, encoding="utf-8")
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
