"""Cases of the entropy-parameter block, beside its matrix products alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import HEIGHT, WIDTH, case_name, dtypes, forward_call, generator_of
from benchmarks.measure import Call, Case, Setting
from lalic.config import FULL, Config
from lalic.nn.context import channel_ramp
from lalic_kernels.entropy_params.reference import entropy_params as entropy_reference


def _products(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    return [F.linear(x, weight) for x, weight in pairs]


def shapes(c: Config = FULL) -> list[tuple[int, int, int]]:
    """(positions, Cin, Cout): the first slice's first block, and all three of the last slice's. Half the latents."""
    positions = (HEIGHT // 16) * (WIDTH // 16) // 2
    first, last = 2 * c.groups[0], 2 * c.groups[-1]
    a = channel_ramp(first + c.M, first, 2 * c.N)
    b = channel_ramp(2 * last + c.M, last, 2 * c.N)
    return [(positions, n_in, n_out) for n_in, n_out in ((a[0], a[1]), *pairwise(b))]


def cases(setting: Setting) -> Iterator[Case]:
    """Against the block's four matrix products alone, on operands that are there already."""
    for positions, n_in, n_out in [(9, 12, 7)] if setting.quick else shapes():
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
            ours = forward_call("entropy_params", entropy_reference, arguments)
            theirs = Call("its matrix products", partial(_products, pairs))
            yield Case(case_name("forward", (1, positions, n_in), "->", n_out, dtype), (ours, theirs))
