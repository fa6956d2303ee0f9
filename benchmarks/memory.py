"""Peak memory of a training step: the published structure in plain PyTorch against ours. `python -m benchmarks.memory`.

`count` runs a step on tensors without memory (device "meta") and adds up what lives: parameters, Adam's two states,
gradients, saved tensors, work spaces. Of our ops the implementation for GPUs runs, with its launches left out, so that
every allocation it makes is seen. What convolutions and matrix products of libraries take for themselves is not seen,
on either side. `measure` runs a step for real on the CPU, each side in a fresh process, and reads the largest resident
set.

Plain means: the published block, whose shift in training runs four branches, with autograd throughout and a BiWKV that
saves w, u, k and v, as the published extension does, and is given its work space for nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import multiprocessing
import os
import resource
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import lalic_kernels
from benchmarks import report
from benchmarks.measure import MEMORY
from lalic.config import FULL, SLIM, Config
from lalic.model import LALIC
from lalic.nn.blocks import OmniShift, RWKVBlock
from lalic.train.loop import rate_distortion
from lalic_kernels import dispatch
from lalic_kernels.op import OPS

CONFIGS = {"full": FULL, "slim": SLIM}
LMBDA = 0.013  # any: memory does not depend on it


# The published structure


class _PlainBiWKV(torch.autograd.Function):
    """Saves w, u, k, v; values on the CPU by our op, on tensors without memory by their shapes alone."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(w, u, k, v)
        return torch.empty_like(k) if k.is_meta else lalic_kernels.biwkv(w, u, k, v)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        w, u, k, v = ctx.saved_tensors
        if k.is_meta:
            return torch.empty_like(w), torch.empty_like(u), torch.empty_like(k), torch.empty_like(v)
        return torch.ops.lalic_kernels.biwkv_backward(w, u, k, v, None, grads[0], None)[:4]


def _plain_shift(shift: OmniShift, n: Tensor) -> Tensor:
    """Four branches, as in published training; n (B, H, W, C)."""
    x = n.permute(0, 3, 1, 2)
    out = shift.alpha[0] * x
    for place, branch in enumerate((shift.conv1x1, shift.conv3x3, shift.conv5x5), start=1):
        kernel = branch.weight
        out = out + shift.alpha[place] * F.conv2d(x, kernel, padding=kernel.shape[-1] // 2, groups=x.shape[1])
    return out.permute(0, 2, 3, 1)


def plain_block(self: RWKVBlock, x: Tensor) -> Tensor:
    """RWKVBlock.forward as published: x (B, C, H, W) -> (B, C, H, W)."""
    x = x.permute(0, 2, 3, 1)
    batch, height, width, channels = x.shape
    att, ffn, tokens = self.att, self.ffn, height * width
    s = _plain_shift(att.omni_shift, self.ln1(x)).reshape(batch, tokens, channels)
    k, v, r = att.key(s), att.value(s), att.receptance(s)
    y = _PlainBiWKV.apply(att.decay / tokens, att.boost / tokens, k, v)
    x = x + self.gamma1 * att.output(torch.sigmoid(r) * y).reshape(x.shape)
    s = _plain_shift(ffn.omni_shift, self.ln2(x))
    hidden = torch.square(torch.relu(ffn.key(s)))
    x = x + self.gamma2 * (torch.sigmoid(ffn.receptance(s)) * ffn.value(hidden))
    return x.permute(0, 3, 1, 2)


def _plain_entropy_params(
    x: Tensor, mix_weight: Tensor, mix_bias: Tensor, norm_weight: Tensor, norm_bias: Tensor,
    key: Tensor, receptance: Tensor, value: Tensor, *, partial: Tensor | None = None,
) -> Tensor:  # fmt: skip
    m = F.linear(x, mix_weight, mix_bias)
    m = m if partial is None else m + partial
    n = F.layer_norm(m, m.shape[-1:], norm_weight, norm_bias)
    return m + torch.sigmoid(F.linear(n, receptance)) * F.linear(torch.square(torch.relu(F.linear(n, key))), value)


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """The model in plain PyTorch inside."""
    with (
        mock.patch.object(RWKVBlock, "forward", plain_block),
        mock.patch.object(lalic_kernels, "entropy_params", _plain_entropy_params),
    ):
        yield


# Counting on tensors without memory


def _implementations() -> dict[str, Callable[..., Any]]:
    found = {}
    for name, op in OPS.items():
        found[f"lalic_kernels::{name}"] = op.forward
        found[f"lalic_kernels::{name}_backward"] = op.backward
    return found


class Live(TorchDispatchMode):
    """Bytes of all storages that live, and their peak. Our ops' implementations run inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, int] = {}
        self._ops = _implementations()

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage, unless it is counted already, until it is gone."""
        storage = tensor.untyped_storage()
        place = storage._cdata
        if place not in self._known:
            self._known[place] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, place)

    def _gone(self, place: int) -> None:
        self.now -= self._known.pop(place)

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
def _launches_left_out() -> Iterator[None]:
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
    with _launches_left_out(), torch.device("meta"):
        module = make()
        weights = list(module.parameters())
        states = [torch.empty_like(weight) for weight in weights for _ in range(2)]
        live = Live()
        for tensor in [*weights, *module.buffers(), *states]:
            live.add(tensor)
        with live:
            loss(module).backward()
        held = sum(weight.numel() * weight.element_size() for weight in weights)
        assert all(weight.grad is not None for weight in weights if weight.requires_grad)
    return {"parameters": held, "peak": live.peak}


def blocks(channels: int, depth: int, rate: int = 4) -> Callable[[], nn.Module]:
    """A stack of RWKV blocks."""
    return lambda: nn.Sequential(*(RWKVBlock(channels, rate) for _ in range(depth)))


def blocks_loss(shape: tuple[int, int, int, int]) -> Callable[[nn.Module], Tensor]:
    """Of a stack of blocks for an input (B, C, H, W), whose gradient is wanted too."""
    return lambda module: module(torch.empty(shape).to(memory_format=torch.channels_last).requires_grad_()).sum()


def model_loss(batch: int, size: int) -> Callable[[nn.Module], Tensor]:
    """The training loss and the quantiles' of a model, for pictures of a square size."""

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


# Measuring on the CPU


def _resident(name: str, batch: int, size: int, is_plain: bool) -> int:
    """Bytes that two steps add to the largest resident set of this process."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    with plain() if is_plain else contextlib.nullcontext():
        model = LALIC.from_config(CONFIGS[name])
        optimizer = torch.optim.Adam(model.parameters(), foreach=False)
        loss = model_loss(batch, size)
        # A small step first, so that code that is compiled or loaded at first use does not count.
        loss_small = model_loss(1, 64)
        for call in (loss_small, None, loss, loss):
            if call is None:
                gc.collect()
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                continue
            optimizer.zero_grad(set_to_none=True)
            call(model).backward()
            optimizer.step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def measure(name: str, batch: int, size: int) -> dict[str, Any]:
    """Plain and ours, each in a fresh process whose allocator gives large pieces back at once."""
    found = {}
    for side in ("plain", "ours"):
        with (
            mock.patch.dict(os.environ, MEMORY["fresh"]),
            ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool,
        ):
            found[side] = {"peak": pool.submit(_resident, name, batch, size, side == "plain").result()}
    return found | {"ratio": found["ours"]["peak"] / found["plain"]["peak"]}


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each comparison. Returns 0, or 1 if ours needs more than half."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description="Peak memory of a training step.")
    parser.add_argument("--config", choices=CONFIGS, default="full", help="the model to count (default %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="pictures (default %(default)s)")
    parser.add_argument("--size", type=int, default=256, help="their sides (default %(default)s)")
    parser.add_argument("--measure", action="store_true", help="run the slim model on this CPU as well, two pictures")
    parser.add_argument("--save", action="store_true", help="append records to the results")
    arguments = parser.parse_args(argv)
    counted = {
        f"counted, {arguments.config}, {arguments.batch} x {arguments.size} x {arguments.size}": count_model(
            CONFIGS[arguments.config], arguments.batch, arguments.size
        )
    }
    measured = {"measured on the CPU, slim, 2 x 256 x 256": measure("slim", 2, 256)} if arguments.measure else {}
    rows = counted | measured
    for name, row in rows.items():
        print(f"{name}: plain {_mib(row['plain'])}, ours {_mib(row['ours'])}, ratio {row['ratio']:.3f}")
    print(json.dumps(rows))
    if arguments.save:
        report.keep(report.counted(memory=counted))
        if measured:
            report.keep(report.environment(torch.device("cpu")) | {"quick": False, "memory": measured})
    return int(any(row["ratio"] > 0.5 for row in rows.values()))


def _mib(row: dict[str, int]) -> str:
    return f"{row['peak'] / 2**20:.0f} MiB"


if __name__ == "__main__":
    sys.exit(main())
