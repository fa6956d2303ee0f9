"""Make the data file of `lalic.coder.tables.gaussian_tables`: `python scripts/make_gaussian_tables.py [FILE]`.

It was run once, and documents where the numbers come from. Row i is a zero-mean Gaussian of standard deviation
s = scale_table()[i]: symbols -c..c with c = ceil(6.10941 s) (the quantile of 0.5e-9), p(k) = Phi((1/2 - |k|)/s) -
Phi((-1/2 - |k|)/s) in float32, the escape with the mass of both tails. Source: CompressAI 1.2.6, GaussianConditional.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from lalic.coder import tables
from lalic.coder.tables import GAUSSIAN_FILE, GAUSSIAN_SHA256, matrix_sha256, pack_rows, quantize_rows
from lalic_kernels import scale_table

TAIL_MASS = 1e-9


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-math.sqrt(0.5) * x)


def compute_gaussian_rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Padded int32 CDFs (64, 3133), lengths (64,), offsets (64,), computed with this machine's erfc."""
    scales = scale_table().cpu()
    half_width = torch.ceil(scales * -NormalDist().inv_cdf(TAIL_MASS / 2)).to(torch.int64)
    lengths = 2 * half_width + 1
    distance = (torch.arange(int(lengths.max())) - half_width[:, None]).abs().float()
    upper = _normal_cdf((0.5 - distance) / scales[:, None])
    lower = _normal_cdf((-0.5 - distance) / scales[:, None])
    matrix = quantize_rows((upper - lower).numpy(), 2 * lower[:, 0].numpy(), lengths.numpy())
    return matrix, (lengths + 2).numpy().astype(np.int32), (-half_width).numpy().astype(np.int32)


def main(arguments: list[str]) -> int:
    """Write the file (default: in lalic/coder) if the numbers are the published ones. Returns the exit code."""
    target = Path(arguments[0]) if arguments else Path(tables.__file__).with_name(GAUSSIAN_FILE)
    matrix, lengths, offsets = compute_gaussian_rows()
    if matrix_sha256(matrix) != GAUSSIAN_SHA256:
        print("This machine's erfc gives other numbers than the published table; nothing was written.", file=sys.stderr)
        return 1
    np.savez_compressed(target, lower=pack_rows(matrix, lengths), lengths=lengths.astype(np.uint16), offsets=offsets)
    print(f"{target}: {target.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
