"""Memory: counted without a GPU, and measured where the process runs. `python -m benchmarks.counting.memory`.

    training      the peak of a training step, the published structure in plain PyTorch against ours
    decode        the peak of a decode on a GPU, by part, in bytes a padded pixel beyond the weights and what is cached

`Live` is the counter: it adds up the storages that live. `count` runs a training step on tensors without memory (device
"meta") with parameters, Adam's two states, gradients, saved tensors and work spaces; `held` a forward pass without
gradients; `decode` a decode on CPU tensors along the way for GPUs (`benchmarks.counting.launches`). Of our ops the
implementation for GPUs runs, with its launches left out, so that every allocation it makes is seen. What convolutions
and matrix products of libraries take for themselves, and what an allocator rounds up, is not seen, on either side.

`peak_bytes` measures a call on this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)  # before triton is imported: see benchmarks.counting.jit

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import records, report
from benchmarks.counting import Parts, launches
from benchmarks.counting.operations import Size
from benchmarks.peers.plain import plain
from lalic.config import FULL, SLIM, Config
from lalic.model import LALIC
from lalic_kernels import dispatch
from lalic_kernels.layers import derived
from lalic_kernels.op import OPS

CONFIGS = {"full": FULL, "slim": SLIM}
LMBDA = 0.013  # any: memory does not depend on it
SHARE = 0.7  # of the memory that is free: estimates are rough, and what is freed may not come back at once


# Counting on tensors without memory


def _implementations() -> dict[str, Callable[..., Any]]:
    found = {}
    for name, op in OPS.items():
        found[f"lalic_kernels::{name}"] = op.forward
        found[f"lalic_kernels::{name}_backward"] = op.backward
    return found


class Live(TorchDispatchMode):
    """The counter: bytes of all storages that live (`now`), their `peak`, and `peaks` by the parts that `parts` names.

    Our ops' implementations run inside it.
    """

    def __init__(self, parts: Parts | None = None) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.peaks: dict[str, int] = {}
        self._parts = parts or Parts()
        self._counted: dict[int, int] = {}
        self._ops = _implementations()

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage, unless it is counted already, until it is gone."""
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address not in self._counted:
            self._counted[address] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, address)
        part = self._parts.current
        self.peaks[part] = max(self.peaks.get(part, 0), self.now)

    def _gone(self, address: int) -> None:
        self.now -= self._counted.pop(address)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        ours = self._ops.get(func._schema.name)
        if ours is None:
            result = func(*args, **(kwargs or {}))
        else:
            # Some backwards differentiate a torch function; here, below autograd, that has to be let in again.
            guard = torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False)
            with guard, self:
                result = ours(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.add(tensor)
        return result


@contextlib.contextmanager
def launches_left_out() -> Iterator[None]:
    """Ops take their way for GPUs, whatever the tensors' device, and launch nothing."""
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import KernelInterface

    def nothing(self: Any, grid: Any) -> Callable[..., None]:
        return lambda *args, **kwargs: None

    with (
        mock.patch.object(KernelInterface, "__getitem__", nothing),
        mock.patch.object(InterpretedFunction, "__getitem__", nothing, create=True),
        mock.patch.object(dispatch, "choose", lambda *a: ("triton", "to count")),
        mock.patch.object(dispatch, "_problem", lambda *a: ""),
        mock.patch.object(torch, "autocast", lambda *a, **k: contextlib.nullcontext()),  # it does not know "meta"
    ):
        yield


def count(make: Callable[[], nn.Module], loss: Callable[[nn.Module], Tensor]) -> dict[str, int]:
    """Bytes of a training step of make(), on device "meta": "parameters", "peak"; Adam's states are in the peak.

    A second step's: Adam's states are there from the start, gradients come during the backward pass.
    """
    with launches_left_out(), torch.device("meta"):
        module = make()
        weights = list(module.parameters())
        states = [torch.empty_like(weight) for weight in weights for _ in range(2)]
        live = Live()
        for tensor in [*weights, *module.buffers(), *states]:
            live.add(tensor)
        with live:
            loss(module).backward()
        held = sum(weight.numel() * weight.element_size() for weight in weights)
        without = derived(module)
        assert all(weight.grad is not None for name, weight in module.named_parameters() if name not in without)
    return {"parameters": held, "peak": live.peak}


def model_loss(batch: int, size: int) -> Callable[[nn.Module], Tensor]:
    """The training loss and the quantiles' of a model, for pictures of a square size."""
    from lalic.train.loop import rate_distortion

    def loss(model: nn.Module) -> Tensor:
        x = torch.rand(batch, 3, size, size)
        assert isinstance(model, LALIC)
        return rate_distortion(model.train()(x), x, LMBDA)["loss"] + model.aux_loss()

    return loss


def count_model(config: Config, batch: int, size: int) -> dict[str, Any]:
    """Plain and ours of a whole model."""
    ours = count(lambda: LALIC.from_config(config), model_loss(batch, size))
    with plain():
        theirs = count(lambda: LALIC.from_config(config), model_loss(batch, size))
    return {"plain": theirs, "ours": ours, "ratio": ours["peak"] / theirs["peak"]}


def held(config: Config, sizes: Sequence[Size]) -> Iterator[dict[str, int]]:
    """Bytes of a forward pass of LALIC without gradients: "weights", with what is made of them, and "peak" in all.

    Gains, a few hundred numbers whose values a model looks at, are left out.
    """
    with launches_left_out(), torch.device("meta"), torch.no_grad():
        model = LALIC.from_config(replace(config, qualities=0)).eval()
        live = Live()
        for tensor in [*model.parameters(), *model.buffers()]:
            live.add(tensor)
        with live:
            model(torch.empty(1, 3, 64, 64))
        for height, width in sizes:
            x = torch.empty(1, 3, height, width)
            before = live.peak = live.now
            live.add(x)
            with live:
                model(x)
            yield {"weights": before, "peak": live.peak}
            del x


def decode(model: LALIC, width: int, height: int) -> dict[str, float]:
    """Bytes a padded pixel at the peak of each part, and of "all": what a decode adds to what is there before it.

    model: in eval mode with coding tables, on the CPU. width, height: multiples of 64.
    """
    with launches.decoding(model, width, height) as (run, counts):
        run()  # makes what is cached
        live = Live(counts)
        with live:
            run()
    return {part: peak / (width * height) for part, peak in (live.peaks | {"all": live.peak}).items()}


# Measuring on this machine


def free_bytes(device: torch.device) -> int:
    """Memory that a process may take now: a GPU's free memory, or what Linux calls available; elsewhere half of all."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    info = Path("/proc/meminfo")
    if info.is_file() and (found := re.search(r"^MemAvailable:\s*(\d+) kB", info.read_text(), re.MULTILINE)):
        return 1024 * int(found[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def too_large(needed: int, device: torch.device) -> str | None:
    """Why a call that needs so many bytes cannot run here, as a sentence; None if it can."""
    free = int(SHARE * free_bytes(device))
    if needed <= free:
        return None
    return f"needs about {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB may be used"


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes that one call adds at its peak to what the process holds before it; the result is dropped.

    On CUDA what torch's allocator hands out. On Linux the largest resident set, which is set back before the call; it
    is exact to some hundred KiB, and means something where memory goes back at once (`measure.MEMORY["fresh"]`). None
    where neither can be read.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        call()
        return max(0, _status("VmHWM") - before)
    except OSError:  # no Linux, or a container that hides it
        return None


def _status(key: str) -> int:
    found = re.search(rf"^{key}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if not found:
        raise OSError(f"/proc/self/status has no {key}")
    return 1024 * int(found[1])


# The command


def main(argv: Sequence[str] | None = None) -> int:
    """Print what was asked for. Returns 0, or 1 if a training step of ours needs more than half; usage exits with 2."""
    parser = records.parser("counting.memory", "Memory, counted.", where=False)
    parser.add_argument("what", choices=("training", "decode"))
    parser.add_argument("--model", choices=CONFIGS, default="full", help="the model to count (default %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="training: pictures (default %(default)s)")
    parser.add_argument("--side", type=int, default=256, help="training: their sides (default %(default)s)")
    parser.add_argument("--size", nargs=2, type=int, default=(768, 512), metavar=("W", "H"), help="decode: the picture")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="decode: transforms'")
    options = parser.parse_args(argv)
    return _training(options) if options.what == "training" else _decode(options)


def _training(options: argparse.Namespace) -> int:
    title = f"counted, {options.model}, {options.batch} x {options.side} x {options.side}"
    record = records.counted(memory={title: count_model(CONFIGS[options.model], options.batch, options.side)})
    report.show(record)
    records.keep(record, options)
    return int(record["memory"][title]["ratio"] > 0.5)


def _decode(options: argparse.Namespace) -> int:
    torch.manual_seed(1)
    model = LALIC.from_config(CONFIGS[options.model]).eval().set_precision(options.precision)
    model.update()
    found = decode(model, *options.size)
    print(f"{options.model}, {options.size[0]}x{options.size[1]}, {options.precision}")
    for part, peak in sorted(found.items(), key=lambda item: item[1]):
        print(f"{peak:8.1f}  bytes a pixel, {part}")
    what = {"model": options.model, "size": list(options.size), "precision": options.precision}
    what["bytes_a_pixel"] = {part: round(peak, 2) for part, peak in found.items()}
    records.keep(records.counted(decode_memory=what), options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
