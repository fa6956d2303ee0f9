"""Results computed from weights once, and again when one of the weights changes.

`WeightCache` has results of a few tensors each, `ModuleCache` results of all weights of a module. A result is valid
until one of its weights is replaced or written to. An assignment to .data changes the storage, most writes change the
version. Writes through .data, as in `p.data.mul_(0.9)`, and through NumPy change neither. On a CPU they are noticed
where they change one of some values of each weight (`Samples`), as averages, optimisers and clipping do. On a GPU, and
for single values, they are not: write in torch.no_grad() instead. Nor are the writes of a CUDA graph that is replayed.
The caches hold the weights (detached), so that no new tensor can get the memory of an old one. Tensors made in
torch.inference_mode have no version: nothing is cached for them.

A CUDA graph reads results where they were when it was captured, and does not hold them. Who captures one holds
`tensors_of` the module as long as the graph, and captures again after a write to a weight.
"""

from __future__ import annotations

import contextlib
import ctypes
import operator
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

SAMPLE = 64  # bytes of a tensor, at each of two places


class Samples:
    """The first and the middle bytes of tensors on the CPU, to see whether they change. The tensors are not held."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._places = []
        for t in tensors:
            if _is_plain(t) and t.is_cpu and t.layout is torch.strided and t.numel():
                end = t.untyped_storage().data_ptr() + t.untyped_storage().nbytes()
                for place in {t.data_ptr(), t.data_ptr() + t.numel() // 2 * t.element_size()}:
                    if place and (size := min(SAMPLE, end - place)) > 0:
                        self._places.append((ctypes.c_char * size).from_address(place))
        self._then = self._now()

    def _now(self) -> bytes:
        return b"".join(self._places)

    def changed(self) -> bool:
        """Whether one of them did, where none of the tensors has got other memory meanwhile."""
        return self._then != self._now()


def named_weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """`module.named_parameters()`, also of a replica that nn.DataParallel made: there they are plain attributes.

    torch.compile is to be asked first: it traces the method alone.
    """
    for prefix, part in module.named_modules():
        held = part.__dict__.get("_former_parameters") or part._parameters
        for name, weight in held.items():
            if weight is not None:
                yield f"{prefix}.{name}" if prefix else name, weight


class WeightCache:
    """Results computed from weights, by name. Thread-safe; copies and pickles start empty.

    Args:
        size: the largest number of results; the least recently used one is dropped first. None for no limit.
    """

    def __init__(self, size: int | None = None) -> None:
        self.size = size
        self._lock = threading.RLock()
        self._entries: dict[Hashable, tuple[Any, list[Tensor], Any, Samples]] = {}

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
            if entry is None or entry[0] != key or entry[3].changed():
                samples = Samples(tensors)
                with torch.inference_mode(False), torch.no_grad():
                    entry = key, [t.detach() for t in tensors], make(), samples
                if not _may_be_kept(entry[2], tensors):
                    return entry[2]
                _wait_until_made(entry[2])
            if self.size is not None:
                self._entries.pop(name, None)  # moves to the end: used last
                while len(self._entries) >= self.size:
                    del self._entries[next(iter(self._entries))]
            self._entries[name] = entry
            return entry[2]


def _may_be_kept(result: Any, weights: Iterable[Tensor]) -> bool:
    """Not tensors of a mode, such as fake ones, that come of plain weights: the weights outlast the mode."""
    return not all(map(_is_plain, weights)) or all(map(_is_plain, tensors_of(result)))


def _is_plain(x: Tensor) -> bool:
    return type(x) in (Tensor, nn.Parameter)


def _wait_until_made(result: Any) -> None:
    """Wait until the launches that made a result have run: the next to read it may be on another stream."""
    for device in {t.device for t in tensors_of(result) if t.is_cuda}:
        with torch.cuda.device(device):
            if not torch.cuda.is_current_stream_capturing():
                torch.cuda.current_stream().synchronize()


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors reachable from a value of this project: parameters, buffers, and what modules cache.

    Not those of an object with an attribute ``keeps_to_itself``.
    """
    return list(_walk(value, set()))


def _walk(value: Any, seen: set[int]) -> Iterator[Tensor]:
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in list(value.values()):
            yield from _walk(item, seen)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _walk(item, seen)
    elif not hasattr(value, "keeps_to_itself") and (
        isinstance(value, nn.Module) or type(value).__module__.partition(".")[0] in ("lalic", "lalic_kernels")
    ):
        yield from _walk(getattr(value, "__dict__", None), seen)


class ModuleCache:
    """Results computed from all weights of a module: one look at them serves every result.

    Thread-safe; copies and pickles start empty. The module is not held.

    Args:
        matters: whether results depend on the submodule, parameter or buffer of this name.
    """

    def __init__(self, matters: Callable[[str], bool]) -> None:
        self._matters = matters
        self._lock = threading.Lock()
        self._last: ModuleWeights | None = None

    def __reduce__(self) -> tuple[type[ModuleCache], tuple[Callable[[str], bool]]]:
        return ModuleCache, (self._matters,)

    def look(self, module: nn.Module) -> ModuleWeights:
        """The module's weights, with the results that were computed since one of them changed last."""
        looks: dict[ModuleCache, ModuleWeights] | None = getattr(_thread, "looks", None)
        if looks is not None and self in looks:
            return looks[self]
        with self._lock:
            if self._last is None or self._last.changed():
                self._last = ModuleWeights(module, self._matters)
            if looks is not None:
                looks[self] = self._last
            return self._last


_thread = threading.local()


@contextlib.contextmanager
def one_look() -> Iterator[None]:
    """Inside, in this thread, weights are taken to stay as they are: each `ModuleCache` looks at them once."""
    before = getattr(_thread, "looks", None)
    if before is None:
        _thread.looks = {}
    try:
        yield
    finally:
        _thread.looks = before


class ModuleWeights:
    """A module's weights at one time, and results computed from them, by name.

    A look takes about 0.2 us a tensor: it compares in C what Python would take ten times as long for.

    Attributes:
        tracked: whether every change is noticed, so that results are kept.
    """

    def __init__(self, module: nn.Module, matters: Callable[[str], bool]) -> None:
        modules = [m for name, m in module.named_modules() if matters(name)]
        self._members = [d for m in modules for d in (m._modules, m._parameters, m._buffers) if d]
        self._members_then: list[dict[str, Any]] = [*map(dict.copy, self._members)]
        self._scalars = [
            (d, name, t) for d in self._members for name, t in d.items() if isinstance(t, Tensor) and t.numel() == 1
        ]
        named = chain(module.named_parameters(), module.named_buffers())
        self._tensors = [t for name, t in named if matters(name)]
        self.tracked = not any(t.is_inference() for t in self._tensors)
        if self.tracked:
            with torch.inference_mode(False):
                self._held = [t.detach() for t in self._tensors]
            self._then, self._samples = _state(self._tensors), Samples(self._tensors)
        self._lock = threading.RLock()
        self._results: dict[Hashable, Any] = {}

    def changed(self) -> bool:
        """Whether a weight was written to or replaced, or may have been."""
        if not self.tracked or not self._same_members() or self._then != _state(self._tensors):
            return True
        return self._samples.changed()

    def _same_members(self) -> bool:
        # `==` asks first whether two members are one object. If not, it compares modules by identity, and tensors by
        # value, which raises for more than one element.
        try:
            same = self._members == self._members_then
        except (RuntimeError, TypeError):
            return False
        return same and all(members[name] is then for members, name, then in self._scalars)

    def get(self, name: Hashable, make: Callable[[], Any]) -> Any:
        """The result of a name, or `make()` without gradients."""
        with self._lock:
            if name not in self._results:
                with torch.inference_mode(False), torch.no_grad():
                    result = make()
                if not _may_be_kept(result, self._tensors):
                    return result
                _wait_until_made(result)
                self._results[name] = result
            return self._results[name]


def _state(tensors: Iterable[Tensor]) -> tuple[list[int], list[int]]:
    """Versions and addresses."""
    return [*map(_version, tensors)], [*map(Tensor.data_ptr, tensors)]


_version = operator.attrgetter("_version")
