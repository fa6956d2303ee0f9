"""Prepared weights: state, digest, refusal of what is not a state."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from exact_inputs import CHECKERBOARD, Source
from safetensors.torch import load_file, save_file
from test_paths import make_block, same

from lalic_kernels import exact

x = Source(21).normal
WEIGHTS = [
    exact.prepare_linear(x(3, 4)),
    exact.prepare_linear(x(3, 4), x(3)),
    exact.prepare_conv(x(3, 4, 5, 5), x(3), padding=2, taps=CHECKERBOARD),
    exact.prepare_conv(x(4, 3, 5, 5), None, 2, 2, True, 1),
    exact.prepare_depthwise(x(3, 1, 5, 5)),
    make_block(x, 8, 2),
    exact.prepare_entropy_params((x(3, 4), x(3)), (x(3), x(3)), x(6, 3), x(3, 3), x(3, 6)),
]


@pytest.mark.parametrize("weight", WEIGHTS, ids=lambda w: type(w).__name__)
def test_a_state_goes_through_a_file(weight, tmp_path) -> None:
    save_file(weight.state(), tmp_path / "weight.safetensors")
    again = type(weight).from_state(load_file(tmp_path / "weight.safetensors"))
    assert again.digest() == weight.digest()
    assert again.to("cpu").digest() == weight.digest()
    state, other = weight.state(), again.state()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[name], other[name]) for name in state)


def test_digests_differ() -> None:
    assert len({weight.digest() for weight in WEIGHTS}) == len(WEIGHTS)
    moved = exact.prepare_conv(x(3, 4, 3, 3), padding=1)
    assert dataclasses.replace(moved, padding=0).digest() != moved.digest()


def test_digest_is_the_same_for_ever() -> None:
    """It names weights in files: of integers alone, made without a float product."""
    weight = torch.arange(-6, 6, dtype=torch.float32).reshape(3, 4)
    linear = exact.prepare_linear(weight, torch.tensor([1.0, 0.0, -2.0]))
    assert linear.weight.tolist() == [[-6144, -5120, -4096, -3072], [-4096, -2048, 0, 2048], [2048, 3072, 4096, 5120]]
    assert linear.exponent.tolist() == [2, 1, 2]
    assert linear.digest() == "61749f2adaa0fe6c69de0f89bacd798eeeec0662a980c18fe91e679836a86889"


def test_nothing_kept_enters_the_state() -> None:
    weight = exact.prepare_linear(x(3, 4))
    before = weight.digest()
    exact.linear(x(2, 4), weight)
    assert weight.digest() == before
    with pytest.raises(dataclasses.FrozenInstanceError):
        weight.bias = None


def test_what_is_not_a_state_is_refused() -> None:
    state = WEIGHTS[1].state()
    kind = exact.ExactLinear
    for change in (
        {"weight": state["weight"].to(torch.int32)},
        {"weight": torch.full((3, 4), 8192, dtype=torch.int16)},
        {"exponent": torch.full((3,), 61, dtype=torch.int32)},
        {"exponent": torch.zeros(2, dtype=torch.int32)},
        {"bias": torch.tensor([1e-30, 0.0, 0.0])},
        {"bias": torch.tensor([float("nan"), 0.0, 0.0])},
        {"weight": torch.zeros(3, 0, dtype=torch.int16)},
        {"other": torch.zeros(1)},
    ):
        with pytest.raises(ValueError):
            kind.from_state(state | change)
    with pytest.raises(ValueError, match="lacks"):
        kind.from_state({"weight": state["weight"]})
    with pytest.raises(ValueError, match="lacks gamma2"):
        exact.ExactBlock.from_state({k: v for k, v in WEIGHTS[5].state().items() if k != "gamma2"})
    with pytest.raises(ValueError, match="taps must lie"):
        exact.prepare_conv(x(3, 4, 3, 3), taps=[(0, 3)])
    with pytest.raises(ValueError, match="must be finite"):
        exact.prepare_linear(torch.full((2, 2), float("inf")))


@pytest.mark.parametrize("backend", ["reference", None])
def test_a_state_computes_the_same(backend) -> None:
    image, block = x(1, 4, 6, 8), WEIGHTS[5]
    again = exact.ExactBlock.from_state(block.state())
    assert same(exact.rwkv_block(image, again, backend=backend), exact.rwkv_block(image, block, backend=backend))
