"""What exact arithmetic costs: bits by `python -m benchmarks.exact_model FOLDER`, time by `benchmarks.run exact_model`.

Bits, of the pictures of a folder: the ideal code length of every one under the same integer tables, exact entropy model
against floating point.

Times: slim, a reduced model of the published style and the full one at 768x512, random weights and symbols, exact
beside floating point. Both run through the same cached slice decoder. Timed is the way from z symbols to y_hat, all
symbols known: the entropy coder and the transforms are not in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import portability, records, report
from benchmarks.cases import HEIGHT, WIDTH
from benchmarks.measure import Call, Case, Setting, WrongResult
from benchmarks.portability import ENTROPIES
from lalic.coder.engines import ExactEngine, exact_entropy
from lalic.coder.host import decode_latents
from lalic.coder.schedule import Read
from lalic.config import FULL, SLIM, Config
from lalic.model import LALIC

REDUCED = Config("reduced", 12, 32, (16, 24, 32, 32, 32, 24), (1, 1, 1, 1), (2, 2, 4, 8, 16))


class _Decoding:
    """A model of random weights and the symbols of a picture."""

    def __init__(self, config: Config, height: int, width: int):
        torch.manual_seed(0)
        self.model = LALIC.from_config(config).eval()
        self.size = (height // self.model.downsampling, width // self.model.downsampling)
        self.z = torch.randint(-3, 4, (1, config.dims[5], *self.size))
        counts = [g * height * width // 512 for g in config.groups for _ in range(2)]
        self.symbols = [torch.randint(-3, 4, (1, count), dtype=torch.int32) for count in counts]

    def read(self, number: int, indexes: Tensor) -> Tensor:
        return self.symbols[number]

    @torch.inference_mode()
    def decode(self, entropy: str) -> Tensor:
        self.model.entropy = entropy
        return decode_latents(self.model, self.z, Read(self.read))

    @torch.inference_mode()
    def check(self, got: Tensor) -> None:
        made = exact_entropy(self.model.latent_codec)
        if not torch.equal(got, made.code(self.z, Read(self.read), ExactEngine("reference"))):
            raise WrongResult("exact: y_hat is not the reference's")


def cases(setting: Setting) -> Iterator[Case]:
    """Both entropy models from z symbols to y_hat; the exact one is timed when it gives the reference's bits."""
    height, width = (64, 128) if setting.quick else (HEIGHT, WIDTH)
    for config in (SLIM, REDUCED) if setting.quick else (SLIM, REDUCED, FULL):
        one = _Decoding(config, height, width)
        calls = (Call("exact", partial(one.decode, "exact"), one.check), Call("float", partial(one.decode, "float")))
        yield Case(f"{config.name} {width}x{height}", calls)


def main(argv: Sequence[str] | None = None) -> int:
    """Print bits; with --save append a record. Returns 0; usage errors exit with 2."""
    parser = records.parser("exact_model", "The price of exactness, in bits.", where=False)
    portability.add_pictures(parser)
    options = parser.parse_args(argv)
    model, pictures = portability.model_and_pictures(parser, options)
    record = records.environment(torch.device("cpu"))
    rows = []
    with torch.inference_mode():
        for name, x in pictures:
            row: dict[str, Any] = {"picture": name}
            for entropy in ENTROPIES:
                model.entropy = entropy
                row[entropy] = portability.ideal_code_length(model, x)
            rows.append(row)
            print(f"{name}  {row['exact']:.1f}  {row['float']:.1f} bits", flush=True)
    model.entropy = "exact"
    mean = {entropy: sum(row[entropy] for row in rows) / len(rows) for entropy in ENTROPIES}
    record |= portability.names(options, model)
    record |= {"ideal_bits": rows, "mean_bits_ratio": mean["exact"] / mean["float"]}
    report.show(record)
    records.keep(record, options)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
