"""The token shift and the normalised shift on CPUs: calls of the compiled code in `cpu_loops.py`.

Arithmetic is float32. float32 and bfloat16 are read and written directly, also mixed; float16 needs a float32 copy,
because plain x86-64 cannot convert it. Results have the same bits on any number of threads.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lalic_kernels import installed
from lalic_kernels.threads import flat_array, run_ranges

if installed.NUMBA:
    from lalic_kernels.shift import cpu_loops as loops

# With less work a thread costs more than it saves. A range must first read four lines into its ring buffer.
_LEAST_ELEMENTS, _LEAST_LINES = 16384, 4
_PART_LINES = 16  # image lines per partial sum of the weight's gradient: fixed, so that threads do not matter


def forward(
    x: Tensor,
    weight: Tensor,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 0.0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The shift of x (B, H, W, C), any strides, not empty, by weight (C, 5, 5).

    With norm_weight and norm_bias (C,): the shift of x's LayerNorm. The result is contiguous, in `dtype` (None: x's).
    """
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
    run_ranges(lambda start, stop: loops.forward_lines(*arguments, start, stop), batch * height, least=least)
    return y


def backward(
    x: Tensor,
    weight: Tensor,
    grad: Tensor,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 0.0,
) -> tuple[Tensor, ...]:
    """Gradients of x, in its dtype, and of weight (C, 5, 5) float32; with a norm also of norm_weight and norm_bias.

    x (B, H, W, C), any strides; weight (C, 5, 5); grad (B, H, W, C) in any dtype but float64; norm_weight, norm_bias
    and their gradients (C,), the latter float32. Partial sums, each over _PART_LINES lines of an image, are added in
    a fixed order in float64.
    """
    if x.dtype == torch.float16:
        grad_x, *grad_parameters = backward(x.float(), weight, grad, norm_weight, norm_bias, eps)
        return grad_x.to(x.dtype), *grad_parameters
    batch, height, width, channels = x.shape
    x, grad = x.detach().contiguous(), grad.detach().contiguous()
    grad = grad.float() if grad.dtype == torch.float16 else grad
    grad_x = torch.empty_like(x)
    items, c_blocks, normed = batch * -(-height // _PART_LINES), -(-channels // 16), norm_weight is not None
    parts = np.empty((items, c_blocks, 25, 16), np.float32)
    norm_parts = np.empty((items if normed else 0, 2, c_blocks * 16), np.float32)
    arguments = (
        flat_array(x), _padded(norm_weight, channels), _padded(norm_bias, channels), np.float32(eps), normed,
        blocked_taps(weight.flip(1, 2)), flat_array(grad), flat_array(grad_x),
        parts.reshape(-1), norm_parts.reshape(-1), height, width, channels, _PART_LINES,
    )  # fmt: skip
    run_ranges(lambda start, stop: loops.gradient_lines(*arguments, start, stop), items)
    grad_weight = _total(parts).transpose(0, 2, 1).reshape(-1, 5, 5)[:channels]
    grad_norm = _total(norm_parts)[:, :channels] if normed else ()
    return grad_x, *(torch.from_numpy(np.ascontiguousarray(array)) for array in (grad_weight, *grad_norm))


def _total(parts: np.ndarray) -> np.ndarray:
    """Partial sums (items, ...) added in a fixed order."""
    return parts.sum(0, dtype=np.float64).astype(np.float32)


def blocked_taps(weight: Tensor) -> np.ndarray:
    """weight (C, 5, 5) as flat float32 (ceil(C / 16), 25, 16), zeros after the last channel."""
    channels = weight.shape[0]
    taps = np.zeros((-(-channels // 16) * 16, 25), np.float32)
    taps[:channels] = weight.detach().float().reshape(channels, 25).numpy()
    return np.ascontiguousarray(taps.reshape(-1, 16, 25).transpose(0, 2, 1)).reshape(-1)


def _padded(vector: Tensor | None, channels: int) -> np.ndarray:
    """A vector (C,) padded with zeros to whole blocks of 16; all zeros for None."""
    padded = np.zeros(-(-channels // 16) * 16, np.float32)
    if vector is not None:
        padded[:channels] = vector.detach().float().numpy()
    return padded
