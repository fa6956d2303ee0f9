"""CUDA graphs: launches captured once and replayed, cached for each state of a model's weights.

What a graph reads lies where it lay when it was captured. So whatever is cached between calls (prepared weights,
tables) is made before the capture by running the launches, and held by the graph; what differs between pictures is
written to memory of the graph's own before each replay. docs/gpu.md says what that means for a model.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lalic.errors import LalicError

FROM_REQUEST = 2  # of a key: the first picture of a size runs plain, as one picture alone does not win a capture back
CAPACITY = 16  # graphs
SHARE = 4  # graphs take at most one part in so many of a device's memory
_REMEMBERED = 256  # keys whose requests are counted


class GraphError(LalicError):
    """Launches that should have become a graph could not."""


class LaunchLock:
    """A lock that a model's launches are made under: a capture must find caches as it left them.

    Copies and pickles are new locks.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[type[LaunchLock], tuple[()]]:
        return LaunchLock, ()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class Graph:
    """Launches captured once: `run` makes them anew on the current stream, and they write to the same `results`.

    Whoever runs one holds `lock` from before the inputs are written until the results have been copied and waited for:
    then it does not matter which stream is current. `bytes` is the device memory that the graph holds.
    """

    bytes: int

    def capture(
        self,
        device: torch.device,
        prepare: Callable[[], None],
        launch: Callable[[], Any],
        held: Callable[[], list[Tensor]],
    ) -> None:
        """Capture what `launch` launches.

        prepare: puts what the launches read into memory that stays; it is not captured. launch: makes the launches and
        returns the tensors that they write. held: lists the tensors that outlive a call of `launch` and may be read by
        it; they live as long as the graph.

        Raises `GraphError` if the capture fails, the device's own ``OutOfMemoryError`` if its memory does not suffice;
        an error of `launch` while it runs plain stays what it is.
        """
        self.device = device
        self.lock = threading.Lock()
        # Tensors made in inference mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad(), torch.cuda.device(device):
            side = torch.cuda.Stream(device)
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                for _ in range(2):  # the first fills caches and compiles kernels; the second finds all that there
                    prepare()
                    launch()
                prepare()
                side.synchronize()
                self._held = held()
                try:
                    self._graph, self.results = _capture(launch, side)
                except torch.OutOfMemoryError:
                    raise
                except Exception as error:
                    line = " ".join(str(error).split())
                    raise GraphError(
                        f"the launches of this size cannot be captured as a CUDA graph ({line}); "
                        "use graph=False, or --no-graph"
                    ) from error
            torch.cuda.current_stream(device).wait_stream(side)
        storages = {_storage(x) for x in self._held}
        if any(_storage(x) not in storages for x in held()):
            raise GraphError("a tensor that the model caches was made during the capture, and holds nothing; a defect")
        self.bytes = _pool_bytes(self._graph)

    def run(self) -> None:
        """Launch everything on the current stream of the device."""
        with torch.cuda.device(self.device):
            self._graph.replay()


def _capture(launch: Callable[[], Any], side: Any) -> tuple[Any, Any]:
    graph = torch.cuda.CUDAGraph()
    # Other threads may go on allocating and launching meanwhile.
    with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
        results = launch()
    return graph, results


def _pool_bytes(graph: Any) -> int:
    """Device memory of a graph's own pool."""
    pool = tuple(graph.pool())
    segments = torch.cuda.memory_snapshot()
    return sum(segment["total_size"] for segment in segments if tuple(segment["segment_pool_id"]) == pool)


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata


class GraphCache:
    """Graphs of one state of a model's weights, by what they are of; those used last stay.

    capacity: of graphs; capacity_bytes: of their memory together. One that alone is larger is not kept, nor captured
    again.
    """

    def __init__(self, capacity: int = CAPACITY, capacity_bytes: int | None = None) -> None:
        self._lock = threading.RLock()
        self._graphs: OrderedDict[Hashable, Any] = OrderedDict()
        self._requests: OrderedDict[Hashable, int] = OrderedDict()
        self._plain: set[Hashable] = set()
        self._capacity, self._capacity_bytes = capacity, capacity_bytes

    def __len__(self) -> int:
        return len(self._graphs)

    def get(self, key: Hashable, device: torch.device, make: Callable[[], Any], wanted: bool | None) -> Any | None:
        """The graph under a key, or None if the launches shall be made plain.

        wanted: True to capture one now if there is none, None to do so when a key is asked for the second time. Memory
        that does not suffice for a capture is an error only where it was wanted.
        """
        with self._lock:
            if key in self._graphs:
                self._graphs.move_to_end(key)
                return self._graphs[key]
            if wanted is None and (key in self._plain or not self._often(key)):
                return None
            try:
                made = make()
            except torch.OutOfMemoryError:
                if wanted:
                    raise
                self._plain.add(key)
                return None
            limit = _share(device) if self._capacity_bytes is None else self._capacity_bytes
            if made.bytes > limit:
                self._plain.add(key)
                return made
            self._graphs[key] = made
            while len(self._graphs) > self._capacity or sum(graph.bytes for graph in self._graphs.values()) > limit:
                self._graphs.popitem(last=False)
            return made

    def _often(self, key: Hashable) -> bool:
        count = self._requests.pop(key, 0) + 1
        self._requests[key] = count
        if len(self._requests) > _REMEMBERED:
            self._requests.popitem(last=False)
        return count >= FROM_REQUEST


def _share(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).total_memory) // SHARE


def settings() -> tuple[Hashable, ...]:
    """Of torch, those that decide which kernels its own operations launch: part of a graph's key."""
    return (
        torch.is_autocast_enabled("cuda"),
        torch.get_autocast_dtype("cuda"),
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(),
    )


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors that a value of this package leads to: parameters, buffers, what modules and weights cache."""
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
    elif isinstance(value, nn.Module) or type(value).__module__.partition(".")[0] in ("lalic", "lalic_kernels"):
        yield from _walk(getattr(value, "__dict__", None), seen)
