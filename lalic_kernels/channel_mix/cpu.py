"""Channel mix on CPUs: torch's matrix products, and compiled code (`cpu_loops.py`) for what stands between them.

float32 and bfloat16; plain x86-64 cannot convert float16, which takes `torch_path.py`. The same bits on any number of
threads, as far as torch's products give them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lalic_kernels._core import residual as _residual
from lalic_kernels._core.threads import flat_array, run_ranges
from lalic_kernels.channel_mix import torch_path

# Below some ten thousand elements a thread costs more than it saves.
_LEAST_ELEMENTS = 16384


def forward(
    x: Tensor, key: Tensor, receptance: Tensor, value: Tensor, residual: Tensor | None, gamma: Tensor | None
) -> Tensor:
    """x (rows, C) -> (rows, C) in the residual's dtype or x's. Contiguous arguments, as in `reference.py`."""
    if x.dtype == torch.float16 or (residual is not None and residual.dtype == torch.float16):
        return torch_path.forward(x, key, receptance, value, residual, gamma)
    from lalic_kernels.channel_mix import cpu_loops

    channels = x.shape[1]
    out = torch.empty(x.shape, dtype=_residual.dtype_of(x, residual))
    target, rest = _array(out), None if residual is None else _array(residual)
    factor = None if gamma is None else gamma.detach().float().numpy()
    for part in _residual.stretches(x, key.shape[0]):
        tokens = x[part]
        hidden = torch.mm(tokens, key.t())
        flat = flat_array(hidden)
        run_ranges(lambda i, j, a=flat: cpu_loops.square_relu(a, i, j), flat.size, least=_LEAST_ELEMENTS)  # type: ignore[misc]
        mixed, gate = _array(torch.mm(hidden, value.t())), _array(torch.mm(tokens, receptance.t()))
        arguments = (mixed, gate, None if rest is None else rest[part], factor)
        run_ranges(
            lambda i, j, a=arguments, to=target[part]: cpu_loops.finish(*a, i, j, to),  # type: ignore[misc]
            mixed.shape[0],
            least=-(-_LEAST_ELEMENTS // channels),
        )
    return out


def _array(x: Tensor) -> np.ndarray:
    return flat_array(x).reshape(x.shape)
