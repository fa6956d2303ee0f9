"""Cases of the token shift and of the normalised shift, at every stage's shape, beside torch's own operations.

On CUDA a forward's share of the copy bandwidth is its roofline: at two bytes for each of 25 products an H200's float32
units ask for less time than its memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import lalic_kernels
from benchmarks.measure import Call, Case, Setting, WrongResult, bandwidth_metrics
from benchmarks.ops import case_name, check_by_reference, dtypes, generator_of, stage_shapes
from lalic_kernels.op import bytes_of
from lalic_kernels.shift.reference import norm_shift as norm_reference
from lalic_kernels.shift.reference import token_shift as shift_reference


def token_shift_cases(setting: Setting) -> Iterator[Case]:
    """Forward and backward, against one depth-wise convolution of torch on the same channels-last memory."""
    for size in _sizes(setting):
        for dtype in dtypes(setting):
            x, _, _, weight = _arguments(size, dtype, setting)
            moved = bytes_of("token_shift", x, weight)
            ours, theirs = lalic_kernels.token_shift, _convolution
            yield _forward("token_shift", (x, weight), ours, theirs, "one F.conv2d", shift_reference, moved)
            yield _backward("token_shift", (x, weight), ours, theirs, "one F.conv2d", shift_reference, moved)


def norm_shift_cases(setting: Setting) -> Iterator[Case]:
    """Likewise, against F.layer_norm and the convolution; bfloat16 on CPUs too, as inference may run it there."""
    for size in _sizes(setting):
        for dtype in (torch.float32, torch.bfloat16):
            arguments = _arguments(size, dtype, setting)
            moved = bytes_of("norm_shift", *arguments)
            ours, theirs = lalic_kernels.norm_shift, _norm_and_convolution
            name = "F.layer_norm, F.conv2d"
            yield _forward("norm_shift", arguments, ours, theirs, name, norm_reference, moved)
            if dtype in dtypes(setting):
                yield _backward("norm_shift", arguments, ours, theirs, name, norm_reference, moved)


def _sizes(setting: Setting) -> list[tuple[int, int, int, int]]:
    return [(1, 7, 19, 5)] if setting.quick else [(1, *shape) for shape in stage_shapes()]


def _arguments(size: tuple[int, int, int, int], dtype: torch.dtype, setting: Setting) -> tuple[Tensor, ...]:
    """x, norm_weight, norm_bias, weight, in one dtype."""
    generator = generator_of(setting)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=setting.device)

    channels = size[-1]
    parameters = (1 + normal(channels) / 4, normal(channels) / 4, normal(channels, 5, 5) / 5)
    return (normal(*size).to(dtype), *(p.to(dtype) for p in parameters))


def _convolution(x: Tensor, weight: Tensor) -> Tensor:
    y = F.conv2d(x.permute(0, 3, 1, 2), weight.unsqueeze(1), padding=2, groups=x.shape[3])
    return y.permute(0, 2, 3, 1)


def _norm_and_convolution(x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor) -> Tensor:
    return _convolution(F.layer_norm(x, (x.shape[3],), norm_weight, norm_bias), weight)


def _forward(
    name: str,
    arguments: tuple[Tensor, ...],
    ours: Callable[..., Tensor],
    theirs: Callable[..., Tensor],
    their_name: str,
    reference: Callable[..., Tensor],
    moved: int,
) -> Case:
    x = arguments[0]
    return Case(
        case_name("forward", tuple(x.shape), x.dtype),
        (
            Call(
                name,
                lambda: ours(*arguments),
                check_by_reference(reference, arguments),
                bandwidth_metrics(moved, x.device),
            ),
            Call(their_name, lambda: theirs(*arguments)),
        ),
    )


def _backward(
    name: str,
    arguments: tuple[Tensor, ...],
    ours: Callable[..., Tensor],
    theirs: Callable[..., Tensor],
    their_name: str,
    reference: Callable[..., Tensor],
    moved: int,
) -> Case:
    """The gradients of all arguments, whichever implementation made the result."""
    x = arguments[0]
    upstream = torch.randn(x.shape, generator=torch.Generator(x.device).manual_seed(1), device=x.device).to(x.dtype)
    leaves = [a.detach().clone().requires_grad_() for a in arguments]
    our_y, their_y = ours(*leaves), theirs(*leaves)

    def gradients(y: Tensor) -> Callable[[], Sequence[Tensor]]:
        return lambda: torch.autograd.grad(y, leaves, upstream, retain_graph=True)

    return Case(
        case_name("backward", tuple(x.shape), x.dtype),
        (
            Call(
                name,
                gradients(our_y),
                lambda found: _check_gradients(reference, arguments, upstream, found),
                # The result's gradient is read as well.
                bandwidth_metrics(moved + x.numel() * x.element_size(), x.device),
            ),
            Call(their_name, gradients(their_y)),
        ),
    )


def _check_gradients(
    reference: Callable[..., Tensor], arguments: tuple[Tensor, ...], upstream: Tensor, found: Sequence[Tensor]
) -> None:
    """Against autograd through the reference in float64; raises `WrongResult`.

    Relative to a gradient's norm: 1e-5 leaves a float32 sum over 1e5 pixels its rounding; 16-bit results are rounded
    once more, and the image's gradient once between the shift and the norm.
    """
    leaves = [a.double().requires_grad_() for a in arguments]
    wanted = torch.autograd.grad(reference(*leaves), leaves, upstream.double())
    for place, (got, want) in enumerate(zip(found, wanted, strict=True)):
        error = ((got.double() - want).norm() / want.norm()).item()
        tolerance = 1e-5 + (2 * torch.finfo(got.dtype).eps if got.dtype != torch.float32 else 0.0)
        if got.shape != want.shape or not error <= tolerance:
            raise WrongResult(f"gradient {place}: the relative error is {error:.3g}, expected at most {tolerance:.3g}")
