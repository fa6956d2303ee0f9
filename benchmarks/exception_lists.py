"""What lists of exceptions are worth in a stream: its size, and steps of the longest loop, with and without them.

`python -m benchmarks.exception_lists FOLDER` codes pictures with the weights that ship, and one with a model of the full
configuration's sizes in patches that begins as a linear coder. "now": lists, 80 bytes of payload a lane; "80", "64",
"52": no lists, so many bytes a lane. The record decides whether lists stay, and then this file goes with them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

import lalic
import lalic_kernels
from benchmarks import report
from lalic.coder.tables import gaussian_tables
from lalic.config import FULL
from lalic.images import load
from lalic.model import LALIC
from lalic.train.linear import linear_start
from lalic_kernels.rans.grouped import encode_with, layout, op


def sections_of(model: LALIC, x: torch.Tensor, quality: float | None) -> list[tuple[np.ndarray, np.ndarray]]:
    """(symbols, rows) of z and of each pass."""
    with torch.no_grad():
        passes, (z, z_rows), _ = model._latent_symbols(model.latents(x), quality)
    return [(s[0].numpy(), i[0].numpy()) for s, i in [(z, z_rows + gaussian_tables().rows), *passes]]


def measure(sections, tables) -> dict[str, list[int]]:
    """[bytes, steps, lanes] with lists and without."""
    own = layout.grouped_tables(tables)
    survey = layout.Survey.empty(own)
    for symbols, rows in sections:
        op._backend(None).survey(symbols.astype(np.int32), rows.astype(np.int32), own, survey)

    def found(groups: int, lanes: int, level: int) -> list[int]:
        steps = 0
        for symbols, rows in sections:
            active = ~own.quiet[level][rows] | (symbols != own.mode[rows])
            steps += -(-int(active.sum()) // (groups * lanes))
        return [len(encode_with(sections, tables, (groups, lanes, level))), steps, groups * lanes]

    out = {"now": found(*op.choose(survey, own, len(sections)))}
    for layout.LANE_BYTES in (80, 64, 52):
        out[str(layout.LANE_BYTES)] = found(*layout.choose_lanes(survey), 0)
    layout.LANE_BYTES = 80
    return out


def picture(path: Path) -> torch.Tensor:
    array = np.array(load(path))  # both sides are multiples of 64
    return torch.from_numpy(array).permute(2, 0, 1)[None].float() / 255


def main() -> None:
    paths = sorted(Path(sys.argv[1]).iterdir())
    slim = lalic.slim()
    torch.manual_seed(0)
    full = LALIC(FULL.N, FULL.M, FULL.dims, FULL.depths, FULL.groups, kernels=(4, 2, 2, 1))
    linear_start(full, torch.cat([picture(path)[..., :512, :512] for path in paths[:4]]), 0.013)
    full.update(), full.eval()
    rows = []
    for name, model, quality, used in [
        *(("slim", slim, quality, paths) for quality in (1, 25, 50, 75, 100)), ("full sizes", full, None, paths[-2:]),
    ]:  # fmt: skip
        total: dict[str, np.ndarray] = {}
        for path in used:
            for key, value in measure(sections_of(model, picture(path), quality), model._joined_tables()).items():
                total[key] = total.get(key, 0) + np.array(value)
        rows.append(
            {"model": name, "quality": quality, "pictures": len(used)}
            | {key: dict(zip(("bytes", "steps", "lanes"), value.tolist(), strict=True)) for key, value in total.items()}
        )
        print(rows[-1], flush=True)
    # A trained full model's statistics: scales around 0.13, log-normal, 320 channels of 48 x 32 positions in ten passes.
    rng = np.random.default_rng(0)
    table = lalic_kernels.scale_table().numpy()
    sections = []
    for _ in range(10):
        scales = np.exp(rng.normal(np.log(0.13), 0.75, 49152))
        rows_of = np.searchsorted(table, scales).clip(0, 63).astype(np.int32)
        sections.append((np.rint(rng.normal(0, scales)).astype(np.int32), rows_of))
    found = measure(sections, gaussian_tables())
    rows.append(
        {"model": "Gaussian symbols", "quality": None, "pictures": 1}
        | {key: dict(zip(("bytes", "steps", "lanes"), value, strict=True)) for key, value in found.items()}
    )
    print(rows[-1], flush=True)
    report.keep(report.counted(exception_lists=rows, weights=slim.weights_hash().hex()))


if __name__ == "__main__":
    main()
