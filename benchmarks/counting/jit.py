"""Triton's JIT without a GPU: launches are specialised and compiled as on a GPU, written down, and not run.

`recording` puts a driver in the place of CUDA's, and lets CPU tensors take the path of CUDA tensors. Triton then does
all that it does before a launch: it specialises on the arguments (ones, multiples of 16), compiles what is new, and
checks shared memory. The driver checks the grid, and writes the launch down. Nothing is computed, so results are of no
value; ATen calls run on the CPU.

Triton must not interpret, so this needs a process of its own, with TRITON_INTERPRET not set.
"""

from __future__ import annotations

import contextlib
import importlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import triton
import triton.compiler as compiler
from triton.backends.compiler import GPUTarget
from triton.compiler import compiler as compiler_file
from triton.runtime import driver as drivers

MAX_GRID = (2**31 - 1, 65535, 65535)
# Bytes that a program may take.
SHARED = {
    "cuda 80": 166912, "cuda 86": 101376, "cuda 89": 101376, "cuda 90": 232448, "cuda 100": 232448,
    "cuda 120": 101376, "hip gfx942": 65536,
}  # fmt: skip


class InvalidGrid(RuntimeError):
    """A grid that CUDA refuses: below 1, or over 2^31 - 1 on x, 65535 on y or z."""


@dataclass
class Launched:
    """One launch: kernel, grid, and its arguments that are numbers or compile-time constants, by name."""

    kernel: str
    grid: tuple[int, int, int]
    arguments: dict[str, Any]


@dataclass
class Specialised:
    """One compilation: the kernel, Triton's types by argument, constants by argument, the compiler's options.

    function: Triton's, of which `kernel` is the name.
    compiled: Triton's kernel with its machine code; None if only the front end ran, or nothing.
    """

    kernel: str
    function: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, Any]
    compiled: Any


@dataclass
class Recording:
    """What was launched and compiled since the last `clear`."""

    launches: list[Launched] = field(default_factory=list)
    compilations: list[Specialised] = field(default_factory=list)

    def clear(self) -> None:
        self.launches.clear()
        self.compilations.clear()

    def compiled_kernels(self) -> Counter[str]:
        return Counter(each.kernel for each in self.compilations)


class _FrontEndDone(Exception):
    pass


class _Stub:
    """A compiled kernel of which there is no machine code."""

    function = packed_metadata = None

    def __init__(self, source: Any, run: Callable[..., None]) -> None:
        self.run = _launcher(source, run)

    def launch_metadata(self, *_: Any) -> None:
        return None


def _launcher(source: Any, write_down: Callable[..., None]) -> Callable[..., None]:
    def run(x: int, y: int, z: int, stream: Any, function: Any, packed: Any, lazy: Any, enter: Any, leave: Any,
            *arguments: Any) -> None:  # fmt: skip
        write_down(source.fn, (x, y, z), arguments)

    return run


class _Driver:
    """What Triton asks of the active driver."""

    def __init__(self, architecture: str, write_down: Callable[..., None]) -> None:
        self._architecture = architecture
        self.launcher_cls = lambda source, metadata: _launcher(source, write_down)
        self.utils = self

    def get_current_target(self) -> GPUTarget:
        backend, name = self._architecture.split()
        return GPUTarget(backend, name, 64) if backend == "hip" else GPUTarget(backend, int(name), 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_properties(self, device: int = 0) -> dict[str, int]:
        return {"max_shared_mem": SHARED[self._architecture], "multiprocessor_count": 132, "warpSize": 32}

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[int, ...]:
        newer = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 4)
        return (1, 1, 0, 0, 1024) if newer else (1, 1, 0, 0)

    def unload_module(self, module: Any) -> None:
        pass


@contextlib.contextmanager
def recording(
    architecture: str = "cuda 90", compile: str = "front", launched: Callable[[str], None] | None = None
) -> Iterator[Recording]:
    """Inside, kernels are specialised for an architecture of `SHARED`, and launches recorded.

    Triton keeps what it compiled, so a process records for one architecture and one value of `compile`.

    compile: "none" counts specialisations, "front" runs Triton's front end over each, "all" makes machine code.
    launched: called with the kernel's name at each launch.

    Raises RuntimeError if Triton interprets in this process, InvalidGrid at a launch that CUDA would refuse.
    """
    from lalic_kernels import installed

    if installed.interpreting():
        raise RuntimeError("TRITON_INTERPRET: expected unset before triton is imported, because kernels are compiled")
    record = Recording()

    def write_down(function: Any, grid: tuple[int, int, int], arguments: tuple[Any, ...]) -> None:
        if any(not 1 <= size <= most for size, most in zip(grid, MAX_GRID, strict=True)):
            raise InvalidGrid(f"{function.__name__}: a grid of {grid} is outside of {MAX_GRID}")
        named = zip(function.arg_names, arguments, strict=True)
        plain = {name: value for name, value in named if isinstance(value, int | float | str | None)}
        record.launches.append(Launched(function.__name__, grid, plain))
        if launched is not None:
            launched(function.__name__)

    make = compiler_file.compile

    def compiling(source: Any, target: Any = None, options: Any = None, **others: Any) -> Any:
        made: Any = None
        if compile == "all":
            made = make(source, target=target, options=options, **others)
        elif compile == "front":
            with contextlib.suppress(_FrontEndDone), _front_end_only(target):
                make(source, target=target, options=options, **others)
        constants = {function_argument(source, key): value for key, value in source.constants.items()}
        record.compilations.append(
            Specialised(source.fn.__name__, source.fn, dict(source.signature), constants, dict(options or {}), made)
        )
        return made or _Stub(source, write_down)

    active = "_active" if "_active" in vars(drivers) else "active"  # Triton 3.3
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(drivers, active, _Driver(architecture, write_down)))
        for owner in (compiler, compiler_file):
            stack.enter_context(mock.patch.object(owner, "compile", compiling))
        stack.enter_context(_as_cuda(architecture))
        yield record


def function_argument(source: Any, key: Any) -> str:
    """The name of an argument in ASTSource.constants, whose keys are paths of indexes."""
    return source.fn.arg_names[key[0]] if isinstance(key, tuple) else str(key)


@contextlib.contextmanager
def _front_end_only(target: Any) -> Iterator[None]:
    """Compilation ends, by _FrontEndDone, where Python has become Triton's IR."""
    backend = type(compiler_file.make_backend(target))
    add_stages = backend.add_stages

    def stop(*_: Any) -> None:
        raise _FrontEndDone

    def first_stage_stops(self: Any, stages: dict[str, Any], *others: Any) -> None:
        add_stages(self, stages, *others)
        stages[next(iter(stages))] = stop

    with mock.patch.object(backend, "add_stages", first_stage_stops):
        yield


@contextlib.contextmanager
def _as_cuda(architecture: str) -> Iterator[None]:
    """CPU tensors take the path of CUDA tensors of an architecture."""
    from lalic.coder import gpu
    from lalic_kernels import dispatch, installed
    from lalic_kernels.exact import op as exact_op
    from lalic_kernels.rans import checksum
    from lalic_kernels.rans.gpu import DeviceDecoder

    def chosen(op: dispatch.Op, device_type: str, dtype: torch.dtype) -> tuple[str, str]:
        return ("torch", "") if dtype == torch.float64 else ("triton", "")

    replaced: list[tuple[Any, str, Any]] = [
        (installed, "interpreting", lambda: True), (dispatch, "choose", chosen),
        (exact_op, "backend_of", lambda _: "triton"), (checksum.installed, "NUMBA", False),
        # Of symbols that were not computed nothing is true.
        (DeviceDecoder, "faults", lambda self: [None] * self.sums().shape[0]), (gpu, "check_symbols", lambda *_: None),
    ]  # fmt: skip
    for name in ("biwkv", "mix", "block", "entropy_params"):
        module = importlib.import_module(f"lalic_kernels.{name}.gpu")
        replaced.append((module, "architecture", lambda _: architecture))
    with contextlib.ExitStack() as stack:
        for owner, name, replacement in replaced:
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield
