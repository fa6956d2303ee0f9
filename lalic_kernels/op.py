"""Registration of ops: one call of `register` an op, with all that torch and this package want to know of it.

Ops live in the namespace torch.ops.lalic_kernels. The gradient of an op is a second op, so that torch.compile and
AOTAutograd see two opaque calls and need not trace into either.

torch's dispatcher costs tens of microseconds a call, so a call that nobody watches passes it by: its implementation is
called, in an autograd.Function where a gradient is wanted. Whoever does watch sees the registered op: torch.compile,
torch.func's transforms, torch.jit.trace, the profiler, modes (FakeTensorMode, FlopCounterMode) and tensor subclasses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from lalic_kernels.checks import no_autocast
from lalic_kernels.dispatch import Op

NAMESPACE = "lalic_kernels"
_Rule = Callable[..., tuple[Any, Any]]


@dataclass(frozen=True, kw_only=True)
class RegisteredOp(Op):
    """What `register` makes of an op.

    Attributes:
        gradient: how its gradient is computed, in words.
        call: the op, called with all arguments of its schema, by position.
        call_backward: its gradient; arguments as `register` says, an empty tensor for the gradient of None.
        forward, backward: the implementations of both.
        bytes: the formula that `bytes_of` takes.
    """

    gradient: str
    call: Callable[..., Any]
    call_backward: Callable[..., Any]
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    bytes: Callable[..., int]


OPS: dict[str, RegisteredOp] = {}


def register(
    name: str,
    schema: str,
    *,
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    saves: Sequence[str],
    like: str | Callable[..., Any],
    flops: Callable[..., int],
    bytes: Callable[..., int],
    gradient: str,
    cpu: bool = False,
    passes: str = "",
    vmap: tuple[Callable[[Callable[..., Any]], _Rule], Callable[[Callable[..., Any]], _Rule]] | None = None,
) -> RegisteredOp:
    """Register an op and its gradient, and enter it into `OPS`.

    Args:
        name: without namespace; the gradient's is name + "_backward".
        schema: e.g. "(Tensor x, Tensor? gate, str? backend) -> Tensor"; several results have names, and those after the
            first are there for the gradient alone.
        forward: the implementation, for every device; returns fresh contiguous tensors.
        backward: the gradient's implementation. It gets the tensors of `saves`, in their order, the gradient of the
            first result, and the rest of `saves`. It returns the gradient of each argument that is a tensor of `saves`,
            contiguous and in the argument's shape and dtype, or None for an argument that is None.
        saves: names of arguments and of results after the first.
        like: the argument whose shape, dtype and device the result has, or a function of the op's arguments that
            returns empty tensors of the results' shapes, dtypes and device.
        flops: the op's floating-point operations, for torch.utils.flop_counter; it gets shapes in place of tensors.
        bytes: the bytes that the op moves at least, inputs read once and outputs written once; it gets tensors.
        gradient: how the gradient is computed, in words, for `lalic_kernels.info`.
        cpu: whether the op has compiled CPU code.
        passes: an argument whose gradient is that of the result, if there is one.
        vmap: from a callable with the op's arguments, and with its gradient's, the rule of torch.vmap for it. Without
            one torch.vmap makes a call a slice.

    Returns:
        The op.
    """
    # The schema's types by name: of arguments, and of arguments and named results.
    parts = [part.rsplit(" ", 1) for part in schema[1 : schema.index(")")].split(", ")]
    types = {each: kind for kind, each in parts}
    results = [part.split() for part in schema.rpartition("-> ")[2].strip("()").split(", ")]
    all_types = types | {each: kind for kind, *named in results for each in named}
    # What is saved, tensors and the rest; of the tensors the arguments, which get gradients; where all of these are.
    tensors = [each for each in saves if all_types[each].startswith("Tensor")]
    options = [each for each in saves if each not in tensors]
    wanted = [each for each in tensors if each in types]
    index = {each: i for i, each in enumerate(all_types)}

    def backward_filled(*arguments: Any) -> tuple[Tensor, ...]:
        """The gradients; an empty tensor in place of None, which no registered op can return."""
        grads = backward(*arguments)
        return tuple(arguments[len(tensors)].new_empty(0) if grad is None else grad for grad in grads)

    def fake(*arguments: Any) -> Any:
        if callable(like):
            return like(*arguments)
        return torch.empty_like(arguments[index[like]], memory_format=torch.contiguous_format)

    def fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
        grad = arguments[len(tensors)]
        given = [x for x, each in zip(arguments, tensors, strict=False) if each in types]
        return tuple(
            grad.new_empty(0) if x is None else torch.empty_like(x, memory_format=torch.contiguous_format)
            for x in given
        )

    declared = [f"{all_types[each]} {each}" for each in tensors]
    declared += ["Tensor grad", *(f"{all_types[each]} {each}" for each in options)]
    returned = ", ".join(["Tensor"] * len(wanted))
    op = _define(name, schema, forward, fake)
    op_backward = _define(
        f"{name}_backward",
        f"({', '.join(declared)}) -> ({returned})",
        backward_filled,
        fake_backward,
    )

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        everything = (*inputs, *output) if isinstance(output, tuple) else inputs
        ctx.set_materialize_grads(False)  # results that are saved have no gradient; zeros of their size cost time
        ctx.save_for_backward(*(everything[index[each]] for each in tensors))
        ctx.options = [everything[index[each]] for each in options]

    def differentiate(ctx: Any, call: Callable[..., Any], grad: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradient of each argument, from that of the first result."""
        found: list[Tensor | None] = [None] * len(types)
        if grad is None:  # what stands behind the result has none
            return tuple(found)
        saved = ctx.saved_tensors
        given = dict(zip(tensors, saved, strict=True))
        for each, value in zip(wanted, call(*saved, grad, *ctx.options), strict=True):
            found[index[each]] = None if given[each] is None else value
        if passes and ctx.needs_input_grad[index[passes]]:
            found[index[passes]] = grad
        return tuple(found)

    class Eager(torch.autograd.Function):
        """The op for a call that nobody watches."""

        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            output = forward(*arguments)
            save(ctx, arguments, output)
            if isinstance(output, tuple):
                ctx.mark_non_differentiable(*output[1:])
            return output

        @staticmethod
        def backward(ctx: Any, grad: Tensor | None, *_: Any) -> Any:
            return differentiate(ctx, call_backward, grad)

    class UnderTransforms(torch.autograd.Function):
        """The op for torch.func's transforms, which do not know a registered op's gradient."""

        @staticmethod
        def forward(*arguments: Any) -> Any:
            return op(*arguments)

        setup_context = staticmethod(save)

        @staticmethod
        def backward(ctx: Any, grad: Tensor | None, *_: Any) -> Any:
            return differentiate(ctx, BackwardUnderTransforms.apply, grad)

    class BackwardUnderTransforms(torch.autograd.Function):
        """The gradient for them: torch.func.grad always takes one in a form to differentiate."""

        @staticmethod
        def forward(*arguments: Any) -> Any:
            return op_backward(*arguments)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> Any:
            refuse_second_derivative(name)

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            return op(*arguments)
        if torch._C._are_functorch_transforms_active():
            return UnderTransforms.apply(*arguments)
        if _watched(arguments):
            return op(*arguments)
        return Eager.apply(*arguments) if _wants_gradient(arguments) else forward(*arguments)

    def call_backward(*arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            return op_backward(*arguments)
        if torch._C._are_functorch_transforms_active():
            return BackwardUnderTransforms.apply(*arguments)
        if _wants_gradient(arguments):
            # torch would warn and go on with a wrong second derivative.
            refuse_second_derivative(name)
        # torch.autograd.grad(is_grads_batched=True) has batched gradients of its own kind, in no transform.
        batched = torch._C._functorch.is_legacy_batchedtensor(arguments[len(tensors)])
        return op_backward(*arguments) if batched or _watched(arguments) else backward_filled(*arguments)

    rule, rule_backward = vmap or (_slice_by_slice, _slice_by_slice)
    UnderTransforms.vmap = staticmethod(rule(UnderTransforms.apply))  # type: ignore[method-assign]
    BackwardUnderTransforms.vmap = staticmethod(rule_backward(BackwardUnderTransforms.apply))  # type: ignore[method-assign]
    torch.library.register_vmap(f"{NAMESPACE}::{name}", rule(op))
    torch.library.register_vmap(f"{NAMESPACE}::{name}_backward", rule_backward(op_backward))
    torch.library.register_autograd(
        f"{NAMESPACE}::{name}",
        lambda ctx, grad, *_: differentiate(ctx, call_backward, grad),
        setup_context=save,
    )
    register_flop_formula(getattr(getattr(torch.ops, NAMESPACE), name))(flops)
    OPS[name] = RegisteredOp(
        name, cpu, gradient=gradient, call=call, call_backward=call_backward, forward=forward,
        backward=backward_filled, bytes=bytes,
    )  # fmt: skip
    return OPS[name]


def _define(name: str, schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Register an op without gradient, and return it.

    Not a `torch.library.custom_op`, which is the same but for two things: its first call imports the whole compiler, a
    second of a process that only wants to see a picture, and every call compares all storages.
    """
    full = f"{NAMESPACE}::{name}"
    torch.library.define(full, schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(full, "default", implementation)
    torch.library.register_fake(full, fake)
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def _watched(arguments: tuple[Any, ...]) -> bool:
    """Whether anybody wants to see an op in torch's dispatcher: a mode, a tracer, the profiler, a tensor's own type."""
    if torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
        return True
    if torch._C._get_tracing_state() is not None or torch.autograd.profiler._is_profiler_enabled:
        return True
    for x in arguments:
        kind = type(x)
        if kind is Tensor or kind is torch.nn.Parameter:
            if not (x.is_cpu or x.is_cuda) or x.is_neg():  # such as meta tensors; a sign that is still to be applied
                return True
        elif isinstance(x, Tensor):
            return True
    return False


def _wants_gradient(arguments: tuple[Any, ...]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in arguments)


def _slice_by_slice(op: Callable[..., Any]) -> _Rule:
    """The rule of torch.vmap that makes a call a slice."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        found = [
            op(*(x if dim is None else x.select(dim, i) for x, dim in zip(arguments, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        if isinstance(found[0], Tensor):
            return torch.stack(found), 0
        return tuple(torch.stack(each) for each in zip(*found, strict=True)), (0,) * len(found[0])

    return rule


def refuse_second_derivative(name: str) -> NoReturn:
    """Raise what a second derivative through an op is answered with."""
    raise NotImplementedError(
        f"{name}: there is no second derivative, so its gradient cannot be taken with create_graph=True; "
        "call it without, or use backend='reference', which is plain torch"
    )


def recompute(function: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """Gradients of function(*inputs) for the upstream gradient `grad`, by running it again under autograd.

    Gradients come back contiguous and in their input's dtype; an input that does not take part gets zeros.
    """
    # Under a dispatch mode torch has switched autograd off.
    autograd = torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False)
    views = torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.ADInplaceOrView, False)
    with autograd, views, torch.enable_grad(), no_autocast(grad.device):
        leaves = [x.detach().requires_grad_() for x in inputs]
        result = function(*leaves)
        grads = torch.autograd.grad(result, leaves, grad, allow_unused=True)
    return [
        torch.zeros_like(x, memory_format=torch.contiguous_format) if g is None else g.to(x.dtype).contiguous()
        for x, g in zip(inputs, grads, strict=True)
    ]


def bytes_of(name: str, *tensors: Tensor | None, **options: Any) -> int:
    """The bytes that op `name` must move at least for these arguments (meta tensors do), e.g. dtype=torch.bfloat16."""
    return OPS[name].bytes(*tensors, **options)


def nbytes(*tensors: Tensor | None) -> int:
    """Bytes of the elements of tensors, whatever their strides; None has none."""
    return sum(x.numel() * x.element_size() for x in tensors if x is not None)
