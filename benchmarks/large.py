"""Large pictures: `python -m benchmarks.large`, memory of the commands; `--seams PICTURE ...`, tiles against one tile.

Memory: largest resident size of `lalic compress` and `lalic decompress`, each a process of its own, on a JPEG of the
picture that ships, mirrored to the size. Pillow holds a picture at 4 bytes a pixel; what is above that should not grow.

Seams: the same picture in tiles and in one tile, at one quality: file size, PSNR, and PSNR within 8 pixels of the
borders of tiles and elsewhere. Pictures should not have an edge of their own where the tiles have theirs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks import records, report
from benchmarks.codec import photo
from benchmarks.measure import WrongResult
from lalic import codec, container, images
from lalic.hub import load_model

MEGAPIXELS = (4, 12, 24, 48, 200)
BAND = 8  # pixels on each side of a border
MIB = 1 << 20


def memory(megapixels: int, checkpoint: str | None = None) -> dict[str, Any]:
    """Peaks of both commands for a picture of 4 to 3 sides, in MiB, and what is above the picture in Pillow."""
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    width = round(megapixels * 1e6 / height)
    row: dict[str, Any] = {"size": [width, height], "picture MiB": round(4 * width * height / MIB)}
    with tempfile.TemporaryDirectory() as folder:
        source, coded, back = (os.path.join(folder, name) for name in ("a.jpg", "a.lalic", "b.png"))
        photo(height, width).save(source, quality=95)
        for name, words in (("compress", [source, "-o", coded]), ("decompress", [coded, "-o", back])):
            given = [] if checkpoint is None else ["--checkpoint", checkpoint]
            row[f"{name} MiB"] = round(_peak([sys.executable, "-m", "lalic", name, *words, *given, "--quiet"]))
        row["bits per pixel"] = round(8 * os.path.getsize(coded) / (width * height), 4)
    return row


# A process counts the peak of the one that it was forked from as its own, so a small one starts the measured one.
_MEASURE = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:])
_, status, usage = os.wait4(process.pid, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def _peak(command: list[str]) -> float:
    """Largest resident size of a process, in MiB. Raises ``WrongResult`` if it fails."""
    environment = os.environ | {"PYTHONPATH": str(records.ROOT)}
    words = [sys.executable, "-c", _MEASURE, *command]
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise WrongResult(f"{' '.join(command[:5])} ended with {done.returncode}")
    return int(done.stdout.split()[-1]) / 1024


def seams(path: Path, quality: float | None, checkpoint: str | None = None) -> dict[str, Any]:
    """One picture in tiles against the same in one tile."""
    model, picture = load_model(checkpoint), images.load(path)
    tiled = codec.encode(picture, model, quality=quality)
    with mock.patch.object(codec, "ONE_TILE", 1 << 40):
        whole = codec.encode(picture, model, quality=quality)
    with mock.patch.object(container, "MAX_WINDOW", 1 << 40):
        decoded = [np.asarray(codec.decode(data, model)) for data in (whole, tiled)]
    truth = np.asarray(picture).astype(np.float32)
    border = np.zeros(truth.shape[:2], bool)
    for step in range(codec.TILE, max(truth.shape), codec.TILE):
        border[step - BAND : step + BAND] = True
        border[:, step - BAND : step + BAND] = True
    row: dict[str, Any] = {"picture": path.stem, "size": list(picture.size), "quality": quality}
    row["rate"] = round(len(tiled) / len(whole) - 1, 5)
    for name, back in zip(("one tile", "tiles"), decoded, strict=True):
        error = ((back - truth) ** 2).mean(axis=2)
        parts = {"": error, " at borders": error[border], " elsewhere": error[~border]}
        row |= {f"{name}{part} dB": round(float(10 * np.log10(255**2 / e.mean())), 3) for part, e in parts.items()}
    return row


def main(argv: Sequence[str] | None = None) -> int:
    """Print rows. Returns 0; usage errors exit with 2."""
    parser = records.parser("large", "Memory and seams of large pictures.", where=False)
    parser.add_argument("--megapixels", nargs="+", type=int, default=MEGAPIXELS, metavar="N")
    parser.add_argument("--seams", nargs="+", type=Path, metavar="PICTURE", help="compare tiles with one tile")
    parser.add_argument("--quality", nargs="+", type=float, metavar="Q", help="for --seams (default: 50)")
    parser.add_argument("--checkpoint", metavar="PATH", help="weights to use instead of those that ship")
    options = parser.parse_args(argv)
    record = records.environment(records.check(parser, options, timed=False))
    if options.seams:
        qualities = options.quality or [50.0]
        what = {"seams": [seams(path, q, options.checkpoint) for path in options.seams for q in qualities]}
    else:
        what = {"large pictures": [memory(n, options.checkpoint) for n in options.megapixels]}
    report.show(record | what)
    records.keep(record | what, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
