"""Launches of BiWKV's backward in Triton: what the forward computed on its way is computed again, not stored."""

from __future__ import annotations

import torch
from torch import Tensor

from lalic_kernels._core.launch import blocks, on
from lalic_kernels.biwkv import launches


def backward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(grad_w (C,), grad_u (C,), grad_k, grad_v (B, T, C)) of contiguous arguments; w, u float32, the rest one dtype.

    Work space: two float32 tensors of k's shape, which only the logarithmic form touches, and 50 floats per chunk and
    channel. Bit-identical from run to run: shares of grad_w and grad_u are added in one order, in float64.
    """
    from lalic_kernels.biwkv import kernels, kernels_backward

    batch, tokens, channels = k.shape
    choice = launches.choose_backward(launches.architecture(k.device), tokens, channels, k.element_size())
    length, block_c, per = choice.chunk, choice.rows["BLOCK_C"], launches.PER_GROUP
    chunks, across = blocks(tokens, length), blocks(channels, block_c)
    plane = batch * chunks * channels

    def floats(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=k.device)

    grouped, single = floats(2 * (length // per) + 4, channels), floats(2 * length + 4, channels)
    sums, entering, own, transposed, running = floats(5, 6, batch, chunks, channels)
    constants, parts = floats(18, batch, chunks, channels), floats(2, batch * chunks, channels)
    log_den, y = floats(2, batch, tokens, channels)
    grad_k, grad_v = torch.empty_like(k), torch.empty_like(v)
    sizes = (tokens, channels, chunks, plane)
    rows = choice.rows.options() | {"VEC": choice.vec, "FAST_ONLY": False}
    of_sums = {"GROUPS": length // per, "BLOCK_C": block_c, "VEC": choice.vec, "FAST_ONLY": False}
    scan = choice.scan.options()
    by_chunk, by_item = (across, batch * chunks), (batch, blocks(channels, choice.scan["BLOCK_C"]))
    with on(k.device):
        for factors, groups, tokens_each in ((grouped, length // per, per), (single, length, 1)):
            kernels.factors_kernel[(across,)](
                w, u, factors, channels, GROUPS=groups, PER_GROUP=tokens_each, BLOCK_C=block_c, num_warps=4
            )
        kernels.chunk_sums_kernel[by_chunk](w, k, v, grouped, sums, *sizes, **of_sums, num_warps=choice.rows.num_warps)
        kernels.chunk_scan_kernel[by_item](
            w, u, grouped, sums, entering, own, *sizes[1:],
            GROUPS=length // per, PER_GROUP=per, FOLDED=1, KEEP_OWN=True, **scan,
        )  # fmt: skip
        kernels_backward.grad_sums_kernel[by_chunk](
            w, u, k, v, grad, single, entering, transposed, log_den, y, *sizes, **rows
        )
        kernels_backward.grad_scan_kernel[(*by_item, 2)](
            w, single, transposed, running, *sizes[1:], LENGTH=length, **scan
        )
        kernels_backward.grad_join_kernel[(blocks(plane, launches.JOIN["BLOCK"]), 2)](
            w, sums, own, transposed, running, constants, channels, plane, LENGTH=length, **launches.JOIN.options()
        )
        kernels_backward.grad_rows_kernel[by_chunk](
            w, u, k, v, grad, single, constants, log_den, y, grad_k, grad_v, parts, *sizes, **rows
        )
    grad_w, grad_u = parts.sum(1, dtype=torch.float64).to(torch.float32)
    return grad_w, grad_u, grad_k, grad_v
