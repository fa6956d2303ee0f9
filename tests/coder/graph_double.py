"""A stand-in for CUDA and its graphs on the CPU, where Triton interprets: what is captured is recorded and run again.

`interpreted` lets CPU tensors take the path of CUDA tensors. `Recorder` is what a graph does: inside, every ATen call
and every Triton launch is written down; `replay` makes the same calls on the same memory. A capture on a GPU computes
nothing, so all memory that was made inside is overwritten at its end: what a replay does not write anew is garbage.
Memory that was made before is not kept alive, as a graph reads addresses: to read what was freed since is refused.
What a GPU refuses in a capture (a look at a value, a tensor made of numbers of the host) is refused here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from shapes import SHAPES
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

from lalic.model import LALIC

LOOKS = {"_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "lift_fresh"}
QUALITIES = (90.0, 40.0, 100.0)
SKIPPED = {"detach", "empty", "empty_like", "empty_strided", "new_empty"}


class Refused(RuntimeError):
    """An operation that CUDA does not allow during a capture."""


class Freed(RuntimeError):
    """A replay reads memory that was freed after the capture; on a GPU it would read whatever is there."""


class _Outside:
    """A tensor made before the capture. Its memory is not held."""

    def __init__(self, x: Tensor) -> None:
        self.memory = StorageWeakRef(x.untyped_storage())
        self.size, self.stride, self.offset, self.dtype = x.shape, x.stride(), x.storage_offset(), x.dtype

    def tensor(self) -> Tensor:
        storage = None if self.memory.expired() else torch.UntypedStorage._new_with_weak_ptr(self.memory.cdata)
        if storage is None:
            raise Freed(f"the launches read a tensor {tuple(self.size)} whose memory was freed")
        return torch.empty(0, dtype=self.dtype).set_(storage, self.offset, self.size, self.stride)


class Recorder(TorchDispatchMode):
    """Calls on the device, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Callable[[], None]] = []
        self.made: dict[int, Any] = {}  # storages made during the capture

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name in LOOKS:
            raise Refused(f"{name}: not permitted when stream is capturing")
        given = self._addresses((args, kwargs or {}))
        known = {_place(x) for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)} - self.made.keys()
        out = func(*args, **(kwargs or {}))
        results = [x for x in tree_flatten(out)[0] if isinstance(x, Tensor)]
        self.made |= {_place(x): x.untyped_storage() for x in results if _place(x) not in known}
        aliased = [r.alias_info for r in func._schema.returns]
        if name in SKIPPED or any(info is not None and not info.is_write for info in aliased):
            return out  # an allocation or a view: nothing to replay
        written = any(info is not None for info in aliased)
        kept = [] if written else results

        def step() -> None:
            args, kwargs = _tensors(given)
            again = [x for x in tree_flatten(func(*args, **kwargs))[0] if isinstance(x, Tensor)]
            for old, new in zip(kept, again, strict=False):
                old.copy_(new)

        self.steps.append(step)
        return out

    def launch(self, run: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        given = self._addresses((args, kwargs))

        def step() -> None:
            with _disable_current_modes():
                args, kwargs = _tensors(given)
                run(*args, **kwargs)

        step()
        self.steps.append(step)

    def _addresses(self, values: Any) -> Any:
        """The values, with an `_Outside` in the place of each tensor made before."""
        return tree_map(lambda x: _Outside(x) if isinstance(x, Tensor) and _place(x) not in self.made else x, values)

    def spoil(self) -> None:
        """Overwrite what was made during the capture, which computes nothing."""
        for storage in self.made.values():
            whole = torch.empty(0, dtype=torch.uint8).set_(storage)
            whole.fill_(0xFF)  # NaN as a float of any size

    def replay(self) -> None:
        with torch.inference_mode(False), torch.no_grad():
            for step in self.steps:
                step()


def _tensors(values: Any) -> Any:
    return tree_map(lambda x: x.tensor() if isinstance(x, _Outside) else x, values)


def _place(x: Tensor) -> int:
    return x.untyped_storage()._cdata


class Double:
    """Replaces `torch.cuda` and its graphs. captures: their number. fail: raised by the next captures."""

    def __init__(self) -> None:
        self.captures = 0
        self.replays = 0
        self.fail: Exception | None = None
        self.current: Recorder | None = None
        self.size = 1000  # bytes that a graph reports

    def capture(self, launch: Callable[[], Any], side: Any) -> tuple[Any, Any]:
        if self.fail is not None:
            raise self.fail
        self.captures += 1
        recorder = Recorder()

        def refuse(*_: Any, **__: Any) -> Any:
            raise Refused("a tensor of the host's memory: not permitted when stream is capturing")

        self.current = recorder
        try:
            with (
                mock.patch.object(torch, "from_numpy", refuse),
                mock.patch.object(torch, "as_tensor", refuse),
                recorder,
            ):
                results = launch()
        finally:
            self.current = None
        recorder.spoil()
        return SimpleNamespace(replay=lambda: self._replay(recorder), recorder=recorder), results

    def _replay(self, recorder: Recorder) -> None:
        self.replays += 1
        recorder.replay()


@contextlib.contextmanager
def interpreted() -> Iterator[Double]:
    """CPU tensors take the path of CUDA tensors, and graphs are recorded by the `Double`."""
    from triton.runtime.interpreter import GridExecutor

    from lalic.coder import graphs
    from lalic_kernels import dispatch
    from lalic_kernels.exact import op as exact_op
    from lalic_kernels.rans import checksum

    double = Double()
    interpret = GridExecutor.__call__

    def launch(self: Any, *args: Any, **kwargs: Any) -> None:
        if double.current is None:
            interpret(self, *args, **kwargs)
        else:
            double.current.launch(partial(interpret, self), *args, **kwargs)

    def chosen(op: dispatch.Op, device_type: str, dtype: torch.dtype) -> tuple[str, str]:
        return ("torch", "") if dtype == torch.float64 else ("triton", "")

    stream = SimpleNamespace(wait_stream=lambda _: None, synchronize=lambda: None)
    replaced: list[tuple[Any, str, Any]] = [
        (GridExecutor, "__call__", launch), (dispatch, "choose", chosen), (exact_op, "backend_of", lambda _: "triton"),
        (checksum.installed, "NUMBA", False),
        (graphs, "_capture", double.capture), (graphs, "_pool_bytes", lambda _: double.size),
        (torch.cuda, "Stream", lambda _: stream), (torch.cuda, "current_stream", lambda _: stream),
        (torch.cuda, "stream", contextlib.nullcontext), (torch.cuda, "device", contextlib.nullcontext),
        (torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=1 << 40)),
    ]  # fmt: skip
    with contextlib.ExitStack() as stack:
        for owner, name, replacement in replaced:
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield double


def damaged(stream: bytes, at: float = 0.6) -> bytes:
    """The stream with a byte of its words changed."""
    data = np.frombuffer(stream, np.uint8).copy()
    data[int(at * len(data))] ^= 0x5A
    return data.tobytes()


def tiny(groups: tuple[int, ...] = (11,), shape: str = "published") -> LALIC:
    """One slice only, as the interpreter takes about a second for each kernel."""
    torch.manual_seed(0)
    sizes = (3, 11, (4, 4, 4, 11, 4, 4), (0, 0, 0, 0), groups)
    made = LALIC(*sizes, context_depth=1, context_rate=2, qualities=3, **SHAPES[shape])
    with torch.no_grad():
        made.gains.start(torch.tensor([1.0, 8.0, 32.0]))
    made.update()
    return made.eval()


def picture(seed: int) -> Tensor:
    torch.manual_seed(seed)
    return torch.rand(1, 3, 64, 64)
