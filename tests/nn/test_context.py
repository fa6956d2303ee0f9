"""Checkerboard packing and the context modules against slow, literal definitions."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lalic.nn.bottleneck import EntropyBottleneck
from lalic.nn.context import (
    CHECKERBOARD_TAPS,
    CheckerboardConv,
    EntropyParametersBlock,
    channel_ramp,
    interleave,
    pack,
    unpack,
)


def test_pack_follows_the_stated_columns():
    h, w = 4, 6
    x = torch.arange(2 * h * w * 3, dtype=torch.float32).reshape(2, h, w, 3)
    for parity in (0, 1):
        packed = pack(x, parity)
        assert packed.shape == (2, h, w // 2, 3)
        for r in range(h):
            for j in range(w // 2):
                assert torch.equal(packed[:, r, j], x[:, r, 2 * j + (r + parity) % 2])
    assert torch.equal(unpack(pack(x, 0), 0) + unpack(pack(x, 1), 1), x)
    assert torch.equal(interleave(pack(x, 0), pack(x, 1)), x)
    board = (torch.arange(h)[:, None] + torch.arange(w)) % 2
    assert not unpack(pack(x, 0), 0)[:, board == 1].any()


def test_checkerboard_conv_sees_the_other_colour_only():
    conv = CheckerboardConv(2, 3).double()
    x = torch.randn(1, 2, 8, 8, dtype=torch.float64)
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2
    assert int(conv.mask[0, 0].sum()) == 12 and conv.mask[0, 0, 2, 2] == 0
    anchors_only = conv(x * (board == 0))
    assert torch.allclose(anchors_only[..., board == 1], conv(x)[..., board == 1])
    expected = F.conv2d(x, conv.weight * conv.mask, conv.bias, padding=2)
    assert torch.equal(conv(x), expected)


def test_live_taps_are_what_the_mask_leaves():
    torch.manual_seed(0)
    conv = CheckerboardConv(3, 4)
    x = torch.randn(1, 3, 9, 9)
    seen = [x[0, :, 4 + a - 2, 4 + b - 2] for a, b in CHECKERBOARD_TAPS]
    expected = conv(x)[0, :, 4, 4]
    assert torch.allclose(conv.live_taps() @ torch.cat(seen) + conv.bias, expected, atol=1e-6)
    conv.live_taps().sum().backward()
    assert torch.equal(conv.weight.grad, conv.mask)


def test_missing_leading_inputs_count_as_zero():
    torch.manual_seed(0)
    block = EntropyParametersBlock(10, 6)
    x = torch.randn(2, 5, 7)
    padded = torch.cat([torch.zeros(2, 5, 3), x], dim=2)
    assert torch.allclose(block(x), block(padded), atol=1e-6)


def test_channel_ramp_of_the_published_model():
    ramps = [channel_ramp(c, o, 256)[1:3] for c, o in ((352, 32), (384, 32), (448, 64), (576, 128), (1088, 384))]
    assert ramps == [[256, 256], [266, 256], [320, 256], [426, 277], [853, 618]]


def test_bottleneck_likelihood_is_a_distribution():
    torch.manual_seed(0)
    prior = EntropyBottleneck(3).double().eval()
    z = torch.arange(-400, 401, dtype=torch.float64).reshape(1, 1, 1, -1).expand(1, 3, 1, -1)
    # The floor of 1e-9 a bin is all that is added; the fresh prior's tails beyond +-400 are below it.
    assert torch.allclose(prior.likelihood(z).sum(3), torch.ones(1, 3, 1, dtype=torch.float64), atol=1e-6)


def test_auxiliary_loss_moves_quantiles_only():
    prior = EntropyBottleneck(3)
    prior.auxiliary_loss().backward()
    assert prior.quantiles.grad.abs().min() > 0
    assert all(p.grad is None for n, p in prior.named_parameters() if n != "quantiles")
