"""The arguments of `lalic eval` and `lalic compare`; needs no torch, so that `lalic --help` answers at once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

DEFAULT_CODECS = ["lalic", "jpeg", "webp", "avif"]
_CODECS = (
    "lalic, jpeg, jpeg-444, webp, avif, avif-psnr, jxl, heic, vtm, compressai-NAME; behind a colon, its own qualities"
)


def register(commands: Any, epilog: str) -> None:
    """Declare both commands; `commands` is what argparse's `add_subparsers` gives."""
    evaluate = commands.add_parser(
        "eval",
        help="rate and distortion of files, beside other codecs",
        description="Compress and decompress pictures, and print bits per pixel of the files, PSNR, MS-SSIM, seconds "
        "and BD-rates, beside other codecs measured on the spot.",
        epilog=epilog,
    )
    add_arguments(evaluate)
    evaluate.set_defaults(run=_run_eval)

    compare = commands.add_parser(
        "compare",
        help="one picture through several codecs, side by side",
        description="Compress a picture with several codecs at matched size or PSNR, and write a sheet of crops (PNG) "
        "and a page with a slider (HTML). The first codec says what the others are matched to.",
        epilog=epilog,
    )
    compare.add_argument("input", metavar="IN", help="picture")
    compare.add_argument("codecs", nargs="+", metavar="CODEC[:Q]", help=f"the first leads, unless --target: {_CODECS}")
    compare.add_argument("--match", choices=("bpp", "psnr"), default="bpp", help="what is to be equal (default bpp)")
    compare.add_argument("--target", type=float, metavar="X", help="bits per pixel or dB, for the first codec too")
    compare.add_argument(
        "--crop", action="append", default=[], metavar="X,Y,W,H", help="a crop of the sheet; repeatable"
    )
    compare.add_argument(
        "-o", "--output", metavar="STEM", help="writes STEM.png and STEM.html; in a folder IN-compare (default: here)"
    )
    compare.add_argument("-f", "--force", action="store_true", help="overwrite files that exist")
    add_model_arguments(compare)
    compare.set_defaults(run=_run_compare)


def add_arguments(parser: argparse.ArgumentParser, inputs: str = "+") -> None:
    """The arguments of `lalic eval`; inputs: argparse's word for how many pictures there must be."""
    parser.add_argument("inputs", nargs=inputs, metavar="IN", help="pictures, or folders of pictures")
    parser.add_argument(
        "--codecs",
        nargs="+",
        metavar="CODEC[:Q,Q...]",
        help=f"what to measure (default: {' '.join(DEFAULT_CODECS)}): {_CODECS}",
    )
    parser.add_argument(
        "--published", choices=("kodak", "clic", "tecnick"), help="the set that IN is: published curves join in"
    )
    parser.add_argument(
        "--against", nargs="+", default=[], metavar="FILE", help="more curves, JSON in CompressAI's form"
    )
    parser.add_argument("--bpp", nargs=2, type=float, metavar=("LOW", "HIGH"), help="points that count for BD-rates")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder for JSON files and plots (PNG, SVG)")
    parser.add_argument("--each", action="store_true", help="a line for each picture too")
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of the table")
    parser.add_argument("--name", help="what to call the set of pictures (default: the first input's name)")
    add_model_arguments(parser)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """lalic's models and where they run, and VTM."""
    parser.add_argument("--checkpoint", nargs="+", default=[], metavar="PATH", help="lalic's weights, one or several")
    parser.add_argument("-q", "--quality", nargs="+", type=float, default=[], metavar="Q", help="lalic's, 1..100")
    parser.add_argument("--precision", choices=("float32", "bfloat16", "float16"), help="of lalic's transforms")
    parser.add_argument("--device", metavar="DEVICE", help="of lalic's models: cpu (default), cuda or cuda:N")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of lalic's models")
    parser.add_argument("--vtm", metavar="FILE", help="VTM's EncoderAppStatic, for the codec vtm")
    parser.add_argument("--vtm-config", metavar="FILE", help="its encoder_intra_vtm.cfg (default: ../cfg beside it)")


def _run_eval(args: argparse.Namespace) -> int:
    from lalic.eval import session

    return session.run(args)


def _run_compare(args: argparse.Namespace) -> int:
    from lalic.eval import compare

    return compare.run(args)
