"""Tensors of more than 2^31 elements: offsets are of 64 bits. The last channels of the last item are compared with a
call on them alone."""

from __future__ import annotations

import pytest
import torch

import lalic_kernels

CHANNELS, SOME = 1032, 8
NEEDED = 48 << 30  # bytes

pytestmark = pytest.mark.gpu


@pytest.fixture
def device() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if torch.cuda.mem_get_info()[0] < NEEDED:
        pytest.skip(f"needs {NEEDED >> 30} GiB of GPU memory")
    torch.manual_seed(0)
    return torch.device("cuda")


def test_biwkv(device: torch.device) -> None:
    tokens = (1 << 20) + 3
    w, u = (torch.rand(CHANNELS, device=device) / tokens for _ in range(2))
    k, v = (torch.randn(2, tokens, CHANNELS, device=device, dtype=torch.bfloat16) for _ in range(2))
    assert k.numel() > 2**31
    last = [x[-SOME:].clone() for x in (w, u)] + [x[1:, :, -SOME:].contiguous() for x in (k, v)]
    results = []
    for arguments in ((w, u, k, v), last):
        leaves = [x.requires_grad_() for x in arguments]
        y = lalic_kernels.biwkv(*leaves, backend="triton")
        *_, grad_k, grad_v = torch.autograd.grad(y, leaves, y.detach())
        results.append([x[-1, :, -SOME:].float() for x in (y.detach(), grad_k, grad_v)])
        del y, grad_k, grad_v
    for found, expected in zip(*results, strict=True):
        # Chunks of another length: sums in another order, and one rounding to bfloat16.
        assert (found - expected).norm() <= 2 * torch.finfo(torch.bfloat16).eps * expected.norm()
        assert (found[-100:] - expected[-100:]).norm() <= 4 * torch.finfo(torch.bfloat16).eps * expected[-100:].norm()


def test_token_shift(device: torch.device) -> None:
    x = torch.randn(2, 1025, 1024, CHANNELS, device=device, dtype=torch.bfloat16)
    weight = torch.randn(CHANNELS, 5, 5, device=device) / 5
    assert x.numel() > 2**31
    results = []
    for image, kernel in ((x, weight), (x[1:, ..., -SOME:].contiguous(), weight[-SOME:].clone())):
        leaf = image.requires_grad_()
        y = lalic_kernels.token_shift(leaf, kernel, backend="triton")
        (grad,) = torch.autograd.grad(y, leaf, y.detach())
        results.append([t[-1, ..., -SOME:].float() for t in (y.detach(), grad)])
        del y, grad
    for found, expected in zip(*results, strict=True):
        assert (found - expected).abs().max() <= 2 * torch.finfo(torch.bfloat16).eps * expected.abs().max()
