"""Inputs of the exact arithmetic's tests, the same on every machine: made of integers, not of torch's random floats.

torch.randn takes logarithms and cosines, whose last bits differ between instruction sets, as what is tested here must
not. Run as a script it prints a hash of every primitive's result; test_machines.py compares such runs.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lalic_kernels import exact

CHECKERBOARD = [(y, x) for y in range(5) for x in range(5) if (y + x) % 2]


class Source:
    """Tensors from a frozen stream of integers (numpy keeps RandomState's for ever)."""

    def __init__(self, seed: int, device: str = "cpu"):
        self.stream, self.device = np.random.RandomState(seed), device

    def normal(self, *shape: int) -> Tensor:
        """About a standard normal: a sum of four, scaled by a power of two; float32, exact."""
        total = self.stream.randint(-(1 << 20), 1 << 20, (4, *shape)).sum(0)
        return (torch.from_numpy(total.astype(np.float32)) * 2.0**-20).to(self.device)

    def wild(self, *shape: int) -> Tensor:
        """Magnitudes from 2^-100 to 2^100, one in ten 0."""
        powers = np.ldexp(1.0, self.stream.randint(-100, 101, shape)).astype(np.float32)
        zero = self.stream.randint(0, 10, shape) == 0
        return self.normal(*shape) * torch.from_numpy(np.where(zero, np.float32(0), powers)).to(self.device)

    def digits(self, *shape: int) -> Tensor:
        """+-8191, so that every high digit is +-64, in every mixture of signs."""
        signs = (self.stream.randint(0, 2, shape) * 2 - 1).astype(np.float32)
        return (torch.from_numpy(signs) * 8191.0).to(self.device)

    def same_sign(self, *shape: int) -> Tensor:
        """8191 throughout: the largest sums."""
        return torch.full(shape, 8191.0, device=self.device)


KINDS = ("normal", "wild", "digits", "same_sign")


def results(
    kind: str, path: str, device: str = "cpu", lengths: Sequence[int] = (1, 3, 64, 65, 200)
) -> dict[str, Tensor]:
    """Every primitive's result on one kind of input; path as `backend=`.

    `lengths` are the WKV's, in tokens.
    """

    source = Source(KINDS.index(kind), device)
    x = getattr(source, kind)
    names = {"reference": "reference", "triton": "gpu"}
    here = importlib.import_module(f"lalic_kernels.exact.{names.get(path, 'cpu')}")
    found: dict[str, Tensor] = {}
    for rows, terms, outputs in ((1, 1, 1), (5, 1, 9), (3, 7, 5), (70, 130, 33), (2, 640, 3)):
        weight = exact.prepare_linear(x(outputs, terms), x(outputs))
        found[f"linear {rows} {terms} {outputs}"] = here.linear(x(rows, terms), weight)
    image = x(2, 8, 12, 6)
    for name, weight in {
        "conv": exact.prepare_conv(x(7, 6, 3, 3), x(7), padding=1),
        "conv stride": exact.prepare_conv(x(7, 6, 5, 5), stride=2, padding=2),
        "conv transposed": exact.prepare_conv(x(6, 7, 5, 5), x(7), 2, 2, True, 1),
        "conv transposed 3": exact.prepare_conv(x(6, 7, 3, 3), x(7), 2, 1, True, 1),
        "conv masked": exact.prepare_conv(x(7, 6, 5, 5), x(7), padding=2, taps=CHECKERBOARD),
    }.items():
        for parity in (None, 0, 1):
            if name != "conv stride" or parity is None:
                found[f"{name} {parity}"] = here.conv(image, weight, parity)
    image, other, vector, bias = x(2, 7, 9, 37), x(2, 7, 9, 37), x(37), x(37)
    for size in (1, 3, 5):
        found[f"depthwise {size}"] = here.depthwise(image, exact.prepare_depthwise(x(37, size, size)))
    found["layer_norm"] = here.layer_norm(image, vector, bias)
    found["layer_norm small"] = here.layer_norm(image * 2.0**-45, vector, bias)
    for name in ("exp", "sigmoid", "squared_relu"):
        found[name] = getattr(here, name)(image)
    found["gate"] = here.gate(image, other)
    found["residual"] = here.residual(image, other, vector)
    found["residual plain"] = here.residual(image, other)
    for tokens in lengths:
        keys, data, gate = x(2, tokens, 37), x(2, tokens, 37), x(2, tokens, 37)
        found[f"biwkv {tokens}"] = here.biwkv(vector, bias, keys, data)
        found[f"biwkv gate {tokens}"] = here.biwkv(vector * 2.0**-7, bias, keys, data, gate)
    found["scale_index"] = here.scale_index(image.abs())
    return found


def float_results() -> dict[str, Tensor]:
    """The same operations as torch computes them in float32, on the plain inputs: what differs between machines."""
    x = Source(0).normal
    image = x(2, 7, 9, 640)
    return {
        "linear": F.linear(x(70, 640), x(33, 640)),
        "conv": F.conv2d(x(2, 40, 8, 12), x(7, 40, 3, 3), padding=1),
        "layer_norm": F.layer_norm(image, (640,)),
        "sigmoid": torch.sigmoid(image),
        "exp": torch.exp(image),
    }


def digest(x: Tensor) -> str:
    array = x.cpu().contiguous().numpy()
    return hashlib.sha256(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()).hexdigest()[:16]


def all_hashes(path: str, device: str = "cpu") -> dict[str, str]:
    return {f"{kind}: {name}": digest(x) for kind in KINDS for name, x in results(kind, path, device).items()}


if __name__ == "__main__":
    threads, *paths = sys.argv[1:]
    torch.set_num_threads(int(threads))
    report = {path: all_hashes(path) for path in paths}
    report["float"] = {name: digest(x) for name, x in float_results().items()}
    report["machine"] = {"capability": torch.backends.cpu.get_cpu_capability()}
    print(json.dumps(report))
