"""All results as one page: `python -m benchmarks.report [-o FILE]`, or `make report`.

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
from pathlib import Path
from typing import Any

from benchmarks import rd
from benchmarks.records import PACKAGES, RESULTS, ROOT, latest, load, slug

DEFAULT = ROOT / "build" / "report.html"
DIGITS = 4  # that are shown of a measurement
TOGETHER = 8  # lines that a plot can tell apart
Record = dict[str, Any]
Series = tuple[str, Sequence[tuple[float, float]]]  # name, points

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
    """Rows with what names them first, and under them the run that they come from; nothing without rows."""
    rows = [[str(cell).replace("|", "\\|") for cell in row] for row in body]
    if not rows:
        return ""
    lines = [head, [":--", *["--:"] * (len(head) - 1)], *rows]
    text = "\n".join(f"| {' | '.join(row)} |" for row in lines)
    return text if run is None else f"{text}\n\n*{run_of(run)}*"


def run_of(record: Record) -> str:
    """Where and when."""
    changed = " with changes" if record.get("dirty") else ""
    made = f"{record['date'][:10]}, commit {(record['commit'] or 'unknown')[:10]}{changed}"
    if record["device"] == "static":
        return f"Counted, on no device; {made}"
    return f"{record['device']}, {record['threads']} thread{'' if record['threads'] == 1 else 's'}; {made}"


def plot(title: str, x: str, y: str, series: Iterable[Series], log: bool = True, base: int = 10) -> str:
    """Lines as a picture inside the text; nothing if there is no point. base: of the x axis, if `log`."""
    from matplotlib.figure import Figure

    kept = [(name, sorted(points)) for name, points in series if points]
    if not kept:
        return ""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for place, (name, points) in enumerate(kept):
        axes.plot(*zip(*points, strict=True), marker="osv^Dx+*"[place % 8], markersize=4, linewidth=1.4, label=name)
    if log:
        axes.set_xscale("log", base=base)
        axes.set_yscale("log")
    axes.set(title=title, xlabel=x, ylabel=y)
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


def latest_rows(records: Sequence[Record]) -> list[tuple[Record, list[Record]]]:
    """Timed rows by record: those that no later run of the same device, threads, entry and memory state replaced."""
    kept: dict[Any, tuple[int, list[Record]]] = {}
    for place, record in enumerate(records):
        for key in {(row["entry"], row["memory"]) for row in record.get("rows", ())}:
            rows = [row for row in record["rows"] if (row["entry"], row["memory"]) == key]
            kept[(record["device"], record["threads"], *key)] = place, rows
    places = sorted({place for place, _ in kept.values()})
    return [(records[p], [row for place, rows in kept.values() if place == p for row in rows]) for p in places]


# Sections: each yields pieces of Markdown, none if there is no record of its kind


def machines(records: Sequence[Record]) -> Iterator[str]:
    """Devices, and the versions of their last run."""
    real = [r for r in records if r["device"] != "static"]
    body = []
    for last in latest(real, lambda r: r["device"]):
        versions = ", ".join(
            f"{key} {last[key]}" for key in ("python", *PACKAGES, "runtime", "driver") if last.get(key)
        )
        body.append([last["device"], last["system"], versions, last["date"][:10]])
    yield table(["device", "system", "versions, last run", "last run"], body)


def curves(records: Sequence[Record]) -> Iterator[str]:
    """Rate against distortion of real files, and BD-rates of ours, by set of pictures."""
    for record in of_kind(records, "rd", lambda r: r["pictures"]):
        yield f"### {record['pictures']}"
        with tempfile.TemporaryDirectory() as folder:
            for path in rd.draw(record, Path(folder) / "curve"):
                if path.suffix == ".png":
                    yield picture(
                        f"{record['pictures']}: {path.stem.removeprefix('curve-')} against rate", path.read_bytes()
                    )
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


def published(records: Sequence[Record]) -> Iterator[str]:
    """What the paper says, and what this project's code computes from the points that it published."""
    for record in of_kind(records, "published"):
        body = [
            [f"{row['pictures']}, {row['metric']}", *(number(row[key]) for key in ("paper", "pchip", "akima"))]
            for row in record["published"]
        ]
        yield table(["pictures, metric", "paper, %", "PCHIP, %", "Akima, %"], body, record)


def mechanisms(records: Sequence[Record]) -> Iterator[str]:
    """Operations as the paper gives them and as executed, an element of an L by D input; then seconds and memory added
    at the peak. Projections are left out in every row. How it is counted: `docs/paper.md`."""
    chosen = of_kind(records, "mechanisms", lambda r: (r["device"], r["threads"], r["mechanism"], r["width"]))
    for device, threads, width in sorted({(r["device"], r["threads"], r["width"]) for r in chosen}):
        own = [r for r in chosen if (r["device"], r["threads"], r["width"]) == (device, threads, width)]
        yield f"### D = {width}"
        lengths = sorted({row["length"] for r in own for row in r["mechanisms"]})[::-3][::-1]
        body = []
        for record in own:
            rows = {row["length"]: row for row in record["mechanisms"]}
            first = record["mechanisms"][0]
            counts = [number(first["theoretical an element"]), number(first["operations"]["an element"])]
            cells = [
                f"{seconds(row['seconds'])}, {size(row['peak bytes'])}"
                if "seconds" in (row := rows.get(n, {}))
                else "not run"
                for n in lengths
            ]
            body.append([record["mechanism"], first["runs"], *counts, *cells])
        yield table(["mechanism", "runs in", "given", "executed", *(f"L = {n}" for n in lengths)], body, own[-1])
        for what, label, key in (("Time", "seconds", "seconds"), ("Memory", "bytes above arguments", "peak bytes")):
            series = [
                (r["mechanism"], [(row["length"], row[key]) for row in r["mechanisms"] if row.get(key)]) for r in own
            ]
            yield plot(f"{what} of a call against tokens, D = {width}", "tokens L", label, series, base=2)


QUANTITIES = (
    ("Operations of a forward pass", "GFLOP", 1e9, ("operations", "complete")),
    ("Memory of a forward pass, counted", "GiB", 2**30, ("bytes", "peak")),
    ("Memory of a forward pass, measured", "GiB", 2**30, ("peak bytes",)),
)


def scaling(records: Sequence[Record]) -> Iterator[str]:
    """Figure 10 of the supplement: `docs/paper.md`."""
    for record in of_kind(records, "scaling"):
        static = record["device"] == "static"
        rows = [row for row in record["scaling"] if "pixels" in row]
        yield f"### {'Counted' if static else 'Measured'}"
        if static:
            head = ["model, size", *COUNTS, "peak memory"]
            body = [[_where(row), *_counts(row), size(row.get("bytes", {}).get("peak"))] for row in rows]
        else:
            head = ["model, size", "memory above weights and picture", "one pass"]
            body = [[_where(row), _memory(row), seconds(row.get("seconds"))] for row in rows]
        yield table(head, body, record)
        models = list(dict.fromkeys(row["model"] for row in rows))
        ours = [model for model in models if model.startswith("LALIC")]
        for title, label, per, path in QUANTITIES:
            points = {model: _points(rows, model, path, per) for model in models}
            others = [model for model in models if model not in ours and points[model]]
            room = TOGETHER - len(ours)
            for start in range(0, max(1, len(others)), room):
                chosen = [*ours, *others[start : start + room]]
                yield plot(title, "megapixels", label, [(model, points[model]) for model in chosen])
        body = [
            [f"{model}: {quantity}", number(fit["r2"], digits=9), number(fit["worst"], digits=2), number(fit["slope"]),
             fit["points"]]
            for model, fits in record["fits"].items() for quantity, fit in fits.items()
        ]  # fmt: skip
        yield table(["straight line", "R²", "largest distance, share", "a pixel", "sizes"], body)


COUNTS = ("GFLOP", "by formulas", "GMAC of layers", "as thop sees them")


def _counts(row: Record) -> list[str]:
    found = row.get("operations", {})
    return [number(found.get(key), 1e9) for key in ("complete", "formulas", "layers", "thop")]


def _where(row: Record) -> str:
    return f"{row['model']}, {row['width']} x {row['height']}"


def _memory(row: Record) -> str:
    if "extrapolated bytes" in row:
        return f"not run; extrapolated {size(row['extrapolated bytes'])}"
    return "not run" if "skipped" in row else size(row["peak bytes"])


def _points(rows: Sequence[Record], model: str, path: Sequence[str], per: float) -> list[tuple[float, float]]:
    found = []
    for row in rows:
        value: Any = row
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if row["model"] == model and value:
            found.append((row["pixels"] / 1e6, value / per))
    return found


def complexity(records: Sequence[Record]) -> Iterator[str]:
    """Times hold from a tensor to streams and back, entropy coding and checksums included."""
    for record in of_kind(records, "complexity"):
        body = []
        for row in record["complexity"]:
            if "parameters" in row:
                both = [row.get(direction, {}) for direction in ("encode", "decode")]
                times, held = (
                    [seconds(one.get("seconds")) for one in both],
                    [size(one.get("peak bytes")) for one in both],
                )
                body.append([_where(row), number(row["parameters"], 1e6), *_counts(row), *times, *held])
        directions = ("encode", "decode", "memory encoding", "memory decoding")
        yield table(["model, picture", "M parameters", *COUNTS, *directions], body, record)


def context(records: Sequence[Record]) -> Iterator[str]:
    """Figure 11 of the supplement: `docs/paper.md`."""
    for record in of_kind([r for r in records if r.get("op") == "context"], "counted"):
        body = [
            [row["model"], number(row["parameters"], 1e6), " ".join(number(macs, 1e9) for macs in row["macs"])]
            for row in record["counted"]
        ]
        yield table(["context model", "M parameters", "GMAC, slice by slice"], body, record)
    for record, rows in latest_rows(records):
        own = [row for row in rows if row["entry"] == "context"]
        took = {(row["case"], row["call"]): row["seconds"] for row in own}
        for start, title in (("prediction", "prediction by each model"), ("slice", "a step of the transformer")):
            cases = list(dict.fromkeys(case for case, _ in took if case.startswith(start)))
            calls = list(dict.fromkeys(call for case, call in took if case in cases))
            body = [[call, *(seconds(took.get((case, call))) for case in cases)] for call in calls]
            yield table([title, *cases], body, record)


def codec(records: Sequence[Record]) -> Iterator[str]:
    """The baseline is the same model in plain PyTorch with a floating-point entropy model. A part's floor is what its
    products or its bytes take at the rates that this machine reaches: `benchmarks/parts.py`."""
    for record in of_kind(records, "codec"):
        body = []
        for row in record["codec"]:
            if "seconds" in row:
                held = size(row.get("peak bytes", row.get("process peak")))
                speed = [number(row["Mpixel/s"]), number(row.get("bits per pixel"))]
                body.append([_call(row), seconds(row["seconds"]), *speed, held])
            else:
                body.append([_call(row), row["skipped"], "-", "-", "-"])
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


def cold(records: Sequence[Record]) -> Iterator[str]:
    """Medians of fresh processes of the shipped model, with compiled code in their caches and without."""
    for record in of_kind(records, "cold start"):
        states = record["cold start"]
        parts = dict.fromkeys(part for state in states.values() for part in state)
        body = [
            [
                part,
                *(
                    seconds(statistics.median_low(state[part]) if state.get(part) else None)
                    for state in states.values()
                ),
            ]
            for part in parts
        ]
        yield table(["part", *states], body, record)


def speed(records: Sequence[Record]) -> Iterator[str]:
    """A result is verified before it is timed. Ratios are one median over another of the same run; a yardstick is in
    parentheses. Bare times mean nothing but beside their device."""
    for record, rows in latest_rows(records):
        for entry, memory in dict.fromkeys((row["entry"], row["memory"]) for row in rows):
            yield f"### {entry}{'' if memory == 'default' else f', memory {memory}'}"
            body = []
            for row in rows:
                if (row["entry"], row["memory"]) == (entry, memory):
                    call = f"({row['call']})" if row["yardstick"] else row["call"]
                    ratios = "; ".join(f"{number(value, digits=3)} x {name}" for name, value in row["ratios"].items())
                    metrics = "; ".join(f"{name} {number(value)}" for name, value in row["metrics"].items())
                    body.append([f"{row['case']}: {call}", seconds(row["seconds"]), ratios, metrics])
            yield table(["case: call", "median", "ratios", "more"], body, record)


def exactness(records: Sequence[Record]) -> Iterator[str]:
    """What exact arithmetic costs, and which files decode alike under which setting: `docs/exact-arithmetic.md`."""
    body = [
        [f"{r['pictures']}, {r['model']}, weights {r['weights']}", number(r["mean_bits_ratio"], digits=6),
         number(r.get("time_ratio")), r["date"][:10]]
        for r in of_kind(records, "ideal_bits", lambda r: (r["pictures"], r["model"]))
    ]  # fmt: skip
    yield table(["exact entropy model over floating point", "bits", "CPU time", "run"], body)
    for record in of_kind(records, "portability", lambda r: (r["device"], r["pictures"], r["model"])):
        body = []
        for row in record["portability"]:
            setting = ", ".join(f"{key} {value}" for key, value in row["setting"].items() if value)
            body.append([setting, *(f"{row[k]['equal']} of {row[k]['pictures']}" for k in ("exact", "float"))])
        yield table(["setting", "exact: decoded alike", "floating point"], body, record)


def training(records: Sequence[Record]) -> Iterator[str]:
    """Peak memory of a training step, and pixels that steps take."""
    for record in of_kind(records, "memory", lambda r: r["device"]):
        body = [
            [what, size(row["plain"]["peak"]), size(row["ours"]["peak"]), number(row["ratio"])]
            for what, row in record["memory"].items()
        ]
        yield table(["training step", "plain PyTorch", "ours", "ratio"], body, record)
    for record in of_kind(records, "training"):
        found = record["training"]
        body = [
            [f"{side}, commit {found['commits'][side][:10]}", number(statistics.median_low(values))]
            for side, values in found["kilopixels"].items()
        ]
        yield table(["thousand pixels a second of processor time", "median"], body, record)


COMMANDS = {
    "rows": ("Speed of the operations", "run"),
    "codec": ("Whole models and their parts", "codec"),
    "cold start": ("The first picture of a process", "cold"),
    "rd": ("Rate against distortion", "rd FOLDER"),
    "published": ("Published BD-rates", "paper.published"),
    "mechanisms": ("Linear mechanisms", "paper.mechanisms"),
    "scaling": ("Cost against pixels", "paper.scaling --measure"),
    "complexity": ("What our models cost", "paper.complexity"),
    "counted": ("Context models", "paper.context"),
    "portability": ("Portability", "portability FOLDER"),
    "memory": ("Memory of training", "counting.memory training --measure"),
    "training": ("Speed of training", "training"),
}


def missing(records: Sequence[Record]) -> Iterator[str]:
    """What no record holds, and what a run left out."""
    items = []
    if not any(r["device_type"] == "cuda" for r in records):
        items.append("On a GPU: nothing. No results file comes from one.")
    for key, (what, command) in COMMANDS.items():
        if not any(r.get(key) for r in records):
            items.append(f"{what}: not recorded yet; `python -m benchmarks.{command} --save` does it.")
    for key in ("scaling", "complexity", "codec"):
        for record in of_kind(records, key):
            for row in record[key]:
                if "skipped" in row:
                    items.append(f"{_where(row) if 'width' in row else row['model']}: {row['skipped']}.")
    for record in of_kind(records, "mechanisms", lambda r: (r["device"], r["mechanism"], r["width"])):
        for row in record["mechanisms"]:
            if "skipped" in row:
                items.append(f"{row['mechanism']}, D = {row['width']}, L = {row['length']}: {row['skipped']}.")
    hidden = (
        "counts of machine code, launches and slices, memory of a decode, rates of older weights, lists of exceptions"
    )
    items.append(f"Not shown here: {hidden}.")
    yield "\n".join(f"- {item}" for item in items)


SECTIONS: dict[str, Callable[[Sequence[Record]], Iterator[str]]] = {
    "Machines": machines,
    "Rate against distortion": curves,
    "Table 4: published BD-rates": published,
    "Table 5: linear mechanisms": mechanisms,
    "Figure 10: cost against pixels": scaling,
    "Table 1: what our models cost": complexity,
    "Figure 11: context models": context,
    "Whole models and their parts": codec,
    "The first picture": cold,
    "Speed": speed,
    "Exact arithmetic": exactness,
    "Training": training,
    "What was not measured, and why": missing,
}

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
    found = {title: [part for part in make(records) if part] for title, make in SECTIONS.items()}
    links = [f"- [{title}](#{slug(title)})" for title, parts in found.items() if parts]
    pieces = [
        "# lalic: what was measured",
        "Made from the records in `benchmarks/results/`, the latest of each kind; every number stands in one of them. "
        "How each was taken is written in `benchmarks/results/README.md`.",
        "\n".join(links),
    ]
    for title, parts in found.items():
        if parts:
            about = " ".join((SECTIONS[title].__doc__ or "").split())
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
