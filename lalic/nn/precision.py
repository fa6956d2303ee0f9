"""Which dtype the transforms outside the entropy path compute in, without gradients: the precision policy.

Only g_a, h_a and g_s follow it. What decides symbols together with a file's bytes (h_s, contexts, aggregation) never
does, so a file written under one policy is read under any other, with the same symbols.

Under a 16-bit policy convolutions, matrix products and the activations between them are in that dtype; LayerNorms,
shifts, decays, boosts and gammas stay in float32, and all sums are float32.
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
    """The dtype of a policy's name. Raises ``ValueError`` for a name that is none of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    return PRECISIONS[precision]


def narrowed(cache: WeightCache, name: str, transform: nn.Module, x: Tensor, dtype: torch.dtype) -> Tensor:
    """transform(x), computed in a 16-bit `dtype` from a copy that is kept under `name`; x and the result are float32.

    Raises ``LalicError`` where float16 does not hold the values.
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
