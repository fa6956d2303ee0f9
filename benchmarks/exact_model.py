"""What exact arithmetic costs: `python -m benchmarks.exact_model FOLDER [--checkpoint FILE] [--save]`.

Bits: the ideal code length of every picture under the same integer tables, exact entropy model against floating point.
Time: from z symbols to y_hat, all symbols known, on the first picture; the entropy coder and the transforms are not in
it. Calls of the two alternate; the least CPU time of this process counts (it does not see who else uses the machine).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

import lalic
from benchmarks import report
from benchmarks.portability import ENTROPIES, ideal_code_length
from lalic import images
from lalic.codec import _pad
from lalic.model import LALIC


def decoding(model: LALIC, x: Tensor, entropy: str) -> Callable[[], Tensor]:
    """What evaluates the entropy model of one picture, its symbols known."""
    model.entropy = entropy
    passes, (z, _), _ = model._symbols(x)
    size = (x.shape[2] // model.downsampling, x.shape[3] // model.downsampling)

    def run() -> Tensor:
        model.entropy = entropy
        return model._decode_latents(z, size, lambda number, indexes: passes[number][0])

    return run


def times(calls: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, float]:
    """Least CPU seconds of each call, the calls in turn."""
    least = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            least[name] = min(least[name], time.process_time() - start)
    return least


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line a picture, the ratio of bits, and the ratio of times; with --save append a record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exact_model", description="The price of exactness.")
    parser.add_argument("folder", type=Path, help="pictures, in name order")
    parser.add_argument("--checkpoint", type=Path, help="weights (default: the slim ones that ship)")
    parser.add_argument("--name", help="what to call the set of pictures (default: the folder's name)")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls (default %(default)s)")
    parser.add_argument("--save", action="store_true", help="append a record to the results")
    arguments = parser.parse_args(argv)
    paths = sorted(p for p in arguments.folder.glob("*") if p.suffix.lower() in images.readable_extensions())
    if not paths:
        parser.error(f"no pictures in {arguments.folder}")
    model = lalic.slim() if arguments.checkpoint is None else lalic.load_checkpoint(arguments.checkpoint)
    record = report.environment(torch.device("cpu"))
    print(report.header(record))
    rows = []
    with torch.inference_mode():
        for path in paths:
            x = _pad(images.to_tensor(images.load(path)), model.downsampling)
            row: dict[str, str | float] = {"picture": path.stem}
            for entropy in ENTROPIES:
                model.entropy = entropy
                row[entropy] = ideal_code_length(model, x)
            rows.append(row)
            print(f"{path.stem}  {row['exact']:.1f}  {row['float']:.1f} bits", flush=True)
        x = _pad(images.to_tensor(images.load(paths[0])), model.downsampling)
        seconds = times({entropy: decoding(model, x, entropy) for entropy in ENTROPIES}, arguments.rounds)
    model.entropy = "exact"
    mean = {entropy: sum(float(row[entropy]) for row in rows) / len(rows) for entropy in ENTROPIES}
    record |= {"pictures": arguments.name or arguments.folder.name, "model": model.config.name, "ideal_bits": rows}
    record |= {"weights": model.weights_hash().hex(), "mean_bits_ratio": mean["exact"] / mean["float"]}
    record |= {
        "cpu_seconds": seconds,
        "time_ratio": seconds["exact"] / seconds["float"],
        "timed_size": list(x.shape[2:]),
    }
    print(f"bits {record['mean_bits_ratio']:.6f}, time {record['time_ratio']:.2f} of floating point; {seconds}")
    if arguments.save:
        print(f"added to {report.append(record)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
