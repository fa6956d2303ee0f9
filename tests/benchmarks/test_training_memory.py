"""What a training step needs: the count counts, and a stack of blocks needs at most half of plain PyTorch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lalic_kernels
from lalic.nn.blocks import RWKVBlock
from lalic_kernels.layers import derived

pytest.importorskip("triton", reason="the count runs the launches' Python, which needs triton")

from benchmarks.counting import memory
from benchmarks.peers.plain import plain, plain_block
from lalic.config import FULL


def test_the_count_by_hand() -> None:
    """Linear(4, 8) on 16 rows, then a sigmoid, which keeps its result."""

    def make() -> nn.Module:
        return nn.Linear(4, 8, bias=False)

    found = memory.count(make, lambda module: torch.sigmoid(module(torch.empty(16, 4))).sum())
    weight, x, y = 4 * 8 * 4, 16 * 4 * 4, 16 * 8 * 4
    assert found["parameters"] == weight
    # Weights and Adam's two states; x; y while its sigmoid is made, or later the sigmoid and two gradients of y's size
    # (the sum's is expanded, not stored; one scalar and its gradient).
    assert found["peak"] >= 3 * weight + x + 2 * y
    assert found["peak"] <= 3 * weight + x + 3 * y + weight + 2 * 512


def test_the_count_runs_what_a_gpu_would() -> None:
    """BiWKV's backward allocates what its launches need: more than its results, less than autograd through torch."""
    leaves = [torch.empty(32, device="meta", requires_grad=True) for _ in range(2)]
    leaves += [torch.empty(1, 4096, 32, device="meta", requires_grad=True) for _ in range(2)]
    live = memory.Live()
    with memory.launches_left_out(), live:
        y = lalic_kernels.biwkv(*leaves)
        before = live.now
        torch.autograd.grad(y, leaves, torch.empty_like(y))
    plane = 4096 * 32 * 4
    assert 4 * plane <= live.peak - before <= 8 * plane


@pytest.mark.parametrize(("channels", "size"), [(96, 128), (144, 64), (256, 32)])
def test_blocks_need_at_most_half(channels: int, size: int) -> None:
    def make() -> nn.Module:
        return nn.Sequential(*(RWKVBlock(channels, 4) for _ in range(2)))

    def loss(module: nn.Module) -> torch.Tensor:
        x = torch.empty(8, channels, size, size).to(memory_format=torch.channels_last)
        return module(x.requires_grad_()).sum()

    ours = memory.count(make, loss)
    with plain():
        theirs = memory.count(make, loss)
    assert ours["parameters"] == theirs["parameters"]
    assert ours["peak"] <= 0.5 * theirs["peak"]


def test_the_full_model_needs_at_most_half() -> None:
    found = memory.count_model(FULL, 8, 256)
    assert found["ratio"] == found["ours"]["peak"] / found["plain"]["peak"] <= 0.5


def test_plain_is_the_same_block() -> None:
    """What is counted beside ours computes the same, with the same gradients."""
    torch.manual_seed(0)
    block = RWKVBlock(12)
    x = torch.randn(2, 12, 5, 7)
    found = []
    for side in ("ours", "plain"):
        leaf = x.clone().requires_grad_()
        y = plain_block(block, leaf) if side == "plain" else block(leaf)
        weights = [weight for name, weight in block.named_parameters() if name not in derived(block)]
        found.append([y.detach(), *torch.autograd.grad(y.square().sum(), [leaf, *weights])])
    for one, other in zip(*found, strict=True):
        # Two float32 evaluations of a block: products and sums in other orders.
        assert (one - other).abs().max() <= 256 * torch.finfo(torch.float32).eps * max(other.abs().max().item(), 1.0)
