"""Rate-distortion curves as records: `python -m benchmarks.rd FOLDER [arguments of lalic eval] --save`.

Measures what `lalic eval` measures and prints the same. With --save a record goes to the results: means of each point
of each codec, bits per pixel and PSNR of each picture, BD-rates; no seconds if the machine did something else when it
began, as rates do not depend on that and times do. `--figure STEM --name SET` measures nothing: it draws
STEM-psnr and STEM-ms-ssim (.png, .svg) from the newest record of the set, so that figures in documents come from
committed results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import records
from lalic.codec import resolve_device
from lalic.eval import cli
from lalic.eval import report as eval_report
from lalic.eval.curves import Curve, decibels
from lalic.eval.measure import Results


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and with --save append; or draw. Returns the exit code."""
    parser = records.parser("rd", "Rate-distortion curves as records.", where=False)
    cli.add_arguments(parser, inputs="*")
    parser.add_argument("--figure", type=Path, metavar="STEM", help="draw the newest record of --name and stop")
    arguments = parser.parse_args(argv)
    if arguments.figure is not None:
        if arguments.name is None:
            parser.error("--figure draws the newest record of a set; --name SET says which")
        for path in draw(newest(arguments.name), arguments.figure):
            print(path)
        return 0
    if not arguments.inputs:
        parser.error("expected pictures or folders of pictures")
    device = resolve_device(arguments.device)
    record = records.environment(device)  # before the measurement: the date is that of its start
    timed = not records.busy(device.type)
    found = cli.results_of(arguments)
    print(eval_report.text(found, arguments.each))
    if arguments.output is not None:
        eval_report.write(found, arguments.output)
    records.keep(record | as_record(found, timed), arguments)
    return 0


def as_record(found: Results, timed: bool = True) -> dict[str, Any]:
    """What a record holds besides the environment; five digits are more than the figures are good for.

    timed: False leaves seconds out.
    """
    return {
        "pictures": found.name,
        "picture_names": [row.picture for row in found.curves[0].points[0].rows],
        "rd": [_codec(curve, timed) for curve in found.curves],
        "read": [{"title": other.title, "points": other.points} for other in found.others],
        "bpp_span": found.bpp,
        "left_out": found.left_out,
        "comparisons": [asdict(comparison) for comparison in found.comparisons()],
    }


def _codec(curve: Curve, timed: bool) -> dict[str, Any]:
    points = [
        {
            "quality": point.label or None,
            "bits_per_pixel": _short(point.bpp),
            "psnr": _short(point.psnr),
            "ms_ssim": _short(point.ms_ssim),
            "encode_seconds": _short(point.encode_seconds) if timed else None,
            "decode_seconds": _short(point.decode_seconds) if timed else None,
            "each_bits_per_pixel": [_short(row.bpp) for row in point.rows],
            "each_psnr": [_short(row.psnr) for row in point.rows],
        }
        for point in curve.points
    ]
    return {"codec": curve.name, "title": curve.title, "version": curve.version, "points": points}


def _short(value: float | None) -> float | None:
    """Six significant digits; null for what was not measured or is infinite, as the PSNR of an equal picture."""
    return None if value is None or value == float("inf") else float(f"{value:.6g}")


def newest(pictures: str, folder: Path = records.RESULTS) -> dict[str, Any]:
    """The last record with curves of the set `pictures`, over all devices. Raises `SystemExit` if there is none."""
    found = [record for record in records.load(folder) if record.get("pictures") == pictures and "rd" in record]
    if not found:
        raise SystemExit(f"there is no record with curves of {pictures!r}; make one with --save")
    return found[-1]


def draw(record: dict[str, Any], stem: Path) -> list[Path]:
    """The plots of a record; the caption says what it was measured on, from the record alone."""
    versions = "; ".join(f"{each['title']}: {each['version']}" for each in record["rd"])
    commit = "unknown commit" if record["commit"] is None else f"commit {record['commit'][:10]}"
    caption = (
        f"{record['device']}, {record['threads']} threads; torch {record['torch']}, Python {record['python']}; "
        f"{commit}, {record['date'][:10]}; {versions}"
    )
    count = len(record["picture_names"])
    title = f"{count} picture{'s' if count > 1 else ''} of {record['pictures']}"
    paths = []
    for metric, key in (("psnr", "psnr"), ("ms-ssim", "ms_ssim")):
        lines = [eval_report.Line(c["title"], _along(c, key), ours=c["codec"] == "lalic") for c in record["rd"]]
        lines += [eval_report.Line(o["title"], o["points"].get(metric, []), published=True) for o in record["read"]]
        if any(line.points for line in lines):
            paths += eval_report.draw(lines, metric, stem.with_name(f"{stem.name}-{metric}"), title, caption)
    return paths


def _along(codec: dict[str, Any], key: str) -> list[tuple[float, float]]:
    points = [(point["bits_per_pixel"], point[key]) for point in codec["points"] if point[key] is not None]
    return [(rate, decibels(value)) for rate, value in points] if key == "ms_ssim" else points


if __name__ == "__main__":
    raise SystemExit(main())
