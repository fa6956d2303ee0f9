"""BiWKV's options and transforms: gate, torch.vmap and torch.func, autocast, low precision, the same bits twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from op_specs import BIWKV, GATED_BIWKV, OpSpec
from torch import Tensor

import lalic_kernels
from lalic_kernels.biwkv import reference, torch_path

EPS = torch.finfo(torch.float32).eps
BACKENDS = pytest.mark.parametrize("backend", BIWKV.backends("cpu"))
WITHOUT_INTERPRETER = [name for name in BIWKV.backends("cpu") if name != "triton"]
SPEC = pytest.mark.parametrize("spec", [BIWKV, GATED_BIWKV], ids=lambda spec: spec.id)
LOW = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])


def arguments(spec: OpSpec, *sizes: int, seed: int = 0) -> dict[str, Tensor]:
    return {name: x.float() for name, x in spec.make(sizes, torch.Generator().manual_seed(seed)).items()}


def upstream(like: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(7)).to(like.dtype)


def norm_error(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


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
    leaves = {name: x.requires_grad_() for name, x in arguments(spec, 2, 2, 5).items()}
    grads = torch.autograd.grad(lalic_kernels.biwkv(**leaves, backend=backend).square().sum(), list(leaves.values()))
    assert not grads[0].any() and all(grad.any() for grad in grads[1:])
    wide = {name: x.detach().double().requires_grad_() for name, x in leaves.items()}
    grads = torch.autograd.grad(lalic_kernels.biwkv(**wide).square().sum(), list(wide.values()))
    assert not grads[0].any()


@SPEC
def test_sharp_keys_in_the_torch_path(spec: OpSpec) -> None:
    """Keys of 80: the gradients of w and k are 1e-4 of their terms, and still accurate."""
    args = arguments(spec, 1, 97, 4, seed=1)
    args["w"], args["k"] = torch.linspace(-0.01, -0.02, 4), args["k"] * 40
    wide = {name: x.double().requires_grad_() for name, x in args.items()}
    y = reference.biwkv(**wide)
    truth = torch.autograd.grad(y, list(wide.values()), upstream(args["v"]).double())
    leaves = {name: x.requires_grad_() for name, x in args.items()}
    y = lalic_kernels.biwkv(**leaves, backend="torch")
    grads = torch.autograd.grad(y, list(leaves.values()), upstream(y))
    plain = torch.autograd.grad(torch_path.biwkv(**leaves), list(leaves.values()), upstream(y))
    for name, grad, true in zip(leaves, grads, truth, strict=True):
        assert norm_error(grad, true) <= 3e-5, f"gradient of {name}"
    assert norm_error(plain[0], truth[0]) > 1e-3, "it is as good without a centre, so the centre is not needed"


@SPEC
@BACKENDS
def test_gradients_have_the_same_bits_twice(spec: OpSpec, backend: str) -> None:
    leaves = {name: x.requires_grad_() for name, x in arguments(spec, 2, 90, 9).items()}

    def once() -> tuple[Tensor, ...]:
        y = lalic_kernels.biwkv(**leaves, backend=backend)
        return torch.autograd.grad(y, list(leaves.values()), upstream(y))

    first = once()
    assert all(torch.equal(a, b) for _ in range(2) for a, b in zip(first, once(), strict=True))


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
    exact = {name: x.double() for name, x in arguments(spec, 2, 150, 9, seed=3).items()}
    rounded = {name: x.to(dtype) for name, x in exact.items()}

    def run(function: Callable[..., Tensor], given: dict[str, Tensor], grad: Tensor) -> list[Tensor]:
        leaves = {name: x.detach().requires_grad_() for name, x in given.items()}
        y = function(**leaves)
        return [y.detach(), *torch.autograd.grad(y, list(leaves.values()), grad)]

    grad = upstream(exact["v"])
    unrounded = run(reference.biwkv, exact, grad)
    truth = run(reference.biwkv, {name: x.double() for name, x in rounded.items()}, grad.to(dtype).double())
    ours = run(lambda **a: lalic_kernels.biwkv(**a, backend=backend), rounded, grad.to(dtype))
    for name, a, rounded_truth, exact_truth in zip(("y", *exact), ours, truth, unrounded, strict=True):
        assert a.dtype == dtype
        best = rounded_truth.to(dtype)
        if interpreted and dtype == torch.bfloat16:  # Triton's interpreter truncates, a GPU rounds
            best = (rounded_truth.float().view(torch.int32) & -65536).view(torch.float32)
        assert norm_error(a, rounded_truth) <= 2 * norm_error(best, rounded_truth), name
        assert norm_error(a, exact_truth) <= 2 * norm_error(best, exact_truth), name


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

    def run(given: dict[str, Tensor], grad: Tensor) -> list[Tensor]:
        leaves = {name: x.detach().requires_grad_() for name, x in given.items()}
        y = lalic_kernels.biwkv(**leaves, backend="cpu")
        return [y.detach(), *torch.autograd.grad(y, list(leaves.values()), grad)]

    for strided in (False, True):
        if strided:
            low |= {name: x.mT.contiguous().mT for name, x in low.items() if x.ndim == 3}
            grad = grad[:, :1].expand_as(grad)
        ours, wide = run(low, grad), run({name: x.float() for name, x in low.items()}, grad.float())
        for name, a, b in zip(("y", *low), ours, wide, strict=True):
            assert a.dtype == (torch.float32 if name in "wu" else torch.bfloat16)
            assert torch.equal(a, b.to(a.dtype)), name


# torch.vmap and torch.func

N = 3
MAPPED = {
    "over a batch": (None, None, 0, 0, None),
    "over everything": (0, 0, 0, 0, 0),
    "data and gate": (None, None, 0, 0, 0),
    "other dimensions": (1, None, 2, 3, -1),
    "keys alone": (None, None, 1, None, None),
    "decay alone": (0, None, None, None, None),
    "gate alone": (None, None, None, None, 0),
    "bonus and gate": (None, 0, None, None, 1),
}


def mapped(in_dims: tuple[int | None, ...], gated: bool, double: bool = False) -> list[Tensor | None]:
    args = GATED_BIWKV.make((2, 21, 4), torch.Generator().manual_seed(5))
    tensors: list[Tensor | None] = []
    for (name, x), dim in zip(args.items(), in_dims, strict=True):
        if name == "gate" and not gated:
            tensors.append(None)
            continue
        x = x if double else x.float()
        # Unequal slices, so that a swap of two shows.
        tensors.append(x if dim is None else torch.stack([x * (1 + i) / 2 for i in range(N)], dim))
    return tensors


def slices(tensors: list[Tensor | None], in_dims: tuple[int | None, ...]) -> list[list[Tensor | None]]:
    return [
        [x if x is None or dim is None else x.select(dim, i) for x, dim in zip(tensors, in_dims, strict=True)]
        for i in range(N)
    ]


def close(a: Tensor, b: Tensor) -> bool:
    # Folded channels may have another chunk length or form than one slice: roundings in each of T terms.
    return a.shape == b.shape and bool((a - b).abs().max() <= 256 * EPS * b.abs().max())


@pytest.mark.parametrize("backend", WITHOUT_INTERPRETER)
@pytest.mark.parametrize("which", MAPPED)
def test_vmap(which: str, backend: str) -> None:
    for gated in (True, False):
        in_dims = tuple(MAPPED[which]) if gated else (*MAPPED[which][:4], None)
        if all(dim is None for dim in in_dims):
            continue
        tensors = mapped(in_dims, gated)
        call = lambda w, u, k, v, gate: lalic_kernels.biwkv(w, u, k, v, gate=gate, backend=backend)  # noqa: E731
        expected = torch.stack([call(*one) for one in slices(tensors, in_dims)])
        assert close(torch.vmap(call, in_dims)(*tensors), expected)
        moved = torch.vmap(call, in_dims, out_dims=2)(*tensors)
        assert close(moved, expected.movedim(0, 2))


@pytest.mark.parametrize("which", MAPPED)
def test_gradients_through_vmap_and_of_it(which: str) -> None:
    """Backward through vmap, torch.func.vmap(grad) and grad(vmap) agree with a loop over slices."""
    for gated in (True, False):
        in_dims = tuple(MAPPED[which]) if gated else (*MAPPED[which][:4], None)
        if all(dim is None for dim in in_dims):
            continue
        tensors = mapped(in_dims, gated)
        count = 5 if gated else 4

        weight = upstream(torch.empty(21, 4))  # not symmetric in the tokens

        def loss(*t: Tensor) -> Tensor:
            y = lalic_kernels.biwkv(*t[:4], gate=t[4] if len(t) > 4 else None)
            return (y * weight).sum()  # noqa: B023 (called in this iteration)

        def total(*t: Tensor) -> Tensor:
            return torch.vmap(loss, in_dims[:count])(*t).sum()  # noqa: B023 (called in this iteration)

        given = [x for x in tensors if x is not None]
        leaves = [x.clone().requires_grad_() for x in given]
        one_by_one = sum(
            loss(*[x for x in one if x is not None]) for one in slices([*leaves, *([None] * (5 - count))], in_dims)
        )
        expected = torch.autograd.grad(one_by_one, leaves)
        through = torch.autograd.grad(total(*leaves), leaves)
        of_vmap = torch.func.grad(total, argnums=tuple(range(count)))(*given)
        each = torch.vmap(torch.func.grad(loss, argnums=tuple(range(count))), in_dims[:count])(*given)
        for a, b, c, true, dim in zip(through, of_vmap, each, expected, in_dims, strict=False):
            assert close(a, true) and close(b, true)
            assert close(c.sum(0) if dim is None else c.movedim(0, dim), true)


def test_nested_vmap() -> None:
    tensors = [x for x in mapped((0, 0, 0, 0, 0), True) if x is not None]
    call = lambda w, u, k, v, gate: lalic_kernels.biwkv(w, u, k, v, gate=gate)  # noqa: E731
    inner = torch.vmap(call, (0, 0, None, None, None))  # N decays for each of N data
    result = torch.vmap(inner, (None, None, 0, 0, 0))(*tensors)
    w, u, *data = tensors
    for i in range(N):
        for j in range(N):
            assert close(result[i, j], call(w[j], u[j], *(x[i] for x in data)))


def test_jacobian_rows_at_once() -> None:
    """Batched upstream gradients, which torch.func.jacrev and is_grads_batched use."""
    leaves = [x.requires_grad_() for x in arguments(GATED_BIWKV, 1, 5, 2).values()]
    y = lalic_kernels.biwkv(*leaves[:4], gate=leaves[4])
    rows = torch.eye(y.numel()).reshape(-1, *y.shape)
    batched = torch.autograd.grad(y, leaves, rows, retain_graph=True, is_grads_batched=True)
    for i, row in enumerate(rows):
        for a, b in zip(batched, torch.autograd.grad(y, leaves, row, retain_graph=True), strict=True):
            assert close(a[i], b) or (a[i] - b).abs().max() <= EPS


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


def test_a_second_derivative_is_refused() -> None:
    leaves = [x.requires_grad_() for x in arguments(BIWKV, 1, 5, 2).values()]
    y = lalic_kernels.biwkv(*leaves)
    with pytest.raises(NotImplementedError, match="biwkv: there is no second derivative"):
        torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
    w, u, k, v = (x.detach() for x in leaves)
    first = torch.func.grad(lambda k: lalic_kernels.biwkv(w, u, k, v).square().sum())
    with pytest.raises(NotImplementedError, match="biwkv: there is no second derivative"):
        torch.func.grad(lambda k: first(k).square().sum())(k)
    y = lalic_kernels.biwkv(*leaves, backend="reference")
    (gradient,) = torch.autograd.grad(y.square().sum(), leaves[2], create_graph=True)
    assert torch.autograd.grad(gradient.square().sum(), leaves[2])[0].any()
