"""BiWKV's options and transforms: gate, torch.vmap and torch.func, autocast, low precision."""

from __future__ import annotations

import functools

import pytest
import torch
from op_specs import BIWKV, GATED_BIWKV, Arguments, OpSpec
from test_biwkv import by, norm_error
from test_contract import gradients, make, wide
from torch import Tensor

import lalic_kernels
from lalic_kernels.biwkv import reference, torch_path

EPS = torch.finfo(torch.float32).eps
BACKENDS = pytest.mark.parametrize("backend", BIWKV.backends("cpu"))
WITHOUT_INTERPRETER = [name for name in BIWKV.backends("cpu") if name != "triton"]
SPEC = pytest.mark.parametrize("spec", [BIWKV, GATED_BIWKV], ids=lambda spec: spec.id)
LOW = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])


def arguments(spec: OpSpec, *sizes: int, seed: int = 0) -> Arguments:
    return make(spec, sizes, torch.float32, "cpu", seed)


def upstream(like: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(7)).to(like.dtype)


# Gate


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_gated_token_is_exact(backend: str, dtype: torch.dtype) -> None:
    leaves = {name: x.to(dtype).requires_grad_() for name, x in arguments(GATED_BIWKV, 2, 1, 5).items()}
    y = lalic_kernels.biwkv(**leaves, backend=backend)
    expected = torch.sigmoid(leaves["gate"]) * leaves["v"]
    assert torch.equal(y, expected)
    grads = torch.autograd.grad(y, list(leaves.values()), upstream(y))
    grad_v, grad_gate = torch.autograd.grad(expected, (leaves["v"], leaves["gate"]), upstream(y))
    assert not any(grad.any() for grad in grads[:3])
    assert torch.equal(grads[3], grad_v) and torch.equal(grads[4], grad_gate)


@BACKENDS
def test_gates_far_open_and_far_closed(backend: str) -> None:
    plain = arguments(BIWKV, 1, 70, 3)
    y = lalic_kernels.biwkv(**plain, backend=backend)
    gate = torch.full_like(y, 1e4)
    gate[:, ::2] = -1e4
    leaves = {name: x.requires_grad_() for name, x in (plain | {"gate": gate}).items()}
    gated = lalic_kernels.biwkv(**leaves, backend=backend)
    assert not gated[:, ::2].any()
    assert (gated - y)[:, 1::2].abs().max() <= 4 * EPS * y.abs().max()  # times one, in another order
    grads = dict(zip(leaves, torch.autograd.grad(gated, list(leaves.values()), upstream(y)), strict=True))
    assert all(grad.isfinite().all() for grad in grads.values()) and not grads["gate"].any() and grads["v"].any()


def test_gates_where_a_sigmoid_is_small() -> None:
    """Just above the gates where exp(-gate) overflows float32, the result is still accurate relative to its size."""
    args = arguments(BIWKV, 1, 70, 3)
    gate = torch.linspace(-86, -20, 210).reshape(1, 70, 3)
    truth = reference.biwkv(*(x.double() for x in args.values()), gate.double())
    for backend in BIWKV.backends("cpu"):
        y = lalic_kernels.biwkv(**args, gate=gate, backend=backend)
        # exp(x) has an error of at most |x| roundings, y one of a few roundings of its largest value.
        bound = 128 * EPS * torch.sigmoid(gate.double()) * args["v"].abs().max()
        assert ((y - truth).abs() <= bound).all(), backend


@SPEC
@BACKENDS
def test_two_tokens_do_not_depend_on_w(spec: OpSpec, backend: str) -> None:
    args = arguments(spec, 2, 2, 5)
    _, grads = gradients(by(backend), args)
    assert {name for name, grad in grads.items() if grad.any()} == set(args) - {"w"}
    assert not gradients(by(None), wide(args))[1]["w"].any()


@SPEC
def test_sharp_keys_in_the_torch_path(spec: OpSpec) -> None:
    """Keys of 80: the gradients of w and k are 1e-4 of their terms, and still accurate."""
    args = arguments(spec, 1, 97, 4, seed=1)
    args["w"], args["k"] = torch.linspace(-0.01, -0.02, 4), args["k"] * 40
    _, truth = gradients(reference.biwkv, wide(args))
    _, grads = gradients(by("torch"), args)
    for name, grad in grads.items():
        assert norm_error(grad, truth[name]) <= 3e-5, f"gradient of {name}"
    _, plain = gradients(torch_path.biwkv, args)
    assert norm_error(plain["w"], truth["w"]) > 1e-3, "it is as good without a centre, so the centre is not needed"


# Low precision


@SPEC
@LOW
@BACKENDS
def test_low_precision_errors_are_those_of_the_roundings(spec: OpSpec, dtype: torch.dtype, backend: str) -> None:
    """At most twice the error of a float64 reference on rounded inputs with a rounded output.

    In norm, against two truths: float64 of the original inputs, and float64 of the rounded inputs, where the
    reference's only error is the rounding of its output. The same for gradients; their inputs include the upstream
    gradient.
    """
    interpreted = backend == "triton" and not torch.cuda.is_available()
    exact = make(spec, (2, 150, 9), torch.float64, "cpu", seed=3)
    rounded = {name: x.to(dtype) for name, x in exact.items()}
    grad = upstream(exact["v"])
    (y, unrounded), (y_truth, truth), (y_ours, ours) = (
        gradients(reference.biwkv, exact, grad),
        gradients(reference.biwkv, wide(rounded), grad.to(dtype).double()),
        gradients(by(backend), rounded, grad.to(dtype)),
    )
    unrounded["y"], truth["y"], ours["y"] = y, y_truth, y_ours
    for name, a in ours.items():
        assert a.dtype == dtype
        best = truth[name].to(dtype)
        if interpreted and dtype == torch.bfloat16:  # Triton's interpreter truncates, a GPU rounds
            best = (truth[name].float().view(torch.int32) & -65536).view(torch.float32)
        for against in (truth[name], unrounded[name]):
            assert norm_error(a, against) <= 2 * norm_error(best, against), name


@pytest.mark.skipif("cpu" not in BIWKV.backends("cpu"), reason="needs numba")
@SPEC
@pytest.mark.parametrize("sizes", [(2, 2, 1), (1, 5, 3), (3, 64, 32), (2, 131, 33), (1, 257, 65)], ids=str)
def test_compiled_bfloat16_is_float32_rounded_once(spec: OpSpec, sizes: tuple[int, ...]) -> None:
    """Result and gradients of bfloat16 inputs equal those of the same values in float32, rounded; w and u are float32.

    The sizes have full and partial chunks and blocks of channels, and ones of one element. Each is run with contiguous
    data, and with transposed data and an expanded upstream gradient.
    """
    low = {name: x.bfloat16() for name, x in arguments(spec, *sizes, seed=4).items()}
    low["w"], low["u"] = low["w"].float(), low["u"].float()
    grad = upstream(low["v"])

    for strided in (False, True):
        if strided:
            low |= {name: x.mT.contiguous().mT for name, x in low.items() if x.ndim == 3}
            grad = grad[:, :1].expand_as(grad)
        (y, ours), (y_wide, expected) = (
            gradients(by("cpu"), low, grad),
            gradients(by("cpu"), {name: x.float() for name, x in low.items()}, grad.float()),
        )
        assert y.dtype == torch.bfloat16 and torch.equal(y, y_wide.bfloat16())
        for name, a in ours.items():
            assert a.dtype == (torch.float32 if name in "wu" else torch.bfloat16)
            assert torch.equal(a, expected[name].to(a.dtype)), name


# torch.vmap and torch.func

N = 3
MAPPED = pytest.mark.parametrize(
    "in_dims",  # of w, u, k, v, and of the gate if there is one
    [
        *[(None, None, 0, 0), (0, 0, 0, 0), (1, None, 2, 3), (None, None, 1, None), (0, None, None, None)],
        *[(None, None, 0, 0, None), (0, 0, 0, 0, 0), (1, None, 2, 3, -1), (None, None, 1, None, None)],
        *[(0, None, None, None, None), (None, None, 0, 0, 0), (None, None, None, None, 0), (None, 0, None, None, 1)],
        (None, 0, None, None),
    ],
    ids=str,
)
Dims = tuple[int | None, ...]


def call(*tensors: Tensor, backend: str | None = None) -> Tensor:
    w, u, k, v, *gate = tensors
    return lalic_kernels.biwkv(w, u, k, v, gate=gate[0] if gate else None, backend=backend)


def mapped(in_dims: Dims) -> list[Tensor]:
    """Arguments with N unequal slices, so that a swap of two shows."""
    args = arguments(GATED_BIWKV, 2, 21, 4, seed=5).values()
    return [
        x if dim is None else torch.stack([x * (1 + i) / 2 for i in range(N)], dim)
        for x, dim in zip(args, in_dims, strict=False)
    ]


def slices(tensors: list[Tensor], in_dims: Dims) -> list[list[Tensor]]:
    pairs = list(zip(tensors, in_dims, strict=True))
    return [[x if dim is None else x.select(dim, i) for x, dim in pairs] for i in range(N)]


def close(a: Tensor, b: Tensor) -> bool:
    # Folded channels may have another chunk length or form than one slice: roundings in each of T terms.
    return a.shape == b.shape and bool((a - b).abs().max() <= 256 * EPS * b.abs().max())


@pytest.mark.parametrize("backend", WITHOUT_INTERPRETER)
@MAPPED
def test_vmap(in_dims: Dims, backend: str) -> None:
    tensors, function = mapped(in_dims), functools.partial(call, backend=backend)
    expected = torch.stack([function(*one) for one in slices(tensors, in_dims)])
    assert close(torch.vmap(function, in_dims)(*tensors), expected)
    assert close(torch.vmap(function, in_dims, out_dims=2)(*tensors), expected.movedim(0, 2))


@MAPPED
def test_gradients_through_vmap_and_of_it(in_dims: Dims) -> None:
    """Backward through vmap, torch.func.vmap(grad) and grad(vmap) agree with a loop over slices."""
    tensors, every = mapped(in_dims), tuple(range(len(in_dims)))
    weight = upstream(torch.empty(21, 4))  # not symmetric in the tokens

    def loss(*t: Tensor) -> Tensor:
        return (call(*t) * weight).sum()

    def total(*t: Tensor) -> Tensor:
        return torch.vmap(loss, in_dims)(*t).sum()

    leaves = [x.clone().requires_grad_() for x in tensors]
    expected = torch.autograd.grad(sum(loss(*one) for one in slices(leaves, in_dims)), leaves)
    through = torch.autograd.grad(total(*leaves), leaves)
    of_vmap = torch.func.grad(total, argnums=every)(*tensors)
    each = torch.vmap(torch.func.grad(loss, argnums=every), in_dims)(*tensors)
    for a, b, c, true, dim in zip(through, of_vmap, each, expected, in_dims, strict=True):
        assert close(a, true) and close(b, true)
        assert close(c.sum(0) if dim is None else c.movedim(0, dim), true)


def test_nested_vmap() -> None:
    tensors = mapped((0, 0, 0, 0, 0))
    inner = torch.vmap(call, (0, 0, None, None, None))  # N decays for each of N data
    result = torch.vmap(inner, (None, None, 0, 0, 0))(*tensors)
    w, u, *data = tensors
    for i in range(N):
        for j in range(N):
            assert close(result[i, j], call(w[j], u[j], *(x[i] for x in data)))


# Autocast


def test_autocast_promotes_to_the_widest() -> None:
    linear = torch.nn.Linear(6, 6)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 11, 6, generator=generator)
    w, u = torch.rand(6, generator=generator) / 11, torch.rand(6, generator=generator) / 11
    with torch.autocast("cpu", dtype=torch.bfloat16):
        k = linear(x)
        assert k.dtype == torch.bfloat16
        mixed = lalic_kernels.biwkv(w, u, k, x, gate=k)
        narrow = lalic_kernels.biwkv(w, u, k, k)
        other = lalic_kernels.biwkv(w.double(), u.half(), k, k)
        both = lalic_kernels.biwkv(w, u, k, x.half())
        with pytest.raises(TypeError, match="k must be float16"):
            lalic_kernels.biwkv(w, u, k.long(), x)
        compiled = torch.compile(
            lambda x: lalic_kernels.biwkv(w, u, linear(x), x, gate=linear(x)), fullgraph=True, backend="aot_eager"
        )
        assert torch.equal(compiled(x), mixed)
        grads = torch.autograd.grad(mixed.sum(), (linear.weight,), retain_graph=True)
    torch.compiler.reset()
    assert mixed.dtype == both.dtype == torch.float32 and narrow.dtype == other.dtype == torch.bfloat16
    assert torch.equal(mixed, lalic_kernels.biwkv(w, u, k.float(), x, gate=k.float()))
    assert torch.equal(narrow, lalic_kernels.biwkv(w, u, k, k))
    assert torch.equal(other, lalic_kernels.biwkv(w, u.half().float(), k, k))
    assert grads[0].dtype == torch.float32 and grads[0].any()
    for bad in ({"gate": k}, {"v": k}):
        with pytest.raises(TypeError, match=f"{next(iter(bad))} must be float32 as k is, but is bfloat16"):
            lalic_kernels.biwkv(**({"w": w, "u": u, "k": x, "v": x} | bad))
