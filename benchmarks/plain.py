"""The same model in plain PyTorch with entropy coding on the CPU: the baseline of `python -m benchmarks.codec`.

Layers are torch's own, BiWKV the formulation in plain torch, the entropy model in floating point; symbols go through
the host, pass by pass. The folded 5x5 kernel of token shift is one depth-wise convolution, as in published inference,
and the schedule of slices is ours, so what the baseline lacks is kernels, exact arithmetic and decoding on the device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import memory
from lalic.coder import coding
from lalic.model import LALIC
from lalic.nn.blocks import OmniShift
from lalic_kernels import dispatch


def _shift(shift: OmniShift, n: Tensor) -> Tensor:
    """One convolution; n (B, H, W, C)."""
    kernel = shift.kernel().unsqueeze(1).to(n.dtype)
    return F.conv2d(n.permute(0, 3, 1, 2), kernel, padding=2, groups=n.shape[3]).permute(0, 2, 3, 1)


def _by_torch(op: dispatch.Op, device_type: str, dtype: torch.dtype) -> tuple[str, str]:
    return "torch", "the baseline"


@contextlib.contextmanager
def baseline(model: LALIC) -> Iterator[None]:
    """Inside, the model computes and codes so; its streams then are of another kind than outside."""
    with (
        memory.plain(),
        mock.patch.object(memory, "_plain_shift", _shift),
        mock.patch.object(dispatch, "choose", _by_torch),
        mock.patch.object(coding, "_decodes_there", lambda _: False),
        mock.patch.object(model, "entropy", "float"),
    ):
        yield
