"""float32 products on tensor cores: three products of TF32 a product, emulated, for Triton's interpreter ignores it.

`lalic_kernels/mix/README.md` derives the bound.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from op_specs import CHANNEL_MIX, ENTROPY_PARAMS, INTERPRETER, SPATIAL_MIX, WHY_NO_INTERPRETER, OpSpec
from test_contract import RESULT_ROUNDINGS, allowed, approximations, make, wide, worst

from lalic_kernels.launch import precision

UNIT = 2.0**-22  # of a factor that big + small leaves out


def tf32(x: np.ndarray) -> np.ndarray:
    """float32 to the nearest TF32, ties away from zero, as `cvt.rna.tf32.f32`."""
    return ((x.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def halves(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    big = tf32(x)
    return big, tf32(x - big)


def towards_zero(x: np.ndarray) -> np.ndarray:
    """float64 to float32 without the rest, as tensor cores may add."""
    near = x.astype(np.float32)
    return np.where(np.abs(near) > np.abs(x), np.nextafter(near, np.float32(0)), near)


def product(a: np.ndarray, b: np.ndarray, parts: int = 3) -> np.ndarray:
    """a @ b: products of TF32 parts, the small ones first, in steps of eight terms; 1 part is plain TF32."""
    (a, a_small), (b, b_small) = halves(a), halves(b)
    total = np.zeros((a.shape[0], b.shape[1]), np.float32)
    for x, y in ((a_small, b), (a, b_small), (a, b))[3 - parts :]:
        for start in range(0, a.shape[1], 8):
            step = slice(start, start + 8)
            total = towards_zero(total + x[:, step].astype(np.float64) @ y[step].astype(np.float64))
    return total


def test_the_bound() -> None:
    generator = np.random.default_rng(0)
    for terms in (1, 16, 96, 1024):
        a, b = (generator.standard_normal(size).astype(np.float32) for size in ((64, terms), (terms, 64)))
        a *= 2.0 ** generator.integers(-40, 40, (64, 1))  # scales do not matter
        truth, sizes = a.astype(np.float64) @ b, np.abs(a).astype(np.float64) @ np.abs(b)
        error = np.abs(product(a, b) - truth)
        # Three products are left out; each step of eight terms of a product may lose a unit of the last place.
        assert (error <= (3 * UNIT + 3 * terms / 8 * 2.0**-23 + 2.0**-23) * sizes).all()
        assert (np.abs(product(a, b, parts=1) - truth) > 64 * UNIT * sizes).any(), "one product of TF32 is as good"


def test_halves_are_numbers_of_11_bits_that_nearly_add_up() -> None:
    x = np.random.default_rng(1).integers(0x00800000 + (12 << 23), 0x7F000000, 1 << 16, np.uint32).view(np.float32)
    big, small = halves(x)
    for part in (big, small):
        assert not (part.view(np.uint32) & 0x1FFF).any()
    assert (np.abs(x.astype(np.float64) - big - small) <= UNIT * x).all()


def test_which_precision_an_architecture_has() -> None:
    assert [precision(name) for name in ("any", "cuda 80", "cuda 100")] == ["tf32x3"] * 3
    assert precision("hip gfx942") == "ieee"  # Triton knows no TF32 in three parts there


@pytest.mark.skipif(not INTERPRETER, reason=WHY_NO_INTERPRETER)
@pytest.mark.parametrize("spec", [CHANNEL_MIX, SPATIAL_MIX, ENTROPY_PARAMS], ids=lambda spec: spec.name)
def test_triton_kernels_keep_the_contract_on_tensor_cores(spec: OpSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """The contract suite's bound for a GPU, with every product emulated."""
    from triton.runtime import interpreter

    seen: list[str] = []

    def dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, *_: Any) -> Any:
        seen.append(str(input_precision))
        return interpreter.TensorHandle(product(a.data, b.data) + d.data, d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)
    for case, sizes in list(spec.cases.items())[-2:]:
        arguments = make(spec, sizes, torch.float32, "cpu")
        truth = spec.reference(**wide(arguments))
        roundings = RESULT_ROUNDINGS + approximations("cuda", "triton", torch.float32)
        limit = allowed(spec.reference(**arguments), truth, torch.float32, roundings, truth.abs().max().item())
        error = worst(spec.public(**arguments, backend="triton"), truth)
        assert error <= limit, f"{case}: result is off by {error:.2e}, allowed {limit:.2e}"
    assert seen and all("tf32x3" in each.lower() for each in seen), set(seen)
