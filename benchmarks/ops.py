"""Cases of the operations: inputs at the full model's shapes for a picture of 768x512, checks, yardsticks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

import lalic_kernels
from benchmarks.measure import Call, Case, Setting, bandwidth_metrics, within
from lalic.config import FULL, Config
from lalic.nn.context import channel_ramp
from lalic_kernels.entropy_params.reference import entropy_params as entropy_reference
from lalic_kernels.op import bytes_of

HEIGHT, WIDTH = 512, 768


def stage_shapes(c: Config = FULL, height: int = HEIGHT, width: int = WIDTH) -> list[tuple[int, int, int]]:
    """(height, width, channels) where RWKV blocks run: three stages of the transforms, then the hyper transform."""
    d = c.dims
    return [(height // n, width // n, dim) for n, dim in ((2, d[0]), (4, d[1]), (8, d[2]), (32, d[4]))]


def dtypes(setting: Setting) -> tuple[torch.dtype, ...]:
    """float32, and on a GPU bfloat16 too."""
    return (torch.float32, torch.bfloat16) if setting.device.type == "cuda" else (torch.float32,)


def _products(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    return [F.linear(x, weight) for x, weight in pairs]


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


def entropy_shapes(c: Config = FULL) -> list[tuple[int, int, int]]:
    """(positions, Cin, Cout): the first slice's first block, and all three of the last slice's. Half the latents."""
    positions = (HEIGHT // 16) * (WIDTH // 16) // 2
    first, last = 2 * c.groups[0], 2 * c.groups[-1]
    a = channel_ramp(first + c.M, first, 2 * c.N)
    b = channel_ramp(2 * last + c.M, last, 2 * c.N)
    return [(positions, n_in, n_out) for n_in, n_out in ((a[0], a[1]), *pairwise(b))]


def entropy_params_cases(setting: Setting) -> Iterator[Case]:
    """Against the block's four matrix products alone, on operands that are there already."""
    for positions, n_in, n_out in [(9, 12, 7)] if setting.quick else entropy_shapes():
        for dtype in dtypes(setting):
            generator = generator_of(setting)

            def normal(*size: int, generator: torch.Generator = generator, dtype: torch.dtype = dtype) -> Tensor:
                values = torch.randn(*size, generator=generator, device=setting.device)
                return (values / size[-1] ** 0.5 if len(size) == 2 else values).to(dtype)

            x, mix, bias, norm_weight, norm_bias = (
                normal(1, positions, n_in), normal(n_out, n_in), normal(n_out), 1 + normal(n_out) / 4, normal(n_out) / 4
            )  # fmt: skip
            key, receptance, value = normal(2 * n_out, n_out), normal(n_out, n_out), normal(n_out, 2 * n_out)
            arguments = (x, mix, bias, norm_weight, norm_bias, key, receptance, value)
            narrow, wide = normal(1, positions, n_out), normal(1, positions, 2 * n_out)
            pairs = ((x, mix), (narrow, key), (narrow, receptance), (wide, value))
            yield Case(
                case_name("forward", (1, positions, n_in), "->", n_out, dtype),
                (
                    Call(
                        "entropy_params",
                        partial(lalic_kernels.entropy_params, *arguments),
                        check_by_reference(entropy_reference, arguments),
                        bandwidth_metrics(bytes_of("entropy_params", *arguments), setting.device),
                    ),
                    Call("its matrix products", partial(_products, pairs)),
                ),
            )
