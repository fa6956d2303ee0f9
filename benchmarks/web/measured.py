"""The sections of what this project measures besides the paper's tables, and of what is not measured."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.report import PACKAGES
from benchmarks.web.paper import run_of
from benchmarks.web.records import Record, latest, latest_rows, with_key
from benchmarks.web.text import bullets, name, number, paragraph, seconds, section, size, table

COMMANDS = {
    "rows": ("speed of the operations and the codec", "python -m benchmarks.run --save"),
    "mechanisms": ("linear mechanisms", "python -m benchmarks.mechanisms --save"),
    "scaling": ("cost against pixels", "python -m benchmarks.scaling --measure --save"),
    "complexity": ("what our models cost", "python -m benchmarks.complexity --save"),
    "counted": ("context models", "python -m benchmarks.context --save"),
    "rate": ("rate and distortion", "python -m benchmarks.rate FOLDER --save"),
    "rd": ("rate against distortion", "python -m benchmarks.rd FOLDER --save"),
    "published": ("published BD-rates", "python -m benchmarks.published --save"),
    "codec": ("whole models and their parts", "python -m benchmarks.codec --save"),
    "cold start": ("the first picture of a process", "python -m benchmarks.cold --save"),
    "portability": ("portability", "python -m benchmarks.portability FOLDER --save"),
    "memory": ("memory of training", "python -m benchmarks.memory --measure --save"),
}


def machines(records: Sequence[Record]) -> str:
    """Devices, and the versions of their last run."""
    real = [r for r in records if r["device"] != "static"]
    body = []
    for record in latest(real, lambda r: r["device"]):
        runs = sum(r["device"] == record["device"] for r in real)
        keys = ("python", *PACKAGES, "runtime", "driver")
        versions = [f"{key} {name(record[key])}" for key in keys if record.get(key)]
        body.append([name(record["device"]), name(record["system"]), f'<span class="wrap">{", ".join(versions)}</span>',
                     name(record["date"][:10]), _many(runs)])  # fmt: skip
    return section("machines", "Machines", table(["device", "system", "versions, last run", "last run", "runs"], body))


def _many(runs: int) -> str:
    return "one" if runs == 1 else "several"


def speed(records: Sequence[Record]) -> str:
    """Timed rows, newest of each entry and state of the allocator."""
    parts = []
    for record, rows in latest_rows(records):
        entries = list(dict.fromkeys((row["entry"], row["memory"]) for row in rows))
        for entry, memory in entries:
            own = [row for row in rows if (row["entry"], row["memory"]) == (entry, memory)]
            body = [
                [f"{name(row['case'])}: {_call(row)}", seconds(row["seconds"]), _ratios(row), _metrics(row)]
                for row in own
            ]
            state = "" if memory == "default" else f", memory {name(memory)}"
            parts.append(f"<h3>{name(entry)}{state}</h3>")
            parts.append(table(["case: call", "median", "ratios", "more"], body, run_of(record)))
    said = paragraph(
        "A result is verified before it is timed. Ratios are one median over another of the same run; a yardstick is "
        "in parentheses. Bare times mean nothing but beside their device."
    )
    return section("speed", "Speed", said, *parts) if parts else ""


def _call(row: Record) -> str:
    return f"({name(row['call'])})" if row["yardstick"] else name(row["call"])


def _ratios(row: Record) -> str:
    return "<br>".join(f"{number(value, digits=3)} &times; {name(other)}" for other, value in row["ratios"].items())


def _metrics(row: Record) -> str:
    return "<br>".join(f"{name(what)} {number(value)}" for what, value in row["metrics"].items())


def rates(records: Sequence[Record]) -> str:
    """Rate and distortion of real files, and what exactness costs."""
    rated = latest(
        with_key(records, "rate"), lambda r: (r["pictures"], r["model"], r.get("precision", "float32"), r["weights"])
    )
    keys = ("mean_bits_per_pixel", "mean_psnr", "mean_jpeg_bits_per_pixel")
    body = [[f"{_set(r)}{_precision(r)}", *(number(r[key]) for key in keys), name(r["date"][:10])] for r in rated]
    compared = latest(with_key(records, "ideal_bits"), lambda r: (r["pictures"], r["model"]))
    exact = [
        [_set(r), number(r["mean_bits_ratio"], digits=6), number(r["time_ratio"]), name(r["date"][:10])]
        for r in compared
    ]
    return section(
        "rates",
        "Rate and distortion",
        table(["pictures, model", "bits per pixel", "PSNR, dB", "JPEG at that PSNR", "run"], body),
        table(["exact entropy model over floating point", "bits", "CPU time", "run"], exact),
    )


def _set(record: Record) -> str:
    return f"{name(record['pictures'])}, {name(record['model'])}, weights {name(record['weights'])}"


def _precision(record: Record) -> str:
    return f", {name(record['precision'])}" if "precision" in record else ""


def portability(records: Sequence[Record]) -> str:
    """Which files decode alike under which setting."""
    parts = []
    for record in latest(with_key(records, "portability"), lambda r: (r["device"], r["pictures"], r["model"])):
        body = [
            [
                ", ".join(f"{key} {name(value)}" for key, value in row["setting"].items() if value),
                *(f"{number(row[kind]['equal'])} of {number(row[kind]['pictures'])}" for kind in ("exact", "float")),
            ]
            for row in record["portability"]
        ]
        parts.append(table(["setting", "exact: decoded alike", "floating point"], body, run_of(record)))
    return section("portability", "Portability", *parts) if parts else ""


def training(records: Sequence[Record]) -> str:
    """Peak memory of a training step."""
    found = [r for r in with_key(records, "memory") if isinstance(r["memory"], dict)]
    parts = []
    for record in latest(found, lambda r: r["device"]):
        body = [
            [name(what), size(row["plain"]["peak"]), size(row["ours"]["peak"]), number(row["ratio"])]
            for what, row in record["memory"].items()
        ]
        parts.append(table(["training step", "plain PyTorch", "ours", "ratio"], body, run_of(record)))
    return section("training", "Memory of training", *parts) if parts else ""


def _left_out(row: Record) -> str:
    where = f", {number(row['width'], digits=5)} &times; {number(row['height'], digits=5)}" if "width" in row else ""
    return f"{name(row['model'])}{where}: {name(row['skipped'])}."


def missing(records: Sequence[Record]) -> str:
    """What was not measured, and why."""
    items = []
    if not any(r["device_type"] == "cuda" for r in records):
        items.append("On a GPU: nothing. No results file comes from one.")
    for key, (what, command) in COMMANDS.items():
        if not with_key(records, key):
            items.append(f"{what[0].upper() + what[1:]}: not recorded yet; <code>{command}</code> does it.")
    scaled = latest(with_key(records, "scaling"), lambda r: (r["device"], r["threads"]))
    if scaled and all(r["device"] == "static" for r in scaled):
        items.append("Memory of a forward pass: counted only, not measured.")
    for key in ("scaling", "complexity", "codec"):
        for record in latest(with_key(records, key), lambda r: (r["device"], r["threads"])):
            items += [_left_out(row) for row in record[key] if "skipped" in row]
    for record in latest(with_key(records, "mechanisms"), lambda r: (r["device"], r["mechanism"], r["width"])):
        for row in record["mechanisms"]:
            if "skipped" in row:
                where = f"D = {number(row['width'])}, L = {number(row['length'], digits=8)}"
                items.append(f"{name(row['mechanism'])}, {where} on {name(record['device'])}: {name(row['skipped'])}.")
    for record in latest([r for r in records if r["device"] != "static"], lambda r: r["device"]):
        if not any(r.get("compressai") for r in records if r["device"] == record["device"]):
            items.append(f"Other people's codecs on {name(record['device'])}: none was installed.")
    items.append("Not shown here: counts of machine code and of slices, which stand in the results files.")
    return section("missing", "What was not measured, and why", bullets(items))
