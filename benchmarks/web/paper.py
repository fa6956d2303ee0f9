"""The sections that reproduce the paper: mechanisms, scaling, costs of models, context models."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.web.plots import COLOURS, chart
from benchmarks.web.records import Record, latest, latest_rows, with_key
from benchmarks.web.text import name, number, paragraph, seconds, section, size, table

Quantity = tuple[Sequence[str], str]  # of a value in a row, and what a legend adds to the model's name


def run_of(record: Record) -> str:
    """Where and when, in the words of the record."""
    commit = (record["commit"] or "unknown commit")[:10]
    changed = " with changes" if record.get("dirty") else ""
    if record["device"] == "static":
        return f"Counted, on no device; {name(record['date'][:10])}, commit {name(commit)}{changed}"
    threads = f"{number(record['threads'])} thread{'' if record['threads'] == 1 else 's'}"
    return f"{name(record['device'])}, {threads}; {name(record['date'][:10])}, commit {name(commit)}{changed}"


def mechanisms(records: Sequence[Record]) -> str:
    """Table 5 and its plots, by device and width."""
    chosen = latest(with_key(records, "mechanisms"), lambda r: (r["device"], r["threads"], r["mechanism"], r["width"]))
    parts = []
    for device, threads in dict.fromkeys((r["device"], r["threads"]) for r in chosen):
        here = [r for r in chosen if (r["device"], r["threads"]) == (device, threads)]
        for width in sorted({r["width"] for r in here}):
            own = [r for r in here if r["width"] == width]
            parts.append(f"<h3>D = {number(width)}</h3>")
            parts.append(_mechanism_table(own))
            measured = [(r["mechanism"], [row for row in r["mechanisms"] if "seconds" in row]) for r in own]
            for what, label, key in (("Time", "seconds", "seconds"), ("Memory", "bytes above arguments", "peak bytes")):
                series = [(name(kind), [(w["length"], w[key]) for w in rows if w[key]]) for kind, rows in measured]
                parts.append(chart(f"{what} of a call against tokens", "tokens L", label, series, log=True, base=2))
    said = paragraph(
        "Operations as the paper gives them and as executed, an element of an L by D input; then seconds and "
        "memory added at the peak. Projections are left out in every row. What each row is, and how it is counted: "
        "<code>docs/mechanisms.md</code>."
    )
    return section("mechanisms", "Table 5: linear mechanisms", said, *parts) if parts else ""


def _mechanism_table(own: Sequence[Record]) -> str:
    lengths = sorted({row["length"] for r in own for row in r["mechanisms"]})
    shown = [length for place, length in enumerate(reversed(lengths)) if place % 3 == 0][::-1]
    body = []
    for record in own:
        rows = {row["length"]: row for row in record["mechanisms"]}
        first = record["mechanisms"][0]
        counts = [number(first["theoretical an element"]), number(first["operations"]["an element"])]
        cells = [_call(rows.get(length)) for length in shown]
        longest = max((row for row in rows.values() if "seconds" in row), key=lambda row: row["length"], default=None)
        last = "&ndash;" if longest is None else seconds_an_element(longest)
        body.append([name(record["mechanism"]), name(first["runs"]), *counts, *cells, last])
    sizes = [f"L = {number(length, digits=8)}" for length in shown]
    head = ["mechanism", "runs in", "given", "executed", *sizes, "an element, longest L"]
    return table(head, body, run_of(own[-1]))


def seconds_an_element(row: Record) -> str:
    """In nanoseconds."""
    return number(row["seconds an element"], 1e-9, "ns")


def _call(row: Record | None) -> str:
    if row is None:
        return "&ndash;"
    if "seconds" not in row:
        return '<span class="mark">not run</span>'
    return f"{seconds(row['seconds'])}, {size(row['peak bytes'])}"


def scaling(records: Sequence[Record]) -> str:
    """Figure 10: counts, memory, lines."""
    parts = []
    for record in latest(with_key(records, "scaling"), lambda r: (r["device"], r["threads"])):
        static = record["device"] == "static"
        rows = [row for row in record["scaling"] if "pixels" in row]
        models = list(dict.fromkeys(row["model"] for row in rows))
        if static:
            head = ["model, size", "GFLOP", "by formulas", "GMAC of layers", "as thop sees them", "peak memory"]
            body = [[_where(row), *_counts(row), size(row.get("bytes", {}).get("peak"))] for row in rows]
        else:
            head = ["model, size", "memory above weights and picture", "one pass"]
            body = [[_where(row), _memory(row), seconds(row.get("seconds"))] for row in rows]
        parts.append(f"<h3>{'Counted' if static else 'Measured'}</h3>")
        parts.append(table(head, body, run_of(record)))
        for title, label, per, paths in PLOTS:
            for chosen in _together(models, rows, paths):
                series = [
                    (f"{name(model)}{mark}", points)
                    for model in chosen
                    for path, mark in paths
                    if (points := _points(rows, model, path))
                ]
                small = [(said, [p for p in points if p[0] <= 1 << 20]) for said, points in series]
                if any(len(points) > 1 for _, points in small):
                    less = f"{title}, to a megapixel"
                    parts.append(chart(less, "megapixels", label, small, log=False, per=(1e6, per)))
                parts.append(chart(f"{title}, all sizes", "megapixels", label, series, log=True, per=(1e6, per)))
        lines = [
            [
                f"{name(model)}: {name(quantity)}",
                number(fit["r2"], digits=9),
                number(fit["worst"], digits=2),
                number(fit["slope"]),
                number(fit["points"]),
            ]
            for model, fits in record["fits"].items()
            for quantity, fit in fits.items()
        ]
        parts.append(table(["straight line", "R²", "largest distance, share", "a pixel", "sizes"], lines))
    return section("scaling", "Figure 10: cost against pixels", *parts) if parts else ""


PLOTS = (
    ("Operations of a forward pass", "GFLOP", 1e9, ((("operations", "complete"), ""),)),
    ("Memory of a forward pass, counted", "GiB", 2**30, ((("bytes", "peak"), ""),)),
    (
        "Memory of a forward pass, measured",
        "GiB",
        2**30,
        ((("peak bytes",), ""), (("extrapolated bytes",), ", extrapolated")),
    ),
)


def _together(models: Sequence[str], rows: Sequence[Record], paths: Sequence[Quantity]) -> list[list[str]]:
    """Models by chart: ours are in each, and of the others as many as a chart can tell apart. All have a place."""
    lines = {model: sum(bool(_points(rows, model, path)) for path, _ in paths) for model in models}
    ours = [model for model in models if model.startswith("LALIC")]
    found = [list(ours)]
    for model in models:
        if model in ours or not lines[model]:
            continue
        if sum(lines[one] for one in found[-1]) + lines[model] > len(COLOURS):
            found.append(list(ours))
        found[-1].append(model)
    return found


def _points(rows: Sequence[Record], model: str, path: Sequence[str]) -> list[tuple[float, float]]:
    """(pixels, value) of a model's rows that have one."""
    return [point for row in rows if row["model"] == model and (point := _point(row, path))]


def _point(row: Record, path: Sequence[str]) -> tuple[float, float] | None:
    value = row
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None  # type: ignore[assignment]
    return (row["pixels"], value) if value else None  # type: ignore[return-value]


def _where(row: Record) -> str:
    return f"{name(row['model'])}, {number(row['width'], digits=5)} &times; {number(row['height'], digits=5)}"


def _counts(row: Record) -> list[str]:
    return [number(row["operations"][key], 1e9) for key in ("complete", "formulas", "layers", "thop")]


def _memory(row: Record) -> str:
    if "extrapolated bytes" in row:
        return f'<span class="mark">not run; extrapolated</span> {size(row["extrapolated bytes"])}'
    return '<span class="mark">not run</span>' if "skipped" in row else size(row["peak bytes"])


def complexity(records: Sequence[Record]) -> str:
    """Table 1's costs."""
    parts = []
    for record in latest(with_key(records, "complexity"), lambda r: (r["device"], r["threads"])):
        body = [_costs(row) for row in record["complexity"] if "parameters" in row]
        head = [
            "model, picture", "M parameters", "GFLOP", "by formulas", "GMAC of layers", "as thop sees them", "encode",
            "decode", "memory encoding", "memory decoding",
        ]  # fmt: skip
        parts.append(table(head, body, run_of(record)))
    said = paragraph("Times hold from a tensor to streams and back, entropy coding and checksums included.")
    return section("complexity", "Table 1: what our models cost", said, *parts) if parts else ""


def _costs(row: Record) -> list[str]:
    """Of a peer there may be counts alone, or times alone."""
    counts = _counts(row) if "operations" in row else ["&ndash;"] * 4
    both = [row.get(direction, {}) for direction in ("encode", "decode")]
    times, memory = [seconds(one.get("seconds")) for one in both], [size(one.get("peak bytes")) for one in both]
    return [_where(row), number(row["parameters"], 1e6), *counts, *times, *memory]


def context(records: Sequence[Record]) -> str:
    """Context models, counted and timed."""
    parts = []
    for record in latest([r for r in with_key(records, "counted") if r["op"] == "context"], lambda r: r["op"]):
        body = [
            [name(row["model"]), number(row["parameters"], 1e6), " ".join(number(m, 1e9) for m in row["macs"])]
            for row in record["counted"]
        ]
        parts.append(table(["context model", "M parameters", "GMAC, slice by slice"], body, run_of(record)))
    for record, rows in latest_rows(records):
        own = [row for row in rows if row["entry"] == "context"]
        names = list(dict.fromkeys(row["call"] for row in own))
        cases = list(dict.fromkeys(row["case"] for row in own))
        for start, title in (("prediction", "prediction by each model"), ("slice", "a step of the transformer")):
            chosen = [case for case in cases if case.startswith(start)]
            took = {(row["case"], row["call"]): row["seconds"] for row in own}
            body = [
                [name(call), *(seconds(took.get((case, call))) for case in chosen)]
                for call in names
                if any((case, call) in took for case in chosen)
            ]
            parts.append(table([title, *map(name, chosen)], body, run_of(record)))
    return section("context", "Figure 11: context models", *parts) if parts else ""
