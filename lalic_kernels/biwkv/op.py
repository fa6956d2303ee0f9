"""BiWKV: the public function, its checks, launches and registration."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lalic_kernels._core import autocast, checks, dispatch, numba_support, registration
from lalic_kernels._core.launch import blocks, on
from lalic_kernels.biwkv import batching, cpu, launches, reference, scan

OP = dispatch.add(dispatch.Op("biwkv", cpu_available=numba_support.available))
BACKWARD = "like the forward for triton and cpu; otherwise autograd through the linear-time torch path, recomputed"
CPU_RANGE = (
    f"w or u is outside its range (about |w| <= {cpu.RANGE / 4:g}, |u| <= {cpu.RANGE:g}); the torch path takes any"
)
_Grads = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def biwkv(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, *, gate: Tensor | None = None, backend: str | None = None
) -> Tensor:
    """Linear attention in both directions with a decay per channel.

    For each batch item and channel y_t = sum_i exp(L(t, i)) v_i / sum_i exp(L(t, i)) with
    L(t, i) = k_i - (|t - i| - 1) w for i != t and L(t, t) = u + k_t. Time and memory are linear in T.

    Args:
        w: decay per step, shape (C,), any sign. A model that learns a decay divides it by T before the call.
        u: bonus of a token for itself, shape (C,), likewise.
        k: keys, shape (B, T, C), float16, bfloat16, float32 or float64, any strides.
        v: values, as k.
        gate: as k, or None. With it the result is sigmoid(gate) * y, in one pass.
        backend: None for the rule in `lalic_kernels._core.dispatch`, or "triton", "cpu", "torch", "reference".

    Returns:
        y, or sigmoid(gate) * y, shape (B, T, C), contiguous, in k's dtype. float16 and bfloat16 are computed in float32
        and rounded once; w and u may stay float32 beside them, which they should: decay / T is subnormal in float16.

    Inside `torch.autocast` data are not narrowed: k, v and gate that differ are promoted to the widest of them, as
    torch's promoting operations do, and w and u may have any floating dtype. Outside, dtypes that differ are an error.

    Raises:
        TypeError: an argument is no tensor, or its dtype does not fit.
        ValueError: a shape, layout or device does not fit, or there is no backend of that name.
        dispatch.BackendUnavailable: the backend asked for cannot run here.

    Example:
        >>> w, u = torch.rand(96) / 64, torch.rand(96) / 64
        >>> k, v = torch.randn(2, 64, 96), torch.randn(2, 64, 96)
        >>> biwkv(w, u, k, v).shape
        torch.Size([2, 64, 96])
    """
    given = () if gate is None else (("gate", gate),)
    checks.shapes(
        "biwkv", ("k", k, "B T C"), ("v", v, "B T C"), ("w", w, "C"), ("u", u, "C"),
        *((name, value, "B T C") for name, value in given),
    )  # fmt: skip
    if autocast.enabled(k.device):
        k, v, gate = autocast.widest(k, v, gate)
        w, u = autocast.beside(k, w), autocast.beside(k, u)
        given = () if gate is None else (("gate", gate),)
    dtype = checks.floating("biwkv", "k", k)
    for name, value in (("v", v), *given):
        checks.dtype_in("biwkv", name, value, (dtype,), "as k is")
    for name, value in (("w", w), ("u", u)):
        checks.dtype_in("biwkv", name, value, (dtype, torch.float32), "beside k")
    checks.same_device("biwkv", ("k", k), ("v", v), ("w", w), ("u", u), *given)
    if backend == "reference":
        return reference.biwkv(w.to(dtype), u.to(dtype), k, v, gate)
    # A registered op's gradient is unknown to torch.func.grad; that of an autograd.Function is known.
    transformed = not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
    call = _UnderTransforms.apply if transformed else torch.ops.lalic_kernels.biwkv
    return call(w, u, k, v, gate, dispatch.AUTO if backend is None else backend)


def _forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, backend: str) -> Tensor:
    chosen = _choose(w, u, k, backend)
    given = () if gate is None else (gate,)
    if k.numel() == 0:
        return torch.empty_like(k, memory_format=torch.contiguous_format)
    if k.shape[1] == 1:  # a token's weight for itself cancels, exactly
        return v.clone(memory_format=torch.contiguous_format) if gate is None else _gated(v, gate).contiguous()
    if chosen == "triton":
        return _launch(w, u, k, v, gate)
    if chosen == "cpu":
        if k.dtype == torch.bfloat16:  # the compiled code reads and writes it
            return cpu.forward(*_plain(w, u), *(x.contiguous() for x in (k, v, *given)))
        return cpu.forward(*_plain(w, u, k, v, *given)).to(k.dtype)
    return scan.biwkv(w, u, k, v, gate).contiguous()


def _gated(y: Tensor, gate: Tensor) -> Tensor:
    return torch.sigmoid(gate) * y


def _plain(*tensors: Tensor) -> list[Tensor]:
    """Contiguous float32, as compiled CPU code takes them."""
    return [x.float().contiguous() for x in tensors]


def _choose(w: Tensor, u: Tensor, k: Tensor, backend: str) -> str:
    """The rule of `dispatch`, and the one thing it cannot know: the compiled CPU code needs w and u within a range."""
    chosen = dispatch.resolve(OP, backend, k.device.type, k.dtype)
    if chosen == "cpu" and not cpu.supports(w, u, k.shape[1]):
        if backend == "cpu":
            raise dispatch.BackendUnavailable(f"biwkv: backend='cpu' cannot be used: {CPU_RANGE}")
        return "torch"
    return chosen


def make_factors(w: Tensor, u: Tensor, choice: launches.Choice) -> Tensor:
    """The powers of exp(w) for a launch configuration; contiguous float32 w and u. A caller may keep them."""
    from lalic_kernels.biwkv import kernels

    groups, block_c = choice.rows["GROUPS"], choice.rows["BLOCK_C"]
    factors = torch.empty((2 * groups + 4, w.shape[0]), dtype=torch.float32, device=w.device)
    with on(w.device):
        kernels.factors_kernel[(blocks(w.shape[0], block_c),)](
            w, u, factors, w.shape[0], GROUPS=groups, PER_GROUP=launches.PER_GROUP, BLOCK_C=block_c, num_warps=4
        )
    return factors


def _launch(w: Tensor, u: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, factors: Tensor | None = None) -> Tensor:
    from lalic_kernels.biwkv import kernels, kernels_scan

    batch, tokens, channels = k.shape
    w, u, k, v = w.float().contiguous(), u.float().contiguous(), k.contiguous(), v.contiguous()
    gates = k if gate is None else gate.contiguous()  # without a gate nothing is read through its pointer
    choice = launches.choose(launches.architecture(k.device), tokens, channels, k.element_size())
    groups, block_c = choice.rows["GROUPS"], choice.rows["BLOCK_C"]
    chunks, across = blocks(tokens, choice.chunk), blocks(channels, block_c)
    plane = batch * chunks * channels
    if factors is None:
        factors = make_factors(w, u, choice)
    sums, entering = torch.empty((2, 6, batch, chunks, channels), dtype=torch.float32, device=k.device)
    y = torch.empty_like(k)
    options = choice.rows.options() | {"VEC": choice.vec, "FAST_ONLY": False}
    with on(k.device):
        kernels.chunk_sums_kernel[(across, batch * chunks)](
            w, k, v, factors, sums, w, tokens, channels, chunks, plane, **options, CENTRED=False
        )
        kernels_scan.chunk_scan_kernel[(batch, blocks(channels, choice.scan["BLOCK_C"]))](
            w, u, factors, sums, entering, entering, w, w, channels, chunks, plane,
            GROUPS=groups, PER_GROUP=launches.PER_GROUP, FOLDED=launches.PER_GROUP, BACKWARD=False,
            **choice.scan.options(),
        )  # fmt: skip
        kernels.rows_kernel[(across, batch * chunks)](
            w, u, k, v, gates, factors, entering, y, tokens, channels, chunks, plane, **options, GATED=gate is not None
        )
    return y


def _backward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, grad: Tensor, backend: str) -> _Grads:
    given = () if gate is None else (gate,)
    inputs = (w, u, k, v, *given)
    chosen = _choose(w, u, k, backend)
    grads: list[Any]
    if k.numel() == 0:
        grads = [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in inputs]
    elif k.shape[1] == 1:
        grads = [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (w, u, k)]
        if gate is None:
            grads.append(grad.clone(memory_format=torch.contiguous_format))
        else:
            grads += registration.recompute(_gated, (v, gate), grad)
    elif chosen == "cpu":
        data = (k, v, grad, *given)
        if k.dtype == torch.bfloat16:  # as in the forward
            grads = list(cpu.backward(*_plain(w, u), *(x.contiguous() for x in data)))
        else:
            grads = list(cpu.backward(*_plain(w, u, *data)))
    elif chosen == "triton":
        grads = _launch_backward(w, u, k, v, gate, grad)
    else:
        wide = torch.promote_types(k.dtype, torch.float32)
        grads = registration.recompute(scan.centred, inputs, grad.to(wide))
    results = [g.to(x.dtype) for g, x in zip(grads, inputs, strict=False)]  # the compiled code ends in a None, no gate
    return tuple(results) if gate is not None else (*results, k.new_empty(0))  # type: ignore[return-value]


def _launch_backward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, grad: Tensor) -> list[Any]:
    from lalic_kernels.biwkv.backward import backward

    w, u = w.float().contiguous(), u.float().contiguous()
    k, v, grad = k.contiguous(), v.contiguous(), grad.contiguous()
    return list(backward(w, u, k, v, grad, None if gate is None else gate.contiguous()))


def _forward_fake(w: Tensor, u: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, backend: str) -> Tensor:
    return torch.empty_like(k, memory_format=torch.contiguous_format)


def _backward_fake(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, grad: Tensor, backend: str
) -> _Grads:
    grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (w, u, k, v)]
    last = k.new_empty(0) if gate is None else torch.empty_like(gate, memory_format=torch.contiguous_format)
    return *grads, last  # type: ignore[return-value]


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.backend = inputs[5]


def _gradient(ctx, grad: Tensor):
    return _with_gate(ctx, _BACKWARD_OP(*ctx.saved_tensors, grad, ctx.backend))


def _with_gate(ctx, grads: _Grads):
    """One gradient for each argument of the op."""
    return *grads[:4], None if ctx.saved_tensors[4] is None else grads[4], None


_TENSORS = "Tensor w, Tensor u, Tensor k, Tensor v, Tensor? gate"
registration.forward_op("biwkv", f"({_TENSORS}, str backend) -> Tensor", _forward, _forward_fake)
_BACKWARD_OP = registration.backward_op(
    "biwkv_backward",
    f"({_TENSORS}, Tensor grad, str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
registration.gradient("biwkv", _gradient, _setup_context)
registration.vmap("biwkv", batching.forward_rule(torch.ops.lalic_kernels.biwkv.default))
registration.vmap("biwkv_backward", batching.backward_rule(torch.ops.lalic_kernels.biwkv_backward.default))


class _UnderTransforms(torch.autograd.Function):
    """The op for torch.func's transforms: the same forward, gradient and rule of vmap, registered in another way."""

    forward = staticmethod(lambda *arguments: torch.ops.lalic_kernels.biwkv(*arguments))
    setup_context = staticmethod(_setup_context)
    vmap = staticmethod(batching.forward_rule(lambda *arguments: _UnderTransforms.apply(*arguments)))

    @staticmethod
    def backward(ctx, grad):
        return _with_gate(ctx, _BackwardUnderTransforms.apply(*ctx.saved_tensors, grad, ctx.backend))


class _BackwardUnderTransforms(torch.autograd.Function):
    """The backward op likewise, as torch.func.grad always takes a gradient in a form to differentiate."""

    forward = staticmethod(lambda *arguments: torch.ops.lalic_kernels.biwkv_backward(*arguments))
    setup_context = staticmethod(lambda ctx, inputs, output: None)
    backward = staticmethod(lambda ctx, *grads: registration.refuse_second_derivative("biwkv"))
    vmap = staticmethod(batching.backward_rule(lambda *arguments: _BackwardUnderTransforms.apply(*arguments)))


def _flops(w, u, k, v, gate, *_, **__) -> int:
    # As the paper's supplement counts: 29 operations an element, exponentials and divisions one each. The gate adds an
    # exponential, an addition, a division and a product.
    return (29 if gate is None else 33) * k[0] * k[1] * k[2]


def _least_bytes(w: Tensor, u: Tensor, k: Tensor, v: Tensor, gate: Tensor | None = None) -> int:
    return registration.nbytes(w, u, k, v, k) + (0 if gate is None else registration.nbytes(gate))


registration.flops("biwkv", _flops)
registration.moved_bytes("biwkv", _least_bytes)
