"""What an H200 should take, written before it was measured: `python -m benchmarks.prediction > docs/gpu-prediction.md`.

Counts come from this repository: multiply-adds and bytes of each part (`benchmarks.parts.counts`), launches and serial
steps from the newest records of `benchmarks.counting.launches` and `.steps`. What no count gives is an assumption, one
row each in the document, with a good, a middle and a bad value. A test makes the document again and compares.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import parts, records
from lalic.config import FULL

CASES = (("768x512", 512, 768, 768 * 512), ("1920x1080", 1088, 1920, 768 * 512))
BARS = {("decode", "768x512"): 2.95, ("encode", "768x512"): 4.0, ("decode", "1920x1080"): 10.5}  # ms
DECODE, ENCODE = (
    ("h_s", "contexts", "aggregation", "g_s", "rest"),
    ("g_a", "h_a", "h_s", "contexts", "aggregation", "rest"),
)
# Multiply-adds and bytes a second, data sheet, dense.
SHEET = {"bfloat16": 494.5e12, "int8": 989.5e12, "memory": 4.8e12}

# Name, what it is, then good, middle, bad.
ASSUMPTIONS: tuple[tuple[str, str, tuple[float, float, float]], ...] = (
    ("products", "share of the tensor cores' rate that matrix products of these shapes reach", (0.6, 0.35, 0.15)),
    ("copy", "share of the memory's bandwidth that kernels reach", (0.85, 0.7, 0.5)),
    ("round", "nanoseconds a serial step of an exact kernel: its loads, mostly from the L2 cache", (150, 250, 400)),
    ("launch", "microseconds from one dependent launch to the next in a CUDA graph, beyond its work", (1.2, 2.0, 3.5)),
    ("steps", "dependent steps of the rANS lanes at 768x512, all sections together", (850, 2200, 3080)),
    ("step", "nanoseconds a step: a look into a table, a product, a word of the stream", (60, 150, 400)),
    ("growth", "steps at another size, as a power of its pixels (0: lanes grow with it; 1: they do not)", (0, 0.5, 1)),
    ("fixed", "microseconds of host work and copies round the graph", (30, 60, 150)),
)  # fmt: skip
COLUMNS = ("good", "middle", "bad")

OPENING = """# What an H200 should take

**Nothing here is measured.** This page was made by `python -m benchmarks.prediction` before the codec ran on a GPU, to
be checked line by line against `python -m benchmarks.codec --device cuda`. The full model, its transforms in bfloat16,
its entropy model in exact arithmetic, one picture at a time, 0.29 bits per pixel, launches in a CUDA graph.

Each part takes the largest of three: its multiply-adds over the tensor cores' rate and its bytes over the memory's
bandwidth, each times the share assumed, and the serial steps of its exact kernels. An exact product is {products} int8
products of digits. Parts, launches, the rANS chain and the host's work are added, as if nothing overlapped. Rates, by
NVIDIA's data sheet and dense: 494.5 T multiply-adds a second in bfloat16, 989.5 T in int8, 4.8 TB/s.

Launches: {count} a decode, counted by `benchmarks.counting.launches` (record of {date}); an encode is taken to have as
many. Serial steps, counted by `benchmarks.counting.steps` at 768x512 (record of {steps_date}), other sizes are taken to
have as many: {steps}.
"""
CLOSING = """## What would prove it wrong

Where a part of `benchmarks.codec` takes more than its bad value, the share assumed for its products or memory is wrong.
Where the sum is beyond while the parts are not, the rows of launches or of the chain are. The first call is none of
this: Triton compiles each kernel on first use (`docs/evaluation.md`)."""


def newest(what: str, folder: Path = records.RESULTS) -> dict[str, Any]:
    """The newest record of "launches" or "steps" of the full model. Raises ``ValueError`` if there is none."""
    counted = [record for record in records.load(folder) if record.get(what, {}).get("model") == "full"]
    if not counted:
        raise ValueError(
            f"{folder}/static.jsonl: expected a record of `python -m benchmarks.counting.{what} --save`, found none"
        )
    return counted[-1]


def part_ms(name: str, counted: dict[str, int], column: int) -> float:
    """Milliseconds of a part's work: the largest of products, memory and serial steps ("steps", if counted)."""
    shares = {key: values[column] for key, _, values in ASSUMPTIONS}
    exact = name in (*parts.EXACT, "rest")  # the rest is the products that slices share
    products = counted["macs"] * (parts.INT8_PRODUCTS if exact else 1)
    by_unit = products / (SHEET["int8" if exact else "bfloat16"] * shares["products"])
    moved = counted["bytes"] if exact else counted["bytes"] / 2  # 16-bit transforms; floats and int16 in exact parts
    steps = 1e-9 * counted.get("steps", 0) * shares["round"]
    return 1e3 * max(by_unit, moved / (SHEET["memory"] * shares["copy"]), steps)


def predict(direction: str, pixels: int, base: int, counted: dict[str, dict[str, int]], count: int) -> list[list[Any]]:
    """Rows [what, good, middle, bad] in ms, the last their sum. count: launches of a decode, an encode's too."""
    by_name = {key: values for key, _, values in ASSUMPTIONS}
    rows: list[list[Any]] = []
    for name in DECODE if direction == "decode" else ENCODE:
        rows.append([name, *(part_ms(name, counted[name], i) for i in range(3))])
    rows.append([f"{count} launches", *(1e-3 * count * value for value in by_name["launch"])])
    chain = []
    for i in range(3):
        steps = by_name["steps"][i] * (pixels / base) ** by_name["growth"][i]
        chain.append(1e-6 * steps * by_name["step"][i])
    rows += [["rANS chain", *chain], ["round the graph", *(1e-3 * value for value in by_name["fixed"])]]
    rows.append(["sum", *(sum(row[1 + i] for row in rows) for i in range(3))])
    return rows


def counts(height: int, width: int, steps: dict[str, int]) -> dict[str, dict[str, int]]:
    """{"macs", "bytes"} of each part of the full model, and the serial "steps" of those in `steps`."""
    found = parts.counts(FULL, height, width)
    return {name: one | ({"steps": steps[name]} if name in steps else {}) for name, one in found.items()}


def document() -> Iterator[str]:
    """Lines of docs/gpu-prediction.md."""
    launched, stepped = newest("launches"), newest("steps")
    count, steps = launched["launches"]["total"], stepped["steps"]["parts"]
    yield OPENING.format(
        products=parts.INT8_PRODUCTS, count=count, date=launched["date"][:10],
        steps=", ".join(f"{name} {number}" for name, number in steps.items()), steps_date=stepped["date"][:10],
    )  # fmt: skip
    yield "## Assumptions"
    yield ""
    yield "| | what | good | middle | bad |"
    yield "|---|---|---|---|---|"
    for name, what, values in ASSUMPTIONS:
        yield f"| {name} | {what} | {' | '.join(f'{value:g}' for value in values)} |"
    for label, height, width, base in CASES:
        counted = counts(height, width, steps)
        yield ""
        yield f"## {label}: counts"
        yield ""
        yield "| part | multiply-adds, G | bytes in float32, M |"
        yield "|---|---|---|"
        for name in ("g_a", "h_a", "h_s", "contexts", "aggregation", "g_s", "rest"):
            yield f"| {name} | {counted[name]['macs'] / 1e9:.2f} | {counted[name]['bytes'] / 1e6:.0f} |"
        for direction in ("decode", "encode"):
            rows = predict(direction, height * width, base, counted, count)
            bar = BARS.get((direction, label))
            yield ""
            yield f"### {direction.capitalize()} {label}, milliseconds"
            yield ""
            yield "| | good | middle | bad |"
            yield "|---|---|---|---|"
            for part, *times in rows:
                yield f"| {part} | {' | '.join(f'{value:.3f}' for value in times)} |"
            if bar is not None:
                verdict = ", ".join(f"{c} {v / bar:.2f}" for c, v in zip(COLUMNS, rows[-1][1:], strict=True))
                yield ""
                yield f"The bar is {bar:g} ms; as shares of it: {verdict}."
    yield ""
    yield CLOSING


def beside(rows: Iterable[dict[str, Any]]) -> Iterator[list[str]]:
    """Lines of a table: what was measured, its time in ms, the prediction's three, and the bar of a sum.

    rows: of `benchmarks.codec`. Sums are of launches in a graph, parts of plain launches; the launches themselves and
    the host's work are in no part. Cases that were not measured have no lines.
    """
    ours = [r for r in rows if r["model"] == "LALIC full-bfloat16" and r["side"] == "ours" and r["batch"] == 1]
    for label, height, width, base in CASES:
        for direction, names in (("decode", DECODE), ("encode", ENCODE)):
            own = {
                r["way"]: r
                for r in ours
                if (f"{r['width']}x{r['height']}", r.get("direction")) == (label, direction) and "seconds" in r
            }
            if not own:
                continue
            counted = counts(height, width, newest("steps")["steps"]["parts"])
            launches = newest("launches")["launches"]["total"]
            predicted = {
                name: [f"{value:.3f}" for value in values]
                for name, *values in predict(direction, height * width, base, counted, launches)
            }
            seen = own.get("plain launches", {}).get("parts", {})
            chain = "entropy decoding" if direction == "decode" else "entropy encoding"
            for name, part in (*((name, name) for name in names), ("rANS chain", chain)):
                if part in seen:
                    yield [f"{direction} {label}: {name}", f"{1e3 * seen[part]['seconds']:.3f}", *predicted[name], "-"]
            bar = BARS.get((direction, label))
            for way, row in own.items():
                cells = [f"{direction} {label}, {way}", f"{1e3 * row['seconds']:.3f}", *predicted["sum"]]
                yield [*cells, "-" if bar is None else f"{bar:g}"]


def main() -> int:
    print("\n".join(document()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
