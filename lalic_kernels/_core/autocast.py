"""What ops do inside torch.autocast. Plain Python on types, so that torch.compile traces through it.

The rule of ops whose time is memory traffic and whose arithmetic is float32: nothing is narrowed, and arguments that
differ in dtype, because autocast narrowed some of them on their way here, are promoted to the widest.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lalic_kernels._core import checks


def enabled(device: torch.device) -> bool:
    """Whether torch.autocast is on for tensors of a device."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def widest(*tensors: Tensor | None) -> list[Any]:
    """Tensors promoted to their widest dtype; float16 with bfloat16 is float32. None stays, no float: all stay."""
    wide: torch.dtype | None = None
    for x in tensors:
        if x is None:
            continue
        if x.dtype not in checks.FLOATING:
            return list(tensors)
        wide = x.dtype if wide is None else torch.promote_types(wide, x.dtype)
    return [None if x is None else x.to(wide) for x in tensors]


def beside(data: Tensor, parameter: Tensor) -> Tensor:
    """A parameter in a dtype that ops take beside `data`: its own where that is data's or float32, else the wider."""
    if parameter.dtype in (data.dtype, torch.float32) or parameter.dtype not in checks.FLOATING:
        return parameter
    return parameter.to(torch.promote_types(data.dtype, torch.float32))
