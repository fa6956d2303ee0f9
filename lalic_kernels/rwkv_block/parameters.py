"""The parameters of an RWKV block as plain tensors, and what inference makes of them once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lalic_kernels._core import checks

SHAPES = {
    "norm1_weight": "C", "norm1_bias": "C", "shift1": "C 5 5",
    "decay": "C", "boost": "C", "key": "C C", "value": "C C", "receptance": "C C", "output": "C C", "gamma1": "C",
    "norm2_weight": "C", "norm2_bias": "C", "shift2": "C 5 5",
    "channel_key": "F C", "channel_receptance": "C C", "channel_value": "C F", "gamma2": "C",
}  # fmt: skip


class Derived:
    """A few results made from tensors, kept until one of these is written to; a copy starts empty."""

    LIMIT = 8

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, tuple[tuple[int, ...], Any]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def __reduce__(self) -> tuple[type[Derived], tuple[()]]:
        return Derived, ()

    def get(self, name: Hashable, tensors: tuple[Tensor, ...], make: Callable[[], Any]) -> Any:
        """What was made under a name, or `make()`, made again if a tensor has been written to in place since then.

        Tensors made in torch.inference_mode count no writes: nothing that hangs on them is kept.
        """
        if any(x.is_inference() for x in tensors):
            return make()
        versions = tuple(x._version for x in tensors)
        with self._lock:
            kept = self._kept.get(name)
            if kept is not None and kept[0] == versions:
                self._kept.move_to_end(name)
                return kept[1]
        made = make()
        with self._lock:
            self._kept[name] = (versions, made)
            self._kept.move_to_end(name)
            while len(self._kept) > self.LIMIT:
                self._kept.popitem(last=False)
        return made


@dataclass(frozen=True, eq=False)
class BlockParameters:
    """The tensors of one RWKV block of C channels and F hidden ones, checked when they are put together.

    Each is float16, bfloat16, float32 or float64, all on one device. They may require gradients, and may be results of
    other operations, as a folded shift is. In inference on a GPU what the kernels want of them (k, v and r's matrices
    in one, the shift's taps in the kernel's order, BiWKV's powers) is made at the first call of a dtype and number of
    tokens, on the stream that is current then, and made again after a tensor was written to in place.

    Attributes:
        norm1_weight, norm1_bias, norm2_weight, norm2_bias: LayerNorms, shape (C,).
        shift1, shift2: depth-wise kernels, shape (C, 5, 5); see `lalic_kernels.fold_token_shift`.
        decay, boost: shape (C,), not yet divided by the number of tokens.
        key, value, receptance, output: the spatial mix's matrices, shape (C, C).
        channel_key, channel_receptance, channel_value: the channel mix's, shapes (F, C), (C, C), (C, F).
        gamma1, gamma2: what the two halves are multiplied with, shape (C,).
        eps: of the LayerNorms.

    Raises:
        TypeError, ValueError: a tensor's type, shape, dtype or device does not fit.
    """

    norm1_weight: Tensor
    norm1_bias: Tensor
    shift1: Tensor
    decay: Tensor
    boost: Tensor
    key: Tensor
    value: Tensor
    receptance: Tensor
    output: Tensor
    gamma1: Tensor
    norm2_weight: Tensor
    norm2_bias: Tensor
    shift2: Tensor
    channel_key: Tensor
    channel_receptance: Tensor
    channel_value: Tensor
    gamma2: Tensor
    eps: float = field(default=1e-5, kw_only=True)
    derived: Derived = field(default_factory=Derived, init=False, repr=False)

    def __post_init__(self) -> None:
        named = [(name, getattr(self, name)) for name in SHAPES]
        # The first one says what C is, the next with F what F is.
        checks.shapes("BlockParameters", *((name, value, SHAPES[name]) for name, value in named))
        for name, value in named:
            checks.floating("BlockParameters", name, value)
        checks.same_device("BlockParameters", named[0], *named[1:])
        if not self.eps >= 0:
            raise ValueError(f"BlockParameters: eps must be at least 0, but is {self.eps}")

    @property
    def channels(self) -> int:
        """C."""
        return self.norm1_weight.shape[0]

    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, in the order of the attributes."""
        return tuple(getattr(self, name) for name in SHAPES)

    def to(self, dtype: torch.dtype) -> BlockParameters:
        """Parameters with every tensor in a dtype."""
        cast: dict[str, Any] = {name: getattr(self, name).to(dtype) for name in SHAPES}
        return BlockParameters(**cast, eps=self.eps)
