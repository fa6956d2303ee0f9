"""The token shift and the normalised shift on CPUs through compiled code (`cpu_loops.py`): arguments to flat arrays.

float32 and bfloat16 are read and written as they are, also beside one another, computed in float32; float16 goes
through a float32 copy, since plain x86-64 cannot convert it. The same bits on any number of threads.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lalic_kernels.threads import flat_array, run_ranges

# Below some ten thousand elements a thread costs more than it saves; a range starts by filling its ring, four lines.
_LEAST_ELEMENTS, _LEAST_LINES = 16384, 4
_SHARE_LINES = 16  # lines of a share of the weight's gradient: by size alone, so that threads do not matter


def forward(
    x: Tensor,
    weight: Tensor,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 0.0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The shift of x (B, H, W, C), any strides, by weight (C, 5, 5); with norm_weight and norm_bias (C,) of its
    LayerNorm. Contiguous, in `dtype`, or in x's for None; not empty.
    """
    from lalic_kernels.shift import cpu_loops

    dtype = x.dtype if dtype is None else dtype
    if torch.float16 in (x.dtype, dtype):
        return forward(x.float(), weight, norm_weight, norm_bias, eps).to(dtype)
    batch, height, width, channels = x.shape
    x = x.detach().contiguous()
    y = torch.empty_like(x, dtype=dtype)
    arguments = (
        flat_array(x), _padded(norm_weight, channels), _padded(norm_bias, channels), np.float32(eps),
        norm_weight is not None, blocked_taps(weight), flat_array(y), height, width, channels,
    )  # fmt: skip
    least = max(_LEAST_LINES, _LEAST_ELEMENTS // (width * channels))
    run_ranges(lambda start, stop: cpu_loops.forward_lines(*arguments, start, stop), batch * height, least=least)
    return y


def backward(
    x: Tensor,
    weight: Tensor,
    grad: Tensor,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 0.0,
) -> tuple[Tensor, ...]:
    """Gradients of x, in its dtype, and of the weight (C, 5, 5), float32; with a norm those of norm_weight and of
    norm_bias, (C,) float32, too. Arguments as `forward`; grad in x's dtype or another.

    Sums over pixels are made in shares, each of some lines of an image, which are added in one order, in float64.
    """
    from lalic_kernels.shift import cpu_loops

    if x.dtype == torch.float16:
        of_x, *rest = backward(x.float(), weight, grad, norm_weight, norm_bias, eps)
        return of_x.to(x.dtype), *rest
    batch, height, width, channels = x.shape
    x, grad = x.detach().contiguous(), grad.detach().contiguous()
    grad = grad.float() if grad.dtype == torch.float16 else grad
    of_x = torch.empty_like(x)
    items, across, normed = batch * -(-height // _SHARE_LINES), -(-channels // 16), norm_weight is not None
    parts = np.empty((items, across, 25, 16), np.float32)
    norm_parts = np.empty((items if normed else 0, 2, across * 16), np.float32)
    arguments = (
        flat_array(x), _padded(norm_weight, channels), _padded(norm_bias, channels), np.float32(eps), normed,
        blocked_taps(weight.flip(1, 2)), flat_array(grad), flat_array(of_x), parts.reshape(-1), norm_parts.reshape(-1),
        height, width, channels, _SHARE_LINES,
    )  # fmt: skip
    run_ranges(lambda start, stop: cpu_loops.gradient_lines(*arguments, start, stop), items)
    of_weight = _added(parts).transpose(0, 2, 1).reshape(-1, 5, 5)[:channels]
    of_norm = _added(norm_parts)[:, :channels] if normed else ()
    return of_x, *(torch.from_numpy(np.ascontiguousarray(found)) for found in (of_weight, *of_norm))


def _added(parts: np.ndarray) -> np.ndarray:
    """Shares (items, ...) added in one order."""
    return parts.sum(0, dtype=np.float64).astype(np.float32)


def blocked_taps(weight: Tensor) -> np.ndarray:
    """weight (C, 5, 5) as (C / 16, 25, 16), flat, in float32, zeros behind the last channel."""
    channels = weight.shape[0]
    taps = np.zeros((-(-channels // 16) * 16, 25), np.float32)
    taps[:channels] = weight.detach().float().reshape(channels, 25).numpy()
    return np.ascontiguousarray(taps.reshape(-1, 16, 25).transpose(0, 2, 1)).reshape(-1)


def _padded(vector: Tensor | None, channels: int) -> np.ndarray:
    """A vector over channels with zeros up to whole blocks of 16; zeros alone for None."""
    found = np.zeros(-(-channels // 16) * 16, np.float32)
    if vector is not None:
        found[:channels] = vector.detach().float().numpy()
    return found
