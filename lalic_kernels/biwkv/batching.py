"""BiWKV under torch.vmap: the mapped dimension is folded into the batch, or into the channels, and one call is made.

Channels are independent of each other and have each their own w and u, so that a mapped dimension of any argument can
be folded into them; that copies k and v where it is not there already. The batch shares w and u: folding into it copies
nothing, and is what happens where neither is mapped. The gradients of w and u are sums over the batch, of which vmap
wants one each, so the backward folds into the channels always.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

_Dims = tuple[int | None, ...]
_Rule = Callable[..., tuple[Any, Any]]


def _mapped(x: Tensor, dim: int | None, place: int, size: int) -> Tensor:
    """x with the mapped dimension at `place`, made by repetition where there is none."""
    if dim is not None:
        return x.movedim(dim, place)
    x = x.unsqueeze(place)
    return x.expand(*x.shape[:place], size, *x.shape[place + 1 :])


def _into_batch(x: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    return None if x is None else _mapped(x, dim, 0, size).flatten(0, 1)


def _into_channels(x: Tensor | None, dim: int | None, size: int, parameter: bool) -> Tensor | None:
    if x is None:
        return None
    place = 0 if parameter else 2
    return _mapped(x, dim, place, size).flatten(place, place + 1)


def forward_rule(op: Callable[..., Tensor]) -> _Rule:
    """The rule of op(w, u, k, v, gate, backend) -> y."""

    def rule(info, in_dims: _Dims, *arguments):  # type: ignore[no-untyped-def]
        size, (*tensors, backend) = info.batch_size, arguments
        if in_dims[0] is None and in_dims[1] is None:
            data = [_into_batch(x, dim, size) for x, dim in zip(tensors[2:], in_dims[2:5], strict=True)]
            y = op(*tensors[:2], *data, backend)
            return y.unflatten(0, (size, y.shape[0] // size)), 0
        folded = [
            _into_channels(x, dim, size, place < 2)
            for place, (x, dim) in enumerate(zip(tensors, in_dims[:5], strict=True))
        ]
        y = op(*folded, backend)
        return y.unflatten(2, (size, y.shape[2] // size)), 2

    return rule


def backward_rule(op: Callable[..., tuple[Tensor, ...]]) -> _Rule:
    """The rule of op(w, u, k, v, gate, grad, backend) -> gradients of the first five, the last empty without a gate."""

    def rule(info, in_dims: _Dims, *arguments):  # type: ignore[no-untyped-def]
        size, (*tensors, backend) = info.batch_size, arguments
        folded = [
            _into_channels(x, dim, size, place < 2)
            for place, (x, dim) in enumerate(zip(tensors, in_dims[:6], strict=True))
        ]
        *grads, grad_gate = op(*folded, backend)
        channels = grads[0].shape[0] // size
        outputs = [g.unflatten(d, (size, channels)) for g, d in zip(grads, (0, 0, 2, 2), strict=True)]
        if tensors[4] is None:
            return (*outputs, grad_gate), (0, 0, 2, 2, None)
        return (*outputs, grad_gate.unflatten(2, (size, channels))), (0, 0, 2, 2, 2)

    return rule
