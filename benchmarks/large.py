"""Large pictures: `python -m benchmarks.large`, memory of the commands; `--regions`; `--seams PICTURE ...`.

Memory: largest resident size of `lalic compress` and `lalic decompress`, each a process of its own, on a JPEG of the
picture that ships, mirrored to the size. Pillow holds a picture at 4 bytes a pixel; what is above that should not grow.
Pictures above 2^28 pixels are TIFF files, which libvips reads and writes in strips. The time that is expected
follows from the first 4 megapixels.

Regions: seconds of decoding a region of so many tiles, which should be in proportion to their number.

Seams: the same picture in tiles and in one tile, at one quality: file size, PSNR, and PSNR within 8 pixels of the
borders of tiles and elsewhere. Pictures should not have an edge of their own where the tiles have theirs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks import records, report
from benchmarks.codec import photo
from benchmarks.measure import WrongResult
from lalic import codec, container, images
from lalic.hub import load_model
from lalic.options import add_checkpoint_option, positive
from lalic.strips import needs_strips
from lalic.tiles import Box

MEGAPIXELS = (4, 12, 24, 48, 200)
BAND = 8  # pixels on each side of a border
MIB = 1 << 20
Say = Callable[[str], None]


def memory(megapixels: int, checkpoint: str | None = None, say: Say = print) -> dict[str, Any]:
    """Peaks of both commands for a picture of 4 to 3 sides, in MiB, and the picture itself as Pillow holds it."""
    width, height = _sides(megapixels)
    strips = needs_strips(width, height)
    row: dict[str, Any] = {"size": [width, height], "picture MiB": 0 if strips else round(4 * width * height / MIB)}
    with tempfile.TemporaryDirectory() as folder:
        names = ("a.tif", "a.lalic", "b.tif") if strips else ("a.jpg", "a.lalic", "b.png")
        source, coded, back = (os.path.join(folder, name) for name in names)
        _write(width, height, source)
        for name, words in (("compress", [source, "-o", coded]), ("decompress", [coded, "-o", back])):
            given = [] if checkpoint is None else ["--checkpoint", checkpoint]
            command = [sys.executable, "-m", "lalic", name, *words, *given, "--max-pixels", str(width * height)]
            start = time.perf_counter()
            row[f"{name} MiB"] = round(_peak([*command, "--quiet"]))
            say(f"{megapixels} megapixels, {name}: {row[f'{name} MiB']} MiB, {time.perf_counter() - start:.0f} s")
        row["bits per pixel"] = round(8 * os.path.getsize(coded) / (width * height), 4)
    return row


def _sides(megapixels: int) -> tuple[int, int]:
    """Width and height, 4 to 3."""
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    return round(megapixels * 1e6 / height), height


def _write(width: int, height: int, target: str) -> None:
    """The picture that ships, mirrored to the size: a JPEG, or from a small picture by libvips what that writes."""
    if not needs_strips(width, height):
        photo(height, width).save(target, quality=95)
        return
    import pyvips

    piece = np.asarray(photo(1024, 1024))  # its edges fit each other
    image = pyvips.Image.new_from_array(piece).replicate(-(-width // 1024), -(-height // 1024))
    image.crop(0, 0, width, height).write_to_file(target)


def all_memory(sizes: Iterable[int], checkpoint: str | None = None, say: Say = print) -> list[dict[str, Any]]:
    """`memory` of each size. Says before each how long it may take.

    A first picture, which does not count, lets the loops be compiled: that takes memory once.
    """
    memory(2, checkpoint, lambda words: None)
    rows, a_megapixel = [], None
    for megapixels in sizes:
        expected = "" if a_megapixel is None else f", some {megapixels * a_megapixel / 60:.0f} minutes"
        say(f"{megapixels} megapixels{expected}")
        start = time.perf_counter()
        rows.append(memory(megapixels, checkpoint, say))
        a_megapixel = (time.perf_counter() - start) / megapixels
    return rows


def regions(megapixels: int, checkpoint: str | None = None, repeats: int = 3, say: Say = print) -> list[dict[str, Any]]:
    """Seconds of decoding regions of more and more tiles, and of the whole; the least of some alternating runs.

    A region ends inside of its last tile, so its tiles are those that are synthesised; latents of their neighbours are
    read too (`read`). Raises ``WrongResult`` for a region that is not that part of the whole.
    """
    model, (width, height) = load_model(checkpoint), _sides(megapixels)
    data = codec.encode(photo(height, width), model)
    whole, grid = codec.decode(data, model), codec.grid_of(width, height)
    sides = [n for n in (1, 2, 3, 4, 6) if n < min(grid.rows, grid.columns)]
    boxes = [Box(0, 0, n * codec.TILE - codec.TILE // 2, n * codec.TILE - codec.TILE // 2) for n in sides]
    boxes = [box.moved(codec.TILE // 4, codec.TILE // 4) for box in boxes]
    seconds: list[list[float]] = [[] for _ in (*boxes, grid.whole)]
    for number in range(repeats):
        for box, taken in zip((*boxes, grid.whole), seconds, strict=True):
            start = time.perf_counter()
            part = codec.decode(data, model, region=box)
            taken.append(time.perf_counter() - start)
            if part.tobytes() != whole.crop(box).tobytes():
                raise WrongResult(f"the region {tuple(box)} is not that part of the whole picture")
        say(f"round {number + 1} of {repeats}: {sum(taken[-1] for taken in seconds):.0f} s")
    rows = []
    for box, taken in zip((*boxes, grid.whole), seconds, strict=True):
        tiles = list(grid.meeting(box))
        read = {near for index in tiles for near in grid.meeting(grid.window(index))}
        row = {"size": [width, height], "region": [box.width, box.height], "tiles": len(tiles), "read": len(read)}
        rows.append(row | {"seconds": min(taken), "seconds a tile": min(taken) / len(tiles)})
    return rows


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
    parser = records.parser("large", "Memory, regions and seams of large pictures.", where=False)
    parser.add_argument("--megapixels", nargs="+", type=positive, default=MEGAPIXELS, metavar="N")
    parser.add_argument("--regions", action="store_true", help="time regions of more and more tiles")
    parser.add_argument("--seams", nargs="+", type=Path, metavar="PICTURE", help="compare tiles with one tile")
    parser.add_argument("--quality", nargs="+", type=float, metavar="Q", help="for --seams (default: 50)")
    add_checkpoint_option(parser)
    options = parser.parse_args(argv)
    record = records.environment(records.check(parser, options, timed=options.regions))
    if options.seams:
        qualities = options.quality or [50.0]
        what = {"seams": [seams(path, q, options.checkpoint) for path in options.seams for q in qualities]}
    elif options.regions:
        what = {"regions": [row for n in options.megapixels for row in regions(n, options.checkpoint)]}
    else:
        what = {"large pictures": all_memory(options.megapixels, options.checkpoint)}
    report.show(record | what)
    records.keep(record | what, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
