"""The entropy-parameter block with `partial`: tests that are not in the contract suite."""

from __future__ import annotations

import functools

import pytest
import torch
from op_specs import ENTROPY_PARAMS, Arguments
from test_contract import gradients, make

import lalic_kernels
from lalic_kernels.entropy_params import reference

BACKENDS = ENTROPY_PARAMS.backends("cpu")
ROUNDINGS = 64 * torch.finfo(torch.float32).eps  # products of up to 90 terms of order one, added in another order


def arguments(n_in: int, n_out: int) -> Arguments:
    return make(ENTROPY_PARAMS, (2, 7, n_in, n_out), torch.float32, "cpu")


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_inputs(backend: str) -> None:
    """With Cin = 0 the first product is `partial` plus the bias."""
    given = arguments(0, 37) | {"partial": torch.randn(2, 7, 37)}
    result, grads = gradients(functools.partial(lalic_kernels.entropy_params, backend=backend), given)
    expected, expected_grads = gradients(reference.entropy_params, given)
    assert result.shape == (2, 7, 37) and result.abs().max() > 0.1
    grads["result"], expected_grads["result"] = result, expected
    for name, one in grads.items():
        other = expected_grads[name]
        assert one.shape == other.shape
        assert not other.numel() or (one - other).abs().max() <= ROUNDINGS * other.abs().max(), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_parts_of_the_first_product_add_up(backend: str) -> None:
    """Some inputs multiplied before give the result of all inputs at once."""
    given = arguments(45, 37)
    whole = lalic_kernels.entropy_params(**given, backend=backend)
    x, mix = given.pop("x"), given.pop("mix_weight")
    partial = x[..., 11:] @ mix[:, 11:].t()
    parts = lalic_kernels.entropy_params(x[..., :11], mix[:, :11], **given, partial=partial, backend=backend)
    assert (parts - whole).abs().max() <= ROUNDINGS * whole.abs().max()
    off = lalic_kernels.entropy_params(x[..., :11], mix[:, :11], **given, backend=backend)
    assert (off - whole).abs().max() > 0.01  # the part matters


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_float32_part_beside_low_precision(backend: str) -> None:
    given = {name: value.half() for name, value in arguments(5, 12).items()}
    partial = torch.randn(2, 7, 12)
    result = lalic_kernels.entropy_params(**given, partial=partial, backend=backend)
    assert result.dtype == torch.float16
    truth = reference.entropy_params(**{name: value.double() for name, value in given.items()}, partial=partial)
    assert (result - truth).abs().max() <= 8 * torch.finfo(torch.float16).eps * truth.abs().max()
