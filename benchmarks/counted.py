"""What a model's forward pass computes and holds, counted on tensors without memory, at any size of picture.

Four counts of one pass, because tools disagree on what they call FLOPs:

    complete    every operation (`benchmarks.operations`): torch's counter, our ops' formulas, and element by element
    formulas    of these the first two: what `FlopCounterMode` says with our package imported
    layers      multiply-adds of convolutions and linear layers, fused or not: no BiWKV, attention, norms, activations
    thop        multiply-adds that hooks on nn.Conv2d, nn.ConvTranspose2d and nn.Linear see, by thop's rules: what is
                computed without calling such a module is missed, and a transposed convolution counts once an output

Bytes are counted on device "meta" with our ops' ways for GPUs, launches left out (`benchmarks.memory.Live`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from benchmarks.memory import Live, _launches_left_out
from benchmarks.operations import Operations
from lalic.config import Config
from lalic.model import LALIC

Size = tuple[int, int]  # height, width
PRODUCTS = (
    "aten::convolution",
    "aten::mm",
    "aten::addmm",
    "lalic_kernels::channel_mix",
    "lalic_kernels::entropy_params",
)
SHIFTS = ("lalic_kernels::token_shift", "lalic_kernels::norm_shift")


class Passes(Operations):
    """`Operations`, and `layers` beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = 0

    def _add(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        before = self.formula
        super()._add(func, args, kwargs, result)
        name = func._schema.name
        result = result[0] if name == "lalic_kernels::spatial_mix" else result  # beside it: what training keeps
        if name in PRODUCTS:
            self.layers += (self.formula - before) // 2
        elif name in SHIFTS:
            self.layers += 25 * result.numel()
        elif name == "lalic_kernels::spatial_mix":
            self.layers += 4 * result.numel() * result.shape[-1]  # key, value, receptance, output


class Thop:
    """Multiply-adds that module hooks see while it is entered, by thop's rules (thop/vision/calc_func.py)."""

    def __init__(self, model: nn.Module):
        self.macs = 0
        self._model = model
        self._handles: list[Any] = []

    def __enter__(self) -> Thop:
        for module in self._model.modules():
            if type(module) in (nn.Conv2d, nn.ConvTranspose2d, nn.Linear):
                self._handles.append(module.register_forward_hook(self._seen))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _seen(self, module: nn.Module, inputs: tuple[Tensor, ...], result: Tensor) -> None:
        if isinstance(module, nn.Linear):
            self.macs += module.in_features * result.numel()
        else:
            assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
            self.macs += result.numel() * (module.in_channels // module.groups) * math.prod(module.kernel_size)


class RealNumbers(TorchFunctionMode):
    """Inside FakeTensorMode, lets whole numbers that code makes to address others with be real, and so be looked at.

    CompressAI's prior, for one, holds the order of dimensions in a tensor that it makes in each pass.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if func in (torch.tensor, torch.arange) or (tensors and not any(isinstance(x, FakeTensor) for x in tensors)):
            with unset_fake_temporarily():
                made = func(*args, **kwargs)
            if not isinstance(made, Tensor) or not made.is_floating_point():
                return made
        elif len(tensors) > 1:
            with unset_fake_temporarily():  # what is given as a number is handed on as one
                args = tree_map(lambda x: int(x) if _is_number(x) else x, args)
        return func(*args, **kwargs)


def _is_number(x: Any) -> bool:
    return isinstance(x, Tensor) and not isinstance(x, FakeTensor) and x.ndim == 0 and not x.is_floating_point()


def without_memory(model: nn.Module) -> nn.Module:
    """The model with weights that take no memory, as on a CPU; inside FakeTensorMode. It stays so."""
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype), False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return model


def operations(model: nn.Module, run: Callable[[Tensor], Any], sizes: Sequence[Size]) -> Iterator[dict[str, int]]:
    """Counts of run(picture) for each size: "complete", "formulas", "layers", "thop". `model` holds the modules.

    Raises ``ValueError`` naming a call that no rule counts.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), RealNumbers(), torch.no_grad():
        without_memory(model)
        run(torch.empty(1, 3, 128, 128))  # what is made of weights once is not counted
        for height, width in sizes:
            x = torch.empty(1, 3, height, width)
            with Thop(model) as thop, Passes() as seen:
                run(x)
            if seen.unknown:
                raise ValueError(f"no rule counts {', '.join(sorted(seen.unknown))}: see benchmarks/operations.py")
            yield {
                "complete": seen.formula + seen.elementwise,
                "formulas": seen.formula,
                "layers": seen.layers,
                "thop": thop.macs,
            }


def held(config: Config, sizes: Sequence[Size]) -> Iterator[dict[str, int]]:
    """Bytes of a forward pass of LALIC without gradients: "weights", with what is made of them, and "peak" in all.

    Gains, a few hundred numbers whose values a model looks at, are left out.
    """
    with _launches_left_out(), torch.device("meta"), torch.no_grad():
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
