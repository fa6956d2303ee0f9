"""CUDA graphs: launches captured once and replayed, cached for each state of a model's weights.

A graph reads the addresses that were captured. So everything that is cached between calls (prepared weights, tables) is
made before the capture, by running the launches once, and the graph holds it. Inputs are copied to memory of the graph
before each replay. docs/gpu.md has the consequences for a model.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from lalic.errors import LalicError

FROM_REQUEST = 2  # the first request of a key runs without a graph: capturing costs more than one picture gains
CAPACITY = 16  # graphs
SHARE = 8  # those that encode, and those that decode, take at most 1 / SHARE of a device's memory
_COUNTED_KEYS = 256  # requests of at most this many keys are counted


class GraphError(LalicError):
    """Launches could not be captured as a CUDA graph."""


class LaunchLock:
    """A lock around a model's launches, so that caches do not change during a capture.

    A copy or a pickle of it is a new lock.
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
    """Captured launches: `run` replays them on the current stream, and they write to the same `results` each time.

    The caller of `run` holds `lock` from before it writes the inputs until it has copied the results and waited for the
    copy: then any stream may be current. `bytes` is the device memory that the graph holds.
    """

    bytes: int

    def capture(
        self,
        device: torch.device,
        prepare: Callable[[], None],
        launch: Callable[[], Any],
        held: Callable[[], list[Tensor]],
    ) -> None:
        """Capture the launches of `launch`.

        prepare: writes the inputs of the launches to fixed memory; it is not captured. launch: makes the launches and
        returns the tensors that they write. held: lists the tensors that outlive a call of `launch` and that it may
        read; the graph keeps them alive.

        Raises `GraphError` if the capture fails, ``torch.OutOfMemoryError`` if the device has too little memory, and
        any error that `launch` raises before the capture.
        """
        self.device = device
        self.lock = threading.Lock()
        # Tensors made in inference mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad(), torch.cuda.device(device):
            side = torch.cuda.Stream(device)
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                for _ in range(2):  # the first fills caches and compiles kernels, the second runs as the capture does
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
            raise GraphError("a tensor that the model caches was made during the capture and has no values: a defect")
        self.bytes = _pool_bytes(self._graph)

    def run(self) -> None:
        """Replay the launches on the current stream of the device."""
        with torch.cuda.device(self.device):
            self._graph.replay()


def _capture(launch: Callable[[], Any], side: Any) -> tuple[Any, Any]:
    graph = torch.cuda.CUDAGraph()
    # "thread_local": other threads may allocate and launch during the capture.
    with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
        results = launch()
    return graph, results


def _pool_bytes(graph: Any) -> int:
    """Device memory of a graph's memory pool; 0 if the allocator does not say, as cudaMallocAsync."""
    pool = tuple(graph.pool())
    try:
        segments = torch.cuda.memory_snapshot()
    except RuntimeError:
        return 0
    return sum(segment["total_size"] for segment in segments if tuple(segment["segment_pool_id"]) == pool)


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata


class GraphCache:
    """Graphs of one state of a model's weights, by key; the least recently used leaves first.

    capacity: number of graphs. capacity_bytes: of their memory together, None for an eighth of the device's. A graph
    that is larger by itself is not cached, and its key is not captured again unless a call asks for it.
    """

    keeps_to_itself = True  # for `tensors_of`: no graph reads the memory of another

    def __init__(self, capacity: int = CAPACITY, capacity_bytes: int | None = None) -> None:
        self._lock = threading.RLock()
        self._graphs: OrderedDict[Hashable, Any] = OrderedDict()
        self._requests: OrderedDict[Hashable, int] = OrderedDict()
        self._plain: set[Hashable] = set()
        self._capacity, self._capacity_bytes = capacity, capacity_bytes

    def __len__(self) -> int:
        return len(self._graphs)

    def get(self, key: Hashable, device: torch.device, make: Callable[[], Any], wanted: bool | None) -> Any | None:
        """The graph of a key, or None if the launches shall be made one by one.

        make: captures the graph. wanted: True to capture now if there is no graph, None to capture at the second
        request of the key. Too little memory for a capture is an error only if `wanted` is True.
        """
        with self._lock:
            if key in self._graphs:
                self._graphs.move_to_end(key)
                return self._graphs[key]
            if wanted is None and (key in self._plain or not self._is_repeated(key)):
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

    def _is_repeated(self, key: Hashable) -> bool:
        count = self._requests.pop(key, 0) + 1
        self._requests[key] = count
        if len(self._requests) > _COUNTED_KEYS:
            self._requests.popitem(last=False)
        return count >= FROM_REQUEST


def _share(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).total_memory) // SHARE


def settings() -> tuple[Hashable, ...]:
    """Settings of torch that decide which kernels its operations launch: part of a graph's key.

    From torch 2.9 on a precision can be set by two interfaces, and the getters of the older one raise after a call of
    the newer one.
    """
    backends = torch.backends
    newer = [getattr(place, "fp32_precision", None) for place in (backends, *_places_of_precision())]
    older: list[Hashable] = []
    for read in (lambda: backends.cuda.matmul.allow_tf32, lambda: backends.cudnn.allow_tf32):
        try:
            older.append(read())
        except RuntimeError:
            older.append(None)
    return (
        *newer,
        *older,
        backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
        backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        backends.cudnn.enabled,
        backends.cudnn.benchmark,
        backends.cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
    )


def _places_of_precision() -> list[Any]:
    cudnn = torch.backends.cudnn
    return [torch.backends.cuda.matmul, cudnn, getattr(cudnn, "conv", None)]
