"""Cases of the RWKV block and its two mixes, at the full model's shapes, with shares of the roofline on a GPU.

The roofline of a call is the sum over its launches of max(bytes / copy bandwidth, operations / matrix rate), both
measured in the same process: what would remain if every launch were as fast as its traffic or its products allow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import lalic_kernels
from benchmarks.cases import case_name, dtypes, generator_of, stage_shapes
from benchmarks.measure import Call, Case, Setting, bandwidth_metrics, copy_bandwidth, product_rate, within, within_norm
from lalic_kernels import BlockParameters
from lalic_kernels.block.op import SHAPES

RATE = 4  # hidden width of the transforms' channel mixes, in multiples of C
Launches = list[tuple[int, int]]  # (bytes, operations on matrices) of each


def roofline_metrics(launches: Launches, x: Tensor) -> Callable[[float], dict[str, float]] | None:
    """On CUDA: bytes a second, their share of the copy's, and the roofline's time over the measured one."""
    metrics = bandwidth_metrics(sum(moved for moved, _ in launches), x.device)
    if metrics is None:
        return None
    bandwidth, rate = copy_bandwidth(x.device), 2 * product_rate(x.device, x.dtype)
    least = sum(max(moved / bandwidth, operations / rate) for moved, operations in launches)
    return lambda seconds: metrics(seconds) | {"of roofline": least / seconds}


def shift_launches(x: Tensor) -> Launches:
    """norm_shift: reads and writes the image; its products are no matrices'."""
    return [(2 * _bytes(x), 0)]


def spatial_launches(x: Tensor) -> Launches:
    """k, v, r; sums of chunks; rows; output with residual. The scan over chunks moves next to nothing."""
    plane, square, channels = _bytes(x), x.shape[-1] ** 2 * x.element_size(), x.shape[-1]
    product = 2 * x.numel() * channels
    return [(4 * plane + 3 * square, 3 * product), (2 * plane, 0), (4 * plane, 0), (3 * plane + square, product)]


def channel_launches(x: Tensor) -> Launches:
    """One: the shifted image and the residual in, the result out."""
    channels = x.shape[-1]
    matrices = (2 * RATE + 1) * channels**2
    return [(3 * _bytes(x) + matrices * x.element_size(), 2 * x.numel() // channels * matrices)]


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def parameters(channels: int, dtype: torch.dtype, setting: Setting) -> BlockParameters:
    """Random ones of the sizes that training leaves: products keep the size of what goes in."""
    generator = generator_of(setting)
    found: dict[str, Any] = {}
    for name, pattern in SHAPES.items():
        shape = [{"C": channels, "F": RATE * channels, "5": 5}[place] for place in pattern.split()]
        value = torch.randn(shape, generator=generator, device=setting.device)
        found[name] = (value / (shape[1] ** 0.5 if len(shape) == 2 else 5)).to(dtype)
    for name in ("norm1_weight", "norm2_weight", "gamma1", "gamma2"):
        found[name] += 1
    return BlockParameters(**found)


Function = Callable[..., Tensor]  # (x, residual, parameters, backend=None)


def spatial(x: Tensor, residual: Tensor, p: BlockParameters, backend: str | None = None) -> Tensor:
    """The spatial mix with its residual."""
    matrices = (p.key, p.value, p.receptance, p.output)
    return lalic_kernels.spatial_mix(x, p.decay, p.boost, *matrices, residual=residual, gamma=p.gamma1, backend=backend)


def channel(x: Tensor, residual: Tensor, p: BlockParameters, backend: str | None = None) -> Tensor:
    """The channel mix with its residual."""
    matrices = (p.channel_key, p.channel_receptance, p.channel_value)
    return lalic_kernels.channel_mix(x, *matrices, residual=residual, gamma=p.gamma2, backend=backend)


def block(x: Tensor, residual: Tensor, p: BlockParameters, backend: str | None = None) -> Tensor:
    """The whole block, whose residual is its input."""
    return lalic_kernels.rwkv_block(x, p, backend=backend)


def _cases(name: str, run: Function, launches: Callable[[Tensor], Launches], setting: Setting) -> Iterator[Case]:
    for height, width, channels in [(3, 17, 24)] if setting.quick else stage_shapes():
        for dtype in dtypes(setting):
            p = parameters(channels, dtype, setting)
            generator = generator_of(setting)
            size = (1, height, width, channels)
            x, residual = (
                torch.randn(size, generator=generator, device=setting.device).to(dtype) for _ in range(2)
            )  # fmt: skip
            yield _forward(name, run, launches(x), x, residual, p)
            yield _training(name, run, x, residual, p)


def _forward(name: str, run: Function, launches: Launches, x: Tensor, residual: Tensor, p: BlockParameters) -> Case:
    def check(y: Tensor) -> None:
        # float64 takes torch's operations throughout. Plain torch in the given dtype says what rounding costs there.
        with torch.no_grad():
            want = run(x.double(), residual.double(), p.to(torch.float64))
            own = (run(x, residual, p, backend="torch").double() - want).abs().max()
        floor = 32 * torch.finfo(y.dtype).eps * want.abs().max()
        within(name, y, want, float(torch.maximum(2 * own, floor)))

    def call() -> Tensor:
        with torch.no_grad():
            return run(x, residual, p)

    return Case(
        case_name("forward", tuple(x.shape), x.dtype),
        (
            Call(name, call, check, roofline_metrics(launches, x)),
            Call("its matrix products", lambda: block_products(name, x, p)),
        ),
    )


def block_products(name: str, x: Tensor, p: BlockParameters) -> None:
    """A forward's matrix products alone, by torch, one after the other over all tokens."""
    flat = x.flatten(0, 2)
    if name != "channel_mix":
        for matrix in (p.key, p.value, p.receptance, p.output):
            F.linear(flat, matrix)
    if name != "spatial_mix":
        F.linear(flat, p.channel_receptance)
        F.linear(F.linear(flat, p.channel_key), p.channel_value)


def _training(name: str, run: Function, x: Tensor, residual: Tensor, p: BlockParameters) -> Case:
    """Forward and backward, gradients for images and parameters, beside the forward alone."""
    leaves = BlockParameters(*(tensor.clone().requires_grad_() for tensor in p.tensors()))
    image, rest = x.clone().requires_grad_(), residual.clone().requires_grad_()

    def step() -> tuple[Tensor | None, ...]:
        y = run(image, rest, leaves)
        return torch.autograd.grad(y, (image, *leaves.tensors()), x, allow_unused=True)

    def check(grads: tuple[Tensor | None, ...]) -> None:
        wide = BlockParameters(*(tensor.detach().double().requires_grad_() for tensor in p.tensors()))
        wide_x = x.double().requires_grad_()
        y = run(wide_x, residual.double(), wide)
        want = torch.autograd.grad(y, (wide_x, *wide.tensors()), x.double(), allow_unused=True)
        for what, got, true in zip(("x", *SHAPES), grads, want, strict=True):
            if true is None or got is None:
                assert got is None and true is None
                continue
            # As large as the rounding of every intermediate to x's dtype, through a handful of products. Those of decay
            # and boost are BiWKV's, whose own bound is larger in float32 (`check_biwkv_gradients`).
            least = 3e-5 if what in ("decay", "boost") else 0.0
            within_norm(f"{name}, gradient of {what}", got, true, max(64 * torch.finfo(got.dtype).eps, least))

    def forward() -> Tensor:
        with torch.no_grad():
            return run(x, residual, p)

    # A forward, its second evaluation, and twice its products: no launch list, so bytes alone are counted.
    return Case(
        case_name("forward and backward", tuple(x.shape), x.dtype),
        (
            Call(name, step, check, roofline_metrics([(6 * _bytes(x), 0)], x)),
            Call("its forward", forward),
        ),
    )


def spatial_mix_cases(setting: Setting) -> Iterator[Case]:
    """At every stage's shape, against its matrix products."""
    return _cases("spatial_mix", spatial, spatial_launches, setting)


def channel_mix_cases(setting: Setting) -> Iterator[Case]:
    """At every stage's shape, against its matrix products."""
    return _cases("channel_mix", channel, channel_launches, setting)


def block_cases(setting: Setting) -> Iterator[Case]:
    """At every stage's shape, against its matrix products."""

    def launches(x: Tensor) -> Launches:
        return [*shift_launches(x), *spatial_launches(x), *shift_launches(x), *channel_launches(x)]

    return _cases("rwkv_block", block, launches, setting)
