"""Inputs of the exact arithmetic's tests, the same on every machine: made from integers, not by torch.randn.

torch.randn uses logarithms and cosines, whose last bits differ between instruction sets. `results` computes the
definition's steps and blocks on these inputs by any path. As a script this file prints a hash of each result;
test_machines.py compares such runs.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lalic_kernels import exact
from lalic_kernels.exact import reference

CHECKERBOARD = [(y, x) for y in range(5) for x in range(5) if (y + x) % 2]


class Source:
    """Tensors from a fixed stream of integers (numpy never changes that of RandomState)."""

    def __init__(self, seed: int, device: str = "cpu"):
        self.stream, self.device = np.random.RandomState(seed), device

    def normal(self, *shape: int) -> Tensor:
        """About standard normal: a sum of four integers, scaled by a power of two; exact in float32."""
        total = self.stream.randint(-(1 << 20), 1 << 20, (4, *shape)).sum(0)
        return (torch.from_numpy(total.astype(np.float32)) * 2.0**-20).to(self.device)

    def wild(self, *shape: int) -> Tensor:
        """Magnitudes from 2^-100 to 2^100, one in ten 0."""
        powers = np.ldexp(1.0, self.stream.randint(-100, 101, shape)).astype(np.float32)
        zero = self.stream.randint(0, 10, shape) == 0
        return self.normal(*shape) * torch.from_numpy(np.where(zero, np.float32(0), powers)).to(self.device)

    def digits(self, *shape: int) -> Tensor:
        """+-8191 with random signs, so that every high digit is +-64."""
        signs = (self.stream.randint(0, 2, shape) * 2 - 1).astype(np.float32)
        return (torch.from_numpy(signs) * 8191.0).to(self.device)

    def same_sign(self, *shape: int) -> Tensor:
        """8191 everywhere: the largest sums."""
        return torch.full(shape, 8191.0, device=self.device)


KINDS = ("normal", "wild", "digits", "same_sign")


def make_block(x, channels: int, rate: int) -> exact.ExactBlock:
    """A block with weights as large as trained ones."""

    def matrix(rows: int, columns: int) -> Tensor:
        return x(rows, columns) * float(columns) ** -0.5

    return exact.prepare_block(
        (1 + x(channels) / 8, x(channels) / 8), x(channels, 5, 5) / 4, x(channels), x(channels),
        (*(matrix(channels, channels) for _ in range(4)),), x(channels),
        (1 + x(channels) / 8, x(channels) / 8), x(channels, 5, 5) / 4,
        (matrix(rate * channels, channels), matrix(channels, channels), matrix(channels, rate * channels)), x(channels),
    )  # fmt: skip


def make_params(x, inputs: int, outputs: int, inner: int) -> exact.ExactEntropyParams:
    """An entropy-parameter block."""
    return exact.prepare_entropy_params(
        (x(outputs, inputs), x(outputs)), (x(outputs), x(outputs)), x(inner, outputs), x(outputs, outputs),
        x(outputs, inner),
    )  # fmt: skip


def every_exponent(device: str = "cpu") -> Tensor:
    """Every 32771st finite float32, and all multiples of a sixteenth up to 50."""
    bits = np.arange(0, 2**32, 32771, dtype=np.uint64).astype(np.uint32).view(np.float32)
    small = np.arange(-800, 800, dtype=np.float32) / 16
    return torch.from_numpy(np.concatenate((bits[np.isfinite(bits)], small))).to(device)


def norm_extremes(source: Source, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Extreme rows for LayerNorm's integers; weight and bias."""
    signs = torch.ones(width, device=source.device)
    signs[::2] = -1.0
    spike = torch.zeros(width, device=source.device)
    spike[-1] = 2.0**60
    rows = [signs * 2.0**60, signs * 2.0**-60, 0 * signs, spike, 3.0 + 0 * signs, source.normal(width)]
    return torch.stack(rows), source.normal(width), source.normal(width)


class Cpu:
    """The definition's steps in the compiled loops, which are parts of blocks and are called row by row."""

    def __init__(self) -> None:
        from numba import njit

        from lalic_kernels.exact import cpu, cpu_loops
        from lalic_kernels.numba_math import EXACT

        self.cpu = cpu
        # Compiled again, since loops that only compiled code calls have no entry for Python.
        self.square_row, self.gate_row, self.add_row = (
            njit(**EXACT)(loop.py_func) for loop in (cpu_loops.square_row, cpu_loops.gate_row, cpu_loops.add_row)
        )

    def depthwise(self, x: Tensor, weights: exact.ExactDepthwise) -> Tensor:
        return torch.from_numpy(self.cpu.shift(self.cpu.array(x), *self.cpu.shift_taps(weights)))

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        rows, settled = self.cpu.array(x).reshape(-1, x.shape[-1]), (exact.settle(weight), exact.settle(bias))
        return torch.from_numpy(self.cpu.layer_norm(rows, *map(self.cpu.array, settled))).reshape(x.shape)

    def sigmoid(self, x: Tensor) -> Tensor:
        return self.gate(x, torch.ones_like(x))

    def squared_relu(self, x: Tensor) -> Tensor:
        y = x.clone()
        self.square_row(y.numpy().reshape(-1))
        return y

    def gate(self, r: Tensor, x: Tensor) -> Tensor:
        y = x.clone()
        self.gate_row(r.numpy().reshape(-1), y.numpy().reshape(-1))
        return y

    def residual(self, x: Tensor, change: Tensor, gamma: Tensor | None = None) -> Tensor:
        scale = np.empty(0, np.float32) if gamma is None else self.cpu.array(exact.settle(gamma))
        y = torch.empty_like(x)
        for row, more, out in zip(*(a.numpy().reshape(-1, x.shape[-1]) for a in (x, change, y)), strict=True):
            self.add_row(row, more, scale, out)
        return y

    def gated_biwkv(self, w: Tensor, u: Tensor, k: Tensor, v: Tensor, r: Tensor) -> Tensor:
        kvr, tokens = torch.cat((k, v, r), dim=2), k.shape[1]
        y = self.cpu.wkv(kvr.numpy().reshape(-1, kvr.shape[2]), self.cpu.wkv_factors(w, u, tokens), k.shape[0])
        return torch.from_numpy(y).reshape(k.shape)


class Gpu:
    """The definition's steps that a launch can compute alone."""

    def __init__(self) -> None:
        from lalic_kernels.exact import gpu

        self.gpu = gpu

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y, bits = torch.empty_like(x), torch.zeros(1, x.shape[-1], dtype=torch.int32, device=x.device)
        with self.gpu.checked(x.device) as status:
            self.gpu.layer_norm(x.reshape(-1, x.shape[-1]), weight, bias, y, bits, status)
        assert torch.equal(bits[0], y.abs().flatten(0, -2).amax(0).view(torch.int32))
        return y

    def sigmoid(self, x: Tensor) -> Tensor:
        """As the gate of a product that is 1 everywhere."""
        gate = x.reshape(-1, x.shape[-1])
        weight = exact.prepare_linear(torch.ones(x.shape[-1], 1)).to(x.device)
        with self.gpu.checked(x.device) as status:
            ones = self.gpu.digits_of(torch.ones(len(gate), 1, device=x.device), status, 1)
            return self.gpu.product(ones, self.gpu.factor_of(weight), gate=gate).reshape(x.shape)

    def gated_biwkv(self, w: Tensor, u: Tensor, k: Tensor, v: Tensor, r: Tensor) -> Tensor:
        y = torch.empty_like(v)
        self.gpu.wkv(w, u, torch.cat((k, v, r), dim=2), order_key(k.amax(1)), y)
        return y


def order_key(x: Tensor) -> Tensor:
    """`kernels_common.order_key`, as int32 with the same bits."""
    bits = x.contiguous().view(torch.int32)
    return torch.where(bits < 0, ~bits, bits ^ -(1 << 31))


def results(
    kind: str, path: str, device: str = "cpu", lengths: Sequence[int] = (1, 3, 64, 65, 200)
) -> dict[str, Tensor]:
    """The definition's steps and blocks on one kind of input; `path` is a backend.

    A fused path gives only the steps that it can compute alone. `lengths`: of the WKV, in tokens.
    """
    source = Source(KINDS.index(kind), device)
    x = getattr(source, kind)
    steps: Any = {"reference": lambda: reference, "cpu": Cpu, "triton": Gpu}[path]()
    result: dict[str, Tensor] = {}

    def add(name: str, step: str, *arguments: Any) -> None:
        if hasattr(steps, step):
            result[name] = getattr(steps, step)(*arguments)

    for rows, terms, outputs in ((1, 1, 1), (5, 1, 9), (3, 7, 5), (70, 130, 33), (2, 640, 3)):
        weight = exact.prepare_linear(x(outputs, terms), x(outputs))
        result[f"linear {rows} {terms} {outputs}"] = exact.linear(x(rows, terms), weight, backend=path)
    image = x(2, 8, 12, 6)
    for name, weight in {
        "conv": exact.prepare_conv(x(7, 6, 3, 3), x(7), padding=1),
        "conv stride": exact.prepare_conv(x(7, 6, 5, 5), stride=2, padding=2),
        "conv transposed": exact.prepare_conv(x(6, 7, 5, 5), x(7), 2, 2, True, 1),
        "conv transposed 3": exact.prepare_conv(x(6, 7, 3, 3), x(7), 2, 1, True, 1),
        "conv masked": exact.prepare_conv(x(7, 6, 5, 5), x(7), padding=2, taps=CHECKERBOARD),
    }.items():
        result[name] = exact.conv(image, weight, backend=path)
    image, other, vector, bias = x(2, 7, 9, 37), x(2, 7, 9, 37), x(37), x(37)
    for size in (1, 3, 5):
        add(f"depthwise {size}", "depthwise", image, exact.prepare_depthwise(x(37, size, size)))
    add("layer_norm", "layer_norm", image, vector, bias)
    add("layer_norm small", "layer_norm", image * 2.0**-45, vector, bias)
    for name in ("exp", "sigmoid", "squared_relu"):
        add(name, name, image)
    add("gate", "gate", image, other)
    add("residual", "residual", image, other, vector)
    add("residual plain", "residual", image, other)
    for tokens in lengths:
        keys, data, gate = x(2, tokens, 37), x(2, tokens, 37), x(2, tokens, 37)
        add(f"biwkv {tokens}", "biwkv", vector, bias, keys, data)
        step = "biwkv" if path == "reference" else "gated_biwkv"
        add(f"biwkv gate {tokens}", step, vector * 2.0**-7, bias, keys, data, gate)
    result["scale_index"] = exact.gaussian_head(torch.cat((image.abs(), image), dim=3), backend=path)[0]
    blocks, picture = [make_block(x, 19, 2), make_block(x, 19, 2)], x(2, 5, 7, 19)
    result["rwkv_blocks"] = exact.rwkv_blocks(picture, blocks, backend=path)
    params, tokens_in, partial = make_params(x, 21, 17, 35), x(2, 9, 21), x(2, 9, 17)
    result["entropy_params"] = exact.entropy_params(tokens_in, params, backend=path)
    result["entropy_params partial"] = exact.entropy_params(tokens_in, params, partial=partial, backend=path)
    result["entropy_params no inputs"] = exact.entropy_params(tokens_in[..., :0], params, partial=partial, backend=path)
    return result


def float_results() -> dict[str, Tensor]:
    """The same operations by torch in float32, on the normal inputs: these differ between machines."""
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
