"""Prepared weights: digest, cache, and checks."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch
from exact_inputs import CHECKERBOARD, Source, make_block

from lalic_kernels import exact
from lalic_kernels.exact import op

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
def test_copies_have_the_same_digest_and_another_cache(weight) -> None:
    for again in (weight.to("cpu"), copy.deepcopy(weight), pickle.loads(pickle.dumps(weight))):
        assert type(again) is type(weight) and again.digest() == weight.digest()
        assert again.cache is not weight.cache


def test_digests_differ() -> None:
    assert len({weight.digest() for weight in WEIGHTS}) == len(WEIGHTS)
    moved = exact.prepare_conv(x(3, 4, 3, 3), padding=1)
    assert dataclasses.replace(moved, padding=0).digest() != moved.digest()


def test_digest_never_changes() -> None:
    """Files refer to weights by it. These weights are exact, made without a float product."""
    weight = torch.arange(-6, 6, dtype=torch.float32).reshape(3, 4)
    linear = exact.prepare_linear(weight, torch.tensor([1.0, 0.0, -2.0]))
    assert linear.weight.tolist() == [[-6144, -5120, -4096, -3072], [-4096, -2048, 0, 2048], [2048, 3072, 4096, 5120]]
    assert linear.exponent.tolist() == [2, 1, 2]
    assert linear.digest() == "61749f2adaa0fe6c69de0f89bacd798eeeec0662a980c18fe91e679836a86889"


@pytest.mark.parametrize("backend", ["reference", None])
def test_the_cache_is_not_part_of_the_digest(backend) -> None:
    """Its entries are computed once."""
    image, block = x(1, 4, 6, 8), make_block(x, 8, 2)
    before = block.digest()
    expected = exact.rwkv_block(image, block, backend=backend)
    names = list(block.cache)
    assert torch.equal(exact.rwkv_block(image, block, backend=backend), expected)
    assert block.digest() == before and list(block.cache) == names
    again = copy.deepcopy(block)
    assert list(again.cache) == [] and torch.equal(exact.rwkv_block(image, again, backend=backend), expected)


@pytest.mark.skipif(not op.installed.NUMBA, reason="numba is not installed; the reference caches nothing")
def test_pictures_of_many_sizes_do_not_fill_the_cache() -> None:
    block = make_block(x, 8, 2)
    for height in (2, 3, 4, 2):
        image = x(1, height, 6, 8)
        expected = exact.rwkv_block(image, block, backend="reference")
        assert torch.equal(exact.rwkv_block(image, block, backend="cpu"), expected)
        assert len(list(block.cache)) == 2


def test_weights_are_not_written_to() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        WEIGHTS[0].bias = None


def test_what_cannot_be_a_weight_is_refused() -> None:
    good = WEIGHTS[1]
    for change in (
        {"weight": good.weight.to(torch.int32)},
        {"weight": torch.full((3, 4), 8192, dtype=torch.int16)},
        {"exponent": torch.full((3,), 61, dtype=torch.int32)},
        {"exponent": torch.zeros(2, dtype=torch.int32)},
        {"bias": torch.tensor([1e-30, 0.0, 0.0])},
        {"bias": torch.tensor([float("nan"), 0.0, 0.0])},
        {"weight": torch.zeros(3, 0, dtype=torch.int16)},
    ):
        with pytest.raises(ValueError, match="ExactLinear: "):
            dataclasses.replace(good, **change)
    with pytest.raises(ValueError, match="taps must lie"):
        exact.prepare_conv(x(3, 4, 3, 3), taps=[(0, 3)])
    infinite = torch.full((2, 2), float("inf"))
    with pytest.raises(ValueError, match="prepare_linear: weight must be finite"):
        exact.prepare_linear(infinite)
    with pytest.raises(ValueError, match="prepare_linear: biases and other vectors must be finite"):
        exact.prepare_linear(x(2, 2), infinite[0])
    with pytest.raises(ValueError, match="prepare_entropy_params: biases and other vectors must be finite"):
        exact.prepare_entropy_params((x(2, 2), x(2)), (infinite[0], x(2)), x(4, 2), x(2, 2), x(2, 4))
