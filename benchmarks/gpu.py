"""The day a GPU is there: `python -m benchmarks.gpu`, which is `make gpu`. All that needs one, in under 12 minutes.

Steps run one after the other in the order of their worth, each in a process of its own and with a limit of time: the
tests, then benchmarks. A step that fails or takes too long ends alone. Benchmarks append each record when it is taken,
so a run that is cut short keeps what it has. What a step prints goes to the terminal and to a file in build/gpu/.

Sizes that the GPU's memory does not hold are left out by the benchmarks themselves. At the end there is a table of the
steps, and one of the codec's times beside docs/gpu-prediction.md. The tuned launch table is written to
build/gpu/launches.json: copy it to lalic_kernels/biwkv/ and run the tests again to use it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import prediction, records, report
from lalic.options import positive

MINUTES = 12.0
LEAST = 20.0  # seconds that a step needs to come to anything
FOLDER = records.ROOT / "build" / "gpu"


@dataclass(frozen=True)
class Step:
    """A command of Python's, its limit in seconds, and whether the day has failed if it does not come to its end."""

    name: str
    words: tuple[str, ...]
    limit: float
    needed: bool = False


@dataclass(frozen=True)
class Done:
    """How a step ended, in words, and after how many seconds. good: whether that is how it should."""

    name: str
    how: str
    seconds: float
    good: bool


def steps(jobs: int, results: Path = records.RESULTS, folder: Path = FOLDER) -> list[Step]:
    """Those of the day. jobs: processes that share the tests: most of their time is compiling."""
    save = ("--save", "--results", str(results))

    def measure(module: str, *words: str) -> tuple[str, ...]:
        return ("-m", f"benchmarks.{module}", *words, *save)

    def codec(size: str, batch: int, *models: str) -> tuple[str, ...]:
        words = ("--device", "cuda", "--sizes", size, "--batches", str(batch), "--models", *models)
        return measure("codec", *words)

    def operations(*names: str) -> tuple[str, ...]:
        return measure("run", *names, "--device", "cuda")

    blocks = ("transforms", "rwkv_block", "channel_mix", "spatial_mix", "norm_shift", "token_shift")
    tests = ("-m", "pytest", "tests", "-m", "gpu", "-n", str(jobs), "--durations", "15")
    tuned = str(folder / "launches.json")
    return [
        Step("packages and devices", ("-m", "lalic_kernels.info"), 60),
        Step("warmup", ("-m", "lalic", "warmup", "--device", "cuda"), 90),
        Step("tests", tests, 270, needed=True),
        Step("codec 768x512", codec("768x512", 1, "full-bfloat16", "slim", "full"), 150),
        Step("codec 1920x1080", codec("1920x1080", 1, "full-bfloat16", "slim"), 100),
        Step("blocks", operations(*blocks), 100),
        Step("codec 768x512, 8 pictures", codec("768x512", 8, "full-bfloat16", "slim"), 100),
        Step("biwkv", operations("biwkv"), 120),
        Step("other operations", operations("entropy_params", "gaussian_likelihood"), 60),
        Step("first picture of a process", measure("cold", "--device", "cuda", "--repeats", "1"), 120),
        Step("launch table", measure("tune", "biwkv", "--output", tuned), 150),
        Step("codec 3840x2160", codec("3840x2160", 1, "full-bfloat16", "slim"), 120),
        Step("codec 1920x1080, 8 pictures", codec("1920x1080", 8, "full-bfloat16"), 120),
    ]


def run(step: Step, limit: float, folder: Path = FOLDER) -> Done:
    """Run a step for at most `limit` seconds; then it ends with all that it has started."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, *step.words]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    start, late = time.perf_counter(), threading.Event()
    with open(folder / f"{records.slug(step.name)}.log", "w", encoding="utf-8") as log:
        # A session of its own, so that its processes can be ended together.
        process = subprocess.Popen(
            command, cwd=records.ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            encoding="utf-8", errors="replace", start_new_session=True,
        )  # fmt: skip

        def end() -> None:
            late.set()
            _end(process)

        timer = threading.Timer(limit, end)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                log.write(line)
            code = process.wait()
        except BaseException:
            _end(process)
            raise
        finally:
            timer.cancel()
    seconds = time.perf_counter() - start
    if late.is_set():
        return Done(step.name, f"cut after {limit:.0f} s", seconds, not step.needed)
    return Done(step.name, f"failed, exit code {code}" if code else "done", seconds, code == 0)


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def run_all(day: Sequence[Step], seconds: float, folder: Path = FOLDER) -> list[Done]:
    """Run steps until the time is over; what there was no time for is in the list too. Ends early when interrupted."""
    end = time.perf_counter() + seconds
    found: list[Done] = []
    for step in day:
        left = end - time.perf_counter()
        if left < LEAST:
            found.append(Done(step.name, "no time left", 0.0, not step.needed))
            continue
        print(f"\n--- {step.name}: python {' '.join(step.words)}\n", flush=True)
        try:
            found.append(run(step, min(step.limit, left), folder))
        except KeyboardInterrupt:
            found.append(Done(step.name, "interrupted", 0.0, False))
            break
    return found


def summary(found: Sequence[Done], measured: Sequence[records.Record]) -> str:
    """The steps, and times beside the prediction."""
    body = [[done.name, done.how, report.number(done.seconds, digits=3)] for done in found]
    parts = ["# The day in a table", report.table(["step", "how it ended", "seconds"], body)]
    rows = [row for record in measured for row in record.get("codec", ())]
    if lines := list(prediction.beside(rows)):
        parts += ["Full model, transforms in bfloat16, one picture, milliseconds (docs/gpu-prediction.md)"]
        parts += [report.table(["", "measured", *prediction.COLUMNS, "bar"], lines)]
    return "\n\n".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the day. Returns 0, or 1 if a step failed or the tests were cut short; without a GPU it exits with 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Tests and benchmarks on a GPU.")
    parser.add_argument("--minutes", type=float, default=MINUTES, metavar="N", help="for all (default %(default)s)")
    jobs = max(1, min(8, (os.cpu_count() or 1) // 2))
    parser.add_argument(
        "--jobs", type=positive, default=jobs, metavar="N", help="processes for the tests (%(default)s)"
    )
    parser.add_argument(
        "--results", type=Path, default=records.RESULTS, metavar="DIR", help="default benchmarks/results"
    )
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("this machine has no CUDA device that torch can use")
    start = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    results = options.results.resolve()
    found = run_all(steps(options.jobs, results), 60 * options.minutes)
    measured = [r for r in records.load(results) if r["date"] >= start and r["device_type"] == "cuda"]
    print(f"\n{(text := summary(found, measured))}")
    (FOLDER / "summary.md").write_text(text + "\n", encoding="utf-8")
    return int(not all(done.good for done in found))


if __name__ == "__main__":
    sys.exit(main())
