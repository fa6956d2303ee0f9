"""The two mixes of an RWKV block: public functions, their checks, choice of implementation and registration."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lalic_kernels import checks, dispatch
from lalic_kernels.mix import cpu, gpu, reference, torch_path
from lalic_kernels.op import nbytes, register

# The most that one mix may save for its backward on a CPU. A block has two mixes.
SAVED_BYTES = 128 << 20


def spatial_mix(
    x: Tensor,
    decay: Tensor,
    boost: Tensor,
    key: Tensor,
    value: Tensor,
    receptance: Tensor,
    output: Tensor,
    *,
    residual: Tensor | None = None,
    gamma: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """o = O (sigmoid(R x) * BiWKV(decay / T, boost / T, K x, V x)), T = H * W; returns o, or residual + gamma * o.

    On a GPU one product computes k, v and r, BiWKV applies the gate, and the output's product adds the residual. For
    training x, the parameters and gamma are saved; compiled CPU code also saves k, v, r and the gated result, if these
    take at most 128 MiB.

    Args:
        x: shifted image, shape (B, H, W, C), float16, bfloat16, float32 or float64, any strides; tokens are its pixels
            in row-major order.
        decay, boost: parameters of the model, shape (C,), in x's dtype or float32, not yet divided by T.
        key, value, receptance, output: shape (C, C), rows are outputs. In x's dtype, or in float32 (then they are
            rounded to x's dtype first).
        residual: shape (B, H, W, C), in x's dtype or float32, or None.
        gamma: shape (C,), in x's dtype or float32; must be given if residual is, and only then.
        backend: None for the rule in `lalic_kernels.dispatch`, or "triton", "cpu" (BiWKV compiled by numba,
            products by torch), "torch", "reference". BiWKV uses the same backend.

    Returns:
        Shape (B, H, W, C), contiguous, in the residual's dtype, or x's without one. k, v, r and y are rounded to x's
        dtype; sums are float32. float32 products are as exact as float32. Inside `torch.autocast` x and the matrices
        are cast as for F.linear; of the others, those in a 16-bit dtype that is not autocast's become float32.

    Raises:
        TypeError: an argument is not a tensor, or its dtype does not fit.
        ValueError: a shape, layout or device does not fit, only one of residual and gamma is given, or there is no
            backend of that name.
        BackendUnavailable: the requested backend cannot run on this machine.

    Source: LALIC (Feng et al., 2025), RWKV block, spatial half.

    Example:
        >>> x, m = torch.randn(1, 4, 6, 16), torch.randn(4, 16, 16)
        >>> spatial_mix(x, torch.rand(16), torch.rand(16), *m, residual=x, gamma=torch.ones(16)).shape
        torch.Size([1, 4, 6, 16])
    """
    matrices = {"key": key, "value": value, "receptance": receptance, "output": output}
    checks.shapes(
        "spatial_mix", ("x", x, "B H W C"), ("decay", decay, "C"), ("boost", boost, "C"),
        *((name, matrix, "C C") for name, matrix in matrices.items()),
        ("residual", residual, "B H W C?"), ("gamma", gamma, "C?"),
    )  # fmt: skip
    x, (key, value, receptance, output), (residual, gamma, decay, boost) = _in_one_dtype(
        "spatial_mix", x, matrices, residual, gamma, decay=decay, boost=boost
    )
    chosen = dispatch.resolve(SPATIAL_MIX, backend, x.device.type, x.dtype)
    if backend == "reference":
        decay, boost = decay.to(x.dtype), boost.to(x.dtype)
        return reference.spatial_mix(x, decay, boost, key, value, receptance, output, residual, gamma)
    parameters = (decay, boost, key, value, receptance, output)
    saving = saves_activations(chosen, x, 4 * x.shape[3], *parameters, gamma)
    return SPATIAL_MIX.call(x, *parameters, residual, gamma, saving, backend)[0]


def channel_mix(
    x: Tensor,
    key: Tensor,
    receptance: Tensor,
    value: Tensor,
    *,
    residual: Tensor | None = None,
    gamma: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """m = sigmoid(R x) * (V relu(K x)^2) for each token; returns m, or residual + gamma * m.

    The whole hidden layer relu(K x)^2 is never in memory, neither forward nor backward: on a GPU it stays inside one
    kernel, otherwise it is computed for a chunk of tokens at a time. For training x, the matrices and gamma are saved;
    compiled CPU code also saves K x, R x and V relu(K x)^2, if these take at most 128 MiB.

    Args:
        x: shifted image, shape (B, H, W, C), float16, bfloat16, float32 or float64, any strides.
        key: shape (F, C), F the width of the hidden layer. key, receptance and value are in x's dtype, or in float32
            (then they are rounded to x's dtype first).
        receptance: shape (C, C).
        value: shape (C, F).
        residual: shape (B, H, W, C), in x's dtype or float32, or None.
        gamma: shape (C,), in x's dtype or float32; must be given if residual is, and only then.
        backend: None for the rule in `lalic_kernels.dispatch`, or "triton", "cpu", "torch", "reference".

    Returns:
        Shape (B, H, W, C), contiguous, in the residual's dtype, or x's without one. Sums are float32; the hidden layer
        is rounded to x's dtype, and in float16 overflows where relu(K x) exceeds 255. float32 products are
        as exact as float32. Inside `torch.autocast` x and the matrices are cast as for F.linear; residual and gamma,
        if in a 16-bit dtype that is not autocast's, become float32.

    Raises:
        TypeError: an argument is not a tensor, or its dtype does not fit.
        ValueError: a shape, layout or device does not fit, only one of residual and gamma is given, or there is no
            backend of that name.
        BackendUnavailable: the requested backend cannot run on this machine.

    Source: LALIC (Feng et al., 2025), RWKV block, channel half.

    Example:
        >>> x, key, value = torch.randn(1, 4, 6, 16), torch.randn(64, 16), torch.randn(16, 64)
        >>> channel_mix(x, key, torch.randn(16, 16), value, residual=x, gamma=torch.ones(16)).shape
        torch.Size([1, 4, 6, 16])
    """
    matrices = {"key": key, "receptance": receptance, "value": value}
    checks.shapes(
        "channel_mix",
        ("x", x, "B H W C"), ("key", key, "F C"), ("receptance", receptance, "C C"), ("value", value, "C F"),
        ("residual", residual, "B H W C?"), ("gamma", gamma, "C?"),
    )  # fmt: skip
    x, (key, receptance, value), (residual, gamma) = _in_one_dtype("channel_mix", x, matrices, residual, gamma)
    chosen = dispatch.resolve(CHANNEL_MIX, backend, x.device.type, x.dtype)
    if chosen == "reference":
        return reference.channel_mix(x, key, receptance, value, residual, gamma)
    saving = saves_activations(chosen, x, key.shape[0] + 2 * x.shape[3], key, receptance, value, gamma)
    return CHANNEL_MIX.call(x, key, receptance, value, residual, gamma, saving, chosen)[0]


def _in_one_dtype(
    op: str, x: Tensor, matrices: dict[str, Tensor], residual: Tensor | None, gamma: Tensor | None, **vectors: Tensor
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Any, ...]]:
    """x and the matrices in one dtype: autocast's if it is on, like F.linear, else x's. Checks the other arguments too,
    and returns them in the order of the call, in a dtype that goes with it.

    Raises:
        TypeError, ValueError: a dtype or device does not fit, or one of residual and gamma is missing.
    """
    if (residual is None) != (gamma is None):
        given, missing = ("residual", "gamma") if gamma is None else ("gamma", "residual")
        raise ValueError(f"{op}: {missing} must be given with {given}, but is None")
    dtype = checks.floating(op, "x", x)
    others = {"residual": residual, "gamma": gamma, **vectors}
    checks.same_device(op, ("x", x), *matrices.items(), *others.items())
    allowed: tuple[torch.dtype, ...] = (dtype, torch.float32)
    why = "beside x"
    if checks.autocast_enabled(x.device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        x, allowed, why = x.to(dtype), (torch.float16, torch.bfloat16, torch.float32), "inside autocast"
    checks.dtype_in(op, allowed, why, *matrices.items(), *others.items())
    fitting = tuple(None if other is None else checks.beside(x, other) for other in others.values())
    return x, tuple(matrix.to(dtype) for matrix in matrices.values()), fitting


def saves_activations(chosen: str, x: Tensor, width: int, *others: Tensor | None) -> bool:
    """Whether a mix saves its intermediate results for the backward.

    Compiled CPU code saves them if they take at most `SAVED_BYTES` per mix. For larger images, and on a GPU, where
    memory limits training, the backward computes them again.

    Args:
        chosen: the backend.
        x: in the dtype of the products.
        width: number of elements per token to save.
        others: arguments other than x that may require gradients; not the residual, whose gradient needs nothing.
    """
    if chosen != "cpu" or x.dtype == torch.float16 or not torch.is_grad_enabled():
        return False
    training = any(t is not None and t.requires_grad for t in (x, *others))
    return training and x.shape[:3].numel() * width * x.element_size() <= SAVED_BYTES


def _spatial_mix(
    x: Tensor,
    decay: Tensor,
    boost: Tensor,
    key: Tensor,
    value: Tensor,
    receptance: Tensor,
    output: Tensor,
    residual: Tensor | None,
    gamma: Tensor | None,
    saving: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The result; with `saving` also k, v, r (3, B, T, C) and the gated y (B, T, C), else two empty tensors."""
    nothing = x.new_empty(0), x.new_empty(0)
    if x.numel() == 0:
        return torch.empty(x.shape, dtype=torch_path.dtype_of(x, residual), device=x.device), *nothing
    tokens = x.flatten(1, 2).contiguous()
    added = None if residual is None else residual.flatten(1, 2).contiguous()
    if dispatch.resolve(SPATIAL_MIX, backend, x.device.type, x.dtype) == "triton":
        kvr = gpu.linear(tokens, torch.cat((key, value, receptance)), 3)
        y = torch_path.biwkv(decay, boost, kvr, backend)
        scale = None if gamma is None else gamma.float().contiguous()
        result = gpu.linear(y, output.contiguous(), 1, added, scale).view(x.shape)
    else:
        with checks.no_autocast(x.device):
            # BiWKV's compiled code would convert all of float16 k, v, r: convert chunks while they are in the cache.
            wide = torch.float32 if x.device.type == "cpu" and x.dtype == torch.float16 else x.dtype
            saved = tokens.new_empty((3, *tokens.shape), dtype=wide) if saving else None
            # If nothing is saved: arrays of one size, each of which fits where another one was, given back early.
            planes = [torch.empty_like(tokens, dtype=wide) for _ in range(3)] if saved is None else list(saved)
            torch_path.planes(tokens, (key, value, receptance, output), planes)
            y = torch_path.biwkv(decay, boost, planes, backend, over=saved is None)
            del planes
            result = torch_path.project(y, output, added, gamma).view(x.shape)
            return result, *(nothing if saved is None else (saved, y))
    return result, *((kvr, y) if saving else nothing)


def _spatial_mix_fake(x, decay, boost, key, value, receptance, output, residual, gamma, saving, backend):
    result = torch.empty(x.shape, dtype=torch_path.dtype_of(x, residual), device=x.device)
    if not saving or x.numel() == 0:
        return result, x.new_empty(0), x.new_empty(0)
    batch, height, width, channels = x.shape
    return result, x.new_empty((3, batch, height * width, channels)), x.new_empty((batch, height * width, channels))


SPATIAL_MIX = register(
    "spatial_mix",
    "(Tensor x, Tensor decay, Tensor boost, Tensor key, Tensor value, Tensor receptance, Tensor output, "
    "Tensor? residual, Tensor? gamma, bool saving, str? backend) -> (Tensor result, Tensor kvr, Tensor y)",
    forward=_spatial_mix,
    backward=torch_path.spatial_backward,
    saves=("x", "decay", "boost", "key", "value", "receptance", "output", "gamma", "kvr", "y", "backend"),
    passes="residual",
    like=_spatial_mix_fake,
    # Four products, and BiWKV with its gate, counted as in that op.
    flops=lambda x, *_, **__: x[0] * x[1] * x[2] * x[3] * (8 * x[3] + 33),
    bytes=lambda x, decay, boost, key, value, receptance, output, residual=None, gamma=None: (
        nbytes(x, decay, boost, key, value, receptance, output, residual, gamma)
        + x.numel() * (x if residual is None else residual).element_size()
    ),
    gradient="BiWKV's own backward, torch's matrix products; k, v, r, y saved for cpu, else computed again (CUDA too)",
    cpu=True,
)


def _channel_mix(
    x: Tensor,
    key: Tensor,
    receptance: Tensor,
    value: Tensor,
    residual: Tensor | None,
    gamma: Tensor | None,
    saving: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The result; with `saving` also the three tensors that `cpu.backward` needs, else empty tensors."""
    nothing = x.new_empty(0), x.new_empty(0), x.new_empty(0)
    chosen = dispatch.resolve(CHANNEL_MIX, backend, x.device.type, x.dtype)
    if x.numel() == 0:
        return torch.empty(x.shape, dtype=torch_path.dtype_of(x, residual), device=x.device), *nothing
    flat = x.flatten(0, 2).contiguous()
    added = None if residual is None else residual.flatten(0, 2).contiguous()
    key, receptance, value = key.contiguous(), receptance.contiguous(), value.contiguous()
    if chosen == "triton":
        scale = None if gamma is None else gamma.float().contiguous()
        if (result := gpu.channel_mix(flat, key, receptance, value, added, scale)) is not None:
            return result.view(x.shape), *nothing
    with checks.no_autocast(x.device):
        if chosen != "cpu":
            return torch_path.channel_forward(flat, key, receptance, value, added, gamma).view(x.shape), *nothing
        saved = None
        if saving and not cpu.computes_in_torch(flat, added):
            saved = flat.new_empty((flat.shape[0], key.shape[0])), torch.empty_like(flat), torch.empty_like(flat)
        return cpu.forward(flat, key, receptance, value, added, gamma, saved).view(x.shape), *(saved or nothing)


def _channel_mix_backward(
    x: Tensor,
    key: Tensor,
    receptance: Tensor,
    value: Tensor,
    gamma: Tensor | None,
    before: Tensor,
    mixed: Tensor,
    gate: Tensor,
    grad: Tensor,
) -> tuple[Tensor | None, ...]:
    """Gradients of x, key, receptance, value and gamma (None without gamma). before, mixed, gate: saved, or empty."""
    flat, upstream = x.flatten(0, 2).contiguous(), grad.flatten(0, 2).contiguous()
    matrices = key.contiguous(), receptance.contiguous(), value.contiguous()
    with torch.no_grad(), checks.no_autocast(x.device):
        if before.numel():
            grad_x, *grads = cpu.backward(flat, *matrices, gamma, upstream, (before, mixed, gate))
        else:
            grad_x, *grads = torch_path.channel_backward(flat, *matrices, gamma, upstream)
    return grad_x.view(x.shape), *grads


def _channel_mix_fake(x, key, receptance, value, residual, gamma, saving, backend):
    result = torch.empty(x.shape, dtype=torch_path.dtype_of(x, residual), device=x.device)
    if not saving or x.numel() == 0 or cpu.computes_in_torch(x, residual):
        return result, x.new_empty(0), x.new_empty(0), x.new_empty(0)
    rows = x.shape[:3].numel()
    return result, x.new_empty((rows, key.shape[0])), *(x.new_empty((rows, x.shape[3])) for _ in range(2))


CHANNEL_MIX = register(
    "channel_mix",
    "(Tensor x, Tensor key, Tensor receptance, Tensor value, Tensor? residual, Tensor? gamma, bool saving, "
    "str? backend) -> (Tensor result, Tensor before, Tensor mixed, Tensor gate)",
    forward=_channel_mix,
    backward=_channel_mix_backward,
    saves=("x", "key", "receptance", "value", "gamma", "before", "mixed", "gate"),
    passes="residual",
    like=_channel_mix_fake,
    flops=lambda x, key, *_, **__: 2 * x[0] * x[1] * x[2] * x[3] * (2 * key[0] + x[3]),
    bytes=lambda x, key, receptance, value, residual=None, gamma=None: (
        nbytes(x, key, receptance, value, residual, gamma)
        + x.numel() * (x if residual is None else residual).element_size()
    ),
    gradient="torch's matrix products over chunks of tokens; saved for cpu, else computed again (CUDA too)",
    cpu=True,
)
