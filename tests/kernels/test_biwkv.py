"""Tests only for BiWKV: extreme arguments, the limits of its forms, time and memory, its name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from op_specs import BIWKV, WHY_NO_INTERPRETER, Arguments
from test_contract import gradients, wide, worst
from torch import Tensor

import lalic_kernels
from lalic_kernels import dispatch, installed
from lalic_kernels.biwkv import cpu, reference, torch_path

EPS = torch.finfo(torch.float32).eps
COMPILED = pytest.mark.skipif(not installed.NUMBA, reason="compiled CPU code needs numba")
KERNELS = pytest.mark.skipif(
    bool(WHY_NO_INTERPRETER) and not torch.cuda.is_available(), reason=WHY_NO_INTERPRETER or "-"
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def arguments(
    seed: int, tokens: int, w: float, u: float, k: float, channels: int = 4, device: str = "cpu"
) -> Arguments:
    """Random float32 arguments of given magnitudes; w has the given sign."""
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(1, tokens, channels, generator=generator) for _ in range(2))
    made = {
        "w": torch.linspace(0.5, 1.0, channels) * w,
        "u": torch.linspace(-1, 1, channels) * u,
        "k": keys * k,
        "v": values,
    }
    return {name: x.to(device) for name, x in made.items()}


def by(backend: str | None) -> Callable[..., Tensor]:
    return lambda **a: lalic_kernels.biwkv(**a, backend=backend)


def check(args: Arguments, function: Callable[..., Tensor], roundings: int = 256) -> tuple[Tensor, Tensor]:
    """Compare result and gradients with float64's; return both results.

    y is a mean of v. A weight exp(x) has an error of |x| roundings; weights that matter have |x| < 16. The same for
    each factor of a gradient; that of w has one more factor, the distance, up to T.
    """
    upstream = torch.randn(args["v"].shape, generator=torch.Generator().manual_seed(4))
    y_true, grads_true = gradients(reference.biwkv, wide(args), upstream)
    y, grads = gradients(function, args, upstream)
    largest = args["v"].abs().max().item()
    assert worst(y, y_true) <= 32 * EPS * largest
    for name, grad in grads.items():
        assert grad.isfinite().all(), name
        scale = max(grads_true[name].abs().max().item(), largest * upstream.abs().max().item())
        assert worst(grad, grads_true[name]) <= roundings * EPS * scale, f"gradient of {name}"
    return y, y_true


EXTREME = {
    "keys of 1e4": (70, 0.01, 1.0, 1e4),
    "keys of 1e4, growing weights": (70, -0.01, 1.0, 1e4),
    "|w| T of 1e3, falling": (100, 10.0, 1.0, 3.0),
    "|w| T of 1e3, growing": (100, -10.0, 1.0, 3.0),
    "|w| of 1e3 a step": (3, 1e3, 1.0, 1.0),
    "|w| of -1e3 a step": (3, -1e3, 1.0, 1.0),
    "bonus of 1e3": (40, 0.1, 1e3, 1.0),
    "all at once": (67, -15.0, 100.0, 1e4),
    "one token, large": (1, 1e3, 1e3, 1e4),
    "only the token itself has weight": (20, 80.0, 200.0, 0.0),
}


@pytest.mark.parametrize(
    ("device", "backend"),
    [("cpu", "triton"), ("cpu", "torch"), ("cpu", None), pytest.param("cuda", None, marks=pytest.mark.gpu)],
)
@pytest.mark.parametrize("case", EXTREME)
def test_extreme_arguments(case: str, device: str, backend: str | None) -> None:
    if backend == "triton" and WHY_NO_INTERPRETER:
        pytest.skip(WHY_NO_INTERPRETER)
    check(arguments(3, *EXTREME[case], device=device), by(backend))


@pytest.mark.parametrize("k", [1e30, -1e30])
def test_huge_keys_have_finite_results(k: float) -> None:
    args = arguments(1, 70, 0.1, 1.0, 1.0)
    args["k"] *= k
    for backend in (*BIWKV.backends("cpu"), "reference"):
        assert by(backend)(**args).isfinite().all(), backend


LIMIT = torch_path.SCALED_LIMIT / torch_path.CHUNK


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("w", "u", "scaled"), [(0.999, 0.999, True), (1.001, 0.999, False), (0.999, 1.001, False)])
def test_both_sides_of_the_torch_paths_limit(w: float, u: float, scaled: bool, sign: int) -> None:
    """The scaled form at its limit and just past it, with keys far beyond float32's exponents."""
    args = arguments(5, 3 * torch_path.CHUNK + 5, sign * w * LIMIT, u * torch_path.SCALED_LIMIT, 60.0)
    assert torch_path.uses_scaled_form(args["w"], args["u"], args["k"].shape[1]) is scaled
    # In the scaled form the gradient of w is a sum of terms times positions in a chunk of 64.
    check(args, torch_path.biwkv, 512)


def test_the_form_depends_on_w_and_u_alone() -> None:
    w, u = torch.tensor([0.1, -LIMIT]), torch.tensor([0.0, -torch_path.SCALED_LIMIT])
    assert torch_path.uses_scaled_form(w, u, 1000) and torch_path.uses_scaled_form(w, u, 10)
    assert not torch_path.uses_scaled_form(w * 1.01, u, 1000) and torch_path.uses_scaled_form(w * 1.01, u, 10)
    assert not torch_path.uses_scaled_form(w, u * 1.01, 1000)
    assert not torch_path.uses_scaled_form(torch.tensor([torch.nan]), torch.zeros(1), 10)


def test_large_values_do_not_overflow() -> None:
    args = arguments(2, 130, 0.1, 1.0, 3.0)
    args["v"] *= 1e34
    y_true = reference.biwkv(**wide(args))
    for backend in [b for b in BIWKV.backends("cpu") if b != "cpu"]:
        assert worst(by(backend)(**args), y_true) <= 32 * EPS * args["v"].abs().max(), backend


@COMPILED
def test_beyond_the_compiled_codes_range() -> None:
    """If requested, it raises; by default the torch path is used, forward and backward."""
    args = arguments(1, 30, 30.0, 1.0, 1.0)
    assert not cpu.supports(args["w"], args["u"], 30)
    with pytest.raises(dispatch.BackendUnavailable, match="w or u is outside its range"):
        lalic_kernels.biwkv(**args, backend="cpu")
    y, grads = gradients(lalic_kernels.biwkv, args)
    assert torch.equal(y, lalic_kernels.biwkv(**args, backend="torch"))
    assert all(grad.isfinite().all() for grad in grads.values())


def norm_error(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b||, and zero exactly where b is zero everywhere."""
    if not b.any():
        assert not a.any()
        return 0.0
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


HARD = {
    "two tokens": (2, 0.1, 0.5, 1.0),
    "a prime": (131, 3 / 131, 0.1, 2.0),
    "negative w": (127, -0.1, 0.5, 3.0),
    "keys of 80": (97, -0.02, 0.1, 80.0),
    "keys of 80, several chunks": (200, 0.1, 0.1, 80.0),
    "a ramp": (129, 0.02, 0.1, 1.0),
    "a falling ramp": (129, -0.1, 0.1, 1.0),
    "spikes": (130, -0.1, 0.1, 1.0),
}


@pytest.mark.parametrize("backend", ["triton", "torch", pytest.param("cpu", marks=COMPILED)])
@pytest.mark.parametrize("name", HARD)
def test_error_bounds(name: str, backend: str) -> None:
    """The stated bounds: 3e-6 forward; for each gradient the larger of 3e-5 and twice plain float32's error.

    Sharp keys are hard: every row's y is close to one v, and the gradients of w and k are differences of nearly equal
    sums.
    """
    if backend == "triton" and WHY_NO_INTERPRETER and not torch.cuda.is_available():
        pytest.skip(WHY_NO_INTERPRETER)
    args = arguments(11, *HARD[name], device="cuda" if backend == "triton" and torch.cuda.is_available() else "cpu")
    if "ramp" in name:
        ramp = torch.linspace(-80, 80, HARD[name][0])[:, None].to(args["k"].device)
        args["k"] += -ramp if "falling" in name else ramp
    if name == "spikes":
        args["k"][:, ::40] += 80
    (y_true, grads_true), (_, eager) = gradients(reference.biwkv, wide(args)), gradients(reference.biwkv, args)
    y, grads = gradients(by(backend), args)
    assert norm_error(y, y_true) <= 3e-6
    for argument, grad in grads.items():
        limit = max(3e-5, 2 * norm_error(eager[argument], grads_true[argument]))
        error = norm_error(grad, grads_true[argument])
        assert error <= limit, f"gradient of {argument}: {error:.1e}, allowed {limit:.1e}"


@pytest.mark.parametrize("backend", BIWKV.backends("cpu"))
def test_one_token_is_exact(backend: str) -> None:
    args = arguments(1, 1, 0.3, 2.0, 5.0)
    y, grads = gradients(by(backend), args, torch.full((1, 1, 4), 3.0))
    assert torch.equal(y, args["v"]) and (grads["v"] == 3.0).all()
    assert not any(grads[name].any() for name in "wuk")


@KERNELS
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("w", "u", "fast"), [(0.999, 0.999, 1), (1.001, 0.999, 0), (0.999, 1.001, 0)])
def test_both_sides_of_the_kernels_limit(w: float, u: float, fast: int, sign: int) -> None:
    """The kernels' fast form at its limit, |w| 64 <= 20 and |u| <= 20, and just past it, with widely spread keys."""
    from lalic_kernels.biwkv import gpu, kernels

    args = arguments(5, 71, sign * w * 20 / 64, u * 20, 60.0, device=DEVICE)
    factors = gpu.make_factors(args["w"], args["u"], 64)
    # Each channel for itself: of these decays the last is the steepest, of these bonuses the first and last are large.
    within = (args["w"].abs() * 64 <= 20) & (args["u"].abs() <= 20)
    assert within.all() == bool(fast)
    assert torch.equal(factors[2 * 64 + kernels.FAST.value] > 0.5, within)
    assert norm_error(*check(args, by("triton"))) <= 3e-6


@COMPILED
def test_full_length_does_not_drift() -> None:
    """98 304 tokens, forward and backward, against float64: a plain float32 scan has an error of 1e-3."""
    tokens = 98_304
    args = arguments(12, tokens, 3.0 / tokens, 0.1, 2.0, channels=2)
    (y_true, grads_true), (y, grads) = gradients(torch_path.biwkv, wide(args)), gradients(by("cpu"), args)
    assert norm_error(y, y_true) <= 3e-6
    for name, grad in grads.items():
        assert norm_error(grad, grads_true[name]) <= 3e-5, f"gradient of {name}"


@KERNELS
@pytest.mark.parametrize(
    ("tokens", "chunk", "scans"),
    [(1100, 64, False), (2100, 256, False), (600, 256, True), pytest.param(98_304, 256, True, marks=pytest.mark.gpu)],
)
def test_launches_of_long_sequences(tokens: int, chunk: int, scans: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small and large chunks, whose sums the rows' programs add or a launch of its own."""
    from lalic_kernels.biwkv import gpu

    if tokens == 600:
        monkeypatch.setattr(gpu, "folds", lambda rows: 0)
    choice = gpu.choose("forward", "any", tokens, 3, 4)
    assert (choice.chunk, choice.scan is not None) == (chunk, scans)
    args = arguments(8, tokens, 3.0 / tokens, 0.1, 2.0, channels=3, device=DEVICE)
    args["w"][1] *= -1
    assert norm_error(by("triton")(**args), torch_path.biwkv(**wide(args))) <= 3e-6


@KERNELS
def test_each_channel_has_its_own_form() -> None:
    """Steep decays and NaN among others: a channel's result depends on its own parameters."""
    args = arguments(6, 90, 0.01, 0.1, 2.0, channels=5, device=DEVICE)
    args["w"][1], args["w"][2] = 5.0, -5.0
    check(args, by("triton"))
    args["w"][3] = torch.nan
    fine = [0, 1, 2, 4]
    (y_true, true), (y, grads) = gradients(reference.biwkv, wide(args)), gradients(by("triton"), args)
    assert y[..., 3].isnan().all()
    assert norm_error(y[..., fine], y_true[..., fine]) <= 3e-6
    for name, grad in grads.items():
        assert norm_error(grad[..., fine], true[name][..., fine]) <= 3e-5, f"gradient of {name}"


@KERNELS
def test_saved_sums_are_those_that_are_computed_again() -> None:
    from lalic_kernels.biwkv import gpu

    w, u, k, v = arguments(7, 150, 0.02, 0.1, 2.0, channels=5, device=DEVICE).values()
    gate, grad = (torch.linspace(a, 1, k.numel(), device=DEVICE).view_as(k) for a in (-3, 2))
    y, states = gpu.forward_for_backward(w, u, k, v, gate)
    assert norm_error(y, gpu.forward(w, u, k, v, gate)) <= 1e-6
    assert [x.shape for x in states] == list(gpu.shapes_of_states(k))
    saved, again = (gpu.backward(w, u, k, v, grad, gate, given) for given in (states, None))
    assert all(torch.equal(a, b) for a, b in zip(saved, again, strict=True))


def test_long_sequences_take_linear_memory() -> None:
    """40 000 tokens: a quadratic path needs 6.4 GB for one channel. The error does not grow with T."""
    tokens = 40_000
    args = arguments(9, tokens, 3.0 / tokens, 0.1, 2.0, channels=2)
    exact = torch_path.biwkv(**wide(args))
    rows = [0, 1, 63, 64, 12_345, tokens - 1]
    w, u, k, v = wide(args).values()
    for t in rows:  # the definition, for a few rows
        gap = (torch.arange(tokens) - t).abs()[:, None]
        logits = torch.where(gap == 0, u + k[0], k[0] - (gap - 1) * w)
        row = (torch.softmax(logits, 0) * v[0]).sum(0)
        assert (exact[0, t] - row).abs().max() <= 1e-13 * v.abs().max()  # float64 sums of 40 000 terms
    for backend in [b for b in BIWKV.backends("cpu") if b != "triton"]:
        assert worst(by(backend)(**args), exact) <= 32 * EPS * v.abs().max(), backend


@pytest.mark.parametrize("backend", BIWKV.backends("cpu"))
def test_masked_tokens_have_no_weight(backend: str) -> None:
    """A key of -inf masks a token, also all of a chunk and its padding; with every token masked there is no result."""
    w, u, k, v = (x.float() for x in BIWKV.make((1, 200, 3), torch.Generator().manual_seed(0)).values())
    for masked in (slice(64, 128), slice(0, 64), slice(190, 200), slice(1, 200), slice(30, 170)):
        leaves = [x.clone().requires_grad_() for x in (w, u, k, v)]
        with torch.no_grad():
            leaves[2][:, masked] = -torch.inf
        truth = lalic_kernels.biwkv(*leaves, backend="reference")
        true_grads = torch.autograd.grad(truth, leaves, torch.ones_like(v))
        result = lalic_kernels.biwkv(*leaves, backend=backend)
        torch.testing.assert_close(result, truth, rtol=1e-4, atol=1e-5)
        grads = torch.autograd.grad(result, leaves, torch.ones_like(v))
        # Of sum(y), those of w, u and k are sums whose terms cancel.
        for grad, true in zip(grads, true_grads, strict=True):
            torch.testing.assert_close(grad, true, rtol=1e-3, atol=2e-3)
    assert lalic_kernels.biwkv(w, u, torch.full_like(k, -torch.inf), v, backend=backend).isnan().all()
