"""Cases of the whole transforms g_a and g_s, beside their matrix products and convolutions timed alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cases import HEIGHT, WIDTH, case_name, generator_of
from benchmarks.cases.block import block_products, parameters
from benchmarks.measure import Call, Case, Setting, within_norm
from benchmarks.peers.plain import plain
from lalic.config import FULL, Config
from lalic.model import LALIC
from lalic.nn.blocks import RWKVBlock

TINY = Config("tiny", N=8, M=16, dims=(8, 8, 12, 16, 8, 8), depths=(1, 1, 1, 1), groups=(8, 8))
# ||a - b|| / ||b|| against the published structure in plain float32 torch: some forty layers, each of them rounded.
TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2}


def cases(setting: Setting) -> Iterator[Case]:
    """Both transforms of the full model at 768x512, random weights, float32 and bfloat16."""
    height, width = (64, 64) if setting.quick else (HEIGHT, WIDTH)
    torch.manual_seed(0)
    model = LALIC.from_config(TINY if setting.quick else FULL).eval().to(setting.device)
    generator = generator_of(setting)
    picture = torch.rand(1, 3, height, width, generator=generator, device=setting.device)
    latents = torch.randn(1, model.config.M, height // 16, width // 16, generator=generator, device=setting.device)
    for name, x in (("g_s", latents), ("g_a", picture)):
        x = x.contiguous(memory_format=torch.channels_last)
        for precision in TOLERANCES:
            yield _case(model, name, x, precision, setting)


def _case(model: LALIC, name: str, x: Tensor, precision: str, setting: Setting) -> Case:
    @torch.no_grad()
    def run() -> Tensor:
        return model.set_precision(precision)._transform(name, x)

    @torch.no_grad()
    def check(y: Tensor) -> None:
        with plain():
            want = getattr(model, name)(x)
        within_norm(f"{name} in {precision}", y, want, TOLERANCES[precision])

    return Case(
        case_name(name, tuple(x.shape), precision),
        (
            Call(name, run, check),
            Call("its products and convolutions", _products(getattr(model, name), x, precision, setting)),
        ),
    )


@torch.no_grad()
def _products(transform: nn.Module, x: Tensor, precision: str, setting: Setting) -> Callable[[], None]:
    """One after the other, on operands that are there already: strided, depth-wise, and all matrix products."""
    dtype: torch.dtype = getattr(torch, precision)
    found: list[Callable[[], Any]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        y = inputs[0].to(dtype)
        if isinstance(module, RWKVBlock):
            channels = y.shape[1]
            p = parameters(channels, dtype, setting)
            rows, kernel = y.permute(0, 2, 3, 1), p.shift1.unsqueeze(1)
            found.append(lambda: block_products("rwkv_block", rows, p))
            found.extend([lambda: F.conv2d(y, kernel, padding=2, groups=channels)] * 2)
        else:
            assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
            transposed = isinstance(module, nn.ConvTranspose2d)
            weight, bias = module.weight.to(dtype), None if module.bias is None else module.bias.to(dtype)
            more: dict[str, Any] = {"output_padding": module.output_padding} if transposed else {}
            function: Callable[..., Tensor] = F.conv_transpose2d if transposed else F.conv2d
            found.append(lambda: function(y, weight, bias, module.stride, module.padding, **more))

    handles = [module.register_forward_hook(note) for module in transform.children()]
    transform(x)
    for handle in handles:
        handle.remove()

    @torch.no_grad()
    def run() -> None:
        for call in found:
            call()

    return run
