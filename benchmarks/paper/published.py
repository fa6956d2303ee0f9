"""The paper's BD-rates from its own published points: `python -m benchmarks.paper.published [--save]`.

LALIC against VTM-9.1, in percent of rate at equal quality, as Table 4 and the text of the paper give them, and as
`lalic.eval.curves` computes them from the curves of `lalic/eval/published.json`. That the two agree is what makes other
BD-rates of `lalic eval` worth reading. Nothing is measured.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import records, report
from lalic.errors import LalicError
from lalic.eval import curves

PAPER = (  # pictures, metric, percent
    ("kodak", "psnr", -15.26),
    ("clic", "psnr", -15.41),
    ("tecnick", "psnr", -17.63),
    ("kodak", "ms-ssim", -51.23),
)
Row = dict[str, Any]


def rows() -> list[Row]:
    """A row a set and metric: what the paper says, and each method's percent and the span of quality that counts."""
    found: list[Row] = []
    for pictures, metric, said in PAPER:
        test, anchor = curves.published_curves(pictures)
        row: Row = {"pictures": pictures, "metric": metric, "paper": said, "test": test.title}
        row["anchor"] = anchor.title.removesuffix(" (published)")  # all of this table is
        for method in curves.METHODS:
            delta = curves.bd_rate(anchor.rd_points(metric), test.rd_points(metric), method)
            row |= {method: delta.percent, "low": delta.low, "high": delta.high, "share": delta.share}
        found.append(row)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, and with --save append it. Returns 0; usage errors exit with 2."""
    parser = records.parser("paper.published", "BD-rates of published curves.", where=False)
    options = parser.parse_args(argv)
    try:
        record = records.counted(published=rows())
    except LalicError as error:  # the package that computes them is not installed
        parser.error(str(error))
    report.show(record)
    records.keep(record, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
