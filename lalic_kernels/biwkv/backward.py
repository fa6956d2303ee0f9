"""Launches of BiWKV's backward in Triton: what the forward computed on its way is computed again, not stored."""

from __future__ import annotations

import torch
from torch import Tensor

from lalic_kernels._core.launch import blocks, on
from lalic_kernels.biwkv import launches


def backward(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, grad: Tensor, gate: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """(grad_w, grad_u, grad_k, grad_v, grad_gate or None) of contiguous arguments; w, u float32, the rest one dtype.

    Work space: two float32 tensors of k's shape, which only the logarithmic form touches, and 50 floats per chunk and
    channel. Bit-identical from run to run: shares of grad_w and grad_u are added in one order, in float64.
    """
    from lalic_kernels.biwkv import kernels, kernels_backward, kernels_scan

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
    peaks, centre = floats(batch, chunks, channels), floats(batch, channels)
    grad_k, grad_v = torch.empty_like(k), torch.empty_like(v)
    gated = gate is not None
    # Without a gate nothing is read or written through its pointers.
    gates, grad_gate = (gate, torch.empty_like(k)) if gate is not None else (k, grad_k)
    sizes = (tokens, channels, chunks, plane)
    rows = choice.rows.options() | {"VEC": choice.vec, "FAST_ONLY": False, "GATED": gated}
    of_sums = {"GROUPS": length // per, "BLOCK_C": block_c, "VEC": choice.vec, "FAST_ONLY": False, "CENTRED": True}
    scan = choice.scan.options()
    by_chunk, by_item = (across, batch * chunks), (batch, blocks(channels, choice.scan["BLOCK_C"]))
    with on(k.device):
        for factors, groups, tokens_each in ((grouped, length // per, per), (single, length, 1)):
            kernels.factors_kernel[(across,)](
                w, u, factors, channels, GROUPS=groups, PER_GROUP=tokens_each, BLOCK_C=block_c, num_warps=4
            )
        kernels.chunk_sums_kernel[by_chunk](
            w, k, v, grouped, sums, peaks, *sizes, **of_sums,
            num_warps=launches.sums_of(choice.rows, k.element_size()).num_warps,
        )  # fmt: skip
        kernels_scan.chunk_scan_kernel[by_item](
            w, u, grouped, sums, entering, own, peaks, centre, *sizes[1:],
            GROUPS=length // per, PER_GROUP=per, FOLDED=1, BACKWARD=True, **scan,
        )  # fmt: skip
        kernels_backward.grad_sums_kernel[by_chunk](
            w, u, k, v, gates, grad, centre, single, entering, transposed, log_den, y, *sizes, **rows
        )
        kernels_backward.grad_scan_kernel[(*by_item, 2)](
            w, single, transposed, running, *sizes[1:], LENGTH=length, **scan
        )
        kernels_backward.grad_join_kernel[(blocks(plane, launches.JOIN["BLOCK"]), 2)](
            w, sums, own, transposed, running, constants, channels, plane, LENGTH=length, **launches.JOIN.options()
        )
        kernels_backward.grad_rows_kernel[by_chunk](
            w, u, k, v, gates, grad, centre, single, constants, log_den, y, grad_k, grad_v, grad_gate, parts,
            *sizes, **rows,
        )  # fmt: skip
    grad_w, grad_u = parts.sum(1, dtype=torch.float64).to(torch.float32)
    return grad_w, grad_u, grad_k, grad_v, grad_gate if gated else None
