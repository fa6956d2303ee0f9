"""What memory a decode on a GPU takes, counted without one: `python -m benchmarks.decode_memory [--model slim|full]`.

As `benchmarks.launches`: the code that runs on CUDA tensors runs on CPU tensors, its kernels replaced by nothing. Every
allocation is seen (`benchmarks.memory.Live`), and the most that lives at once is said for each part of the decoder, in
bytes a padded pixel beyond the weights and what is kept. What convolutions and matrix products of libraries take for
themselves, and what an allocator rounds up, is not seen.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

import torch
from torch import Tensor

from benchmarks import launches, report


def decode(model: Any, width: int, height: int) -> dict[str, float]:
    """Bytes a padded pixel at the peak of each part, and of "all": what a decode adds to what is there before it.

    model: `LALIC` in eval mode with coding tables, on the CPU, with Triton's interpreter. width, height: multiples of
    64.
    """
    from benchmarks.memory import Live
    from lalic_kernels.rans import grouped

    some = torch.zeros(64, dtype=torch.int32)
    stream = grouped.encode([(some, some)], model._joined_tables())
    size, device = model._latent_size(height, width), torch.device("cpu")
    with torch.no_grad(), launches.counting() as counts:

        class Parts(Live):
            def __init__(self) -> None:
                super().__init__()
                self.most: dict[str, int] = {}

            def add(self, tensor: Tensor) -> None:
                super().add(tensor)
                part = counts.part[-1]
                self.most[part] = max(self.most.get(part, 0), self.now)

        model._pictures_there([stream], size, device, [0], [None], False)  # makes what is kept
        live = Parts()
        with live:
            model._pictures_there([stream], size, device, [0], [None], False)
    found = {part: most / (width * height) for part, most in live.most.items()}
    return found | {"all": live.peak / (width * height)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode_memory", description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=("slim", "full"), default="full")
    parser.add_argument("--size", nargs=2, type=int, default=(768, 512), metavar=("W", "H"))
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    report.add_saving(parser)
    options = parser.parse_args(argv)
    os.environ["TRITON_INTERPRET"] = "1"

    import lalic
    from lalic.config import FULL, SLIM
    from lalic.model import LALIC

    torch.manual_seed(1)
    model = LALIC.from_config(SLIM if options.model == "slim" else FULL).eval().set_precision(options.precision)
    model.update()
    found = decode(model, *options.size)
    print(f"lalic {lalic.__version__}, {options.model}, {options.size[0]}x{options.size[1]}, {options.precision}")
    for part, most in sorted(found.items(), key=lambda item: item[1]):
        print(f"{most:8.1f}  bytes a pixel, {part}")
    if options.save:
        what = {"model": options.model, "size": list(options.size), "precision": options.precision}
        record = report.counted(decode_memory={**what, "bytes_a_pixel": {k: round(v, 2) for k, v in found.items()}})
        report.keep(record, options.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
