"""From the start of a process to its first picture: `python -m benchmarks.cold`.

All that stands between the start of `lalic decompress` and its first picture, with the model that ships, by part. Each
figure is of a fresh process with cache folders of its own (NUMBA_CACHE_DIR, TRITON_CACHE_DIR), so nothing of this
machine's is used: once with nothing in them, once with what the first process left.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import lalic
from benchmarks import records, report
from benchmarks.codec import photo
from benchmarks.measure import WrongResult
from lalic.options import positive

REPEATS = 3
TIMEOUT = 300.0
PARTS = ("import torch", "import lalic", "load weights", "prepare", "first decode", "second decode")
PROCESSES = ("python -c 'import torch'", "lalic compress", "lalic decompress")  # in this order: decompress comes warm

# What `lalic decompress` does, with the clock read between.
_PICTURE = """
import json, sys, time
marks = [time.perf_counter()]
import torch
torch.set_num_threads(int(sys.argv[2]))
marks.append(time.perf_counter())
from lalic import codec
from lalic.coder.engines import exact_entropy
import lalic.model
marks.append(time.perf_counter())
device = torch.device(sys.argv[3])
model = codec.shipped_model(device=device)
marks.append(time.perf_counter())
exact_entropy(model.latent_codec)
model.weights_hash()
marks.append(time.perf_counter())
data = open(sys.argv[1], "rb").read()
for _ in range(2):
    codec.decode(data, model)
    marks.append(time.perf_counter())
print(json.dumps([b - a for a, b in zip(marks, marks[1:])]))
"""


def first_picture(device: str, repeats: int, size: tuple[int, int] = (768, 512)) -> dict[str, dict[str, list[float]]]:
    """Seconds of each part, and of whole processes: {"nothing cached": {name: [...]}, "code cached": {name: [...]}}.

    size: width and height of the picture that ships, mirrored as far as needed.
    """
    found: dict[str, dict[str, list[float]]] = {
        state: {name: [] for name in (*PARTS, *PROCESSES)} for state in ("nothing cached", "code cached")
    }
    with tempfile.TemporaryDirectory() as folder:
        source, path, back = (Path(folder) / name for name in ("picture.png", "picture.lalic", "back.png"))
        pixels = photo(size[1], size[0])
        pixels.save(source)
        path.write_bytes(lalic.encode(pixels))
        threads = str(torch.get_num_threads())
        program = [sys.executable, "-c", _PICTURE, str(path), threads, device]
        where = ["--force", "--device", device, "--threads", threads]
        commands = (
            [sys.executable, "-c", "import torch"],
            [sys.executable, "-m", "lalic", "compress", str(source), "-o", str(path), *where],
            [sys.executable, "-m", "lalic", "decompress", str(path), "-o", str(back), *where],
        )
        for number in range(repeats):
            environment = _caches(Path(folder) / f"parts {number}")
            for times in found.values():
                for name, seconds in zip(PARTS, json.loads(_output(program, environment)), strict=True):
                    times[name].append(seconds)
            environment = _caches(Path(folder) / f"commands {number}")
            for times in found.values():
                for name, command in zip(PROCESSES, commands, strict=True):
                    start = time.perf_counter()
                    _output(command, environment)
                    times[name].append(time.perf_counter() - start)
            if not back.is_file():
                raise WrongResult("cold start: `lalic decompress` wrote no picture")
    return found


def _caches(folder: Path) -> dict[str, str]:
    """Environment of a process whose compiled code goes to folders of its own."""
    caches = {"NUMBA_CACHE_DIR": str(folder / "numba"), "TRITON_CACHE_DIR": str(folder / "triton")}
    return caches | {"PYTHONPATH": str(records.ROOT)}


def _output(command: list[str], environment: dict[str, str]) -> str:
    """What a fresh process prints. Raises ``WrongResult`` if it ends with an error."""
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=TIMEOUT)
    if done.returncode:
        raise WrongResult(f"cold start: {done.stderr.strip()[-300:]}")
    return done.stdout


def main(argv: Sequence[str] | None = None) -> int:
    """Print medians. Returns 0; usage errors and a busy machine exit with 2."""
    parser = records.parser("cold", "From process start to a picture.", quick="once, a small picture")
    parser.add_argument("--repeats", type=positive, default=REPEATS, metavar="N", help="default %(default)s")
    options = parser.parse_args(argv)
    record = records.environment(records.check(parser, options))
    repeats, size = (1, (128, 64)) if options.quick else (options.repeats, (768, 512))
    found = first_picture(options.device, repeats, size)
    report.show(record | {"cold start": found})
    records.keep(record | {"cold start": found}, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
