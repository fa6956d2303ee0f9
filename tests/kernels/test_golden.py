"""References and fast paths against results of the published classes (tests/golden/kernels.md)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from op_specs import BIWKV, ENTROPY_PARAMS, TOKEN_SHIFT
from torch import Tensor

import lalic_kernels
from lalic_kernels.biwkv import cpu
from lalic_kernels.biwkv.reference import biwkv as biwkv_reference
from lalic_kernels.entropy_params.reference import entropy_params as entropy_reference
from lalic_kernels.mix.reference import channel_mix, spatial_mix
from lalic_kernels.shift.reference import fold_token_shift as fold_reference
from lalic_kernels.shift.reference import token_shift as shift_reference

EPS32, EPS64 = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(Path(__file__).resolve().parents[1] / "golden" / "kernels.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def under(golden: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in golden.items() if name.startswith(prefix)}


def close(value: Tensor, truth: Tensor, roundings: float, eps: float, scale: float | None = None) -> None:
    scale = truth.abs().max().item() if scale is None else scale
    error = (value.double() - truth.double()).abs().max().item()
    assert error <= roundings * eps * scale, f"off by {error:.2e}, allowed {roundings * eps * scale:.2e}"


BIWKV_CASES = ["t1", "t2", "t7", "t33", "t65_w0", "t100_neg", "t100_strong", "t129_k80"]


@pytest.mark.parametrize("case", BIWKV_CASES)
def test_biwkv_reference(golden: dict[str, Tensor], case: str) -> None:
    c = under(golden, f"biwkv/{case}/")
    leaves = [c[name].double().requires_grad_() for name in ("w", "u", "k", "v")]
    y = biwkv_reference(*leaves)
    # Two float64 computations of one formula, sums of up to 129 terms.
    close(y, c["y"], 32, EPS64)
    grads = torch.autograd.grad(y, leaves, c["gy"].double())
    scale = max(c[name].abs().max().item() for name in ("gw", "gu", "gk", "gv"))
    for name, grad in zip(("gw", "gu", "gk", "gv"), grads, strict=True):
        close(grad, c[name], 256, EPS64, scale)


@pytest.mark.parametrize("backend", BIWKV.backends("cpu"))
@pytest.mark.parametrize("case", BIWKV_CASES)
def test_biwkv_float32(golden: dict[str, Tensor], case: str, backend: str) -> None:
    c = under(golden, f"biwkv/{case}/")
    if backend == "cpu" and not cpu.supports(c["w"], c["u"], c["k"].shape[1]):
        pytest.skip("outside the compiled code's range, which test_biwkv.py tests")
    leaves = [c[name].clone().requires_grad_() for name in ("w", "u", "k", "v")]
    y = lalic_kernels.biwkv(*leaves, backend=backend)
    # The result is a mean of v, bounded by v; each weight has an error of a few roundings.
    close(y, c["y"], 16, EPS32, c["v"].abs().max().item())
    grads = torch.autograd.grad(y, leaves, c["gy"])
    for name, grad in zip(("gw", "gu", "gk", "gv"), grads, strict=True):
        # Products of p, v, y and g, each with an error of up to 16 roundings, and cancellation between them.
        scale = max(c[name].abs().max().item(), c["gv"].abs().max().item() * c["v"].abs().max().item())
        close(grad, c[name], 128, EPS32, scale)


@pytest.mark.parametrize("number", [0, 1])
def test_token_shift(golden: dict[str, Tensor], number: int) -> None:
    c = under(golden, f"token_shift/{number}/")
    parts = [c[name] for name in ("alpha", "conv1x1.weight", "conv3x3.weight", "conv5x5.weight")]
    folded = lalic_kernels.fold_token_shift(*parts)
    # Four products added: four roundings.
    close(folded, c["reparam_weight"].reshape(-1, 5, 5), 4, EPS32)
    assert torch.equal(folded, fold_reference(*parts))
    without_group = [parts[0], *(part[:, 0] for part in parts[1:])]
    assert torch.equal(folded, lalic_kernels.fold_token_shift(*without_group))
    x, truth = c["x"].permute(0, 2, 3, 1), c["y_f64"].permute(0, 2, 3, 1)
    close(shift_reference(x.double(), fold_reference(*(part.double() for part in parts))), truth, 32, EPS64)
    for backend in TOKEN_SHIFT.backends("cpu"):
        # 25 products of rounded weights.
        close(lalic_kernels.token_shift(x, folded, backend=backend), truth, 25, EPS32)


def test_fold_refuses_what_does_not_fit() -> None:
    alpha, w1, w3, w5 = torch.ones(4), torch.ones(6, 1, 1), torch.ones(6, 3, 3), torch.ones(6, 5, 5)
    with pytest.raises(ValueError, match=r"w3 must have shape \(C, 3, 3\) with C = 6, but has shape \(5, 3, 3\)"):
        lalic_kernels.fold_token_shift(alpha, w1, w3[1:], w5)
    with pytest.raises(ValueError, match=r"alpha must have shape \(4,\)"):
        lalic_kernels.fold_token_shift(alpha[:3], w1, w3, w5)
    with pytest.raises(TypeError, match="w1 must be float32 as w5 is, but is float64"):
        lalic_kernels.fold_token_shift(alpha, w1.double(), w3, w5)
    with pytest.raises(TypeError, match="w5 must be a tensor"):
        lalic_kernels.fold_token_shift(alpha, w1, w3, None)


@pytest.mark.parametrize("number", [0, 1])
def test_entropy_params(golden: dict[str, Tensor], number: int) -> None:
    c = under(golden, f"entropy_params/{number}/")
    names = ("mix.weight", "mix.bias", "norm.weight", "norm.bias", "key.weight", "receptance.weight", "value.weight")
    weights = [c[name].flatten(1) if name == "mix.weight" else c[name] for name in names]
    x, truth = c["x"].flatten(2).transpose(1, 2), c["y_f64"].flatten(2).transpose(1, 2)
    close(entropy_reference(x.double(), *(weight.double() for weight in weights)), truth, 64, EPS64)
    for backend in ENTROPY_PARAMS.backends("cpu"):
        # Five products of up to 52 terms, one after the other.
        close(lalic_kernels.entropy_params(x, *weights, backend=backend), truth, 32, EPS32)


def test_whole_block(golden: dict[str, Tensor]) -> None:
    """Normalised shift, spatial mix and channel mix form an RWKV block: its values and all parameters' gradients."""
    parameters = {k: v.double().requires_grad_() for k, v in under(golden, "block/parameter/").items()}
    x = golden["block/x"].double().requires_grad_()

    def shift(half: str) -> Tensor:
        parts = ("alpha", "conv1x1.weight", "conv3x3.weight", "conv5x5.weight")
        return fold_reference(*(parameters[f"{half}.omni_shift.{part}"] for part in parts))

    def shifted(image: Tensor, norm: str, half: str) -> Tensor:
        return lalic_kernels.norm_shift(image, parameters[f"{norm}.weight"], parameters[f"{norm}.bias"], shift(half))

    def weights(half: str, *names: str) -> list[Tensor]:
        return [parameters[f"{half}.{name}.weight"] for name in names]

    image = x.permute(0, 2, 3, 1)
    att = weights("att", "key", "value", "receptance", "output")
    decay, boost = parameters["att.decay"], parameters["att.boost"]
    image = spatial_mix(shifted(image, "ln1", "att"), decay, boost, *att, residual=image, gamma=parameters["gamma1"])
    ffn = weights("ffn", "key", "receptance", "value")
    y = channel_mix(shifted(image, "ln2", "ffn"), *ffn, residual=image, gamma=parameters["gamma2"]).permute(0, 3, 1, 2)
    # The published class adds 1e-6 to BiWKV's denominator, which is at least one: an error of 1e-6 of its result. All
    # other parts of the block are exact.
    close(y, golden["block/y_f64"], 4e-6, 1.0)
    names = list(parameters)
    grads = torch.autograd.grad(y, [x, *parameters.values()], golden["block/gy"].double())
    for name, grad in zip(["gx", *(f"gradient/{name}" for name in names)], grads, strict=True):
        # The stored gradients have no such epsilon and are rounded to float32.
        close(grad, golden[f"block/{name}"], 2, EPS32)
