"""The sections of coding whole pictures: curves and BD-rates, times of the codec and its parts, the first picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.web.paper import run_of
from benchmarks.web.plots import chart
from benchmarks.web.records import Record, latest, with_key
from benchmarks.web.text import name, number, paragraph, seconds, section, size, table


def published(records: Sequence[Record]) -> str:
    """The paper's BD-rates, from its own points."""
    parts = []
    for record in latest(with_key(records, "published"), lambda r: r["device"]):
        body = [
            [
                f"{name(row['pictures'])}, {name(row['metric'])}",
                *(number(row[key]) for key in ("paper", "pchip", "akima")),
            ]
            for row in record["published"]
        ]
        first = record["published"][0]
        head = ["pictures, metric", "paper, %", "PCHIP, %", "Akima, %"]
        parts.append(table(head, body, f"{name(first['test'])} against {name(first['anchor'])}. {run_of(record)}"))
    said = paragraph("What the paper says, and what this project's code computes from the points that it published.")
    return section("published", "Table 4: published BD-rates", said, *parts) if parts else ""


def curves(records: Sequence[Record]) -> str:
    """Rate against distortion of real files, and BD-rates of ours, by set of pictures."""
    parts = []
    for record in latest(with_key(records, "rd"), lambda r: r["pictures"]):
        parts.append(f"<h3>{name(record['pictures'])}</h3>")
        parts.append(_comparisons(record))
        series = [
            (name(codec["title"]), [(point["bits_per_pixel"], point["psnr"]) for point in codec["points"]])
            for codec in record["rd"]
        ]
        series += [(name(other["title"]), other["points"].get("psnr", [])) for other in record["read"]]
        finest = max(rate for rate, _ in series[0][1])  # of ours, which comes first: what lies far above is left out
        series = [(title, [point for point in points if point[0] <= 2 * finest]) for title, points in series]
        title = "PSNR against rate, to twice the highest of the first"
        parts.append(chart(title, "bits per pixel", "PSNR, dB", series, log=False, from_zero=False))
        timed = [
            [name(codec["title"]), *_times(codec), f'<span class="wrap">{name(codec["version"])}</span>']
            for codec in record["rd"]
        ]
        head = ["codec", "encode, finest point", "decode, finest point", "version"]
        parts.append(table(head, timed, "Means over the pictures, one after the other"))
    return section("curves", "Rate against distortion", *parts) if parts else ""


def _comparisons(record: Record) -> str:
    body = [
        [
            f"{name(found['test'])} against {name(found['anchor'])}",
            *(number((found["percent"] or {}).get(method)) for method in ("pchip", "akima")),
            f"{number(found['low'])} to {number(found['high'])}" if found["low"] is not None else "&ndash;",
        ]
        for found in record["comparisons"]
        if found["metric"] == "psnr"
    ]
    head = ["rate at equal PSNR", "PCHIP, %", "Akima, %", "between, dB"]
    return table(head, body, run_of(record))


def _times(codec: Record) -> list[str]:
    finest = max(codec["points"], key=lambda point: point["bits_per_pixel"])
    return [seconds(finest[key]) for key in ("encode_seconds", "decode_seconds")]


def codec(records: Sequence[Record]) -> str:
    """Times of whole models, ours beside a baseline and peers, and of their parts."""
    parts = []
    for record in latest(with_key(records, "codec"), lambda r: (r["device"], r["threads"])):
        body = [
            [_what(row), *_measured(row)] if "seconds" in row else [_what(row), name(row["skipped"]), *["&ndash;"] * 3]
            for row in record["codec"]
        ]
        head = ["model, picture, side, direction", "median", "Mpixel a second", "bits per pixel", "memory"]
        parts.append(table(head, body, run_of(record)))
        for row in record["codec"]:
            if "parts" in row:
                own = [
                    [name(part), seconds(found["seconds"]), number(found["share"], 0.01), seconds(found.get("floor")),
                     number(found.get("of floor"), 0.01)]
                    for part, found in row["parts"].items()
                ]  # fmt: skip
                head = ["part", "time", "% of the call", "floor", "floor, % of its time"]
                parts.append(table(head, own, _what(row)))
    said = paragraph(
        "The baseline is the same model in plain PyTorch with a floating-point entropy model. A part's floor is what "
        "its products or its bytes take at the rates that this machine reaches: <code>benchmarks/parts.py</code>."
    )
    return section("codec", "Whole models and their parts", said, *parts) if parts else ""


def _what(row: Record) -> str:
    where = f"{number(row['width'], digits=5)} &times; {number(row['height'], digits=5)}"
    together = "" if row["batch"] == 1 else f", {number(row['batch'])} pictures"
    words = " ".join(name(row[key]) for key in ("side", "direction", "way") if row.get(key))
    return f"{name(row['model'])}, {where}{together}: {words}"


def _measured(row: Record) -> list[str]:
    held = row.get("peak bytes", row.get("process peak"))
    return [seconds(row["seconds"]), number(row["Mpixel/s"]), number(row.get("bits per pixel")), size(held)]


def cold(records: Sequence[Record]) -> str:
    """What lies between the start of a process and its first picture."""
    parts = []
    for record in latest(with_key(records, "cold start"), lambda r: (r["device"], r["threads"])):
        found = record["cold start"]
        names = dict.fromkeys(part for state in found.values() for part in state)
        body = [
            [
                name(part),
                *(seconds(statistics.median_low(state[part]) if state.get(part) else None) for state in found.values()),
            ]
            for part in names
        ]
        parts.append(table(["part", *(name(state) for state in found)], body, run_of(record)))
    said = paragraph("Medians of fresh processes of the shipped model, with compiled code in their caches and without.")
    return section("cold", "The first picture", said, *parts) if parts else ""
