"""What a first call costs in a fresh process, with and without compiled code in the cache; `python -m benchmarks.cold`.

A first call loads numba, and compiles or loads the kernels; a later call is what all other rows time. Each figure is
the median of a few processes, which have a cache folder of their own (NUMBA_CACHE_DIR), so nothing of this machine's
is used. `cold.biwkv` is of one operation; the command of all that stands between the start of `lalic decompress` and
its first picture, with the model that ships.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import Row, Setting, WrongResult
from lalic_kernels import installed

SHAPE, QUICK_SHAPE = (1, 24576, 144), (1, 67, 5)  # a stage of the model for 768x512
REPEATS = 3
TIMEOUT = 300.0

# Runs in the fresh process. The inputs are made before the clock runs, and the result is checked after.
_PROGRAM = """
import json, sys, time
import torch
torch.set_num_threads(int(sys.argv[2]))
import lalic_kernels
from benchmarks.biwkv import biwkv_arguments, check_biwkv
from benchmarks.measure import Setting
arguments = biwkv_arguments(tuple(json.loads(sys.argv[1])), torch.float32, Setting(torch.device("cpu")))
times = []
for _ in range(3):
    start = time.perf_counter()
    y = lalic_kernels.biwkv(*arguments, backend="cpu")
    times.append(time.perf_counter() - start)
check_biwkv(arguments, y)
print(json.dumps(times))
"""


def biwkv(setting: Setting) -> list[Row]:
    """Rows of BiWKV's forward; none where the compiled code does not run. Memory's state is of no matter: once."""
    if setting.device.type != "cpu" or setting.memory == "reused" or not installed.NUMBA:
        return []
    shape = QUICK_SHAPE if setting.quick else SHAPE
    found: dict[str, list[float]] = {
        "first call, nothing cached": [],
        "first call, code cached": [],
        "a later call": [],
    }
    for _ in range(1 if setting.quick else REPEATS):
        with tempfile.TemporaryDirectory() as folder:
            empty, *_ = _process(shape, folder)
            warm, *later = _process(shape, folder)
        found["first call, nothing cached"].append(empty)
        found["first call, code cached"].append(warm)
        found["a later call"].append(later[-1])
    medians = {name: statistics.median(times) for name, times in found.items()}
    return [
        {
            "entry": "biwkv",
            "memory": setting.memory,
            "case": f"cold start {shape} float32",
            "call": name,
            "yardstick": name == "a later call",
            "seconds": medians[name],
            "quartiles": [min(times), max(times)] if len(times) < 4 else statistics.quantiles(times, n=4)[::2],
            "repeats": len(times),
            "ratios": {} if name == "a later call" else {"a later call": medians[name] / medians["a later call"]},
            "metrics": {},
        }
        for name, times in found.items()
    ]


def _process(shape: tuple[int, int, int], cache: str) -> list[float]:
    """Seconds of the first calls in a fresh process. Raises `WrongResult` where it ends with an error."""
    import torch

    words = [sys.executable, "-c", _PROGRAM, json.dumps(shape), str(torch.get_num_threads())]
    environment = os.environ | {"NUMBA_CACHE_DIR": cache}
    root = Path(__file__).parents[1]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=root, timeout=TIMEOUT)
    if done.returncode:
        raise WrongResult(f"cold start: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout)


# From the start of a process to the first picture

PARTS = ("import torch", "import lalic", "load weights", "prepare", "first decode", "second decode")

# What `lalic decompress` does, with the clock read between.
_PICTURE = """
import json, sys, time
marks = [time.perf_counter()]
import torch
torch.set_num_threads(int(sys.argv[2]))
marks.append(time.perf_counter())
from lalic import codec
from lalic.coder.exact import exact_entropy
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
    """Seconds of each part, and of the whole command: {"nothing cached": {name: [...]}, "code cached": {name: [...]}}.

    size: width and height of the picture that ships, mirrored as far as needed. Triton's cache counts as numba's does.
    """
    import torch
    from PIL import Image

    import lalic
    from benchmarks.codec import picture
    from lalic import images

    root = Path(__file__).parents[1]
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.lalic"
        pixels = images.from_tensor(picture(size[1], size[0]))
        assert isinstance(pixels, Image.Image)
        path.write_bytes(lalic.encode(pixels))
        for number in range(repeats):
            cache = Path(folder) / f"cache {number}"
            places = {"NUMBA_CACHE_DIR": str(cache / "numba"), "TRITON_CACHE_DIR": str(cache / "triton")}
            environment = os.environ | places | {"PYTHONPATH": str(root)}
            words = [sys.executable, "-c", _PICTURE, str(path), str(torch.get_num_threads()), device]
            command = [sys.executable, "-m", "lalic", "decompress", str(path), "-o", f"{folder}/back.png", "--force"]
            command += ["--device", device, "--threads", str(torch.get_num_threads())]
            for state in ("nothing cached", "code cached"):
                done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=TIMEOUT)
                if done.returncode:
                    raise WrongResult(f"cold start: {done.stderr.strip()[-300:]}")
                times = found.setdefault(state, {name: [] for name in (*PARTS, "the whole command")})
                for name, seconds in zip(PARTS, json.loads(done.stdout), strict=True):
                    times[name].append(seconds)
            start = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=TIMEOUT)
            if done.returncode or not Path(f"{folder}/back.png").is_file():
                raise WrongResult(f"cold start: {done.stderr.strip()[-300:]}")
            found["code cached"]["the whole command"].append(time.perf_counter() - start)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Print medians. Returns 0; usage errors and a busy machine exit with 2."""
    import torch

    from benchmarks import report

    parser = argparse.ArgumentParser(prog="python -m benchmarks.cold", description="From process start to a picture.")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where (default %(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: as torch chooses)")
    parser.add_argument("--quick", action="store_true", help="once, a small picture: to see that all runs")
    report.add_saving(parser)
    options = parser.parse_args(argv)
    report.refuse_unfit(parser, options, timed=True)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this machine has no CUDA device that torch can use")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    record = report.environment(torch.device(options.device)) | {"quick": options.quick}
    print(report.header(record), flush=True)
    found = first_picture(options.device, 1 if options.quick else REPEATS, (128, 64) if options.quick else (768, 512))
    for state, times in found.items():
        print(state)
        for name, seconds in times.items():
            if seconds:
                print(f"  {name:20}{statistics.median(seconds):8.3f} s ({min(seconds):.3f} .. {max(seconds):.3f})")
    if options.save:
        report.keep(record | {"cold start": found}, options.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
