"""`lalic eval` and `lalic compare`: from arguments to calls. Imports no torch, so that `lalic --help` is fast."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lalic.errors import as_request, one_line
from lalic.eval import DEFAULT_CODECS
from lalic.files import check_folder
from lalic.options import (
    add_force_option,
    add_machine_options,
    add_precision_option,
    set_up_process,
)

if TYPE_CHECKING:
    from PIL import Image

    from lalic.eval.measure import Results

_CODECS = (
    "lalic, lalic-effort, jpeg, jpeg-444, webp, avif, avif-psnr, jxl, heic, vtm, compressai-NAME; qualities of one "
    "after a colon"
)


def register(commands: Any, epilog: str) -> None:
    """Declare both commands. commands: from argparse's `add_subparsers`. epilog: of their help."""
    evaluate = commands.add_parser(
        "eval",
        help="rate and distortion of files, beside other codecs",
        description="Compress and decompress pictures with lalic and other codecs, and print bits per pixel of the "
        "files, PSNR, MS-SSIM, seconds and BD-rates.",
        epilog=epilog,
    )
    add_arguments(evaluate)
    evaluate.set_defaults(run=_run_eval)

    compare = commands.add_parser(
        "compare",
        help="one picture through several codecs, side by side",
        description="Compress a picture with several codecs at matched size or PSNR, and write a sheet of crops (PNG). "
        "The other codecs are matched to the first one.",
        epilog=epilog,
    )
    compare.add_argument("input", metavar="IN", help="picture")
    compare.add_argument(
        "codecs",
        nargs="+",
        metavar="CODEC[:Q]",
        help=f"the others are matched to the first, or all to --target: {_CODECS}",
    )
    compare.add_argument("--match", choices=("bpp", "psnr"), default="bpp", help="what is matched (default bpp)")
    compare.add_argument(
        "--target",
        type=float,
        metavar="X",
        help="size in bits per pixel, or PSNR in dB, for all codecs (default: that of the first)",
    )
    compare.add_argument(
        "--crop",
        action="append",
        default=[],
        metavar="X,Y,W,H",
        help="a crop of the sheet, in pixels; repeatable (default: up to three, chosen by detail)",
    )
    compare.add_argument(
        "-o", "--output", metavar="STEM", help="writes STEM.png; in a folder IN-compare.png (default: here)"
    )
    compare.add_argument(
        "--page", action="store_true", help="write STEM.html too: all in one file, with a divider and zoom"
    )
    compare.add_argument("--pictures", action="store_true", help="write each whole picture too, STEM-1-CODEC.png ...")
    add_force_option(compare)
    _add_codec_options(compare, "50, or what matches")
    compare.set_defaults(run=_run_compare)


def add_arguments(parser: argparse.ArgumentParser, inputs: str = "+") -> None:
    """Declare the arguments of `lalic eval`. inputs: argparse's `nargs` of the pictures."""
    parser.add_argument("inputs", nargs=inputs, metavar="IN", help="pictures, or folders of pictures")
    parser.add_argument(
        "--codecs",
        nargs="+",
        metavar="CODEC[:Q,Q...]",
        help=f"what to measure (default: {' '.join(DEFAULT_CODECS)}): {_CODECS}",
    )
    parser.add_argument(
        "--published", choices=("kodak", "clic", "tecnick"), help="add published curves for this set of pictures"
    )
    parser.add_argument(
        "--against", nargs="+", default=[], metavar="FILE", help="more curves, JSON files in CompressAI's format"
    )
    parser.add_argument(
        "--bpp",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="bits per pixel of the points that count in BD-rates (default: all)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for JSON files and plots, PNG and SVG (default: none are written)",
    )
    parser.add_argument("--each", action="store_true", help="print a line for each picture too")
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of the table")
    parser.add_argument("--name", help="name of the set of pictures (default: the first input's name)")
    _add_codec_options(parser, "all of 5 20 35 50 65 80 95")


_EVAL_OPTIONS = ("published", "against", "name", "background")
_CODEC_OPTIONS = ("checkpoints", "qualities", "effort", "precision", "device", "vtm", "vtm_config")


def _add_codec_options(parser: argparse.ArgumentParser, qualities: str) -> None:
    """Declare the options of lalic's models and of VTM, `_CODEC_OPTIONS` and --threads. qualities: the default."""
    parser.add_argument(
        "--checkpoint", dest="checkpoints", nargs="+", default=[], metavar="PATH",
        help="weights to use instead of those that ship; several files are several models",
    )  # fmt: skip
    parser.add_argument(
        "-q",
        "--quality",
        dest="qualities",
        nargs="+",
        type=float,
        default=[],
        metavar="Q",
        help=f"of lalic, 1 to 100 (default {qualities})",
    )
    parser.add_argument(
        "--effort",
        type=float,
        metavar="SECONDS",
        help="that the codec lalic-effort may spend on each picture (default 120)",
    )
    parser.add_argument(
        "--background",
        metavar="COLOR",
        help="blend transparent pixels with a colour, such as white (default: refuse them)",
    )
    add_precision_option(parser)
    add_machine_options(parser)
    parser.add_argument("--vtm", metavar="FILE", help="VTM's EncoderAppStatic, for the codec vtm")
    parser.add_argument("--vtm-config", metavar="FILE", help="its encoder_intra_vtm.cfg (default: ../cfg beside it)")


def results_of(args: argparse.Namespace) -> Results:
    """Measure with the arguments of `lalic eval`; progress goes to standard error."""
    if args.output is not None:
        check_folder(args.output)
    set_up_process(args.threads)
    from lalic.eval import evaluate

    options: dict[str, Any] = {name: getattr(args, name) for name in (*_EVAL_OPTIONS, *_CODEC_OPTIONS)}
    bpp = args.bpp and (args.bpp[0], args.bpp[1])
    return evaluate(args.inputs, args.codecs or DEFAULT_CODECS, bpp=bpp, log=_log, **options)


def _run_eval(args: argparse.Namespace) -> int:
    """Measure and report. Returns the exit code, 1 if a codec that was named could not be measured."""
    results = results_of(args)
    from lalic.eval import curves, report

    if args.json:
        print(json.dumps([curves.compressai_json(curve, results.caption) for curve in results.curves], indent=2))
    else:
        print(report.text(results, args.each))
    if args.output is not None:
        for path in report.write(results, args.output, _log):
            _log(f"wrote {path}")
    return 1 if results.left_out and args.codecs else 0


def _run_compare(args: argparse.Namespace) -> int:
    """Write the sheet and the pictures. Returns the exit code, 1 if a codec that was named is not installed."""
    set_up_process(args.threads)
    from lalic.codec import resolve_device
    from lalic.eval import compare
    from lalic.eval.measure import caption, load_one
    from lalic.eval.side_by_side import parse_box, remarks, sheet
    from lalic.eval.viewer import page
    from lalic.files import WouldOverwrite, write_atomic

    stem = args.output or ""
    if not stem or stem.endswith(("/", os.sep)) or os.path.isdir(stem):
        stem = os.path.join(stem, f"{Path(args.input).stem}-compare")
    for extension in ("png", "html") if args.page else ("png",):
        if os.path.exists(f"{stem}.{extension}") and not args.force:
            raise WouldOverwrite(f"{stem}.{extension}")
    check_folder(Path(stem).parent)
    with as_request():
        picture = load_one(args.input, args.background)
    boxes = [parse_box(text, picture) for text in args.crop]
    options: dict[str, Any] = {name: getattr(args, name) for name in ("match", *_CODEC_OPTIONS)}
    results = compare(picture, args.codecs, args.target, **options)
    for message in results.left_out:
        _log(f"left out: {message}")
    machine = caption(resolve_device(args.device))
    outputs = {f"{stem}.png": _png(sheet(picture, results.matches, boxes))}
    if args.page:
        name = Path(args.input).stem
        outputs[f"{stem}.html"] = page(name, picture, results.matches, args.match, machine, args.target).encode()
    for number, match in enumerate(results.matches, 1):
        print(f"{match.codec.title}: {match.text()}; {match.codec.version}")
        if args.pictures:
            outputs[f"{stem}-{number}-{match.codec.name}.png"] = _png(match.coded.picture)
    for sentence in remarks(results.matches, args.match, args.target):
        print(sentence)
    print(machine)
    for path in outputs:  # before the first one is written
        if os.path.exists(path) and not args.force:
            raise WouldOverwrite(path)
    for path, data in outputs.items():
        write_atomic(path, data, overwrite=args.force)
        print(one_line(f"wrote {path}"))
    return 1 if results.left_out else 0


def _png(picture: Image.Image) -> bytes:
    """A PNG file."""
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return out.getvalue()


def _log(message: str) -> None:
    """Print to standard error."""
    print(one_line(message), file=sys.stderr, flush=True)
