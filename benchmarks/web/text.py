"""Pieces of the page. A number is always marked with where it comes from: its value as the record holds it.

    <data value="0.01234" data-per="0.001">12.34</data>    shown = value / per, rounded
    <span class="name">AMD EPYC, 2 cores</span>            words of a record, digits and all

A test reads the page again: values must stand in a results file, and outside these two there is no digit but those of
fixed words such as "Table 5".
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

DIGITS = 4  # that are shown of a measurement


def number(value: float | None, per: float = 1, unit: str = "", digits: int = DIGITS) -> str:
    """A value of a record over `per`, in so many digits; a dash where there is none."""
    if value is None:
        return "&ndash;"
    return f'<data value="{value!r}" data-per="{per!r}">{_rounded(value / per, digits)}</data>{unit and " " + unit}'


def _rounded(value: float, digits: int) -> str:
    if value == 0 or (float(value).is_integer() and abs(value) < 10**digits):
        return str(int(value))
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def seconds(value: float | None) -> str:
    """In s, ms or µs."""
    for unit, per in (("s", 1.0), ("ms", 1e-3)):
        if value is not None and value >= per:
            return number(value, per, unit)
    return number(value, 1e-6, "µs")


def size(value: float | None) -> str:
    """Bytes in MiB, from one GiB on in GiB."""
    big = value is not None and value >= 1 << 30
    return number(value, 1 << 30, "GiB") if big else number(value, 1 << 20, "MiB")


def name(words: object) -> str:
    """Words that a record holds."""
    return f'<span class="name">{html.escape(str(words))}</span>'


def table(head: Sequence[str], body: Sequence[Sequence[str]], caption: str = "") -> str:
    """Cells and a head of HTML; the first column names its row."""
    if not body:
        return ""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    rows = "\n".join(
        "<tr>" + f'<th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>"
        for row in body
    )
    said = f"<caption>{caption}</caption>" if caption else ""
    return f'<div class="wide"><table>{said}<thead><tr>{top}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>'


def section(key: str, title: str, *parts: str) -> str:
    """A part of the page; nothing if all its parts are empty."""
    inner = "\n".join(part for part in parts if part)
    return f'<section id="{key}"><h2>{html.escape(title)}</h2>\n{inner}\n</section>' if inner else ""


def paragraph(text: str) -> str:
    """Text that may hold numbers and names."""
    return f"<p>{text}</p>"


def bullets(items: Sequence[str]) -> str:
    """A list; nothing if it is empty."""
    return "<ul>\n" + "\n".join(f"<li>{item}</li>" for item in items) + "\n</ul>" if items else ""
