"""The weight cache: what is made from weights once, and made again when one of them changes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


class WeightCache:
    """Results made from weights, by name. Copies and pickles start empty; threads wait for one another.

    A result serves as long as none of its tensors is written to or replaced. An assignment to .data shows in the
    storage, any other change in the version. The tensors are held (detached) beside the result, so that no other can
    come to lie where one of them was. Tensors made in torch.inference_mode count no writes: nothing is cached for them.

    Args:
        size: how many results there may be, of which the least recently used leaves first; None for any number.
    """

    def __init__(self, size: int | None = None) -> None:
        self.size = size
        self._lock = threading.RLock()
        self._found: dict[Hashable, tuple[Any, list[Tensor], Any]] = {}

    def __reduce__(self) -> tuple[type[WeightCache], tuple[int | None]]:
        return WeightCache, (self.size,)

    def __iter__(self) -> Iterator[Hashable]:
        return iter(tuple(self._found))

    def get(self, name: Hashable, tensors: Sequence[Tensor], make: Callable[[], Any], about: Hashable = None) -> Any:
        """What was made under a name, or `make()` without gradients; made again too where `about` is another."""
        if any(t.is_inference() for t in tensors):
            with torch.no_grad():
                return make()
        key = about, [(t.untyped_storage()._cdata, t._version, t.dtype, t.device) for t in tensors]
        with self._lock:
            found = self._found.get(name)
            if found is None or found[0] != key:
                with torch.inference_mode(False), torch.no_grad():
                    found = key, [t.detach() for t in tensors], make()
            if self.size is not None:
                self._found.pop(name, None)  # to the end, as the one used last
                while len(self._found) >= self.size:
                    del self._found[next(iter(self._found))]
            self._found[name] = found
            return found[2]
