"""What the two mixes of an RWKV block have in common: `residual + gamma * result`, dtypes, what training keeps."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lalic_kernels._core import autocast, checks, dispatch

# Work space of a stretch of tokens: on a CPU small enough to stay in a core's cache, on a GPU in its L2.
STRETCH_BYTES = {"cpu": 3 << 19, "cuda": 32 << 20}

# What one mix may keep for its backward on a CPU; a block has two of them, and a model as many as it has blocks.
KEPT_BYTES = 128 << 20


def settle(
    op: str, x: Tensor, matrices: dict[str, Tensor], residual: Tensor | None, gamma: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """x and the matrices in one dtype: autocast's where that is on, as F.linear has it, else x's.

    Raises:
        TypeError, ValueError: a dtype or device does not fit, or one of residual and gamma is missing.
    """
    if (residual is None) != (gamma is None):
        given, absent = ("residual", "gamma") if gamma is None else ("gamma", "residual")
        raise ValueError(f"{op}: {absent} must be given with {given}, but is None")
    dtype = checks.floating(op, "x", x)
    both = () if residual is None or gamma is None else (("residual", residual), ("gamma", gamma))
    checks.same_device(op, ("x", x), *matrices.items(), *both)
    if autocast.enabled(x.device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        x = x.to(dtype)
    for name, matrix in matrices.items():
        checks.dtype_in(op, name, matrix, (dtype, x.dtype, torch.float32), "beside x")
    for name, value in both:
        checks.dtype_in(op, name, value, (dtype, torch.float32), "beside x")
    return x, tuple(matrix.to(dtype) for matrix in matrices.values())


def patterns(residual: Tensor | None, gamma: Tensor | None) -> tuple[tuple[str, Tensor, str], ...]:
    """What `checks.shapes` needs to know of those of the two that are given."""
    found = (("residual", residual, "B H W C"), ("gamma", gamma, "C"))
    return tuple((name, value, pattern) for name, value, pattern in found if value is not None)


def dtype_of(x: Tensor, residual: Tensor | None) -> torch.dtype:
    """The result's dtype: the residual's, so that a float32 stream stays float32 beside 16-bit products."""
    return x.dtype if residual is None else residual.dtype


def sums_dtype(x: Tensor) -> torch.dtype:
    """In which sums over stretches are kept."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def keeps(chosen: str, x: Tensor, width: int, *others: Tensor | None) -> bool:
    """Whether training keeps what a mix computes on its way: the one rule.

    On a GPU and for large images a backward computes it again, as memory is what limits training there. Compiled CPU
    code keeps it, as long as that is at most `KEPT_BYTES` a mix.

    Args:
        chosen: the backend. x: in the dtype of the products. width: elements a token that would be kept.
        others: what may require gradients beside x; not the residual, whose gradient needs nothing.
    """
    if chosen != "cpu" or x.dtype == torch.float16 or not torch.is_grad_enabled():
        return False
    wanted = any(t is not None and t.requires_grad for t in (x, *others))
    return wanted and x.shape[:3].numel() * width * x.element_size() <= KEPT_BYTES


def stretches(x: Tensor, width: int) -> Iterator[slice]:
    """Slices of the rows of x (rows, C) that keep a work space of `width` elements a row within bounds."""
    room = STRETCH_BYTES["cuda" if x.device.type == "cuda" else "cpu"]
    step = max(64, room // (max(width, 1) * x.element_size()) // 64 * 64)
    for start in range(0, x.shape[0], step):
        yield slice(start, min(start + step, x.shape[0]))


def finish(mixed: Tensor, residual: Tensor | None, gamma: Tensor | None, out: Tensor) -> None:
    """out = mixed, or residual + gamma * mixed, for (rows, C)."""
    if residual is None or gamma is None:
        out.copy_(mixed)
    else:
        torch.addcmul(residual, mixed.to(out.dtype), gamma.to(out.dtype), out=out)


def auto(backend: str | None) -> str:
    """What a registered op receives for a `backend=` argument."""
    return dispatch.AUTO if backend is None else backend


def split(channels: int) -> tuple[int, int]:
    """(main, rest): powers of two, at least 16 (rest may be 0), whose sum covers the channels with little to spare."""
    main = max(16, 1 << (channels.bit_length() - 1))
    over = max(channels - main, 0)
    rest = max(16, 1 << (over - 1).bit_length()) if over else 0
    return main, rest
