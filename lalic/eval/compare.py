"""`lalic compare`: one picture through several codecs at matched size or PSNR, as a sheet of crops and as a page."""

from __future__ import annotations

import argparse
import base64
import html
import io
import json
import os
import string
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lalic import images
from lalic.errors import LalicError
from lalic.eval import machine, session
from lalic.eval.codecs import Codec
from lalic.eval.match import Match, coded_at, nearest
from lalic.files import write_atomic

__all__ = ["Box", "choose_crops", "figures", "matched", "page", "parse_box", "run", "sheet"]

Box = tuple[int, int, int, int]  # left, top, width, height

_CROP, _ZOOM = 160, 2
_MARGIN, _LINE = 8, 18


def run(args: argparse.Namespace) -> int:
    """Write the sheet and the page. Returns the exit code, 1 if a codec that was named is not installed."""
    device = session.set_up(args)
    stem = f"{Path(args.input).stem}-compare"
    if args.output:  # a folder, or a stem
        folder = args.output.endswith(("/", os.sep)) or os.path.isdir(args.output)
        stem = os.path.join(args.output, stem) if folder else args.output
    targets = [Path(f"{stem}{suffix}") for suffix in (".png", ".html")]
    for path in targets:
        if path.exists() and not args.force:
            raise LalicError(f"{path} exists already, --force overwrites it")
    codecs, left_out = session.codecs_of(args, device)
    for sentence in left_out:
        session.say(f"left out: {sentence}")
    if not codecs:
        raise LalicError("nothing is left to compare")
    with open(args.input, "rb") as stream:
        picture = images.load(stream.read())
    boxes = [parse_box(text, picture) for text in args.crop] or choose_crops(picture)
    found = matched(codecs, picture, args.match, args.target)
    for match in found:
        print(f"{match.codec.title}: {figures(match)}")
    caption = "; ".join([machine.caption(device), *(f"{m.codec.title}: {m.codec.version}" for m in found)])
    out = io.BytesIO()
    sheet(picture, found, boxes).save(out, "PNG", optimize=True)
    text = page(Path(args.input).name, picture, found, caption)
    for path, data in zip(targets, (out.getvalue(), text.encode()), strict=True):
        write_atomic(path, data, overwrite=args.force)
        print(f"wrote {path}")
    return 1 if left_out else 0


def matched(codecs: Sequence[Codec], picture: Image.Image, what: str, target: float | None) -> list[Match]:
    """The picture through each codec: at the qualities that were chosen, or as near as it comes to the target.

    what: "bpp" or "psnr". target: its value; None: what the first codec has, at its chosen quality or amid its ladder.
    """
    found: list[Match] = []
    for codec in codecs:
        if codec.chosen:
            found += [coded_at(codec, picture, quality) for quality in codec.qualities]
        elif target is None:
            found.append(coded_at(codec, picture, codec.qualities[len(codec.qualities) // 2]))
        else:
            found.append(nearest(codec, picture, what, target))
        target = found[0].value(what) if target is None else target
    return found


def parse_box(text: str, picture: Image.Image) -> Box:
    """ "X,Y,W,H" as a box. Raises `LalicError` for another form or one that is not inside the picture."""
    try:
        left, top, width, height = map(int, text.split(","))
    except ValueError:
        raise LalicError(f"--crop is {text!r}, expected X,Y,WIDTH,HEIGHT in pixels") from None
    inside = left >= 0 and top >= 0 and left + width <= picture.width and top + height <= picture.height
    if not inside or width < 1 or height < 1:
        raise LalicError(f"--crop is {text!r}, expected a box inside {picture.width}x{picture.height}")
    return left, top, width, height


def choose_crops(picture: Image.Image) -> list[Box]:
    """Up to three squares that do not overlap, chosen by the original alone: of the most detail, and of less.

    Detail is the mean absolute difference of neighbours; squares stand on a grid of half their side, and those at the
    top, at four fifths and at three fifths of all of them by detail are taken, or the next below that is still free.
    """
    side = min(_CROP, *picture.size)
    grey = np.asarray(picture.convert("L"), dtype=np.float64)
    spread = np.zeros_like(grey)
    spread[:-1] += abs(np.diff(grey, axis=0))
    spread[:, :-1] += abs(np.diff(grey, axis=1))
    places = [
        (left, top)
        for top in range(0, picture.height - side + 1, max(1, side // 2))
        for left in range(0, picture.width - side + 1, max(1, side // 2))
    ]
    places.sort(key=lambda at: -spread[at[1] : at[1] + side, at[0] : at[0] + side].sum())
    taken: list[tuple[int, int]] = []
    for share in (0.0, 0.2, 0.4):
        for left, top in places[int(share * len(places)) :]:
            if all(abs(left - x) >= side or abs(top - y) >= side for x, y in taken):
                taken.append((left, top))
                break
    return [(left, top, side, side) for left, top in taken]


def figures(match: Match) -> str:
    """One line: quality, bytes, bits per pixel, PSNR, MS-SSIM."""
    close = "" if match.ms_ssim is None else f", MS-SSIM {match.ms_ssim:.2f} dB"
    quality = "" if match.quality is None else f"quality {match.quality:g}, "
    return f"{quality}{match.coded.size} bytes, {match.bpp:.4f} bits per pixel, PSNR {match.psnr:.2f} dB{close}"


def sheet(picture: Image.Image, found: Sequence[Match], boxes: Sequence[Box]) -> Image.Image:
    """Crops twice as large, a row each, in columns of the original and each codec, with its figures on top."""
    columns = [("original", f"{picture.width}x{picture.height}", picture)]
    for match in found:
        columns.append((match.codec.title, f"{match.bpp:.3f} bpp, {match.psnr:.2f} dB", match.coded.picture))
    font = ImageFont.load_default(size=13)
    width = max(max(box[2] for box in boxes) * _ZOOM, 150)
    head = 2 * _LINE + _MARGIN
    height = head + sum(box[3] * _ZOOM + _MARGIN for box in boxes)
    result = Image.new("RGB", (len(columns) * (width + _MARGIN) + _MARGIN, height + _MARGIN), "white")
    draw = ImageDraw.Draw(result)
    for i, (title, line, whole) in enumerate(columns):
        left, top = _MARGIN + i * (width + _MARGIN), head
        draw.text((left, _MARGIN // 2), f"{title}\n{line}", fill="black", font=font)
        for x, y, w, h in boxes:
            crop = whole.crop((x, y, x + w, y + h)).resize((w * _ZOOM, h * _ZOOM), Image.Resampling.NEAREST)
            result.paste(crop, (left, top))
            top += h * _ZOOM + _MARGIN
    return result


def page(name: str, picture: Image.Image, found: Sequence[Match], caption: str) -> str:
    """A web page that needs nothing else: two of the pictures, without loss, under a slider, and a table."""
    pictures = [{"label": "original", "data": _data_uri(picture)}]
    rows = [f"<tr><td>original</td><td></td><td></td><td>{picture.width}x{picture.height}</td><td></td><td></td></tr>"]
    for match in found:
        label = f"{match.codec.title}, {match.bpp:.3f} bpp, {match.psnr:.2f} dB"
        pictures.append({"label": label, "data": _data_uri(match.coded.picture)})
        cells = [
            html.escape(match.codec.title),
            "" if match.quality is None else f"{match.quality:g}",
            f"{match.coded.size}",
            f"{match.bpp:.4f}",
            f"{match.psnr:.2f}",
            "" if match.ms_ssim is None else f"{match.ms_ssim:.2f}",
        ]
        rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    template = resources.files("lalic.eval").joinpath("page.html").read_text(encoding="utf-8")
    return string.Template(template).substitute(
        title=html.escape(name),
        rows="\n".join(rows),
        caption=html.escape(caption),
        width=picture.width,
        # A script ends at the first "</", wherever it stands.
        pictures=json.dumps(pictures).replace("</", "<\\/"),
    )


def _data_uri(picture: Image.Image) -> str:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
