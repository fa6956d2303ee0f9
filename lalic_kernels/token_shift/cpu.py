"""The token shift and the normalised shift on CPUs through compiled code (`cpu_lines.py`): arguments to flat arrays.

float32 and bfloat16 are read and written as they are, computed in float32; float16 goes through a float32 copy, since
plain x86-64 cannot convert it. The same bits on any number of threads.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lalic_kernels._core.threads import flat_array, run_ranges

# Below some ten thousand elements a thread costs more than it saves; a range starts by filling its ring, four lines.
_LEAST_ELEMENTS, _LEAST_LINES = 16384, 4
_SHARE_LINES = 16  # lines of a share of the weight's gradient: by size alone, so that threads do not matter


def forward(
    x: Tensor, weight: Tensor, norm_weight: Tensor | None = None, norm_bias: Tensor | None = None, eps: float = 0.0
) -> Tensor:
    """The shift of x (B, H, W, C), any strides, by weight (C, 5, 5); with norm_weight and norm_bias (C,) of its
    LayerNorm. Contiguous, in x's dtype; not empty.
    """
    from lalic_kernels.token_shift import cpu_lines

    if x.dtype == torch.float16:
        return forward(x.float(), weight, norm_weight, norm_bias, eps).to(x.dtype)
    batch, height, width, channels = x.shape
    x = x.detach().contiguous()
    y = torch.empty_like(x)
    arguments = (
        flat_array(x), _padded(norm_weight, channels), _padded(norm_bias, channels), np.float32(eps),
        norm_weight is not None, blocked_taps(weight), flat_array(y), height, width, channels,
    )  # fmt: skip
    least = max(_LEAST_LINES, _LEAST_ELEMENTS // (width * channels))
    run_ranges(lambda start, stop: cpu_lines.forward_lines(*arguments, start, stop), batch * height, least=least)
    return y


def backward(
    x: Tensor,
    weight: Tensor,
    grad: Tensor,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """(gradient of the shifted image, in x's dtype; gradient of the weight (C, 5, 5), float32), arguments as `forward`.

    With a norm the first is that of the normalised image, which the caller takes through the norm. Shares of the
    second, each of some lines of an image, are added in one order, in float64.
    """
    from lalic_kernels.token_shift import cpu_lines

    if x.dtype == torch.float16:
        of_image, of_weight = backward(x.float(), weight, grad.float(), norm_weight, norm_bias, eps)
        return of_image.to(x.dtype), of_weight
    batch, height, width, channels = x.shape
    x, grad = x.detach().contiguous(), grad.detach().contiguous()
    items = batch * -(-height // _SHARE_LINES)
    parts = np.empty((items, -(-channels // 16), 25, 16), np.float32)
    arguments = (
        flat_array(x), _padded(norm_weight, channels), _padded(norm_bias, channels), np.float32(eps),
        norm_weight is not None, flat_array(grad), parts.reshape(-1), height, width, channels, _SHARE_LINES,
    )  # fmt: skip
    run_ranges(lambda start, stop: cpu_lines.gradient_lines(*arguments, start, stop), items)
    of_weight = parts.sum(0, dtype=np.float64).astype(np.float32).transpose(0, 2, 1).reshape(-1, 5, 5)[:channels]
    return forward(grad, weight.flip(1, 2)), torch.from_numpy(np.ascontiguousarray(of_weight))


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
