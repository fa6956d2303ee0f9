"""One suite that every op passes, on every implementation that can run on this machine.

Without a GPU the Triton kernels run in Triton's interpreter: the same source, on CPU tensors. With a GPU, everything
also runs on it.

Errors: the reference is computed in float64 (the truth) and in the tested dtype (the result of plain torch). An
implementation may have twice the error of plain torch, plus a few roundings of the result, because plain torch may be
exact by luck.
"""

from __future__ import annotations

import pytest
import torch
from op_specs import SPECS, Arguments, OpSpec
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lalic_kernels import dispatch, op
from lalic_kernels.op import bytes_of

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
OPS = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.id)
ON = pytest.mark.parametrize("device", DEVICES)

# Roundings of the largest value that are allowed in addition to twice plain torch's error. A result: one for itself and
# for each of the last few operations. A parameter's gradient is a sum over all tokens, whose terms cancel.
RESULT_ROUNDINGS, GRADIENT_ROUNDINGS = 4, 32
# More of them where kernels run on a GPU and not in the interpreter, which computes exponentials and quotients exactly.
# In units of float32's eps 2^-23: ex2.approx is 2^-22 off, 2 units, and so are the numerator and the denominator of
# BiWKV, 4; div.full is 2 ulp off, 2; its gate is a sigmoid, z / (1 + z) or 1 / (1 + z) with z <= 1, which takes at most
# half of z's 2 units, 1, and a division, 2. The argument of ex2 is rounded too: exp(x) |x| 2^-24 < 0.2 for the x <= 0
# that are used, which the 4 above cover. Other ops have less: a mix one sigmoid, and in its products 3 * 2^-22 of each
# term with random signs, below a unit of the largest result.
APPROXIMATIONS = 4 + 2 + 1 + 2


def approximations(device: str, backend: str, dtype: torch.dtype) -> int:
    """Roundings to allow for approximate instructions. In 16-bit types they are far below a rounding."""
    return APPROXIMATIONS if (device, backend, dtype) == ("cuda", "triton", torch.float32) else 0


def backends_of(specs=SPECS):
    """(spec, device, backend) for all that can run."""
    for spec in specs:
        for device in ("cpu", "cuda"):
            marks = [pytest.mark.gpu] if device == "cuda" else []
            for backend in spec.backends(device):
                yield pytest.param(spec, device, backend, marks=marks, id=f"{spec.id}-{device}-{backend}")


IMPLEMENTATIONS = pytest.mark.parametrize(("spec", "device", "backend"), list(backends_of()))


def make(spec: OpSpec, sizes: tuple[int, ...], dtype: torch.dtype, device: str, seed: int = 0) -> Arguments:
    """Arguments in a dtype; the float64 reference gets the same, already rounded values."""
    arguments = spec.make(sizes, torch.Generator().manual_seed(seed))
    return {name: value.to(dtype).to(device) for name, value in arguments.items()}


def wide(arguments: Arguments) -> Arguments:
    return {name: value.double() for name, value in arguments.items()}


def gradients(function, arguments: Arguments, upstream: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    leaves = {name: value.detach().clone().requires_grad_() for name, value in arguments.items()}
    result = function(**leaves)
    if upstream is None:
        upstream = torch.randn(result.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    upstream = upstream.to(result.dtype).to(result.device)
    grads = torch.autograd.grad(result, list(leaves.values()), upstream)
    return result.detach(), dict(zip(leaves, grads, strict=True))


def worst(a: Tensor, truth: Tensor) -> float:
    return (a.double() - truth).abs().max().item()


def allowed(eager: Tensor, truth: Tensor, dtype: torch.dtype, roundings: int, scale: float) -> float:
    return 2 * worst(eager, truth) + roundings * torch.finfo(dtype).eps * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@IMPLEMENTATIONS
def test_values_and_gradients(spec: OpSpec, device: str, backend: str, dtype: torch.dtype) -> None:
    if spec.multiplies_matrices and (device, backend, dtype) == ("cpu", "triton", torch.bfloat16):
        pytest.skip("Triton's interpreter cannot multiply matrices of bfloat16")
    for case, sizes in list(spec.cases.items())[0 if dtype == torch.float32 else -3 :]:
        arguments = make(spec, sizes, dtype, device)
        truth, true_grads = gradients(spec.reference, wide(arguments))
        eager, eager_grads = gradients(spec.reference, arguments)
        result, grads = gradients(lambda **a: spec.public(**a, backend=backend), arguments)
        assert result.is_contiguous() and result.shape == truth.shape, case
        assert result.dtype == (torch.float32 if spec.float32_result else dtype), case
        more = approximations(device, backend, dtype)
        limit = allowed(eager, truth, dtype, RESULT_ROUNDINGS + more, truth.abs().max().item())
        error = worst(result, truth)
        assert error <= limit, f"{case}: result is off by {error:.2e}, allowed {limit:.2e}"
        # A gradient that is zero by symmetry is a difference of sums as large as the other gradients.
        scale = max(grad.abs().max().item() for grad in true_grads.values())
        for name, grad in grads.items():
            assert grad.dtype == dtype and grad.shape == arguments[name].shape, f"{case}: {name}"
            roundings = GRADIENT_ROUNDINGS if dtype == torch.float32 else RESULT_ROUNDINGS
            limit = allowed(eager_grads[name], true_grads[name], dtype, roundings + more, scale)
            error = worst(grad, true_grads[name])
            assert error <= limit, f"{case}: gradient of {name} is off by {error:.2e}, allowed {limit:.2e}"


@OPS
@ON
def test_values_and_gradients_float64(spec: OpSpec, device: str) -> None:
    """float64 takes the torch path on every device, and is as accurate as the reference."""
    for case, sizes in spec.cases.items():
        arguments = make(spec, sizes, torch.float64, device)
        truth, true_grads = gradients(spec.reference, arguments)
        result, grads = gradients(spec.public, arguments)
        assert result.dtype == torch.float64
        # Both are float64. Sums have another order; in BiWKV's scaled form the gradient of w is a sum of terms times
        # positions up to 64 instead of distances.
        scale = truth.abs().max().item()
        assert worst(result, truth) <= 32 * torch.finfo(torch.float64).eps * scale, case
        scale = max(grad.abs().max().item() for grad in true_grads.values())
        for name, grad in grads.items():
            assert worst(grad, true_grads[name]) <= 512 * torch.finfo(torch.float64).eps * scale, f"{case}: {name}"


@OPS
def test_float32_parameters_beside_low_precision(spec: OpSpec) -> None:
    """Parameters may stay float32 beside bfloat16 data: the result is bfloat16, their gradients float32."""
    data = {"biwkv": ("k", "v", "gate"), "gaussian_likelihood": ("y",)}.get(spec.name, ("x", "residual"))
    arguments = make(spec, spec.cases[list(spec.cases)[-1]], torch.float32, "cpu")
    mixed = {name: value.bfloat16() if name in data else value for name, value in arguments.items()}
    result, grads = gradients(spec.public, mixed)
    assert result.dtype == (torch.float32 if spec.float32_result else torch.bfloat16)
    assert {name: grad.dtype for name, grad in grads.items()} == {name: value.dtype for name, value in mixed.items()}
    truth = spec.reference(**wide(mixed))
    # bfloat16 has 8 bits; the weights of products are rounded too, and a few hundred terms are summed.
    assert worst(result, truth) <= 8 * torch.finfo(torch.bfloat16).eps * truth.abs().max().item()


DATA = ("x", "k", "v", "gate", "residual", "partial", "y", "scales", "means", "result")  # the others are parameters


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning", "ignore:All-NaN:RuntimeWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@IMPLEMENTATIONS
def test_what_is_not_finite_comes_out_not_finite(spec: OpSpec, device: str, backend: str, dtype: torch.dtype) -> None:
    """Where the definition gives NaN or infinity, so does every backend, or it raises: nothing hides a broken run."""
    interpreted = (device, backend) == ("cpu", "triton")
    if interpreted and dtype != torch.float32:
        pytest.skip("kernels compute in float32, and Triton's interpreter takes long")
    arguments = make(spec, spec.gradient_case if interpreted else list(spec.cases.values())[-1], dtype, device)
    upstream = torch.ones_like(spec.reference(**arguments))
    everything = {**arguments, "upstream": upstream}
    for name, value in everything.items():
        for bad in (torch.nan,) if interpreted else (torch.nan, torch.inf, -torch.inf):
            changed = dict(everything)
            changed[name] = value.clone()
            changed[name].view(-1)[value.numel() // 2] = bad
            grad = changed.pop("upstream")
            truth, true_grads = gradients(spec.reference, changed, grad)
            try:
                result, grads = gradients(lambda **a: spec.public(**a, backend=backend), changed, grad)
            except dispatch.BackendUnavailable:  # compiled BiWKV, of w and u; the default is then torch
                assert backend == "cpu"
                continue
            for each, got, right in (("result", result, truth), *((n, grads[n], true_grads[n]) for n in grads)):
                what = f"{bad} in {name}: {each}"
                if each == "result":
                    assert torch.equal(got.isfinite(), right.isfinite()), what
                elif each in DATA:
                    assert not (got.isfinite() & ~right.isfinite()).any(), what
                else:  # a definition that pads with zeros has more of NaN times zero
                    assert right.isfinite().all() or not got.isfinite().all(), what


@IMPLEMENTATIONS
def test_every_element_is_written(spec: OpSpec, device: str, backend: str, poisoned_memory) -> None:
    assert torch.empty(3, device=device).isnan().all(), "new memory is not NaN, so this test shows nothing"
    for case, sizes in spec.cases.items():
        result, grads = gradients(
            lambda **a: spec.public(**a, backend=backend), make(spec, sizes, torch.float32, device)
        )
        for name, value in {"result": result, **grads}.items():
            assert value.isfinite().all(), f"{case}: {name} has elements that were never written"


def awkward(value: Tensor) -> Tensor:
    """The same values with odd strides: every second element of a larger, transposed tensor; the others are NaN."""
    shape = [2 * size + 1 for size in reversed(value.shape)]
    store = torch.full(shape, torch.nan, dtype=value.dtype, device=value.device).permute(*reversed(range(value.dim())))
    view = store[tuple(slice(1, None, 2) for _ in value.shape)]
    view.copy_(value)
    assert value.numel() < 2 or not view.is_contiguous()
    return view


@IMPLEMENTATIONS
def test_strides_do_not_matter(spec: OpSpec, device: str, backend: str) -> None:
    for case, sizes in list(spec.cases.items())[-2:]:
        arguments = make(spec, sizes, torch.float32, device)
        sliced = {name: awkward(value) for name, value in arguments.items()}
        expected = spec.public(**arguments, backend=backend)
        result = spec.public(**sliced, backend=backend)
        assert result.is_contiguous()
        # Not bit for bit: for another layout a matrix product may add in another order, which costs a few roundings.
        limit = RESULT_ROUNDINGS * torch.finfo(torch.float32).eps * expected.abs().max().item()
        assert worst(result, expected.double()) <= limit, case
        _, expected_grads = gradients(lambda **a: spec.public(**a, backend=backend), arguments)
        leaves = {name: value.requires_grad_() for name, value in sliced.items()}
        upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        awkward_grad = awkward(upstream.to(torch.float32).to(device))
        grads = torch.autograd.grad(spec.public(**leaves, backend=backend), list(leaves.values()), awkward_grad)
        scale = max(grad.abs().max().item() for grad in expected_grads.values())
        for name, grad in zip(leaves, grads, strict=True):
            limit = GRADIENT_ROUNDINGS * torch.finfo(torch.float32).eps * scale
            assert worst(grad, expected_grads[name].double()) <= limit, f"{case}: gradient of {name}"


@IMPLEMENTATIONS
def test_empty_inputs(spec: OpSpec, device: str, backend: str) -> None:
    for case, sizes in spec.empty.items():
        arguments = make(spec, sizes, torch.float32, device)
        expected = spec.reference(**arguments)
        result, grads = gradients(lambda **a: spec.public(**a, backend=backend), arguments)
        assert result.shape == expected.shape and result.numel() == 0, case
        for name, grad in grads.items():
            assert grad.shape == arguments[name].shape and not grad.any(), f"{case}: gradient of {name} must be zero"


@IMPLEMENTATIONS
def test_same_bits_twice(spec: OpSpec, device: str, backend: str) -> None:
    arguments = make(spec, list(spec.cases.values())[-1], torch.float32, device)
    (first, grads), *others = (gradients(lambda **a: spec.public(**a, backend=backend), arguments) for _ in range(3))
    for again, grads_again in others:
        assert torch.equal(first, again) and all(torch.equal(grads[name], grads_again[name]) for name in grads)


@OPS
def test_bad_arguments_raise_a_one_line_message(spec: OpSpec) -> None:
    arguments = make(spec, list(spec.cases.values())[-1], torch.float32, "cpu")
    data = "k" if spec.name == "biwkv" else next(iter(arguments))  # the others must fit to it
    bad: list[tuple[str, object, type[Exception], str]] = [
        (name, change(arguments[name]), ValueError, message) for name, change, message in spec.wrong
    ]
    for name, value in arguments.items():
        bad.append((name, 1.0, TypeError, f"{name} must be a tensor"))
        bad.append((name, value.to_sparse(), ValueError, f"{name} must be a strided (dense) tensor"))
        bad.append((name, value.int(), TypeError, f"{name} must be float"))
        if name != data:
            bad.append((name, value.to("meta"), ValueError, f"{name} must be on cpu as {data} is, but is on meta"))
        if name != data and not spec.float32_result:  # the likelihood takes any mixture of dtypes
            bad += [(name, value.to(x), TypeError, f"{name} must be float32") for x in (torch.float16, torch.float64)]
    for name, value, error, message in bad:
        with pytest.raises(error) as caught:
            spec.public(**(arguments | {name: value}))
        assert str(caught.value).startswith(f"{spec.name}: {message}") and "\n" not in str(caught.value)


@OPS
def test_reference_gradcheck(spec: OpSpec) -> None:
    arguments = make(spec, spec.gradient_case, torch.float64, "cpu")
    leaves = tuple(value.requires_grad_() for value in arguments.values())
    assert torch.autograd.gradcheck(lambda *a: spec.reference(*a), leaves)


@IMPLEMENTATIONS
def test_registration(spec: OpSpec, device: str, backend: str) -> None:
    """Schema, shape function and gradient agree with the op, for real and for symbolic shapes."""
    op = getattr(torch.ops.lalic_kernels, spec.name).default
    arguments = make(spec, spec.gradient_case, torch.float32, device)
    for leaf in arguments.values():
        leaf.requires_grad_()
    torch.library.opcheck(op, spec.registered(arguments, backend))


@IMPLEMENTATIONS
def test_compiles_without_graph_breaks(spec: OpSpec, device: str, backend: str) -> None:
    """aot_eager runs all of torch.compile except the code generator, which does not see opaque ops."""
    for chosen in (backend, None):
        torch.compiler.reset()

        def twice(chosen=chosen, **a):
            return spec.public(**a, backend=chosen) * 2

        arguments = make(spec, list(spec.cases.values())[-2], torch.float32, device)
        expected, expected_grads = gradients(twice, arguments)
        compiled = torch.compile(twice, fullgraph=True, backend="aot_eager")
        result, grads = gradients(compiled, arguments)
        assert torch.equal(result, expected)
        for name, grad in grads.items():
            assert torch.equal(grad, expected_grads[name]), name
    torch.compiler.reset()


@OPS
def test_backend_argument(spec: OpSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = make(spec, spec.gradient_case, torch.float32, "cpu")
    with pytest.raises(ValueError, match="backend must be None or one of triton, cpu, torch, reference, but is 'cuda'"):
        spec.public(**arguments, backend="cuda")
    assert torch.equal(spec.public(**arguments, backend="reference"), spec.reference(**arguments))
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(dispatch.BackendUnavailable, match="triton"):
        spec.public(**arguments, backend="triton")
    if "cpu" not in spec.cpu_backends:
        with pytest.raises(dispatch.BackendUnavailable, match="cpu"):
            spec.public(**arguments, backend="cpu")


@OPS
def test_flop_and_byte_formulas(spec: OpSpec) -> None:
    sizes = list(spec.cases.values())[-1]
    arguments = make(spec, sizes, torch.float32, "cpu")
    with FlopCounterMode(display=False) as counter:
        op.OPS[spec.name].call(*spec.registered(arguments, "torch"))
    assert counter.get_total_flops() == spec.flops(sizes)
    assert bytes_of(spec.name, *arguments.values()) == spec.bytes(sizes)
