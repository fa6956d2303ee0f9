"""The entropy-parameter block on a GPU: the launches of its Triton kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lalic_kernels.launch import Launch, architecture, blocks, on, precision

# In float32 the two parts of both factors need registers.
LAUNCHES = {
    "float32": Launch((("BLOCK_M", 64), ("BLOCK_N", 32), ("BLOCK_K", 32)), num_warps=4),
    "float16": Launch((("BLOCK_M", 64), ("BLOCK_N", 64), ("BLOCK_K", 32)), num_warps=8, num_stages=2),
}
NORM_LAUNCH = Launch((("BLOCK_M", 4), ("BLOCK_N", 256)), num_warps=4)


def entropy_params(
    x: Tensor,
    mix_weight: Tensor,
    mix_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    key: Tensor,
    receptance: Tensor,
    value: Tensor,
    partial: Tensor | None,
    *,
    eps: float,
) -> Tensor:
    """`lalic_kernels.entropy_params` in four launches. All arguments but partial are in x's dtype; any strides."""
    from lalic_kernels.entropy_params import kernels

    rows, n_in, n_out = x.shape[0] * x.shape[1], x.shape[2], mix_weight.shape[0]
    launch = LAUNCHES["float32" if x.dtype == torch.float32 else "float16"]
    x, mix_weight, key, receptance, value = (t.contiguous() for t in (x, mix_weight, key, receptance, value))
    mix_bias, norm_weight, norm_bias = mix_bias.contiguous(), norm_weight.contiguous(), norm_bias.contiguous()
    added = None if partial is None else partial.contiguous()
    options: dict[str, Any] = launch.options() | {"PRECISION": precision(architecture(x.device))}
    m = torch.empty((rows, n_out), dtype=torch.float32, device=x.device)
    n = torch.empty((rows, n_out), dtype=x.dtype, device=x.device)
    hidden = torch.empty((rows, 2 * n_out), dtype=x.dtype, device=x.device)
    y = x.new_empty((x.shape[0], x.shape[1], n_out))
    down, across = blocks(rows, launch["BLOCK_M"]), blocks(n_out, launch["BLOCK_N"])
    with on(x.device):
        kernels.linear_kernel[(down, across)](
            x, mix_weight, mix_bias, added, m, rows, n_in, n_out, SQUARED_RELU=False, **options
        )
        kernels.layer_norm_kernel[(blocks(rows, NORM_LAUNCH["BLOCK_M"]),)](
            m, norm_weight, norm_bias, n, rows, n_out, eps, **NORM_LAUNCH.options()
        )
        kernels.linear_kernel[(down, blocks(2 * n_out, launch["BLOCK_N"]))](
            n, key, None, None, hidden, rows, n_out, 2 * n_out, SQUARED_RELU=True, **options
        )
        kernels.gated_sum_kernel[(down, across)](m, n, hidden, receptance, value, y, rows, n_out, **options)
    return y
