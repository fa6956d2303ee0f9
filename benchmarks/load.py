"""Long use: `python -m benchmarks.load`, memory while many pictures are coded, and whether any file differs.

Each row is one process that codes the same small pictures of several kinds: one after the other; `lalic compress` and
`lalic decompress` of the folder; and 8 threads that encode and decode them all. Every .lalic file and every PNG must
have the bytes of the first row, all with torch's default of CPU threads: with another number, float arithmetic of the
synthesis rounds otherwise. Memory is the resident size after a tenth of the work, half of it, and at the end; it rises
until there was a picture of each kind and size. `--minutes N` lets the threads go round and round for that long.
"""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import lalic
from benchmarks import records, report
from benchmarks.codec import photo
from benchmarks.measure import WrongResult
from lalic import images
from lalic.hub import load_model
from lalic.model import LALIC
from lalic.options import add_checkpoint_option, positive

PICTURES = 1000
THREADS = 8
TENTHS = [tenth / 10 for tenth in range(1, 11)]
WAIT = 0.2  # seconds between looks at a command
MIB = 1 << 20
Hashes = dict[str, tuple[str, str]]  # of the .lalic file and the PNG by name of the picture
Row = dict[str, Any]


def write_pictures(folder: Path, count: int) -> None:
    """Small pictures of many sizes: RGB, grey, with alpha, turned by EXIF, of 16 bits, with a palette."""
    whole = photo(512, 768)
    for number in range(count):
        width, height = 40 + number * 37 % 150, 40 + number * 53 % 130
        left, top = number * 101 % (768 - width), number * 67 % (512 - height)
        part = whole.crop((left, top, left + width, top + height))
        path = folder / f"{number // 100}" / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        match number % 6:
            case 1:
                part = part.convert("L")
            case 2:
                part.putalpha(part.convert("L"))
            case 3:
                exif = Image.Exif()
                exif[0x0112] = 1 + number % 8
                part.save(path.with_suffix(".jpg"), exif=exif, quality=90)
                continue
            case 4:
                part = Image.fromarray(np.asarray(part.convert("L"), np.uint16) * 257)
            case 5:
                part = part.quantize(64)
        part.save(path)


class Memory:
    """Resident size of a process in MiB, at each tenth of its work."""

    def __init__(self, pid: int | str = "self") -> None:
        self._path = Path(f"/proc/{pid}/statm")
        self._left = list(TENTHS)
        self._lock = threading.Lock()
        self.mib: list[float] = []

    def note(self, done: float) -> None:
        """done: share of the work, 0 to 1."""
        with self._lock:
            while self._left and done >= self._left[0]:
                size = int(self._path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB
                self.mib.append(round(size, 1))
                del self._left[0]

    def row(self, name: str, coded: int) -> Row:
        """coded: pictures."""
        sizes = dict(zip(("tenth MiB", "half MiB", "end MiB"), (self.mib[at] for at in (0, 4, -1)), strict=True))
        return {"process": name, "pictures": coded, **sizes}


def _coded(path: Path, model: LALIC) -> tuple[str, str]:
    """Encode and decode a picture; hashes of both files."""
    data = lalic.encode(path, model)
    return _hash(data), _hash(images.dump(lalic.decode(data, model), ".png"))


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _paths(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.*") if path.is_file())


def _name(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder).with_suffix(""))


def alone(folder: Path, checkpoint: str | None) -> tuple[Row, Hashes]:
    """One picture after the other: the row, and what all others have to give."""
    model, paths, memory, hashes = load_model(checkpoint), _paths(folder), Memory(), {}
    for number, path in enumerate(paths, 1):
        hashes[_name(path, folder)] = _coded(path, model)
        memory.note(number / len(paths))
    return memory.row("one by one", len(paths)), hashes


def threads(folder: Path, checkpoint: str | None, wanted: Hashes, minutes: float) -> tuple[Row, list[str]]:
    """`THREADS` threads, all pictures once, or again and again for `minutes`: the row, and the pictures that differ."""
    model, paths, memory = load_model(checkpoint), _paths(folder), Memory()
    numbers, done, differing = itertools.count(), itertools.count(1), []
    begun = time.monotonic()

    def work() -> None:
        while True:
            number = next(numbers)
            share = (time.monotonic() - begun) / 60 / minutes if minutes else number / len(paths)
            if share >= 1:
                return
            path = paths[number % len(paths)]
            if _coded(path, model) != wanted[_name(path, folder)]:
                differing.append(str(path))
            finished = next(done)
            memory.note(share if minutes else finished / len(paths))

    with ThreadPoolExecutor(THREADS) as pool:
        for each in [pool.submit(work) for _ in range(THREADS)]:
            each.result()
    memory.note(1)
    return memory.row(f"{THREADS} threads", next(done) - 1), differing


def command(name: str, source: Path, target: Path, checkpoint: str | None) -> Row:
    """`lalic compress` or `decompress` of a folder."""
    given = [] if checkpoint is None else ["--checkpoint", checkpoint]
    words = [sys.executable, "-m", "lalic", name, str(source), "-o", str(target), *given, "--quiet"]
    total = len(_paths(source))
    process = subprocess.Popen(words, env=os.environ | {"PYTHONPATH": str(records.ROOT)})
    memory = Memory(process.pid)
    while process.poll() is None:
        time.sleep(WAIT)
        try:
            memory.note(len(_paths(target)) / (total + 1))  # of the last file it is not known whether it runs still
        except (OSError, IndexError):  # it has ended meanwhile
            break
    if process.wait():
        raise WrongResult(f"lalic {name} ended with {process.returncode}")
    memory.mib += memory.mib[-1:] * (len(TENTHS) - len(memory.mib))
    return memory.row(f"lalic {name}", total)


def measure(
    pictures: int, minutes: float = 0, checkpoint: str | None = None, say: Callable[[str], None] = print
) -> list[Row]:
    """All rows. Raises ``WrongResult`` if a file differs."""
    rows: list[Row] = []

    def found(row: Row, differing: Sequence[str]) -> None:
        say(", ".join(f"{name} {value}" for name, value in row.items()) + f", {len(differing)} differ")
        if differing:
            raise WrongResult(f"{row['process']}: {len(differing)} pictures differ, such as {differing[0]}")
        rows.append(row)

    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        source, coded, back = (Path(name) / each for each in ("in", "coded", "back"))
        write_pictures(source, pictures)
        with ProcessPoolExecutor(1, spawn) as pool:
            row, hashes = pool.submit(alone, source, checkpoint).result()
        found(row, [])
        for words, at in ((("compress", source, coded), 0), (("decompress", coded, back), 1)):
            row = command(*words, checkpoint)
            files = {_name(path, words[2]): _hash(path.read_bytes()) for path in _paths(words[2])}
            found(row, [each for each in hashes if files.get(each) != hashes[each][at]])
        with ProcessPoolExecutor(1, spawn) as pool:
            found(*pool.submit(threads, source, checkpoint, hashes, minutes).result())
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Print rows. Returns 0; usage errors exit with 2."""
    parser = records.parser("load", "Memory and files of long use.", where=False)
    parser.add_argument("--pictures", type=positive, default=PICTURES, metavar="N", help="default: %(default)s")
    parser.add_argument("--minutes", type=float, default=0, metavar="N", help="let the threads go round for so long")
    add_checkpoint_option(parser)
    options = parser.parse_args(argv)
    record = records.environment(records.check(parser, options, timed=False))
    record["load"] = measure(options.pictures, options.minutes, options.checkpoint)
    report.show(record)
    records.keep(record, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
