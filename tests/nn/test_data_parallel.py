"""nn.DataParallel, which CompressAI's training scripts use where there are several GPUs."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from replicas import replica_of
from tiny import tiny
from torch import Tensor, nn

from lalic_kernels.layers import RWKVBlock, derived


def results(model: nn.Module, x: Tensor) -> list[Tensor]:
    torch.manual_seed(2)
    out = model(x)
    return [out] if isinstance(out, Tensor) else [out["x_hat"], *out["likelihoods"].values()]


@pytest.mark.parametrize("name", ["block", "restore", "vision", "lalic", "gains"])
def test_replicas_follow_the_weights_and_give_gradients(name: str) -> None:
    torch.manual_seed(1)
    if name in ("lalic", "gains"):
        model: nn.Module = deepcopy(tiny(qualities=3 if name == "gains" else 0)).train()
        x = torch.rand(2, 3, 64, 128)
    else:
        model = RWKVBlock(8, form="lalic" if name == "block" else name)  # type: ignore[arg-type]
        x = torch.randn(2, 4, 6, 8)
    for _ in range(2):
        expected = results(model, x)
        found = results(replica_of(model), x)
        torch.testing.assert_close(found, expected)
        grads = [
            torch.autograd.grad(sum(t.sum() for t in r), list(model.parameters()), allow_unused=True)
            for r in (expected, found)
        ]
        for (weight, _), a, b in zip(model.named_parameters(), *grads, strict=True):
            assert (a is None) == (b is None) == (weight in derived(model) or weight.endswith("quantiles")), weight
            torch.testing.assert_close(a, b)
        with torch.no_grad():
            # Products of weights that lie elsewhere in memory may differ in the last bit.
            torch.testing.assert_close(results(replica_of(model), x), results(model, x))
            for weight in model.parameters():
                weight.mul_(0.9)
