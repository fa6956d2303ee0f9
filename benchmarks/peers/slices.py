"""The published schedule of the slices, step by step: what cached coding is compared with, here and in the tests.

Every pass concatenates its inputs and multiplies them all; the checkerboard convolution runs dense, over the full grid
and all 25 taps, in both passes, its result thrown away in the first; each channel context convolves all earlier slices.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from lalic.coder.schedule import PassCoder
from lalic.nn.context import Slice, SliceStack, full_precision, pack, unpack


def code_slices(stack: SliceStack, params: Tensor, coder: PassCoder, full_grid: bool = False) -> Tensor:
    """Code the latents of a stack slice by slice: params (B, M, h, w) -> y_hat (B, M, h, w).

    full_grid: as the published forward() has it, with the aggregation on all positions in both passes and the spatial
    context for the second alone. Without it as the published compress() and decompress() have it: the aggregation on
    the positions of a pass, the spatial context for both.
    """
    hyper = params.permute(0, 2, 3, 1)
    decoded: list[Tensor] = []
    for k, g in enumerate(stack.groups):
        part = cast(Slice, stack.latent_codec[f"y{k}"])
        known = [hyper]
        if k:
            context = stack.channel_context[f"y{k}"](torch.cat(decoded, dim=3).permute(0, 3, 1, 2))
            known.insert(0, context.permute(0, 2, 3, 1))
        so_far = params.new_zeros((*hyper.shape[:3], g))
        for parity in (0, 1):
            if parity or not full_grid:
                spatial = part.context_prediction(so_far.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            if parity == 0:
                spatial = params.new_zeros((*hyper.shape[:3], 2 * g))  # without the bias, too
            inputs = torch.cat([spatial, *known], dim=3)
            x = inputs if full_grid else pack(inputs, parity)
            out = part.entropy_parameters(x.flatten(1, 2)).unflatten(1, x.shape[1:3])
            out = pack(out, parity) if full_grid else out
            scales, means = full_precision(out).chunk(2, dim=3)
            so_far = so_far + unpack(coder(k, parity, scales, means), parity)
        decoded.append(so_far)
    return torch.cat(decoded, dim=3).permute(0, 3, 1, 2)
