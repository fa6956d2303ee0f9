"""Precision: the dtype in which g_a, h_a and g_s compute without gradients.

The modules that a decoder needs for symbols (h_s, contexts, aggregation) are not affected, so a file written with one
precision is read with any other, with the same symbols.

With a 16-bit precision, convolutions, matrix products and the activations between them are in that dtype; LayerNorms,
shifts, decays, boosts and gammas stay float32, and all sums are float32.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from lalic.errors import LalicError
from lalic_kernels.cache import WeightCache

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_NARROWED = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def dtype_of(precision: str) -> torch.dtype:
    """The dtype of a precision's name. Raises ``ValueError`` for a name that is not in `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    return PRECISIONS[precision]


def narrowed(cache: WeightCache, name: str, transform: nn.Module, x: Tensor, dtype: torch.dtype) -> Tensor:
    """transform(x), computed in a 16-bit `dtype` by a copy that is cached under `name`; x and result are float32.

    Raises ``LalicError`` if values are beyond the range of float16.
    """
    narrow = cache.get(name, list(transform.parameters()), lambda: _narrow(transform, dtype), dtype)
    result = narrow(x.to(dtype)).float()
    if dtype == torch.float16 and not bool(torch.isfinite(result).all()):
        raise LalicError(f"{name}: values beyond float16's range; use precision bfloat16 or float32")
    return result


def _narrow(transform: nn.Module, dtype: torch.dtype) -> nn.Module:
    narrow = copy.deepcopy(transform).requires_grad_(False)
    for module in narrow.modules():
        if isinstance(module, _NARROWED):
            module.to(dtype)
    return narrow
