"""Every op under activation checkpointing, hooks on saved tensors, and torch.func."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from op_specs import SPECS, OpSpec
from test_contract import OPS, gradients, make
from torch import Tensor
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from lalic_kernels.layers import RWKVBlock

assert SPECS


def saved(spec: OpSpec) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
    arguments = make(spec, spec.gradient_case, torch.float32, "cpu")
    return arguments, *gradients(spec.public, arguments)


@pytest.mark.parametrize("reentrant", [False, True])
@OPS
def test_checkpointing(spec: OpSpec, reentrant: bool) -> None:
    arguments, expected, expected_grads = saved(spec)

    def call(**a: Tensor) -> Tensor:
        names = list(a)

        def positional(*values: Tensor) -> Tensor:
            return spec.public(**dict(zip(names, values, strict=True)))

        return checkpoint(positional, *a.values(), use_reentrant=reentrant)  # type: ignore[return-value]

    if reentrant:  # which torch.autograd.grad does not work with
        leaves = {name: value.clone().requires_grad_() for name, value in arguments.items()}
        result = call(**leaves)
        upstream = torch.randn(result.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        result.backward(upstream.to(result.dtype))
        grads = {name: leaf.grad for name, leaf in leaves.items()}
    else:
        result, grads = gradients(call, arguments)
    assert torch.equal(result, expected)
    assert all(torch.equal(grads[name], grad) for name, grad in expected_grads.items())


@pytest.mark.parametrize(
    "hooks", [save_on_cpu, lambda: saved_tensors_hooks(lambda x: x.detach().clone(), lambda x: x.clone())]
)
@OPS
def test_saved_tensor_hooks(spec: OpSpec, hooks: Callable) -> None:
    arguments, expected, expected_grads = saved(spec)
    with hooks():
        result, grads = gradients(spec.public, arguments)
    assert torch.equal(result, expected)
    assert all(torch.equal(grads[name], grad) for name, grad in expected_grads.items())


@OPS
def test_func_transforms(spec: OpSpec) -> None:
    """grad, vmap and vmap of grad agree with autograd; jvp and second derivatives raise a clear error."""
    arguments, expected, _ = saved(spec)
    names, values = list(arguments), tuple(arguments.values())

    def call(*inputs: Tensor) -> Tensor:
        return spec.public(**dict(zip(names, inputs, strict=True)))

    _, ones = gradients(spec.public, arguments, torch.ones_like(expected))
    every = tuple(range(len(values)))
    grads = torch.func.grad(lambda *a: call(*a).sum(), argnums=every)(*values)
    for name, grad in zip(names, grads, strict=True):
        torch.testing.assert_close(grad, ones[name], rtol=1e-4, atol=1e-5)
    many = tuple(torch.stack((value, value)) for value in values)
    torch.testing.assert_close(torch.func.vmap(call)(*many)[1], expected, rtol=1e-4, atol=1e-5)
    each = torch.func.vmap(torch.func.grad(lambda *a: call(*a).sum(), argnums=every))(*many)
    for name, grad in zip(names, each, strict=True):
        torch.testing.assert_close(grad[1], ones[name], rtol=1e-4, atol=1e-5)
    if spec.name == "entropy_params":  # plain torch on a CPU
        _, tangent = torch.func.jvp(call, values, values)
        _, right = torch.func.jvp(lambda *a: spec.reference(**dict(zip(names, a, strict=True))), values, values)
        torch.testing.assert_close(tangent, right, rtol=1e-3, atol=1e-4)
        return
    with pytest.raises((NotImplementedError, RuntimeError), match=r"jvp|forward.mode|forward AD"):
        torch.func.jvp(call, values, values)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.func.grad(lambda a: torch.func.grad(lambda b: call(b, *values[1:]).sum())(a).sum())(values[0])


def test_a_block_under_every_kind() -> None:
    torch.manual_seed(0)
    block, x = RWKVBlock(8), torch.randn(1, 4, 5, 8)

    def grads(run: Callable[[Tensor], Tensor]) -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        block.zero_grad()
        run(leaf).square().sum().backward()
        return [leaf.grad, *(p.grad for p in block.parameters() if p.grad is not None)]  # type: ignore[list-item]

    expected = grads(block)
    for reentrant in (False, True):
        got = grads(lambda a, reentrant=reentrant: checkpoint(block, a, use_reentrant=reentrant))  # type: ignore[misc]
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    with save_on_cpu():
        assert all(torch.equal(a, b) for a, b in zip(grads(block), expected, strict=True))
