"""The results as one static page: `python -m benchmarks.web [-o FILE]`, or `make report`."""

from __future__ import annotations

import argparse
import html
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import RESULTS, ROOT
from benchmarks.web import coded, measured, paper
from benchmarks.web.records import Record, load

DEFAULT = ROOT / "build" / "report.html"
STYLE = Path(__file__).with_name("style.css")
# Nothing is fetched and nothing runs: the browser itself refuses it.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def page(records: Sequence[Record], style: str) -> str:
    """The whole page."""
    sections = [
        part
        for make in (
            measured.machines, coded.curves, coded.published, paper.mechanisms, paper.scaling, paper.complexity,
            paper.context, coded.codec, coded.cold, measured.speed, measured.rates, measured.portability,
            measured.training, measured.missing,
        )
        if (part := make(records))
    ]  # fmt: skip
    titles = [re.search(r'id="([^"]+)"><h2>(.*?)</h2>', part) for part in sections]
    links = "".join(f'<li><a href="#{found[1]}">{found[2]}</a></li>' for found in titles if found)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{html.escape(POLICY)}">
<title>lalic: results</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>lalic: what was measured</h1>
<p>Made from the records in <code>benchmarks/results/</code>, the latest of each kind; every number stands in one of
them. How each was taken is written in <code>benchmarks/results/README.md</code>.</p>
</header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main>
{chr(10).join(sections)}
</main>
</body>
</html>
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page and say where. Returns 0; usage errors exit with 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.web", description="The results as one page.")
    parser.add_argument("-o", "--output", type=Path, default=DEFAULT, help="default build/report.html")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="default benchmarks/results")
    options = parser.parse_args(argv)
    try:
        records = load(options.results)
    except ValueError as error:
        parser.error(str(error))
    if not records:
        parser.error(f"{options.results} holds no results")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(page(records, STYLE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
