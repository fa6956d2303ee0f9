"""BiWKV on the CPU under pytest-benchmark: `pytest benchmarks`. Not part of the tests: it measures and asserts no time.

For comparing two commits: `pytest benchmarks --benchmark-autosave`, then `--benchmark-compare`.
"""

from __future__ import annotations

import pytest
import torch

import lalic_kernels
from benchmarks.biwkv import biwkv_arguments, check_biwkv, check_biwkv_gradients
from benchmarks.measure import Setting
from benchmarks.ops import stage_shapes

SETTING = Setting(torch.device("cpu"))
SHAPES = [(1, h * w, c) for h, w, c in stage_shapes()]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward(benchmark, shape: tuple[int, int, int]) -> None:
    arguments = biwkv_arguments(shape, torch.float32, SETTING)
    check_biwkv(arguments, lalic_kernels.biwkv(*arguments))
    benchmark(lalic_kernels.biwkv, *arguments)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_backward(benchmark, shape: tuple[int, int, int]) -> None:
    arguments = biwkv_arguments(shape, torch.float32, SETTING)
    leaves = [x.requires_grad_() for x in arguments]
    y = lalic_kernels.biwkv(*leaves)
    upstream = torch.randn(shape, generator=torch.Generator().manual_seed(1))

    def backward() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(y, leaves, upstream, retain_graph=True)

    check_biwkv_gradients(arguments, upstream, backward())
    benchmark(backward)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_yardstick(benchmark, shape: tuple[int, int, int]) -> None:
    benchmark(torch.exp, biwkv_arguments(shape, torch.float32, SETTING)[2])
