"""Registered ops: which calls go through torch's dispatcher, which go around it, and that both give the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from calls import Calls
from op_specs import SPECS, OpSpec
from test_contract import make
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

import lalic_kernels
from lalic_kernels.op import OPS, RegisteredOp

EVERY = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.id)


def given(spec: OpSpec, gradients: bool = False, device: str = "cpu") -> tuple[RegisteredOp, tuple[Any, ...]]:
    """An op and its arguments, for its implementation on CPU tensors."""
    arguments = make(spec, spec.gradient_case, torch.float32, device)
    for value in arguments.values():
        value.requires_grad_(gradients)
    return OPS[spec.name], spec.registered(arguments, spec.cpu_backends[-1])


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def leaves(arguments: tuple[Any, ...]) -> list[Tensor]:
    return [x for x in arguments if isinstance(x, Tensor)]


@pytest.fixture
def dispatched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of our ops that are called through torch's dispatcher."""
    names: list[str] = []
    call = torch._ops.OpOverload.__call__

    def counted(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        if self.namespace == "lalic_kernels":
            names.append(self._schema.name.removeprefix("lalic_kernels::"))
        return call(self, *args, **kwargs)

    monkeypatch.setattr(torch._ops.OpOverload, "__call__", counted)
    yield names


# Plain eager calls


@EVERY
def test_a_plain_call_does_not_use_the_dispatcher(spec: OpSpec, dispatched: list[str]) -> None:
    """With and without gradients; the bits equal those of the registered op."""
    op, arguments = given(spec, gradients=True)
    ours = op.call(*arguments)
    grads = torch.autograd.grad(first(ours).square().sum(), leaves(arguments))
    with torch.no_grad():
        without = op.call(*arguments)
    assert not dispatched
    registered = getattr(torch.ops.lalic_kernels, spec.name).default(*arguments)
    expected = torch.autograd.grad(first(registered).square().sum(), leaves(arguments))
    assert dispatched[0] == spec.name, "the fixture does not count dispatched calls"
    for results in (ours, without):
        for a, b in zip(*((x,) if isinstance(x, Tensor) else x for x in (results, registered)), strict=True):
            assert torch.equal(a, b)
    assert all(torch.equal(a, b) for a, b in zip(grads, expected, strict=True))


@EVERY
def test_a_graph_is_recorded_only_if_a_gradient_is_needed(spec: OpSpec) -> None:
    op, arguments = given(spec, gradients=True)
    output = op.call(*arguments)
    assert first(output).requires_grad
    assert isinstance(output, Tensor) or not any(x.requires_grad for x in output[1:])
    with torch.no_grad():
        assert not first(op.call(*arguments)).requires_grad
    with torch.inference_mode():
        assert first(op.call(*arguments)).is_inference()
    _, plain = given(spec)
    assert not first(op.call(*plain)).requires_grad


@EVERY
def test_one_argument_may_require_a_gradient(spec: OpSpec) -> None:
    op, arguments = given(spec, gradients=True)
    expected = torch.autograd.grad(first(op.call(*arguments)).sum(), leaves(arguments))
    for index, true in zip((i for i, x in enumerate(arguments) if isinstance(x, Tensor)), expected, strict=True):
        alone = [x.detach().requires_grad_(i == index) if isinstance(x, Tensor) else x for i, x in enumerate(arguments)]
        (grad,) = torch.autograd.grad(first(op.call(*alone)).sum(), alone[index])
        assert torch.equal(grad, true)


@EVERY
def test_only_the_reference_has_a_second_derivative(spec: OpSpec) -> None:
    """A registered gradient is not differentiable, and must raise instead of giving a wrong number."""
    op, arguments = given(spec, gradients=True)
    message = f"{spec.name}: there is no second derivative"
    for call in (op.call, getattr(torch.ops.lalic_kernels, spec.name)):
        with pytest.raises(NotImplementedError, match=message):
            torch.autograd.grad(first(call(*arguments)).sum(), leaves(arguments), create_graph=True)
    slope = torch.func.grad(lambda x: first(op.call(x, *arguments[1:])).square().sum())
    with pytest.raises(NotImplementedError, match=message):
        torch.func.grad(lambda x: slope(x).square().sum())(arguments[0].detach())
    named = make(spec, spec.gradient_case, torch.float32, "cpu")
    inputs = [value.requires_grad_() for value in named.values()]
    slopes = torch.autograd.grad(spec.public(**named, backend="reference").square().sum(), inputs, create_graph=True)
    assert all(x.any() for x in torch.autograd.grad(sum(x.square().sum() for x in slopes), inputs))


# Calls through the dispatcher


def observed(call: Callable[[], object]) -> list[str]:
    """Names of our ops that a mode sees."""
    names: list[str] = []
    with Calls(lambda func, args, result: names.append(func._schema.name)):
        call()
    return [name.removeprefix("lalic_kernels::") for name in names if name.startswith("lalic_kernels::")]


@EVERY
def test_a_mode_sees_the_op_and_its_gradient(spec: OpSpec) -> None:
    op, arguments = given(spec, gradients=True)
    both = observed(lambda: torch.autograd.grad(first(op.call(*arguments)).sum(), leaves(arguments)))
    assert both == [spec.name, f"{spec.name}_backward"]
    output = op.call(*arguments)  # a plain call, but its gradient is dispatched
    assert observed(lambda: torch.autograd.grad(first(output).sum(), leaves(arguments))) == both[1:]


@EVERY
def test_a_flop_counter_sees_the_op(spec: OpSpec) -> None:
    """Also in training, where the backward may differentiate a torch function inside the mode."""
    op, arguments = given(spec, gradients=True)
    with FlopCounterMode(display=False) as counter:
        output = first(op.call(*arguments))
    assert counter.get_total_flops() == spec.flops(spec.gradient_case)
    with FlopCounterMode(display=False):
        grads = torch.autograd.grad(output.sum(), leaves(arguments))
    expected = torch.autograd.grad(first(op.call(*arguments)).sum(), leaves(arguments))
    assert all(torch.equal(a, b) for a, b in zip(grads, expected, strict=True))


@EVERY
def test_fake_and_meta_tensors_are_not_computed(spec: OpSpec) -> None:
    op, arguments = given(spec)
    expected = op.call(*arguments)
    mode = FakeTensorMode()
    fake = [mode.from_tensor(x) if isinstance(x, Tensor) else x for x in arguments]
    meta = [x.to("meta") if isinstance(x, Tensor) else x for x in arguments]
    with mode:
        inside = op.call(*fake)
    for output, device in ((inside, "cpu"), (op.call(*fake), "cpu"), (op.call(*meta), "meta")):
        for a, b in zip(*((x,) if isinstance(x, Tensor) else x for x in (output, expected)), strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype and a.device.type == device
    given_fake = [x.requires_grad_() if isinstance(x, Tensor) else x for x in fake]
    with mode:
        grads = torch.autograd.grad(first(op.call(*given_fake)).sum(), leaves(tuple(given_fake)))
    assert [g.shape for g in grads] == [x.shape for x in leaves(arguments)]


class _Wrapped(Tensor):
    """A tensor subclass that records the functions that it is used in."""

    seen: list[str]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "lalic_kernels" in str(func):
            cls.seen.append(str(func))
        return super().__torch_function__(func, types, args, kwargs or {})


@EVERY
def test_a_tensor_subclass_sees_the_op(spec: OpSpec) -> None:
    op, arguments = given(spec)
    expected = op.call(*arguments)
    _Wrapped.seen = []
    result = op.call(arguments[0].as_subclass(_Wrapped), *arguments[1:])
    assert _Wrapped.seen and torch.equal(first(result).as_subclass(Tensor), first(expected))


class _Functions(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_function_modes_the_profiler_and_tracing_see_the_op() -> None:
    x, weight = torch.randn(1, 3, 4, 5), torch.randn(5, 5, 5)

    def call(x: Tensor, weight: Tensor) -> Tensor:
        return OPS["token_shift"].call(x, weight, None)

    with _Functions() as mode:
        call(x, weight)
    assert any("token_shift" in name for name in mode.names)
    with torch.profiler.profile() as profile:
        call(x, weight)
    assert "lalic_kernels::token_shift" in {event.key for event in profile.key_averages()}
    traced = torch.jit.trace(call, (x, weight), check_trace=False)
    other = torch.randn(1, 3, 4, 5)
    assert "lalic_kernels::token_shift" in str(traced.graph)
    assert torch.equal(traced(other, weight), call(other, weight))


def test_a_pending_negation_is_applied() -> None:
    x, weight = torch.randn(1, 3, 4, 5), torch.randn(5, 5, 5)
    view = torch._neg_view(x)
    assert view.is_neg()
    assert torch.equal(lalic_kernels.token_shift(view, weight), lalic_kernels.token_shift(-x, weight))


# torch.func, for ops without a vmap rule: one call per slice


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= 1e-5 * b.abs().max().clamp(min=1))  # other order of sums


@EVERY
def test_vmap_and_gradients_of_it(spec: OpSpec) -> None:
    op, one = given(spec)
    _, other = given(spec)
    other = tuple(x * 0.5 if isinstance(x, Tensor) else x for x in other)
    stacked = [torch.stack((x, y)) if isinstance(x, Tensor) else x for x, y in zip(one, other, strict=True)]
    dims = [0 if isinstance(x, Tensor) else None for x in one]
    indices = tuple(i for i, x in enumerate(one) if isinstance(x, Tensor))

    def loss(*arguments: Any) -> Tensor:
        return first(op.call(*arguments)).square().sum()

    # Only the first result: options such as saving are fixed under torch.vmap.
    outputs = torch.vmap(lambda *a: first(op.call(*a)), tuple(dims))(*stacked)
    each = torch.vmap(torch.func.grad(loss, argnums=indices), tuple(dims))(*stacked)
    for i, arguments in enumerate((one, other)):
        assert close(outputs[i], first(op.call(*arguments)))
        inputs = [x.clone().requires_grad_() if isinstance(x, Tensor) else x for x in arguments]
        expected = torch.autograd.grad(loss(*inputs), [inputs[index] for index in indices])
        plain = torch.func.grad(loss, argnums=indices)(*arguments)
        for grads in ([g[i] for g in each], plain):
            assert all(close(a, b) for a, b in zip(grads, expected, strict=True))


@EVERY
def test_batched_upstream_gradients(spec: OpSpec) -> None:
    """As torch.func.jacrev and is_grads_batched ask for them."""
    op, arguments = given(spec, gradients=True)
    inputs, y = leaves(arguments), first(op.call(*arguments))
    rows = torch.randn(3, *y.shape)
    batched = torch.autograd.grad(y, inputs, rows, retain_graph=True, is_grads_batched=True)
    for i, row in enumerate(rows):
        expected = torch.autograd.grad(y, inputs, row, retain_graph=True)
        assert all(close(a[i], b) for a, b in zip(batched, expected, strict=True))


# A fullgraph compile of every public op, forward and backward, is in the contract suite.


def test_compiled_graphs_contain_the_op() -> None:
    graphs: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph.print_readable(print_output=False))
        return graph

    torch.compiler.reset()
    compiled = torch.compile(lalic_kernels.norm_shift, fullgraph=True, backend=backend)
    arguments = torch.randn(1, 3, 4, 5), torch.ones(5), torch.zeros(5), torch.randn(5, 5, 5)
    assert torch.equal(compiled(*arguments), lalic_kernels.norm_shift(*arguments))
    assert len(graphs) == 1 and "lalic_kernels.norm_shift" in graphs[0]
    torch.compiler.reset()


def test_forward_mode_raises_instead_of_giving_zeros() -> None:
    x, weight = torch.randn(1, 3, 4, 5), torch.randn(5, 5, 5)
    with pytest.raises(NotImplementedError, match="forward mode"):
        torch.func.jvp(lambda x: lalic_kernels.token_shift(x, weight, backend="cpu"), (x,), (x,))


def test_an_argument_that_is_none_has_no_gradient() -> None:
    """A registered op cannot return None, so it returns an empty tensor."""
    op = OPS["biwkv"]
    w, u, k, v = torch.rand(3), torch.rand(3), torch.randn(1, 5, 3), torch.randn(1, 5, 3)
    nothing = [torch.empty(0)] * 3
    *grads, grad_gate = op.call_backward(w, u, k, v, None, *nothing, torch.ones_like(k), None)
    assert grad_gate.shape == (0,) and [g.shape for g in grads] == [w.shape, u.shape, k.shape, v.shape]
