"""Curves of speed against size on a GPU, by Triton's own `perf_report`: `python -m benchmarks.plots [-o FOLDER]`.

GB/s of BiWKV and of the 5x5 shift by what each must move at least, beside a copy of as many bytes. A CSV file and a PNG
for each; needs pandas and matplotlib.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton.testing

import lalic_kernels
from lalic_kernels.op import bytes_of

CHANNELS = 192
TOKENS = [1 << power for power in range(8, 19)]
COPY = "a copy"


def _inputs(operation: str, tokens: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Arguments of `biwkv` for T tokens, or of `token_shift` for a square-like picture of as many."""

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, device="cuda")

    if operation == "biwkv":
        k, v = normal(1, tokens, CHANNELS).to(dtype), normal(1, tokens, CHANNELS).to(dtype)
        return normal(CHANNELS) / tokens, normal(CHANNELS) / tokens, k, v
    height = 1 << (tokens.bit_length() - 1) // 2
    return normal(1, height, tokens // height, CHANNELS).to(dtype), normal(CHANNELS, 5, 5)


def speed(tokens: int, provider: str, operation: str) -> float:
    """GB/s of `operation` at T tokens in the dtype named `provider`, or of a copy of as many bytes."""
    dtype = torch.bfloat16 if provider == "bfloat16" else torch.float32
    inputs = _inputs(operation, tokens, dtype)
    moved = bytes_of(operation, *inputs)
    run: Callable[[], Any]
    if provider == COPY:
        source = torch.empty(moved // 2, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        run = lambda: target.copy_(source)  # noqa: E731
    else:
        function = getattr(lalic_kernels, operation)
        run = lambda: function(*inputs)  # noqa: E731
    return 1e-6 * moved / triton.testing.do_bench(run)


def report(operation: str) -> Any:
    """Triton's benchmark of an operation; its `run` measures and draws."""
    curves = triton.testing.Benchmark(
        x_names=["tokens"], x_vals=TOKENS, x_log=True, xlabel=f"tokens of {CHANNELS} channels", ylabel="GB/s",
        line_arg="provider", line_vals=["bfloat16", "float32", COPY], line_names=["bfloat16", "float32", COPY],
        plot_name=operation, args={"operation": operation},
    )  # fmt: skip
    return triton.testing.perf_report(curves)(speed)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the curves. Returns 0; usage errors and a machine without a CUDA device exit with 2."""
    parser = argparse.ArgumentParser("python -m benchmarks.plots", description="Speed against size, on a GPU.")
    parser.add_argument("-o", "--output", default="plots", metavar="FOLDER", help="default: %(default)s")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("torch finds no CUDA device, and these curves are of a GPU")
    for operation in ("biwkv", "token_shift"):
        report(operation).run(print_data=True, save_path=options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
