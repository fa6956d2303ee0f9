"""All that depends on the weights that ship, made again: `python -m benchmarks.shipped --kodak DIR ... --save`.

Run it after `python scripts/ship_weights.py` and a commit, as records name the commit that they were taken at. It
measures rates on the three sets of pictures of the README (`benchmarks.rd`), one thread each, and appends records; then
it writes the README's table of rates and docs/figures from the newest records. Without folders and --save it only
writes table and figures.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import rd, records
from lalic import cli

ROOT = records.ROOT
SETS = ("Kodak", "held-out", "scikit-image")
COLUMNS = (("Kodak", "psnr"), ("Kodak", "ms-ssim"), ("held-out", "psnr"), ("scikit-image", "psnr"))
ANCHORS = {
    "JPEG": "JPEG 4:2:0",
    "WebP": "WebP",
    "AVIF": "AVIF 4:4:4",
    "AVIF, tuned for PSNR": "AVIF 4:4:4, tune=psnr",
    "VTM-9.1, published": "VTM-9.1 (published)",
}
"""Names in the README's table of rates -> names in records."""

QUALITIES = [str(quality) for quality in (1, 10, 25, 40, 55, 70, 85, 100)]
CODECS = ["lalic", "jpeg", "webp", "avif", "avif-psnr"]
COMPARISON = ["lalic", "jpeg", "webp", "--target", "0.3", "--crop", "130,40,176,208"]  # of the picture that ships


def row(name: str) -> str:
    """A row of the README's table of rates: BD-rates against a codec of `ANCHORS`, by the newest records."""
    cells = [name]
    for pictures, metric in COLUMNS:
        wanted = ("lalic", metric, ANCHORS[name])
        found = [c for c in rd.newest(pictures)["comparisons"] if (c["test"], c["metric"], c["anchor"]) == wanted]
        cells.append(f"{found[0]['percent']['pchip']:+.0f} %" if found else "")
    return f"| {' | '.join(cells)} |"


def with_rates(text: str) -> str:
    """A document with each row of the table of rates replaced. Raises ``ValueError`` if one is not there once."""
    for name in ANCHORS:
        text, count = re.subn(rf"^\| {re.escape(name)} \|.*%.*$", row(name), text, flags=re.MULTILINE)
        if count != 1:
            raise ValueError(f"the document has {count} rows of {name!r} with rates, expected 1")
    return text


def draw(folder: Path) -> None:
    """The figures of the README: rates on Kodak, and the picture that ships beside other codecs."""
    picture = str(ROOT / "lalic" / "assets" / "astronaut.png")
    with tempfile.TemporaryDirectory() as drawn:
        rd.draw(rd.newest("Kodak"), Path(drawn, "kodak"))
        if code := cli.main(["compare", picture, *COMPARISON, "-o", f"{drawn}/astronaut", "-f"]):
            raise SystemExit(code)
        for name in ("kodak-psnr.png", "astronaut.png"):
            (folder / name).write_bytes(Path(drawn, name).read_bytes())


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what has a folder, then write documents. Returns the exit code."""
    parser = records.parser("shipped", "All that depends on the weights that ship, made again.", where=False)
    for name in SETS:
        parser.add_argument(f"--{name.lower()}", metavar="DIR", help=f"the pictures of {name}, to measure their rates")
    options = parser.parse_args(argv)
    for name in SETS:
        folder = getattr(options, name.lower().replace("-", "_"))
        if folder is None:
            continue
        words = [folder, "--codecs", *CODECS, "-q", *QUALITIES, "--threads", "1", "--name", name]
        words += ["--published", "kodak"] if name == "Kodak" else []
        words += ["--save", "--results", str(options.results)] if options.save else []
        if code := rd.main(words):
            return code
    readme = ROOT / "README.md"
    readme.write_text(with_rates(readme.read_text(encoding="utf-8")), encoding="utf-8")
    draw(ROOT / "docs" / "figures")
    return 0


if __name__ == "__main__":
    sys.exit(main())
