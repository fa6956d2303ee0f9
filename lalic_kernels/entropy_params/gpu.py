"""The entropy-parameter block on a GPU: the launches of its Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from lalic_kernels.launch import Launch, blocks, on

# float32 products do not use the tensor cores and need more registers per element than 16-bit types.
LAUNCHES = {
    "float32": Launch((("BLOCK_M", 32), ("BLOCK_N", 32), ("BLOCK_K", 32)), num_warps=4),
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
    added = mix_bias if partial is None else partial.contiguous()
    m = torch.empty((rows, n_out), dtype=torch.float32, device=x.device)
    n = torch.empty((rows, n_out), dtype=x.dtype, device=x.device)
    hidden = torch.empty((rows, 2 * n_out), dtype=x.dtype, device=x.device)
    y = x.new_empty((x.shape[0], x.shape[1], n_out))
    down, across = blocks(rows, launch["BLOCK_M"]), blocks(n_out, launch["BLOCK_N"])
    with on(x.device):
        kernels.linear_kernel[(down, across)](
            x, mix_weight, mix_bias, added, m, rows, n_in, n_out,
            HAS_BIAS=True, HAS_PARTIAL=partial is not None, SQUARED_RELU=False, **launch.options(),
        )  # fmt: skip
        kernels.layer_norm_kernel[(blocks(rows, NORM_LAUNCH["BLOCK_M"]),)](
            m, norm_weight, norm_bias, n, rows, n_out, eps, **NORM_LAUNCH.options()
        )
        kernels.linear_kernel[(down, blocks(2 * n_out, launch["BLOCK_N"]))](
            n, key, mix_bias, mix_bias, hidden, rows, n_out, 2 * n_out,
            HAS_BIAS=False, HAS_PARTIAL=False, SQUARED_RELU=True, **launch.options(),
        )  # fmt: skip
        kernels.gated_sum_kernel[(down, across)](m, n, hidden, receptance, value, y, rows, n_out, **launch.options())
    return y
