"""The same model in plain PyTorch: what our memory and our speed are compared with.

`plain` has the published block as it is trained: a token shift of four branches, autograd throughout, and a BiWKV that
saves w, u, k and v, as the published extension does, and is given its work space for nothing.

`baseline` has the whole codec as it is used, with entropy coding on the CPU: layers are torch's own, BiWKV the
formulation in plain torch, the entropy model in floating point, symbols go through the host pass by pass. The folded
5x5 kernel of the token shift is one depth-wise convolution, as in published inference, and the schedule of slices is
ours, so what the baseline lacks is kernels, exact arithmetic and decoding on the device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

import lalic_kernels
from lalic import coder
from lalic.model import LALIC
from lalic.nn.blocks import OmniShift, RWKVBlock
from lalic_kernels import dispatch


class _PlainBiWKV(torch.autograd.Function):
    """Saves w, u, k, v; values on the CPU by our op, on tensors without memory by their shapes alone."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(w, u, k, v)
        return torch.empty_like(k) if k.is_meta else lalic_kernels.biwkv(w, u, k, v)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        w, u, k, v = ctx.saved_tensors
        if k.is_meta:
            return torch.empty_like(w), torch.empty_like(u), torch.empty_like(k), torch.empty_like(v)
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in (w, u, k, v)]
            y = lalic_kernels.biwkv(*leaves)
        return torch.autograd.grad(y, leaves, grads)


def _branches(shift: OmniShift, n: Tensor) -> Tensor:
    """Four branches, as in published training; n (B, H, W, C)."""
    x = n.permute(0, 3, 1, 2)
    out = shift.alpha[0] * x
    for place, branch in enumerate((shift.conv1x1, shift.conv3x3, shift.conv5x5), start=1):
        kernel = branch.weight
        out = out + shift.alpha[place] * F.conv2d(x, kernel, padding=kernel.shape[-1] // 2, groups=x.shape[1])
    return out.permute(0, 2, 3, 1)


def plain_block(self: RWKVBlock, x: Tensor) -> Tensor:
    """RWKVBlock.forward as published: x (B, C, H, W) -> (B, C, H, W)."""
    x = x.permute(0, 2, 3, 1)
    batch, height, width, channels = x.shape
    att, ffn, tokens = self.att, self.ffn, height * width
    s = _branches(att.omni_shift, self.ln1(x)).reshape(batch, tokens, channels)
    k, v, r = att.key(s), att.value(s), att.receptance(s)
    y = _PlainBiWKV.apply(att.decay / tokens, att.boost / tokens, k, v)
    x = x + self.gamma1 * att.output(torch.sigmoid(r) * y).reshape(x.shape)
    s = _branches(ffn.omni_shift, self.ln2(x))
    hidden = torch.square(torch.relu(ffn.key(s)))
    x = x + self.gamma2 * (torch.sigmoid(ffn.receptance(s)) * ffn.value(hidden))
    return x.permute(0, 3, 1, 2)


def _plain_entropy_params(
    x: Tensor, mix_weight: Tensor, mix_bias: Tensor, norm_weight: Tensor, norm_bias: Tensor,
    key: Tensor, receptance: Tensor, value: Tensor, *, partial: Tensor | None = None,
) -> Tensor:  # fmt: skip
    m = F.linear(x, mix_weight, mix_bias)
    m = m if partial is None else m + partial
    n = F.layer_norm(m, m.shape[-1:], norm_weight, norm_bias)
    return m + torch.sigmoid(F.linear(n, receptance)) * F.linear(torch.square(torch.relu(F.linear(n, key))), value)


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """The model in plain PyTorch inside."""
    with (
        mock.patch.object(RWKVBlock, "forward", plain_block),
        mock.patch.object(lalic_kernels, "entropy_params", _plain_entropy_params),
    ):
        yield


def _folded(shift: OmniShift, n: Tensor) -> Tensor:
    """One convolution; n (B, H, W, C)."""
    kernel = shift.kernel().unsqueeze(1).to(n.dtype)
    return F.conv2d(n.permute(0, 3, 1, 2), kernel, padding=2, groups=n.shape[3]).permute(0, 2, 3, 1)


def _by_torch(op: dispatch.Op, device_type: str, dtype: torch.dtype) -> tuple[str, str]:
    return "torch", "the baseline"


@contextlib.contextmanager
def baseline(model: LALIC) -> Iterator[None]:
    """Inside, the model computes and codes so; its streams then are of another kind than outside."""
    with (
        plain(),
        mock.patch(f"{__name__}._branches", _folded),
        mock.patch.object(dispatch, "choose", _by_torch),
        mock.patch.object(coder, "codes_on_gpu", lambda _: False),
        mock.patch.object(model, "entropy", "float"),
    ):
        yield
