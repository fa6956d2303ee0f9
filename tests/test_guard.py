"""A change of structure must not change outputs, rates and gradients of models; against golden/guard.json.

Symbols have a guard of their own, the golden streams. `python tests/test_guard.py` writes the file anew: for a change
of the numbers that was meant, and then the commit says why.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from shapes import SHAPES

from lalic.config import SLIM
from lalic.model import LALIC

FILE = Path(__file__).parent / "golden" / "guard.json"
MODELS = [*SHAPES, "slim"]
# float32 sums in another order, through all layers and back: up to 2e-5 of the largest number of its kind between
# thread counts. A wrong term, tap or index changes percents.
TOLERANCE = 1e-3


def make(name: str) -> LALIC:
    """A model whose weights are waves: the same on every machine and with every version of torch."""
    if name == "slim":
        model = LALIC.from_config(SLIM)
    else:
        model = LALIC(3, 11, (4, 6, 8, 11, 6, 5), (1, 1, 1, 1), (3, 1, 7), qualities=3, **SHAPES[name])
    with torch.no_grad():
        for number, (key, weight) in enumerate(model.named_parameters()):
            if "quantiles" in key:
                continue
            wave = torch.sin(torch.arange(weight.numel(), dtype=torch.float64) * 1.7 + number).view(weight.shape)
            weight.copy_(wave * (1.5 / weight[0].numel()) ** 0.5 if weight.ndim > 1 else 0.5 + 0.3 * wave)
    return model


def measure(name: str) -> dict[str, Any]:
    """Outputs at some pixels, bits, and the norm of each weight's gradient."""
    model = make(name)
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    picture = torch.stack((x / 63, y / 63, (torch.sin(x * y / 60) + 1) / 2))[None]
    torch.manual_seed(0)  # of the noise in training
    out = model(picture, quality=30)
    bits = torch.stack([-likelihood.log2().sum() for likelihood in out["likelihoods"].values()])
    ((out["x_hat"] - picture).square().mean() * 100 + bits.sum() / 1000).backward()
    gradients = {key: weight.grad for key, weight in model.named_parameters() if weight.grad is not None}
    return {
        "x_hat": out["x_hat"].detach()[0, :, 5::19, 3::11].flatten().tolist(),
        "bits": bits.tolist(),
        "gradients": {key: float(gradient.double().norm()) for key, gradient in gradients.items()},
    }


@pytest.mark.parametrize("name", MODELS)
def test_numbers_of_a_model_stay(name: str) -> None:
    expected, found = json.loads(FILE.read_text())[name], measure(name)
    for key in ("x_hat", "bits"):
        scale = max(map(abs, expected[key]))
        assert found[key] == pytest.approx(expected[key], rel=0, abs=TOLERANCE * scale), key
    assert list(found["gradients"]) == list(expected["gradients"])
    largest = max(expected["gradients"].values())
    assert all(norm > 0 for key, norm in expected["gradients"].items() if "quantiles" not in key)
    for key, norm in expected["gradients"].items():
        assert found["gradients"][key] == pytest.approx(norm, rel=TOLERANCE, abs=1e-6 * largest), key


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: measure(name) for name in MODELS}, indent=1) + "\n")
