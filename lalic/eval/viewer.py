"""One picture with several codecs under a divider: what the viewer shows, a table of figures, and a page of one file.

`viewer.js` and `viewer.css` are the viewer. `lalic web` shows it, and `lalic compare --page` writes it into a page with
the pictures inside, which opens without a server and loads nothing.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources

from PIL import Image

from lalic.eval.curves import decibels
from lalic.eval.side_by_side import Match, remarks

__all__ = ["asset", "figures_table", "page", "shown_factor", "shown_picture", "size_text", "view"]

_MOST_PIXELS, _LONGEST = 1 << 24, 16383  # of a picture that browsers are given


def asset(name: str) -> str:
    """The text of a file beside this one."""
    return resources.files("lalic.eval").joinpath(name).read_text(encoding="utf-8")


def shown_picture(picture: Image.Image) -> bytes:
    """A WebP file without loss of an RGB picture, reduced by `shown_factor`."""
    factor = shown_factor(picture.size)
    out = io.BytesIO()
    shown = picture if factor == 1 else picture.reduce(factor)
    shown.save(out, "WEBP", lossless=True, quality=0, method=0)
    return out.getvalue()


def shown_factor(size: tuple[int, int]) -> int:
    """By what the sides of a picture are divided to be shown: 1 for up to 2^24 pixels whose sides WebP can have."""
    width, height = size
    factor = 1
    while width * height > _MOST_PIXELS * factor**2 or max(size) > _LONGEST * factor:
        factor += 1
    return factor


def view(name: str, title: str, src: str, note: str = "") -> dict[str, str]:
    """One view for the viewer."""
    return {"id": name, "title": title, "src": src, "note": note}


_ROWS = ("Size", "Bits per pixel", "PSNR", "MS-SSIM", "Encoding", "Decoding", "Quality")


def figures_table(matches: Sequence[Match], links: Mapping[str, str] | None = None) -> str:
    """The figures of matches as an HTML table, a column each. links: the addresses of files, by a codec's name."""
    columns = [dict(zip(_ROWS, _cells(match), strict=True)) for match in matches]
    head = "".join(f"<th scope=col>{html.escape(match.codec.title)}</th>" for match in matches)
    rows = "".join(
        f"<tr><th scope=row>{name}</th>" + "".join(f"<td>{column[name]}</td>" for column in columns) + "</tr>"
        for name in _ROWS
        if any(column[name] != "-" for column in columns)
    )
    if links:
        cells = "".join(
            f'<td><a href="{html.escape(links[match.codec.name])}" download '
            f'aria-label="Download the file of {html.escape(match.codec.title)}">Download</a></td>'
            if match.codec.name in links
            else "<td>-</td>"
            for match in matches
        )
        rows += f"<tr><th scope=row>File</th>{cells}</tr>"
    return f"<table class=lalic-figures><thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _cells(match: Match) -> tuple[str, ...]:
    """What the rows of `figures_table` say of a match."""
    seconds = [match.encode_seconds, match.decode_seconds]
    return (
        size_text(match.coded.size),
        f"{match.bpp:.3f}",
        f"{match.psnr:.2f} dB",
        "-" if match.ms_ssim is None else f"{decibels(match.ms_ssim):.2f} dB",
        *("-" if time is None else f"{time:.2f} s" if time >= 0.095 else f"{1000 * time:.0f} ms" for time in seconds),
        "-" if match.quality is None else f"{match.quality:g}",
    )


def size_text(count: int) -> str:
    """A number of bytes for people: in bytes, kB or MB of 1000."""
    for unit, divisor in (("MB", 1_000_000), ("kB", 1000)):
        if count >= divisor:
            return f"{count / divisor:.1f} {unit}"
    return f"{count} bytes"


def page(
    name: str,
    picture: Image.Image,
    matches: Sequence[Match],
    metric: str,
    caption: str,
    target: float | None = None,
) -> str:
    """An HTML page with the viewer, the figures and all pictures in it, which loads nothing.

    name: of the picture. metric: "bpp" or "psnr", what was matched. caption: on the machine, below the figures.
    target: of `compare`.
    """
    pictures = [("original", "Original", picture, f"{picture.width}x{picture.height}")]
    for number, match in enumerate(matches, 1):
        pictures.append((f"{match.codec.name}-{number}", match.codec.title, match.coded.picture, match.heading()))
    views = []
    for identity, title, one, note in pictures:
        inside = base64.b64encode(shown_picture(one)).decode("ascii")
        views.append(view(identity, title, f"data:image/webp;base64,{inside}", note))
    data = {"width": picture.width, "height": picture.height, "views": views}
    texts = {
        "name": html.escape(name),
        "style": asset("viewer.css"),
        "script": asset("viewer.js"),
        "data": json.dumps(data).replace("<", "\\u003c"),
        "figures": figures_table(matches),
        "remarks": html.escape(". ".join([*remarks(matches, metric, target), caption])),
    }
    return re.sub(r"\[\[(\w+)\]\]", lambda found: texts[found[1]], asset("page.html"))
