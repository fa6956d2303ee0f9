"""What exact arithmetic costs: `python -m benchmarks.exact_model FOLDER`, and the same with `--time` instead.

Bits, of the pictures of a folder: the ideal code length of every one under the same integer tables, exact entropy model
against floating point.

Times, on a machine that does nothing else: slim, a reduced model of the published style and the full one at 768x512,
random weights and symbols, exact beside floating point. Both run through the same cached slice decoder.

Timed is the way from z symbols to y_hat, all symbols known: the entropy coder and the transforms are not in it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

import lalic
from benchmarks import records
from benchmarks.cases import HEIGHT, WIDTH
from benchmarks.measure import Call, Case, Row, Setting, WrongResult, measure
from benchmarks.portability import ENTROPIES, ideal_code_length
from lalic import images
from lalic.codec import pad
from lalic.coder.engines import ExactEngine, exact_entropy
from lalic.coder.host import decode_latents
from lalic.coder.schedule import Read
from lalic.config import FULL, SLIM, Config
from lalic.model import LALIC

REDUCED = Config("reduced", 12, 32, (16, 24, 32, 32, 32, 24), (1, 1, 1, 1), (2, 2, 4, 8, 16))
THREADS = 2  # of the claim that is measured


class _Decoding:
    """A model of random weights and the symbols of a picture."""

    def __init__(self, config: Config, height: int, width: int):
        torch.manual_seed(0)
        with torch.inference_mode(False):  # of weights that count no writes nothing would be kept between calls
            self.model = LALIC.from_config(config).eval()
        self.size = (height // self.model.downsampling, width // self.model.downsampling)
        self.z = torch.randint(-3, 4, (1, config.dims[5], *self.size))
        counts = [g * height * width // 512 for g in config.groups for _ in range(2)]
        self.symbols = [torch.randint(-3, 4, (1, count), dtype=torch.int32) for count in counts]

    def read(self, number: int, indexes: Tensor) -> Tensor:
        return self.symbols[number]

    def exact(self) -> Tensor:
        self.model.entropy = "exact"
        return decode_latents(self.model, self.z, Read(self.read))

    def float(self) -> Tensor:
        self.model.entropy = "float"
        return decode_latents(self.model, self.z, Read(self.read))

    def check(self, got: Tensor) -> None:
        made = exact_entropy(self.model.latent_codec)
        if not torch.equal(got, made.code(self.z, Read(self.read), ExactEngine("reference"))):
            raise WrongResult("exact: y_hat is not the reference's")


def cases(setting: Setting) -> Iterator[Case]:
    """Both entropy models from z symbols to y_hat; the exact one is timed when it gives the reference's bits."""
    height, width = (64, 128) if setting.quick else (HEIGHT, WIDTH)
    for config in (SLIM, REDUCED) if setting.quick else (SLIM, REDUCED, FULL):
        one = _Decoding(config, height, width)
        yield Case(f"{config.name} {width}x{height}", (Call("exact", one.exact, one.check), Call("float", one.float)))


def measure_all(setting: Setting) -> list[Row]:
    """Rows of every case; the ratio of an exact one is what exactness costs."""
    with torch.inference_mode():
        return [row for case in cases(setting) for row in measure("exact_model", case, setting)]


def main(argv: Sequence[str] | None = None) -> int:
    """Print what was asked for; with --save append a record. Returns 0; usage errors and a busy machine exit with 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exact_model", description="The price of exactness.")
    parser.add_argument("folder", type=Path, nargs="?", help="pictures, in name order: compare bits")
    parser.add_argument("--time", action="store_true", help="compare times, on a quiet machine, without pictures")
    parser.add_argument("--threads", type=int, default=THREADS, help="of --time (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="with --time: tiny inputs, to see that it runs")
    parser.add_argument("--checkpoint", type=Path, help="weights (default: the slim ones that ship)")
    parser.add_argument("--name", help="what to call the set of pictures (default: the folder's name)")
    records.add_saving(parser)
    arguments = parser.parse_args(argv)
    if (arguments.folder is None) != arguments.time:
        parser.error("expected a folder of pictures, or --time, and not both")
    return _time(parser, arguments) if arguments.time else _bits(parser, arguments)


def _time(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    before = torch.get_num_threads()
    device = records.check(parser, arguments)
    try:
        records.time_rows("exact_model", device, arguments, measure_all)
    finally:
        torch.set_num_threads(before)
    return 0


def _bits(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    paths = sorted(p for p in arguments.folder.glob("*") if p.suffix.lower() in images.readable_extensions())
    if not paths:
        parser.error(f"no pictures in {arguments.folder}")
    model = lalic.slim() if arguments.checkpoint is None else lalic.load_checkpoint(arguments.checkpoint)
    record = records.environment(torch.device("cpu"))
    print(records.header(record))
    rows = []
    with torch.inference_mode():
        for path in paths:
            x = pad(images.to_tensor(images.load(path)), model.downsampling)
            row: dict[str, str | float] = {"picture": path.stem}
            for entropy in ENTROPIES:
                model.entropy = entropy
                row[entropy] = ideal_code_length(model, x)
            rows.append(row)
            print(f"{path.stem}  {row['exact']:.1f}  {row['float']:.1f} bits", flush=True)
    model.entropy = "exact"
    mean = {entropy: sum(float(row[entropy]) for row in rows) / len(rows) for entropy in ENTROPIES}
    record |= {"pictures": arguments.name or arguments.folder.name, "model": model.config.name, "ideal_bits": rows}
    record |= {"weights": model.weights_hash().hex(), "mean_bits_ratio": mean["exact"] / mean["float"]}
    print(f"bits {record['mean_bits_ratio']:.6f} of floating point")
    if arguments.save:
        records.keep(record, arguments.results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
