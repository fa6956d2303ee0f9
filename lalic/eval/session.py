"""`lalic eval`: from arguments to curves, and from curves to a table, JSON files and plots."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import lalic
from lalic import codec as lalic_codec
from lalic.errors import LalicError
from lalic.eval import forms, machine, plot, published
from lalic.eval.cli import DEFAULT_CODECS
from lalic.eval.codecs import Codec, LalicCodec, NotInstalled, Quality, check_bounds, make, parse
from lalic.eval.measure import Curve, Point, load, measure
from lalic.eval.summary import METRICS, Comparison, Other, compare, table
from lalic.eval.vtm import Vtm
from lalic.files import write_atomic
from lalic.memory import keep_memory

__all__ = ["Session", "codecs_of", "evaluate", "report", "run", "say", "set_up", "write"]


@dataclass
class Session:
    """What one call measured. name: of the set of pictures. others: curves that were read. left_out: a sentence for
    each codec that could not be measured. bpp: the span that counts for BD-rates, None for all of it."""

    name: str
    pictures: int
    caption: str
    curves: list[Curve]
    others: list[Other] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    bpp: tuple[float, float] | None = None

    def comparisons(self) -> list[Comparison]:
        """lalic's curves against all others; where lalic was not measured, the first curve against them."""
        tests = [curve for curve in self.curves if curve.name == "lalic"] or self.curves[:1]
        anchors: list[Curve | Other] = [curve for curve in self.curves if curve not in tests]
        return compare(tests, [*anchors, *self.others], self.bpp)

    def full_caption(self) -> str:
        """Device and versions, those of the codecs too."""
        return "; ".join([self.caption, *(f"{curve.title}: {curve.version}" for curve in self.curves)])

    def lines(self, metric: str) -> list[plot.Line]:
        """What a plot shows."""
        lines = [plot.Line(c.title, c.along(metric), ours=c.name == "lalic") for c in self.curves]
        lines += [plot.Line(o.title, o.points.get(metric, []), published=True) for o in self.others]
        return [line for line in lines if line.points]


def run(args: argparse.Namespace) -> int:
    """Measure and report. Returns the exit code, 1 if a codec that was named could not be measured."""
    found = evaluate(args)
    if args.json:
        print(json.dumps([forms.as_json(curve, found.caption) for curve in found.curves], indent=2))
    else:
        print(report(found, args.each))
    if args.output is not None:
        for path in write(found, args.output):
            say(f"wrote {path}")
    return 1 if found.left_out and args.codecs else 0


def evaluate(args: argparse.Namespace) -> Session:
    """Everything that the arguments of `lalic eval` ask for, measured. What is wrong with them is said before that."""
    device = set_up(args)
    others = [_read(path) for path in args.against]
    others += [] if args.published is None else _published(args.published)
    codecs, left_out = codecs_of(args, device)
    for sentence in left_out:
        say(f"left out: {sentence}")
    if not codecs:
        raise LalicError("nothing is left to measure")
    pictures = load(args.inputs)
    curves = []
    for each in codecs:
        say(f"{each.title} ({each.version})")
        curves.append(measure(each, pictures, _tell))
    return Session(
        name=args.name or Path(os.path.abspath(args.inputs[0])).stem,
        pictures=len(pictures),
        caption=machine.caption(device),
        curves=_joined(curves),
        others=others,
        left_out=left_out,
        bpp=None if args.bpp is None else (args.bpp[0], args.bpp[1]),
    )


def set_up(args: argparse.Namespace) -> torch.device:
    """Threads and memory as asked for; returns where lalic's models run."""
    keep_memory()
    if args.threads is not None:
        if args.threads < 1:
            raise LalicError(f"--threads is {args.threads}, expected at least 1")
        torch.set_num_threads(args.threads)
    return lalic_codec.resolve_device(args.device)


def codecs_of(args: argparse.Namespace, device: torch.device) -> tuple[list[Codec], list[str]]:
    """The codecs that were asked for, and a sentence for each that is not installed.

    Raises `LalicError` for one that does not exist, a quality out of bounds, or weights that cannot be read.
    """
    found: list[Codec] = []
    left_out = []
    for word in args.codecs or DEFAULT_CODECS:
        name, qualities = parse(word)
        try:
            if name == "lalic":
                found += _models(args, device, qualities or tuple(args.quality))
            elif name == "vtm":
                if args.vtm is None:
                    raise NotInstalled("vtm needs VTM's encoder, which --vtm FILE names")
                found.append(Vtm(args.vtm, args.vtm_config, qualities))
            else:
                found.append(make(name, qualities))
        except NotInstalled as error:
            left_out.append(str(error))
    for each in found:
        check_bounds(each)
    return found, left_out


def _models(args: argparse.Namespace, device: torch.device, qualities: Sequence[Quality]) -> list[Codec]:
    """A codec for each checkpoint, or for the model that ships."""
    found: list[Codec] = []
    for path in args.checkpoint or [None]:
        model = lalic.slim(pretrained=True) if path is None else lalic.load_checkpoint(path)
        model = model.to(device).eval()
        if args.precision is not None:
            model.set_precision(args.precision)
        title = "lalic" if path is None or len(args.checkpoint) == 1 else f"lalic {Path(path).stem}"
        found.append(LalicCodec(model, qualities, title))
    return found


def _joined(curves: Sequence[Curve]) -> list[Curve]:
    """Models of one rate each, published as a family, make one curve together; the others stay."""
    single = [curve for curve in curves if curve.name == "lalic" and curve.points[0].quality is None]
    if len(single) < 2:
        return list(curves)
    points = [replace(curve.points[0], label=curve.title.removeprefix("lalic ")) for curve in single]
    version = f"{len(single)} models: " + "; ".join(
        f"{p.label} {c.version}" for p, c in zip(points, single, strict=True)
    )
    joined = Curve("lalic", "lalic", version, tuple(sorted(points, key=lambda point: point.bpp)))
    return [joined, *(curve for curve in curves if curve not in single)]


def _read(path: str) -> Other:
    """A file in CompressAI's form, with what it has of both figures."""
    title, points, problems = path, {}, []
    for metric in METRICS:
        try:
            title, points[metric] = forms.read(path, metric)
        except LalicError as error:
            problems.append(str(error))
    if not points:
        raise LalicError(problems[0])
    return Other(title, points)


def _published(pictures: str) -> list[Other]:
    found: dict[str, Other] = {}
    for curve in published.load():
        if curve.pictures == pictures:
            title = curve.title if "published" in curve.title else f"{curve.title} (published)"
            found.setdefault(curve.codec, Other(title, {})).points[curve.metric] = list(curve.points)
    return list(found.values())


def report(found: Session, each: bool = False) -> str:
    """The table, with `each` of the pictures, the comparisons, and what they were measured on."""
    lines = [table(found.curves, each), ""]
    lines += [comparison.sentence() for comparison in found.comparisons()]
    lines.append(f"{found.pictures} picture{'s' if found.pictures > 1 else ''} of {found.name}; {found.caption}")
    return "\n".join(lines)


def write(found: Session, folder: Path) -> list[Path]:
    """A JSON file in CompressAI's form for each codec, the comparisons, and plots where matplotlib is installed.

    Returns the paths. Files of an earlier call are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for curve in found.curves:
        paths.append(folder / f"{_file_name(curve.title)}.json")
        write_atomic(paths[-1], (json.dumps(forms.as_json(curve, found.caption), indent=2) + "\n").encode())
    comparisons: list[dict[str, Any]] = [comparison.as_json() for comparison in found.comparisons()]
    paths.append(folder / "comparisons.json")
    write_atomic(paths[-1], (json.dumps(comparisons, indent=2) + "\n").encode())
    for metric in METRICS:
        lines = found.lines(metric)
        if lines:
            title = f"{found.pictures} picture{'s' if found.pictures > 1 else ''} of {found.name}"
            try:
                paths += plot.draw(lines, metric, folder / metric, title, found.full_caption())
            except LalicError as error:
                say(f"no {metric} plot: {error}")
    return paths


def _file_name(title: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", title.lower()).strip("-")


def _tell(point: Point) -> None:
    say(f"  {point.label:>8}  {point.bpp:.4f} bits per pixel, {point.psnr:.3f} dB")


def say(sentence: str) -> None:
    """On standard error, at once."""
    print(sentence, file=sys.stderr, flush=True)
