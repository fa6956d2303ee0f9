"""The RWKV block: the public function, its checks and its choice of path."""

from __future__ import annotations

import torch
from torch import Tensor

from lalic_kernels._core import autocast, checks, dispatch
from lalic_kernels.channel_mix.op import channel_mix
from lalic_kernels.norm_shift.op import norm_shift
from lalic_kernels.rwkv_block import inference, reference
from lalic_kernels.rwkv_block.parameters import BlockParameters
from lalic_kernels.spatial_mix.op import OP as _SPATIAL
from lalic_kernels.spatial_mix.op import spatial_mix


def rwkv_block(x: Tensor, parameters: BlockParameters, *, backend: str | None = None) -> Tensor:
    """a = x + gamma1 * SpatialMix(Shift1(LN1(x))); result a + gamma2 * ChannelMix(Shift2(LN2(a))).

    Four ops: `norm_shift`, `spatial_mix`, `norm_shift`, `channel_mix`. For training each saves its inputs, four
    images a block, and its backward computes the rest again. Without gradients on a GPU the same kernels are launched
    one after the other, eight in all, on what `parameters` keeps ready; torch.compile, autocast, float64 and images of
    one token take the four ops there too.

    Args:
        x: image, shape (B, H, W, C), float16, bfloat16, float32 or float64, any strides.
        parameters: of C channels; each in x's dtype or float32.
        backend: None for the rule in `lalic_kernels._core.dispatch`, or one of its names: each op follows it.

    Returns:
        Shape (B, H, W, C), contiguous, in x's dtype. Inside `torch.autocast` the shifts' results and the
        mixes' products are in its dtype.

    Raises:
        TypeError: x is no tensor, parameters are no BlockParameters, or a dtype does not fit.
        ValueError: a shape or device does not fit, or there is no backend of that name.
        dispatch.BackendUnavailable: the backend asked for cannot run here.

    Source: LALIC (Feng et al., 2025).
    """
    p = parameters
    if not isinstance(p, BlockParameters):
        raise TypeError(f"rwkv_block: parameters must be BlockParameters, but is a {type(p).__name__}")
    checks.shapes("rwkv_block", ("parameters.norm1_weight", p.norm1_weight, "C"), ("x", x, "B H W C"))
    dtype = checks.floating("rwkv_block", "x", x)
    for tensor in p.tensors():
        checks.dtype_in("rwkv_block", "parameters", tensor, (dtype, torch.float32), "beside x")
    checks.same_device("rwkv_block", ("x", x), ("parameters", p.norm1_weight))
    if backend == "reference":
        return reference.rwkv_block(x, p.to(dtype))
    chosen = dispatch.resolve(_SPATIAL, backend, x.device.type, dtype)
    if chosen == "triton" and x.numel() and x.shape[1] * x.shape[2] > 1 and not _needs_ops(x, p):
        return inference.run(x.contiguous(), p)
    narrow = _autocast_dtype(x)
    s = norm_shift(x, p.norm1_weight, p.norm1_bias, p.shift1, eps=p.eps, dtype=narrow, backend=backend)
    x = spatial_mix(
        s, p.decay, p.boost, p.key, p.value, p.receptance, p.output, residual=x, gamma=p.gamma1, backend=backend
    )
    s = norm_shift(x, p.norm2_weight, p.norm2_bias, p.shift2, eps=p.eps, dtype=narrow, backend=backend)
    matrices = (p.channel_key, p.channel_receptance, p.channel_value)
    return channel_mix(s, *matrices, residual=x, gamma=p.gamma2, backend=backend)


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype for the shifts' results: autocast's, to which the mixes would cast a float32 one, or None for x's."""
    if x.dtype != torch.float32 or not autocast.enabled(x.device):
        return None
    return torch.get_autocast_dtype(x.device.type)


def _needs_ops(x: Tensor, p: BlockParameters) -> bool:
    """Whether gradients, a compiler or autocast want to see registered ops."""
    if torch.compiler.is_compiling() or autocast.enabled(x.device):
        return True
    return torch.is_grad_enabled() and (x.requires_grad or any(tensor.requires_grad for tensor in p.tensors()))
