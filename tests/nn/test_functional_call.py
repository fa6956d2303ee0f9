"""torch.func.functional_call: other weights for one call, and those of the model as before."""

from __future__ import annotations

import torch
from tiny import tiny


@torch.no_grad()
def test_weights_of_one_call():
    """Results of either weights are never those of the other, whatever was cached before."""
    model, x = tiny(), torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before = model(x)["x_hat"]
    weights = {name: p * 1.01 for name, p in model.named_parameters()}
    other = torch.func.functional_call(model, weights, (x,), tie_weights=False)["x_hat"]
    assert model(x)["x_hat"].equal(before) and not other.equal(before)
    for name, p in model.named_parameters():
        p.copy_(weights[name])
    assert model(x)["x_hat"].equal(other)
