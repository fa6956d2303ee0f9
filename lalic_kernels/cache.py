"""The weight cache: results computed from weights once, and again when one of the weights changes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


class WeightCache:
    """Results computed from weights, by name. Thread-safe; copies and pickles start empty.

    A result is valid until one of its weights is replaced or written to. An assignment to .data changes the storage,
    any other write changes the version. The cache holds the weights (detached), so that no new tensor can get the
    memory of an old one. Tensors made in torch.inference_mode have no version: nothing is cached for them.

    Args:
        size: the largest number of results; the least recently used one is dropped first. None for no limit.
    """

    def __init__(self, size: int | None = None) -> None:
        self.size = size
        self._lock = threading.RLock()
        self._entries: dict[Hashable, tuple[Any, list[Tensor], Any]] = {}

    def __reduce__(self) -> tuple[type[WeightCache], tuple[int | None]]:
        return WeightCache, (self.size,)

    def __iter__(self) -> Iterator[Hashable]:
        return iter(tuple(self._entries))

    def get(self, name: Hashable, tensors: Sequence[Tensor], make: Callable[[], Any], options: Hashable = None) -> Any:
        """The cached result of a name, or `make()` without gradients. `options`: other things the result depends on."""
        if any(t.is_inference() for t in tensors):
            with torch.no_grad():
                return make()
        key = options, [(t.untyped_storage()._cdata, t._version, t.dtype, t.device) for t in tensors]
        with self._lock:
            entry = self._entries.get(name)
            if entry is None or entry[0] != key:
                with torch.inference_mode(False), torch.no_grad():
                    entry = key, [t.detach() for t in tensors], make()
            if self.size is not None:
                self._entries.pop(name, None)  # moves to the end: used last
                while len(self._entries) >= self.size:
                    del self._entries[next(iter(self._entries))]
            self._entries[name] = entry
            return entry[2]
