"""Registration of ops with torch: one call of `register` for each op.

Ops are in the namespace torch.ops.lalic_kernels. The gradient of an op is a second op, so that torch.compile and
AOTAutograd see two opaque calls and need not trace into them.

torch's dispatcher costs tens of microseconds per call, so a plain eager call goes directly to the implementation, in an
autograd.Function if a gradient is needed. The registered op is called only if something observes it: torch.compile,
torch.func transforms, torch.jit.trace, the profiler, modes (FakeTensorMode, FlopCounterMode) or tensor subclasses.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from lalic_kernels.checks import no_autocast
from lalic_kernels.dispatch import Op

NAMESPACE = "lalic_kernels"
_Rule = Callable[..., tuple[Any, Any]]


@dataclass(frozen=True, kw_only=True)
class RegisteredOp(Op):
    """An op after its registration.

    Attributes:
        gradient: how its gradient is computed, in words.
        call: the op; takes all arguments of its schema, by position.
        call_backward: its gradient; takes the arguments of `backward` in `register`, returns an empty tensor for None.
        forward, backward: the implementations of both.
        bytes: the formula that `bytes_of` uses.
    """

    gradient: str
    call: Callable[..., Any]
    call_backward: Callable[..., Any]
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    bytes: Callable[..., int]


OPS: dict[str, RegisteredOp] = {}
_flop_formulas: dict[Any, Callable[..., int]] = {}  # by torch's op


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
    """Register an op and its gradient, and add it to `OPS`.

    Args:
        name: without the namespace; the gradient is called name + "_backward".
        schema: e.g. "(Tensor x, Tensor? gate, str? backend) -> Tensor". Several results must have names; those after
            the first are only for the gradient.
        forward: the implementation for every device; returns new contiguous tensors.
        backward: the implementation of the gradient. Its arguments: the tensors of `saves` in order, the gradient of
            the first result, the other values of `saves`. It returns, for each op argument that is a tensor of `saves`,
            the gradient, contiguous and with the argument's shape and dtype, or None if the argument is None.
        saves: names of arguments and of results after the first.
        like: the name of the argument that has the result's shape, dtype and device; or a function of the op's
            arguments that returns empty tensors with the shapes, dtypes and device of the results.
        flops: the op's floating-point operations, for torch.utils.flop_counter; takes shapes in place of tensors.
        bytes: the fewest bytes that the op moves: inputs read once, outputs written once; takes tensors.
        gradient: how the gradient is computed, in words, for `lalic_kernels.info`.
        cpu: whether the op has compiled CPU code.
        passes: an argument that gets the result's gradient unchanged, if there is one.
        vmap: two functions that return the torch.vmap rule of a callable, one for the op, one for its gradient. Without
            them, torch.vmap makes one call per slice.

    Returns:
        The op.
    """
    # The schema's types by name: of the arguments, and of the arguments and named results.
    parts = [part.rsplit(" ", 1) for part in schema[1 : schema.index(")")].split(", ")]
    types = {each: kind for kind, each in parts}
    results = [part.split() for part in schema.rpartition("-> ")[2].strip("()").split(", ")]
    all_types = types | {each: kind for kind, *named in results for each in named}
    # Saved tensors; saved values of other types; the arguments that get gradients; positions of arguments and results.
    tensors = [each for each in saves if all_types[each].startswith("Tensor")]
    options = [each for each in saves if each not in tensors]
    differentiable = [each for each in tensors if each in types]
    index = {each: i for i, each in enumerate(all_types)}

    def backward_filled(*arguments: Any) -> tuple[Tensor, ...]:
        """The gradients, with an empty tensor for None, which a registered op cannot return."""
        grads = backward(*arguments)
        return tuple(arguments[len(tensors)].new_empty(0) if grad is None else grad for grad in grads)

    def fake(*arguments: Any) -> Any:
        _enter_flop_formulas()
        if callable(like):
            return like(*arguments)
        return torch.empty_like(arguments[index[like]], memory_format=torch.contiguous_format)

    def fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
        grad = arguments[len(tensors)]
        inputs = [x for x, each in zip(arguments, tensors, strict=False) if each in types]
        return tuple(
            grad.new_empty(0) if x is None else torch.empty_like(x, memory_format=torch.contiguous_format)
            for x in inputs
        )

    declared = [f"{all_types[each]} {each}" for each in tensors]
    declared += ["Tensor grad", *(f"{all_types[each]} {each}" for each in options)]
    returned = ", ".join(["Tensor"] * len(differentiable))
    op = _define(name, schema, forward, fake)
    op_backward = _define(
        f"{name}_backward",
        f"({', '.join(declared)}) -> ({returned})",
        backward_filled,
        fake_backward,
    )

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        values = (*inputs, *output) if isinstance(output, tuple) else inputs
        ctx.set_materialize_grads(False)  # saved results have no gradient, and making zeros would cost time
        ctx.save_for_backward(*(values[index[each]] for each in tensors))
        ctx.options = [values[index[each]] for each in options]

    def differentiate(ctx: Any, call: Callable[..., Any], grad: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradient of each argument, from the gradient of the first result."""
        grads: list[Tensor | None] = [None] * len(types)
        if grad is None:
            return tuple(grads)
        saved = ctx.saved_tensors
        saved_by_name = dict(zip(tensors, saved, strict=True))
        for each, value in zip(differentiable, call(*saved, grad, *ctx.options), strict=True):
            grads[index[each]] = None if saved_by_name[each] is None else value
        if passes and ctx.needs_input_grad[index[passes]]:
            grads[index[passes]] = grad
        return tuple(grads)

    class Eager(torch.autograd.Function):
        """The op in a plain eager call, without the dispatcher."""

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
        """The op for torch.func transforms, which do not use a registered op's gradient."""

        @staticmethod
        def forward(*arguments: Any) -> Any:
            return op(*arguments)

        setup_context = staticmethod(save)

        @staticmethod
        def backward(ctx: Any, grad: Tensor | None, *_: Any) -> Any:
            return differentiate(ctx, BackwardUnderTransforms.apply, grad)

    class BackwardUnderTransforms(torch.autograd.Function):
        """The gradient for torch.func transforms: torch.func.grad always expects it to be differentiable."""

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
        if torch.onnx.is_in_onnx_export():  # ONNX has no such op, so it gets those of which this one consists
            return forward(*arguments)
        if torch.compiler.is_compiling():
            return op(*arguments)
        if torch._C._are_functorch_transforms_active():
            return UnderTransforms.apply(*arguments)
        if _observed(arguments):
            return op(*arguments)
        return Eager.apply(*arguments) if _wants_gradient(arguments) else forward(*arguments)

    def call_backward(*arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            return op_backward(*arguments)
        if torch._C._are_functorch_transforms_active():
            return BackwardUnderTransforms.apply(*arguments)
        if _wants_gradient(arguments):
            # torch would only warn, and compute a wrong second derivative.
            refuse_second_derivative(name)
        # torch.autograd.grad(is_grads_batched=True) makes batched gradients without a transform.
        batched = torch._C._functorch.is_legacy_batchedtensor(arguments[len(tensors)])
        return op_backward(*arguments) if batched or _observed(arguments) else backward_filled(*arguments)

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
    _flop_formulas[getattr(getattr(torch.ops, NAMESPACE), name)] = flops
    _enter_flop_formulas()
    OPS[name] = RegisteredOp(
        name, cpu, gradient=gradient, call=call, call_backward=call_backward, forward=forward,
        backward=backward_filled, bytes=bytes,
    )  # fmt: skip
    return OPS[name]


def _define(name: str, schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Register an op without gradient, and return it.

    `torch.library.custom_op` would do the same, but its first call imports the whole compiler (about a second), and
    every call compares all storages.
    """
    full = f"{NAMESPACE}::{name}"
    torch.library.define(full, schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(full, "default", implementation)
    torch.library.register_fake(full, fake)
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def _enter_flop_formulas() -> None:
    """Enter the formulas in torch.utils.flop_counter, and in the counters that are active, if somebody imported it.

    It is not imported here because it imports Triton, which takes a tenth of the time of `import torch`. So where it is
    imported after this package, it knows the ops from the first call of a public function under any mode, or from the
    first that torch.compile traces.
    """
    module = sys.modules.get("torch.utils.flop_counter")
    if module is None:
        return
    for op in _flop_formulas.keys() - module.flop_registry.keys():
        module.register_flop_formula(op)(_flop_formulas[op])
    for mode in _get_current_dispatch_mode_stack():
        if isinstance(mode, module._FlopCounterMode):
            # A counter copies all formulas when it is made, which may have been before the lines above.
            mode.counter.flop_registry = module.flop_registry | mode.counter.flop_registry


def needs_ops(arguments: tuple[Any, ...]) -> bool:
    """Whether launches past the ops would go wrong or go unseen: for torch.compile, torch.func, tracers, a counter of
    operations and tensor subclasses. The profiler and other modes show what a call consists of.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or _traced_or_special(arguments):
        return True
    module = sys.modules.get("torch.utils.flop_counter") if torch._C._len_torch_dispatch_stack() else None
    return module is not None and any(
        isinstance(mode, module._FlopCounterMode) for mode in _get_current_dispatch_mode_stack()
    )


def _observed(arguments: tuple[Any, ...]) -> bool:
    """Whether a call must go through torch's dispatcher: for a mode, a tracer, the profiler or a tensor subclass."""
    if torch._C._len_torch_dispatch_stack():
        _enter_flop_formulas()
        return True
    if torch._C._len_torch_function_stack():
        return True
    return torch.autograd.profiler._is_profiler_enabled or _traced_or_special(arguments)


def _traced_or_special(arguments: tuple[Any, ...]) -> bool:
    if torch._C._get_tracing_state() is not None:
        return True
    for x in arguments:
        kind = type(x)
        if kind is Tensor or kind is torch.nn.Parameter:
            if not (x.is_cpu or x.is_cuda) or x.is_neg():  # e.g. a meta tensor; a negation not applied yet
                return True
        elif isinstance(x, Tensor):
            return True
    return False


def _wants_gradient(arguments: tuple[Any, ...]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in arguments)


def _slice_by_slice(op: Callable[..., Any]) -> _Rule:
    """The torch.vmap rule that makes one call per slice."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        results = [
            op(*(x if dim is None else x.select(dim, i) for x, dim in zip(arguments, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        return tuple(torch.stack(each) for each in zip(*results, strict=True)), (0,) * len(results[0])

    return rule


def refuse_second_derivative(name: str) -> NoReturn:
    """Raise the error for a second derivative through an op.

    Raises:
        NotImplementedError: always.
    """
    raise NotImplementedError(
        f"{name}: there is no second derivative, so its gradient cannot be taken with create_graph=True; "
        "call it without, or use backend='reference', which is plain torch"
    )


def recompute(function: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """Gradients of function(*inputs) for the upstream gradient `grad`, by running the function again under autograd.

    Each gradient is contiguous, in its input's dtype; zeros for an input that the function does not use.
    """
    # Under a dispatch mode torch switches autograd off.
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
    """The fewest bytes that op `name` can move. `tensors` may be meta tensors; options: e.g. dtype=torch.bfloat16."""
    return OPS[name].bytes(*tensors, **options)


def nbytes(*tensors: Tensor | None) -> int:
    """Bytes of all elements of the tensors, for any strides; 0 for None."""
    return sum(x.numel() * x.element_size() for x in tensors if x is not None)
