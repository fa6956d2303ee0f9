"""Cases of BiWKV: the model's shapes, checks in float64, yardsticks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

import lalic_kernels
from benchmarks.cases import HEIGHT, WIDTH, case_name, dtypes, generator_of, stage_shapes
from benchmarks.measure import Call, Case, Setting, WrongResult, bandwidth_metrics, within, within_norm
from lalic_kernels.biwkv import torch_path
from lalic_kernels.biwkv.reference import biwkv as biwkv_reference
from lalic_kernels.op import bytes_of

# 768x512, then 1080p and 4K, whose sides the codec pads to multiples of 64.
PICTURES = ((HEIGHT, WIDTH), (1088, 1920), (2176, 3840))
QUADRATIC_LIMIT = 1 << 24  # elements of the reference's largest tensor; in float64 this is 128 MiB
NAIVE_LIMIT = 1 << 28  # elements of it where it is a yardstick, in float32: 1 GiB
WALK_LIMIT = 1 << 15  # tokens of a walk one by one: beyond, a call takes a tenth of a second
WHOLE_LIMIT = 1 << 28  # elements up to which float64 copies of everything are made
ROWS = 8  # rows of a long sequence that are computed by the definition
CHANNELS = 4  # channels of a long sequence that are computed by the linear-time path in float64

# Random arguments: weights (w, u, k, v), as `biwkv` takes them.
Arguments = tuple[Tensor, Tensor, Tensor, Tensor]


def cases(setting: Setting) -> Iterator[Case]:
    """Forward at every shape; backward too, beside the forward. What the device's memory does not hold is left out."""
    for shape in shapes(setting):
        for dtype in dtypes(setting):
            if not _fits(shape, setting.device):
                print(f"biwkv: {case_name(shape, dtype)} is left out, too large for this device", file=sys.stderr)
                continue
            yield _biwkv_forward(shape, dtype, setting)
            yield _biwkv_backward(shape, dtype, setting)


def shapes(setting: Setting) -> list[tuple[int, int, int]]:
    """(B, T, C): the model's stages for 768x512; on a GPU 1080p and 4K too, batches of 1 and 8, and 2^20 tokens."""
    if setting.quick:
        return [(1, 67, 5), (2, 40, 16)]
    if setting.device.type == "cpu":
        return [(1, h * w, c) for h, w, c in stage_shapes()]
    found = [
        (batch, h * w, c)
        for batch in (1, 8)
        for height, width in PICTURES
        for h, w, c in stage_shapes(height=height, width=width)
    ]
    return [*found, (1, 1 << 20, 192)]


def _fits(shape: tuple[int, int, int], device: torch.device) -> bool:
    """Whether inputs, gradients and baselines fit: some sixteen float32 tensors of k's shape."""
    if device.type != "cuda":
        return True
    return 64 * shape[0] * shape[1] * shape[2] < torch.cuda.mem_get_info(device)[0]


def biwkv_arguments(shape: tuple[int, int, int], dtype: torch.dtype, setting: Setting) -> Arguments:
    """Normal keys and values; decay and bonus divided by T, as the model does; both in float32."""
    generator = generator_of(setting)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=setting.device)

    _, tokens, channels = shape
    return normal(channels) / tokens, normal(channels) / tokens, normal(*shape).to(dtype), normal(*shape).to(dtype)


def _biwkv_forward(shape: tuple[int, int, int], dtype: torch.dtype, setting: Setting) -> Case:
    arguments = w, u, k, v = biwkv_arguments(shape, dtype, setting)
    return Case(
        case_name("forward", shape, dtype),
        (
            Call(
                "biwkv",
                lambda: lalic_kernels.biwkv(w, u, k, v),
                lambda y: check_biwkv(arguments, y),
                bandwidth_metrics(bytes_of("biwkv", w, u, k, v), setting.device),
            ),
            Call("torch.exp(k)", lambda: torch.exp(k)),
            *_baselines(arguments, setting),
        ),
    )


def _baselines(arguments: Arguments, setting: Setting) -> Iterator[Call]:
    """On a GPU: the definition where it fits, and the two baselines in float32 (benchmarks/peers/biwkv.py)."""
    if setting.device.type != "cuda":
        return
    from benchmarks.peers import biwkv as ports

    w, u, k, v = (x.float() for x in arguments)  # before the clock runs: they take float32 only
    batch, tokens, channels = k.shape
    if batch * tokens * tokens * channels <= NAIVE_LIMIT:
        yield Call("the definition, float32", lambda: biwkv_reference(w, u, k, v))
    # Sequential float32 sums are off by a rounding a term, at worst.
    yield _verified("the published shape, float32", arguments, lambda: ports.published(w, u, k, v), tokens // 32)
    if tokens <= WALK_LIMIT:
        yield _verified("a walk over T, float32", arguments, partial(ports.walking, w, u, k, v), tokens)


def _verified(name: str, arguments: Arguments, run: Callable[[], Tensor], terms: int) -> Call:
    """A yardstick of ours, which is checked like what it is compared with. Raises `WrongResult`."""
    check_biwkv(arguments, run(), 32 + terms)
    return Call(name, run)


def _biwkv_backward(shape: tuple[int, int, int], dtype: torch.dtype, setting: Setting) -> Case:
    arguments = biwkv_arguments(shape, dtype, setting)
    leaves = [x.requires_grad_() for x in arguments]
    y = lalic_kernels.biwkv(*leaves)
    upstream = torch.randn(y.shape, generator=generator_of(setting), device=y.device).to(dtype)
    _, _, k, _ = plain = [x.detach() for x in leaves]
    # Read k, v and the upstream gradient, write the gradients of k and v.
    moved = bytes_of("biwkv", *plain) + 2 * k.numel() * k.element_size()
    return Case(
        case_name("backward", shape, dtype),
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


def check_biwkv(arguments: Arguments, y: Tensor, roundings: int = 32) -> None:
    """Short sequences against the quadratic reference, long ones by whole rows and by whole channels, all in float64.

    Channels and batch items do not depend on one another, so a few of them are a problem of their own; of very large
    inputs only the first and last item and a few channels are looked at, and whether all else is finite.
    """
    if y.shape == arguments[2].shape and y.numel() > WHOLE_LIMIT:
        if not bool(y.isfinite().all()):
            raise WrongResult("biwkv: a result is not finite")
        some, items = _some_channels(y.shape[-1]), [0, -1]
        w, u, k, v = arguments
        arguments, y = (w[some], u[some], k[items][..., some], v[items][..., some]), y[items][..., some]
    w, u, k, v = (x.detach().double() for x in arguments)
    batch, tokens, channels = k.shape
    eps = torch.finfo(y.dtype).eps
    # A row is a mean of v. Its arithmetic is within 32 roundings of float32 of max|v| (lalic_kernels/biwkv/README.md);
    # what is written is rounded once more to y's own dtype.
    tolerance = float(roundings * 2**-23 * v.abs().max() + eps * y.detach().abs().max())
    if batch * tokens * tokens * channels <= QUADRATIC_LIMIT:
        within("biwkv", y, biwkv_reference(w, u, k, v), tolerance)
        return
    # The ends, the middle, and the borders of likely chunks.
    rows = sorted({0, 1, 63, 64, tokens // 3, tokens // 2, tokens - 2, tokens - 1} & set(range(tokens)))[:ROWS]
    within(f"biwkv, rows {rows}", y[:, rows], definition_rows(w, u, k, v, rows), tolerance)
    some = _some_channels(channels)
    linear = torch_path.biwkv(w[some], u[some], k[..., some], v[..., some])
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
    y = (biwkv_reference if short else torch_path.biwkv)(*leaves)
    true = torch.autograd.grad(y, leaves, upstream[..., some].double())
    for name, leaf, grad, want in zip("wukv", arguments, grads, true, strict=True):
        if grad.shape != leaf.shape:
            raise WrongResult(f"gradient of {name}: the shape is {tuple(grad.shape)}, expected {tuple(leaf.shape)}")
        # A gradient in 16 bits carries one rounding an element on top.
        tolerance = 3e-5 + (torch.finfo(grad.dtype).eps if grad.dtype != torch.float32 else 0.0)
        within_norm(f"gradient of {name}", grad[..., some], want, tolerance)


def _some_channels(channels: int) -> list[int]:
    return sorted({round(i * (channels - 1) / (CHANNELS - 1)) for i in range(CHANNELS)})
