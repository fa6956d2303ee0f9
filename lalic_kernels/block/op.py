"""The RWKV block: its parameters, the public function, its checks and its choice of path."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lalic_kernels import checks, dispatch
from lalic_kernels.block import gpu, reference
from lalic_kernels.cache import WeightCache
from lalic_kernels.mix.op import SPATIAL_MIX, channel_mix, spatial_mix
from lalic_kernels.op import needs_ops
from lalic_kernels.shift.op import norm_shift

SHAPES = {
    "norm1_weight": "C", "norm1_bias": "C", "shift1": "C 5 5",
    "decay": "C", "boost": "C", "key": "C C", "value": "C C", "receptance": "C C", "output": "C C", "gamma1": "C",
    "norm2_weight": "C", "norm2_bias": "C", "shift2": "C 5 5",
    "channel_key": "F C", "channel_receptance": "C C", "channel_value": "C F", "gamma2": "C",
}  # fmt: skip
CACHE_SIZE = 8


@dataclass(frozen=True, eq=False)
class BlockParameters:
    """The tensors of one RWKV block with C channels and F hidden channels, checked by the constructor.

    Each is float16, bfloat16, float32 or float64, all on one device. They may require gradients, and may be results of
    other operations, such as a folded shift. In inference on a GPU a cache holds them in the kernels' layout (matrices
    of k, v and r as one, taps transposed, BiWKV's powers). It is filled at the first call for a dtype and number of
    tokens, on the current stream, and filled again after a tensor was written to. A CUDA graph of yours reads from it:
    call once before the capture, hold `lalic_kernels.cache.tensors_of(parameters)` as long as the graph, and capture
    again after a write.

    Attributes:
        norm1_weight, norm1_bias, norm2_weight, norm2_bias: LayerNorms, shape (C,).
        shift1, shift2: depth-wise kernels, shape (C, 5, 5); see `lalic_kernels.fold_token_shift`.
        decay, boost: shape (C,), not yet divided by the number of tokens.
        key, value, receptance, output: the spatial mix's matrices, shape (C, C).
        channel_key, channel_receptance, channel_value: the channel mix's matrices, shapes (F, C), (C, C), (C, F).
        gamma1, gamma2: factors of the two halves, shape (C,).
        eps: added to the LayerNorms' variances.

    Raises:
        TypeError: an argument is not a tensor, or its dtype does not fit.
        ValueError: a tensor's shape or device does not fit, or eps is negative.
    """

    norm1_weight: Tensor
    norm1_bias: Tensor
    shift1: Tensor
    decay: Tensor
    boost: Tensor
    key: Tensor
    value: Tensor
    receptance: Tensor
    output: Tensor
    gamma1: Tensor
    norm2_weight: Tensor
    norm2_bias: Tensor
    shift2: Tensor
    channel_key: Tensor
    channel_receptance: Tensor
    channel_value: Tensor
    gamma2: Tensor
    eps: float = field(default=1e-5, kw_only=True)
    _tensors: tuple[Tensor, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        named = [(name, getattr(self, name)) for name in SHAPES]
        # The first tensor sets C, and the first with an F sets F.
        checks.shapes("BlockParameters", *((name, value, SHAPES[name]) for name, value in named))
        for name, value in named:
            checks.floating("BlockParameters", name, value)
        checks.same_device("BlockParameters", named[0], *named[1:])
        if not self.eps >= 0:
            raise ValueError(f"BlockParameters: eps must be at least 0, but is {self.eps}")
        object.__setattr__(self, "_tensors", tuple(value for _, value in named))

    @cached_property
    def cache(self) -> WeightCache:
        """Weights for each dtype, and BiWKV's powers for each number of tokens, i.e. for a few image sizes."""
        return WeightCache(CACHE_SIZE)  # made on use, as torch.compile cannot trace its lock

    @property
    def channels(self) -> int:
        """C."""
        return self.norm1_weight.shape[0]

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors, in the order of the attributes."""
        return self._tensors

    def to(self, dtype: torch.dtype) -> BlockParameters:
        """A copy with every tensor in a dtype."""
        cast: dict[str, Any] = {name: getattr(self, name).to(dtype) for name in SHAPES}
        return BlockParameters(**cast, eps=self.eps)


def rwkv_block(x: Tensor, parameters: BlockParameters, *, backend: str | None = None) -> Tensor:
    """One RWKV block: a = x + gamma1 * SpatialMix(Shift1(LN1(x))); result a + gamma2 * ChannelMix(Shift2(LN2(a))).

    Four ops: `norm_shift`, `spatial_mix`, `norm_shift`, `channel_mix`. For training each saves its inputs, four images
    per block, and its backward computes the rest again. Without gradients on a GPU, eight or nine kernels are launched
    directly on cached weights; but torch.compile, torch.func, tracers, FlopCounterMode, tensor subclasses, autocast,
    float64 and images of one token always take the four ops.

    Args:
        x: image, shape (B, H, W, C), float16, bfloat16, float32 or float64, any strides.
        parameters: of C channels; each in x's dtype or float32.
        backend: None for the rule in `lalic_kernels.dispatch`, or "triton", "cpu", "torch", "reference", for each op.

    Returns:
        Shape (B, H, W, C), contiguous, in x's dtype. Inside `torch.autocast` the shifts' results and the mixes'
        products are in autocast's dtype.

    Raises:
        TypeError: x is not a tensor, parameters is not a BlockParameters, or a dtype does not fit.
        ValueError: a shape or device does not fit, or there is no backend of that name.
        BackendUnavailable: the requested backend cannot run on this machine.

    Source: LALIC (Feng et al., 2025).
    """
    p = parameters
    if not isinstance(p, BlockParameters):
        raise TypeError(f"rwkv_block: parameters must be BlockParameters, but is a {type(p).__name__}")
    checks.shapes("rwkv_block", ("parameters.norm1_weight", p.norm1_weight, "C"), ("x", x, "B H W C"))
    dtype = checks.floating("rwkv_block", "x", x)
    checks.dtype_in(
        "rwkv_block", (dtype, torch.float32), "beside x", *(("parameters", tensor) for tensor in p.tensors())
    )
    checks.same_device("rwkv_block", ("x", x), ("parameters", p.norm1_weight))
    if backend == "reference":
        return reference.rwkv_block(x, p.to(dtype))
    chosen = dispatch.resolve(SPATIAL_MIX, backend, x.device.type, dtype)
    if chosen == "triton" and x.numel() and x.shape[1] * x.shape[2] > 1 and not _needs_ops(x, p):
        return gpu.rwkv_block(x.contiguous(), p)
    s = norm_shift(x, p.norm1_weight, p.norm1_bias, p.shift1, eps=p.eps, dtype=_autocast_dtype(x), backend=backend)
    x = spatial_mix(
        s, p.decay, p.boost, p.key, p.value, p.receptance, p.output, residual=x, gamma=p.gamma1, backend=backend
    )
    # Under autocast the image may have become float32 beside parameters in 16 bits.
    norm2 = [checks.beside(x, tensor) for tensor in (p.norm2_weight, p.norm2_bias, p.shift2)]
    s = norm_shift(x, *norm2, eps=p.eps, dtype=_autocast_dtype(x), backend=backend)
    matrices = (p.channel_key, p.channel_receptance, p.channel_value)
    return channel_mix(s, *matrices, residual=x, gamma=p.gamma2, backend=backend)


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype for the shifts' results: autocast's for a float32 x, so that the mixes need no cast; None for x's."""
    if x.dtype != torch.float32 or not checks.autocast_enabled(x.device):
        return None
    return torch.get_autocast_dtype(x.device.type)


def _needs_ops(x: Tensor, p: BlockParameters) -> bool:
    """Whether gradients, autocast, or what `lalic_kernels.op.needs_ops` names, need the registered ops."""
    if needs_ops((x, *p.tensors())) or checks.autocast_enabled(x.device):
        return True
    return torch.is_grad_enabled() and (x.requires_grad or any(tensor.requires_grad for tensor in p.tensors()))
