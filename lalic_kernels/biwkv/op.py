"""BiWKV: the public function, its checks, launches and registration."""

from __future__ import annotations

import torch
from torch import Tensor

from lalic_kernels._core import checks, dispatch, registration
from lalic_kernels._core.launch import blocks, on
from lalic_kernels.biwkv import cpu, launches, reference, scan

OP = dispatch.add(dispatch.Op("biwkv", cpu_available=cpu.available))
BACKWARD = "like the forward for triton and cpu; otherwise autograd through the linear-time torch path, recomputed"
CPU_RANGE = (
    f"w or u is outside its range (about |w| <= {cpu.RANGE / 4:g}, |u| <= {cpu.RANGE:g}); the torch path takes any"
)


def biwkv(w: Tensor, u: Tensor, k: Tensor, v: Tensor, *, backend: str | None = None) -> Tensor:
    """Linear attention in both directions with a decay per channel.

    For each batch item and channel y_t = sum_i exp(L(t, i)) v_i / sum_i exp(L(t, i)) with
    L(t, i) = k_i - (|t - i| - 1) w for i != t and L(t, t) = u + k_t. Time and memory are linear in T.

    Args:
        w: decay per step, shape (C,), any sign. A model that learns a decay divides it by T before the call.
        u: bonus of a token for itself, shape (C,), likewise.
        k: keys, shape (B, T, C), float16, bfloat16, float32 or float64, any strides.
        v: values, as k.
        backend: None for the rule in `lalic_kernels._core.dispatch`, or "triton", "cpu", "torch", "reference".

    Returns:
        y, shape (B, T, C), contiguous, in k's dtype. float16 and bfloat16 are computed in float32; w and u may stay
        float32 beside them, which they should: decay / T is subnormal in float16.

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
    checks.shapes("biwkv", ("k", k, "B T C"), ("v", v, "B T C"), ("w", w, "C"), ("u", u, "C"))
    dtype = checks.floating("biwkv", "k", k)
    checks.dtype_in("biwkv", "v", v, (dtype,), "as k is")
    for name, value in (("w", w), ("u", u)):
        checks.dtype_in("biwkv", name, value, (dtype, torch.float32), "beside k")
    checks.same_device("biwkv", ("k", k), ("v", v), ("w", w), ("u", u))
    if backend == "reference":
        return reference.biwkv(w.to(dtype), u.to(dtype), k, v)
    return torch.ops.lalic_kernels.biwkv(w, u, k, v, dispatch.AUTO if backend is None else backend)


def _forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, backend: str) -> Tensor:
    chosen = _choose(w, u, k, backend)
    if k.numel() == 0:
        return torch.empty_like(k, memory_format=torch.contiguous_format)
    if k.shape[1] == 1:
        return v.clone(memory_format=torch.contiguous_format)  # a token's weight for itself cancels, exactly
    if chosen == "triton":
        return _launch(w, u, k, v)
    if chosen == "cpu":
        return cpu.forward(*(x.float().contiguous() for x in (w, u, k, v))).to(k.dtype)
    return scan.biwkv(w, u, k, v).contiguous()


def _choose(w: Tensor, u: Tensor, k: Tensor, backend: str) -> str:
    """The rule of `dispatch`, and the one thing it cannot know: the compiled CPU code needs w and u within a range."""
    chosen = dispatch.resolve(OP, backend, k.device.type, k.dtype)
    if chosen == "cpu" and not cpu.supports(w, u, k.shape[1]):
        if backend == "cpu":
            raise dispatch.BackendUnavailable(f"biwkv: backend='cpu' cannot be used: {CPU_RANGE}")
        return "torch"
    return chosen


def _launch(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from lalic_kernels.biwkv import kernels

    batch, tokens, channels = k.shape
    w, u, k, v = w.float().contiguous(), u.float().contiguous(), k.contiguous(), v.contiguous()
    choice = launches.choose(launches.architecture(k.device), tokens, channels, k.element_size())
    groups, block_c = choice.rows["GROUPS"], choice.rows["BLOCK_C"]
    chunks, across = blocks(tokens, choice.chunk), blocks(channels, block_c)
    plane = batch * chunks * channels
    factors = torch.empty((2 * groups + 4, channels), dtype=torch.float32, device=k.device)
    sums, entering = torch.empty((2, 6, batch, chunks, channels), dtype=torch.float32, device=k.device)
    y = torch.empty_like(k)
    options = choice.rows.options() | {"VEC": choice.vec, "FAST_ONLY": False}
    with on(k.device):
        kernels.factors_kernel[(across,)](
            w, u, factors, channels, GROUPS=groups, PER_GROUP=launches.PER_GROUP, BLOCK_C=block_c, num_warps=4
        )
        kernels.chunk_sums_kernel[(across, batch * chunks)](
            w, k, v, factors, sums, tokens, channels, chunks, plane, **options
        )
        kernels.chunk_scan_kernel[(batch, blocks(channels, choice.scan["BLOCK_C"]))](
            w, u, factors, sums, entering, entering, channels, chunks, plane,
            GROUPS=groups, PER_GROUP=launches.PER_GROUP, FOLDED=launches.PER_GROUP, KEEP_OWN=False,
            **choice.scan.options(),
        )  # fmt: skip
        kernels.rows_kernel[(across, batch * chunks)](
            w, u, k, v, factors, entering, y, tokens, channels, chunks, plane, **options
        )
    return y


def _backward(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, grad: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs = (w, u, k, v)
    if k.numel() == 0:
        return tuple(torch.zeros_like(x, memory_format=torch.contiguous_format) for x in inputs)  # type: ignore[return-value]
    chosen = _choose(w, u, k, backend)
    if k.shape[1] == 1:
        zeros = [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (w, u, k)]
        return *zeros, grad.clone(memory_format=torch.contiguous_format)  # type: ignore[return-value]
    if chosen == "cpu":
        grads = cpu.backward(*(x.float().contiguous() for x in (*inputs, grad)))
        return tuple(g.to(x.dtype) for g, x in zip(grads, inputs, strict=True))  # type: ignore[return-value]
    if chosen == "triton":
        from lalic_kernels.biwkv.backward import backward

        grads = backward(w.float().contiguous(), u.float().contiguous(), *(x.contiguous() for x in (k, v, grad)))
        return tuple(g.to(x.dtype) for g, x in zip(grads, inputs, strict=True))  # type: ignore[return-value]
    return tuple(registration.recompute(scan.biwkv, inputs, grad))  # type: ignore[return-value]


def _forward_fake(w: Tensor, u: Tensor, k: Tensor, v: Tensor, backend: str) -> Tensor:
    return torch.empty_like(k, memory_format=torch.contiguous_format)


def _backward_fake(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, grad: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (w, u, k, v))  # type: ignore[return-value]


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.backend = inputs[4]


def _gradient(ctx, grad: Tensor):
    return *_BACKWARD_OP(*ctx.saved_tensors, grad, ctx.backend), None


_TENSORS = "Tensor w, Tensor u, Tensor k, Tensor v"
_FORWARD_OP = registration.forward_op("biwkv", f"({_TENSORS}, str backend) -> Tensor", _forward, _forward_fake)
_BACKWARD_OP = registration.backward_op(
    "biwkv_backward",
    f"({_TENSORS}, Tensor grad, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
_FORWARD_OP.register_autograd(_gradient, setup_context=_setup_context)
# As the paper's supplement counts: 29 operations an element, exponentials and divisions one each.
registration.flops("biwkv", lambda w, u, k, v, backend, **_: 29 * k[0] * k[1] * k[2])
registration.moved_bytes("biwkv", lambda w, u, k, v: registration.nbytes(w, u, k, v, k))
