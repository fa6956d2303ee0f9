"""Cases of the operations, a file for each: inputs at the full model's shapes for 768x512, checks, yardsticks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

import lalic_kernels
from benchmarks.measure import Call, Setting, bandwidth_metrics, within
from lalic.config import FULL, Config
from lalic_kernels.op import bytes_of

HEIGHT, WIDTH = 512, 768


def stage_shapes(c: Config = FULL, height: int = HEIGHT, width: int = WIDTH) -> list[tuple[int, int, int]]:
    """(height, width, channels) where RWKV blocks run: three stages of the transforms, then the hyper transform."""
    d = c.dims
    return [(height // n, width // n, dim) for n, dim in ((2, d[0]), (4, d[1]), (8, d[2]), (32, d[4]))]


def dtypes(setting: Setting) -> tuple[torch.dtype, ...]:
    """float32, and on a GPU bfloat16 too."""
    return (torch.float32, torch.bfloat16) if setting.device.type == "cuda" else (torch.float32,)


def case_name(*parts: object) -> str:
    """Words of a case's name; dtypes without their module."""
    return " ".join(str(part).removeprefix("torch.") for part in parts)


def generator_of(setting: Setting) -> torch.Generator:
    """The same random numbers for every case."""
    return torch.Generator(setting.device).manual_seed(0)


def check_by_reference(reference: Callable[..., Tensor], arguments: Sequence[Tensor]) -> Callable[[Tensor], None]:
    """A check against `reference` in float64 that bounds the error by twice the reference's own in the given dtype."""

    def check(y: Tensor) -> None:
        want = reference(*(x.double() for x in arguments))
        own = (reference(*arguments).double() - want).abs().max()
        # Four roundings of the largest value, for inputs so small that the reference is exact by luck.
        floor = 4 * torch.finfo(y.dtype).eps * want.abs().max()
        within(reference.__name__, y, want, float(torch.maximum(2 * own, floor)))

    return check


def forward_call(name: str, reference: Callable[..., Tensor], arguments: Sequence[Tensor]) -> Call:
    """An op of ours by name, its forward checked by `reference`, with its share of the copy bandwidth on a GPU."""
    metrics = bandwidth_metrics(bytes_of(name, *arguments), arguments[0].device)
    op = getattr(lalic_kernels, name)
    return Call(name, partial(op, *arguments), check_by_reference(reference, arguments), metrics)
