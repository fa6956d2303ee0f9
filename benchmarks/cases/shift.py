"""Cases of the token shift and of the normalised shift, at every stage's shape, beside torch's own operations.

On CUDA a forward's share of the copy bandwidth is its roofline: at two bytes for each of 25 products an H200's float32
units ask for less time than its memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import lalic_kernels
from benchmarks.cases import case_name, dtypes, forward_call, generator_of, stage_shapes
from benchmarks.measure import Call, Case, Setting, bandwidth_metrics, within_norm
from lalic_kernels.op import bytes_of
from lalic_kernels.shift.reference import norm_shift as norm_reference
from lalic_kernels.shift.reference import token_shift as shift_reference

Function = Callable[..., Tensor]


def token_shift_cases(setting: Setting) -> Iterator[Case]:
    """Forward and backward, against one depth-wise convolution of torch on the same channels-last memory."""
    theirs = ("one F.conv2d", _convolution)
    for size in _sizes(setting):
        for dtype in dtypes(setting):
            x, _, _, weight = _arguments(size, dtype, setting)
            yield from _cases("token_shift", theirs, shift_reference, (x, weight), training=True)


def norm_shift_cases(setting: Setting) -> Iterator[Case]:
    """Forward and backward, against F.layer_norm and the convolution; the forward in bfloat16 on CPUs too."""
    theirs = ("F.layer_norm, F.conv2d", _norm_and_convolution)
    for size in _sizes(setting):
        for dtype in (torch.float32, torch.bfloat16):
            arguments = _arguments(size, dtype, setting)
            yield from _cases("norm_shift", theirs, norm_reference, arguments, training=dtype in dtypes(setting))


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


def _cases(
    name: str, theirs: tuple[str, Function], reference: Function, arguments: tuple[Tensor, ...], training: bool
) -> Iterator[Case]:
    """The forward and, for training, the gradients of all arguments."""
    their_name, their_function = theirs
    x = arguments[0]
    calls = (forward_call(name, reference, arguments), Call(their_name, partial(their_function, *arguments)))
    yield Case(case_name("forward", tuple(x.shape), x.dtype), calls)
    if not training:
        return
    upstream = torch.randn(x.shape, generator=torch.Generator(x.device).manual_seed(1), device=x.device).to(x.dtype)
    leaves = [a.detach().clone().requires_grad_() for a in arguments]

    def gradients(y: Tensor) -> Callable[[], Sequence[Tensor]]:
        return lambda: torch.autograd.grad(y, leaves, upstream, retain_graph=True)

    check_gradients = partial(_check_gradients, reference, arguments, upstream)
    # The result's gradient is read as well.
    metrics = bandwidth_metrics(bytes_of(name, *arguments) + x.numel() * x.element_size(), x.device)
    calls = (
        Call(name, gradients(getattr(lalic_kernels, name)(*leaves)), check_gradients, metrics),
        Call(their_name, gradients(their_function(*leaves))),
    )
    yield Case(case_name("backward", tuple(x.shape), x.dtype), calls)


def _check_gradients(
    reference: Function, arguments: tuple[Tensor, ...], upstream: Tensor, found: Sequence[Tensor]
) -> None:
    """Against autograd through the reference in float64; raises `WrongResult`.

    Relative to a gradient's norm: 1e-5 leaves a float32 sum over 1e5 pixels its rounding; 16-bit results are rounded
    once more, and the image's gradient once between the shift and the norm.
    """
    leaves = [a.double().requires_grad_() for a in arguments]
    wanted = torch.autograd.grad(reference(*leaves), leaves, upstream.double())
    for index, (got, want) in enumerate(zip(found, wanted, strict=True)):
        tolerance = 1e-5 + (2 * torch.finfo(got.dtype).eps if got.dtype != torch.float32 else 0.0)
        within_norm(f"gradient {index}", got, want, tolerance)
