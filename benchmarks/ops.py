"""Cases of the operations: inputs at the full model's shapes for a picture of 768x512, checks, yardsticks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

import lalic_kernels
from benchmarks.measure import Call, Case, Setting, WrongResult, bandwidth_metrics, within
from lalic.config import FULL, Config
from lalic.nn.context import channel_ramp
from lalic_kernels._core.registration import bytes_of
from lalic_kernels.biwkv import scan
from lalic_kernels.biwkv.reference import biwkv as biwkv_reference
from lalic_kernels.entropy_params.reference import entropy_params as entropy_reference
from lalic_kernels.token_shift.reference import token_shift as shift_reference

HEIGHT, WIDTH = 512, 768
QUADRATIC_LIMIT = 1 << 24  # elements of the reference's largest tensor; in float64 this is 128 MiB
ROWS = 8  # rows of a long sequence that are computed by the definition
CHANNELS = 4  # channels of a long sequence that are computed by the linear-time path in float64

# Random arguments: weights (w, u, k, v), as `biwkv` takes them.
Arguments = tuple[Tensor, Tensor, Tensor, Tensor]


def stage_shapes(c: Config = FULL) -> list[tuple[int, int, int]]:
    """(height, width, channels) where RWKV blocks run: three stages of the transforms, then the hyper transform."""
    d = c.dims
    return [(HEIGHT // n, WIDTH // n, dim) for n, dim in ((2, d[0]), (4, d[1]), (8, d[2]), (32, d[4]))]


def dtypes(setting: Setting) -> tuple[torch.dtype, ...]:
    """float32, and on a GPU bfloat16 too."""
    return (torch.float32, torch.bfloat16) if setting.device.type == "cuda" else (torch.float32,)


def _name(*parts: object) -> str:
    return " ".join(str(part).removeprefix("torch.") for part in parts)


def _generator(setting: Setting) -> torch.Generator:
    return torch.Generator(setting.device).manual_seed(0)


# BiWKV


def biwkv_cases(setting: Setting) -> Iterator[Case]:
    """Forward at every stage's shape; backward too, beside the forward."""
    shapes = [(1, 67, 5), (2, 40, 16)] if setting.quick else [(1, h * w, c) for h, w, c in stage_shapes()]
    for shape in shapes:
        for dtype in dtypes(setting):
            yield _biwkv_forward(shape, dtype, setting)
            yield _biwkv_backward(shape, dtype, setting)


def biwkv_arguments(shape: tuple[int, int, int], dtype: torch.dtype, setting: Setting) -> Arguments:
    """Normal keys and values; decay and bonus divided by T, as the model does; both in float32."""
    generator = _generator(setting)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=setting.device)

    _, tokens, channels = shape
    return normal(channels) / tokens, normal(channels) / tokens, normal(*shape).to(dtype), normal(*shape).to(dtype)


def _biwkv_forward(shape: tuple[int, int, int], dtype: torch.dtype, setting: Setting) -> Case:
    arguments = w, u, k, v = biwkv_arguments(shape, dtype, setting)
    return Case(
        _name("forward", shape, dtype),
        (
            Call(
                "biwkv",
                lambda: lalic_kernels.biwkv(w, u, k, v),
                lambda y: check_biwkv(arguments, y),
                bandwidth_metrics(bytes_of("biwkv", w, u, k, v), setting.device),
            ),
            Call("torch.exp(k)", lambda: torch.exp(k)),
        ),
    )


def _biwkv_backward(shape: tuple[int, int, int], dtype: torch.dtype, setting: Setting) -> Case:
    arguments = biwkv_arguments(shape, dtype, setting)
    leaves = [x.requires_grad_() for x in arguments]
    y = lalic_kernels.biwkv(*leaves)
    upstream = torch.randn(y.shape, generator=_generator(setting), device=y.device).to(dtype)
    _, _, k, _ = plain = [x.detach() for x in leaves]
    # Read k, v and the upstream gradient, write the gradients of k and v.
    moved = bytes_of("biwkv", *plain) + 2 * k.numel() * k.element_size()
    return Case(
        _name("backward", shape, dtype),
        (
            Call(
                "biwkv",
                lambda: torch.autograd.grad(y, leaves, upstream, retain_graph=True),
                lambda grads: check_biwkv_gradients(arguments, upstream, grads),
                bandwidth_metrics(moved, setting.device),
            ),
            Call("its forward", lambda: lalic_kernels.biwkv(*plain)),
            Call("torch.exp(k)", lambda: torch.exp(k)),
        ),
    )


def definition_rows(w: Tensor, u: Tensor, k: Tensor, v: Tensor, rows: Sequence[int]) -> Tensor:
    """Rows of BiWKV by its definition, which costs B * T * C each: (B, len(rows), C). For float64 arguments."""
    t = torch.arange(k.shape[1], device=k.device)
    found = []
    for row in rows:
        logits = k - ((t - row).abs() - 1).to(k.dtype)[:, None] * w
        logits[:, row] = k[:, row] + u
        found.append((torch.softmax(logits, dim=1) * v).sum(dim=1))
    return torch.stack(found, dim=1)


def check_biwkv(arguments: Arguments, y: Tensor) -> None:
    """Short sequences against the quadratic reference, long ones by whole rows and by whole channels, all in float64.

    Channels do not depend on one another, so a few of them are a problem of their own.
    """
    w, u, k, v = (x.detach().double() for x in arguments)
    batch, tokens, channels = k.shape
    eps = torch.finfo(y.dtype).eps
    # A row is a mean of v. Its arithmetic is within 32 roundings of float32 of max|v| (lalic_kernels/biwkv/README.md);
    # what is written is rounded once more to y's own dtype.
    tolerance = float(32 * 2**-23 * v.abs().max() + eps * y.detach().abs().max())
    if batch * tokens * tokens * channels <= QUADRATIC_LIMIT:
        within("biwkv", y, biwkv_reference(w, u, k, v), tolerance)
        return
    # The ends, the middle, and the borders of likely chunks.
    rows = sorted({0, 1, 63, 64, tokens // 3, tokens // 2, tokens - 2, tokens - 1} & set(range(tokens)))[:ROWS]
    within(f"biwkv, rows {rows}", y[:, rows], definition_rows(w, u, k, v, rows), tolerance)
    some = _some_channels(channels)
    linear = scan.biwkv(w[some], u[some], k[..., some], v[..., some])
    within(f"biwkv, channels {some}", y[..., some], linear, tolerance)


def check_biwkv_gradients(arguments: Arguments, upstream: Tensor, grads: Sequence[Tensor]) -> None:
    """Gradients of a few channels against autograd through the reference (short) or the linear-time path, in float64.

    Raises `WrongResult` where ||a - b|| / ||b|| is above 3e-5 for float32: the gradient of w sums T differences of
    nearly equal numbers weighted by distances up to T, which costs about a digit over the forward's 4e-6.
    """
    w, u, k, v = (x.detach().double() for x in arguments)
    batch, tokens, channels = k.shape
    some = _some_channels(channels)
    short = batch * tokens * tokens * len(some) <= QUADRATIC_LIMIT
    leaves = [x[..., some].clone().requires_grad_() for x in (w, u, k, v)]
    y = (biwkv_reference if short else scan.biwkv)(*leaves)
    true = torch.autograd.grad(y, leaves, upstream[..., some].double())
    for name, leaf, grad, want in zip("wukv", arguments, grads, true, strict=True):
        got = grad[..., some].double()
        if grad.shape != leaf.shape:
            raise WrongResult(f"gradient of {name}: the shape is {tuple(grad.shape)}, expected {tuple(leaf.shape)}")
        error = ((got - want).norm() / want.norm()).item()
        # A gradient in 16 bits carries one rounding an element on top.
        tolerance = 3e-5 + (torch.finfo(grad.dtype).eps if grad.dtype != torch.float32 else 0.0)
        if not error <= tolerance:
            raise WrongResult(f"gradient of {name}: the relative error is {error:.3g}, expected at most {tolerance}")


def _some_channels(channels: int) -> list[int]:
    return sorted({round(i * (channels - 1) / (CHANNELS - 1)) for i in range(CHANNELS)})


# Token shift and the entropy-parameter block


def check_by_reference(reference: Callable[..., Tensor], arguments: Sequence[Tensor]) -> Callable[[Tensor], None]:
    """A check against `reference` in float64 that bounds the error by twice the reference's own in the given dtype."""

    def check(y: Tensor) -> None:
        want = reference(*(x.double() for x in arguments))
        own = (reference(*arguments).double() - want).abs().max()
        # Four roundings of the largest value, for inputs so small that the reference is exact by luck.
        floor = 4 * torch.finfo(y.dtype).eps * want.abs().max()
        within(reference.__name__, y, want, float(torch.maximum(2 * own, floor)))

    return check


def token_shift_cases(setting: Setting) -> Iterator[Case]:
    """At every stage's shape, against one depth-wise convolution of torch on the same channels-last memory."""
    for height, width, channels in [(7, 19, 5)] if setting.quick else stage_shapes():
        for dtype in dtypes(setting):
            generator = _generator(setting)
            size = (1, height, width, channels)
            x = torch.randn(size, generator=generator, device=setting.device).to(dtype)
            weight = (torch.randn(channels, 5, 5, generator=generator, device=setting.device) / 5).to(dtype)
            image, kernel = x.permute(0, 3, 1, 2), weight.unsqueeze(1)
            yield Case(
                _name("forward", size, dtype),
                (
                    Call(
                        "token_shift",
                        lambda x=x, weight=weight: lalic_kernels.token_shift(x, weight),
                        check_by_reference(shift_reference, (x, weight)),
                        bandwidth_metrics(bytes_of("token_shift", x, weight), setting.device),
                    ),
                    Call(
                        "one F.conv2d",
                        lambda image=image, kernel=kernel, groups=channels: F.conv2d(
                            image, kernel, padding=2, groups=groups
                        ),
                    ),
                ),
            )


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
            generator = _generator(setting)

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
                _name("forward", (1, positions, n_in), "->", n_out, dtype),
                (
                    Call(
                        "entropy_params",
                        lambda arguments=arguments: lalic_kernels.entropy_params(*arguments),
                        check_by_reference(entropy_reference, arguments),
                        bandwidth_metrics(bytes_of("entropy_params", *arguments), setting.device),
                    ),
                    Call("its matrix products", lambda pairs=pairs: [F.linear(a, b) for a, b in pairs]),
                ),
            )
