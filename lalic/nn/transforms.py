"""The four transforms: analysis, synthesis, hyper analysis, hyper synthesis. All (B, C, H, W), channels last.

Without gradients g_a, h_a and g_s can compute in a 16-bit precision: convolutions, matrix products and the activations
between them in that dtype; LayerNorms, shifts, decays, boosts and gammas stay float32, and all sums are float32. What a
decoder needs for symbols (h_s, contexts, aggregation) is not affected, so a file written with one precision is read
with any other, with the same symbols.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lalic.config import Config, stride
from lalic.errors import LalicError
from lalic.nn.blocks import RWKVBlock
from lalic_kernels.cache import WeightCache, named_weights


def down(cin: int, cout: int, kernel: int) -> nn.Conv2d:
    """Convolution that divides H and W: by 2 for kernels 3 and 5, which overlap, else by the kernel, in patches."""
    overlaps = kernel > stride(kernel)
    return nn.Conv2d(cin, cout, kernel, stride=stride(kernel), padding=kernel // 2 if overlaps else 0)


def up(cin: int, cout: int, kernel: int) -> nn.ConvTranspose2d:
    """Transposed convolution that multiplies H and W by the number that `down` divides by."""
    overlaps = kernel > stride(kernel)
    return nn.ConvTranspose2d(
        cin, cout, kernel, stride(kernel), padding=kernel // 2 if overlaps else 0, output_padding=int(overlaps)
    )


def _blocks(dim: int, depth: int) -> list[nn.Module]:
    return [RWKVBlock(dim) for _ in range(depth)]


def analysis(c: Config) -> nn.Sequential:
    """g_a: picture (3, H, W) -> latents (M, H / 16, W / 16)."""
    d, n, k = c.dims, c.depths, c.kernels
    return nn.Sequential(
        down(3, d[0], k[0]), *_blocks(d[0], n[0]),
        down(d[0], d[1], k[1]), *_blocks(d[1], n[1]),
        down(d[1], d[2], k[2]), *_blocks(d[2], n[2]),
        down(d[2], d[3], k[3]),
    )  # fmt: skip


def synthesis(c: Config) -> nn.Sequential:
    """g_s: latents (M, H / 16, W / 16) -> picture (3, H, W)."""
    d, n, k = c.dims, c.depths, c.kernels
    return nn.Sequential(
        up(d[3], d[2], k[3]), *_blocks(d[2], n[2]),
        up(d[2], d[1], k[2]), *_blocks(d[1], n[1]),
        up(d[1], d[0], k[1]), *_blocks(d[0], n[0]),
        up(d[0], 3, k[0]),
    )  # fmt: skip


def hyper_analysis(c: Config) -> nn.Sequential:
    """h_a: latents (M, h, w) -> hyper latents (dims[5], h / 4, w / 4)."""
    d = c.dims
    return nn.Sequential(down(d[3], d[4], 5), *_blocks(d[4], c.depths[3]), down(d[4], d[5], 5))


def hyper_synthesis(c: Config) -> nn.Sequential:
    """h_s: hyper latents (dims[5], h / 4, w / 4) -> hyper parameters (hyper_width, h, w)."""
    d = c.dims
    return nn.Sequential(up(d[5], d[4], 5), *_blocks(d[4], c.depths[3]), up(d[4], c.hyper_width, 5))


# Precision

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_of(precision: str) -> torch.dtype:
    """The dtype of a precision's name. Raises ``ValueError`` for a name that is not in `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    return PRECISIONS[precision]


class Float32(TorchFunctionMode):
    """Inside, in this thread, 2-D convolutions do not use TF32. torch's settings would change for all threads."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d:
            return _convolved(False, *args, **kwargs)
        if func is torch.conv_transpose2d:
            return _convolved(True, *args, **kwargs)
        return func(*args, **kwargs)


def _convolved(
    transposed: bool, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, *rest: Any
) -> Tensor:
    """The convolution that torch's modules ask for, whose last arguments differ in their order."""
    output_padding, groups, dilation = rest if transposed else ((0, 0), *rest[::-1])
    cudnn = torch.backends.cudnn
    return torch._convolution(
        x, weight, bias, stride, padding, dilation, transposed, output_padding, groups,
        cudnn.benchmark, cudnn.deterministic, cudnn.enabled, False,
    )  # fmt: skip


def narrowed(cache: WeightCache, name: str, transform: nn.Module, x: Tensor, dtype: torch.dtype) -> Tensor:
    """transform(x), computed in a 16-bit `dtype` by a copy that is cached under `name`; x and result are float32.

    Raises ``LalicError`` if values are beyond the range of float16.
    """
    narrow = cache.get(name, [p for _, p in named_weights(transform)], lambda: _narrow(transform, dtype), dtype)
    result = narrow(x.to(dtype)).float()
    if dtype == torch.float16 and not bool(torch.isfinite(result).all()):
        raise LalicError(f"{name}: values beyond float16's range; use precision bfloat16 or float32")
    return result


def _narrow(transform: nn.Module, dtype: torch.dtype) -> nn.Module:
    narrow = copy.deepcopy(transform).requires_grad_(False)
    for module in narrow.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            module.to(dtype)
    return narrow
