"""The exact primitives on CPUs through compiled loops and integer products: `reference.py`'s bits, sooner.

A product of integers is taken one of two ways, which give the same integers. "int8": each factor of 13 bits and sign is
two digits in -64..64 (CPUs without VNNI add pairs of larger ones with saturation), and one call of torch._int_mm
multiplies high and low rows by high and low columns, int32 sums. "float64": a product in float64, exact below 2^53.
int8 is taken where torch and the processor have AVX-512 and VNNI; elsewhere float64 is as fast or faster.

Importing this needs numba.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lalic_kernels._core.threads import run_ranges
from lalic_kernels.exact import cpu_loops as loops
from lalic_kernels.exact import cpu_wkv_loops as wkv
from lalic_kernels.exact import numbers as n
from lalic_kernels.exact import reference
from lalic_kernels.exact.quantise import settle
from lalic_kernels.exact.weights import ExactConv, ExactDepthwise, ExactLinear

_INFINITY = 0x7F800000
_LEAST = 16384  # elements worth a thread
_DEPTH = 64  # digits' rows are filled up to a multiple of it: torch._int_mm is wrong at a depth of 1 (torch 2.13)
_STRIP = 1 << 22  # sums that a strip of rows may have at once
_MIN_ROWS = 512


@functools.cache
def products() -> str:
    """ "int8" or "float64": how integers are multiplied on this machine. The result does not depend on it."""
    import llvmlite.binding

    features = llvmlite.binding.get_host_cpu_features()
    vnni = bool(features.get("avx512vnni"))
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512") and torch.backends.mkldnn.is_available()
    return "int8" if vnni and wide else "float64"


def _array(x: Tensor) -> np.ndarray:
    return x.detach().contiguous().numpy()


def _require(x: Tensor) -> None:
    if x.dtype != torch.float32:
        raise TypeError(f"x must be float32 in exact arithmetic, but is {str(x.dtype).removeprefix('torch.')}")


def _finite(bits: np.ndarray) -> None:
    if bits.size and int(bits.max()) >= _INFINITY:
        raise ValueError("x must be finite in exact arithmetic, but holds an infinity or NaN")


def _over(kernel: Callable[[int, int], None], rows: int, width: int) -> None:
    run_ranges(kernel, rows, least=max(1, _LEAST // max(1, width)))


def _rows_bits(x: np.ndarray) -> np.ndarray:
    """Magnitude bits of each row of (R, K), finite."""
    bits, found = x.view(np.int32), np.empty(x.shape[0], np.int32)
    _over(lambda i, j: loops.largest_of_rows(bits, i, j, found), *x.shape)
    _finite(found)
    return found


class _Factor:
    """One matrix of integers (O, K) with its scales: what either way of multiplying needs, made once."""

    def __init__(self, weight: Tensor, exponent: Tensor, bias: Tensor | None, how: str):
        self.outputs, self.terms = weight.shape
        self.scales = _array(reference.power_of_two(exponent - (n.BITS - 1)))
        self.bias = np.zeros(self.outputs, np.float32) if bias is None else _array(bias)
        self.depth = -(-self.terms // _DEPTH) * _DEPTH if how == "int8" else self.terms
        if how == "int8":
            q = weight.to(torch.int32)
            low = ((q + 64) & 127) - 64
            digits = torch.zeros(2 * self.outputs, self.depth, dtype=torch.int8)
            digits[: self.outputs, : self.terms] = ((q - low) >> 7).to(torch.int8)
            digits[self.outputs :, : self.terms] = low.to(torch.int8)
            self.matrix = digits.t()
        else:
            self.matrix = weight.double().t()

    def multiply(
        self,
        rows: int,
        fill: Callable[..., None],
        magnitudes: np.ndarray,
        y: np.ndarray,
        how: str,
        squared: bool = False,
    ) -> None:
        """y (rows, O): `fill(first, count, targets)` writes integers of rows first.. into targets, high and low.

        With `squared` the squared ReLU of the product.
        """
        strip = min(rows, max(_MIN_ROWS, _STRIP // (4 * self.outputs)))
        int8 = how == "int8"
        size = (2 * strip if int8 else strip, self.depth)
        left = torch.zeros(size, dtype=torch.int8 if int8 else torch.float64)
        sums = torch.empty(size[0], self.matrix.shape[1], dtype=torch.int32 if int8 else torch.float64)
        for first in range(0, rows, strip):
            count = min(strip, rows - first)
            if count < strip:
                left, sums = left[: count * size[0] // strip], sums[: count * size[0] // strip]
            filled = left.numpy()
            fill(first, count, (filled[:count], filled[count:]) if int8 else (filled,))
            (torch._int_mm if int8 else torch.mm)(left, self.matrix, out=sums)
            combine = loops.from_digits if int8 else loops.from_integers
            a, m, out = sums.numpy(), magnitudes[first : first + count], y[first : first + count]
            _over(lambda i, j: combine(a, m, self.scales, self.bias, squared, i, j, out), count, self.outputs)  # noqa: B023


def linear(x: Tensor, prepared: ExactLinear, how: str | None = None, squared: bool = False) -> Tensor:
    """As `reference.linear`; `how` is "int8" or "float64", None for `products()`. `squared`: then squared_relu."""
    _require(x)
    how = how or products()
    factor = prepared.kept.get(how) or prepared.kept.setdefault(
        how, _Factor(prepared.weight, prepared.exponent, prepared.bias, how)
    )
    y = torch.empty(*x.shape[:-1], factor.outputs)
    if y.numel() == 0:
        return y
    flat = _array(x).reshape(-1, factor.terms)
    magnitudes = _rows_bits(flat)
    kernel = loops.digits_of_rows if how == "int8" else loops.integers_of_rows

    def fill(first: int, count: int, targets: tuple[np.ndarray, ...]) -> None:
        a, m = flat[first : first + count], magnitudes[first : first + count]
        _over(lambda i, j: kernel(a, m, i, j, *targets), count, factor.terms)

    factor.multiply(flat.shape[0], fill, magnitudes, y.numpy().reshape(-1, factor.outputs), how, squared)
    return y


def conv(x: Tensor, prepared: ExactConv, parity: int | None = None, how: str | None = None) -> Tensor:
    """As `reference.conv`; `how` as in `linear`."""
    _require(x)
    how = how or products()
    if parity is not None and len(prepared.phases) > 1:
        return reference.pack(conv(x, prepared, None, how), parity)
    batch, height, width, channels = x.shape
    down, across = prepared.output_size(height), prepared.output_size(width)
    columns = across if parity is None else across // 2
    outputs = prepared.weight.shape[0]
    y = torch.empty(batch, down, columns, outputs)
    if y.numel() == 0:
        return y
    flat = _array(x).reshape(-1, channels)
    lines = _rows_bits(flat).reshape(batch, -1)
    images = lines.max(axis=1)
    pixels = np.repeat(images, height * width)
    count = 2 if how == "int8" else 1
    whole = [np.empty((flat.shape[0], channels), np.int8 if how == "int8" else np.float64) for _ in range(count)]
    kernel = loops.digits_of_rows if how == "int8" else loops.integers_of_rows
    _over(lambda i, j: kernel(flat, pixels, i, j, *whole), *flat.shape)
    out_step, in_step = (prepared.stride, 1) if prepared.transposed else (1, prepared.stride)
    for index, phase in enumerate(prepared.phases):
        target = y[:, phase.row :: out_step, phase.column :: out_step]
        shape = (target.shape[1], target.shape[2])
        if 0 in shape:
            continue
        factor = prepared.kept.get((how, index)) or prepared.kept.setdefault(
            (how, index), _phase_factor(prepared, phase.taps, how)
        )
        taps = np.array(phase.offsets, np.int64).reshape(-1, 2)

        fill = _gatherer(whole, taps, (height, width), shape, in_step, -1 if parity is None else parity)
        rows = batch * shape[0] * shape[1]
        magnitudes = np.repeat(images, shape[0] * shape[1])
        result = target if target.is_contiguous() else torch.empty(target.shape)
        factor.multiply(rows, fill, magnitudes, result.numpy().reshape(rows, outputs), how)
        if result is not target:
            target.copy_(result)
    return y


def _gatherer(
    whole: list[np.ndarray], taps: np.ndarray, size: tuple[int, int], shape: tuple[int, int], step: int, colour: int
) -> Callable[..., None]:
    """What fills rows of a convolution's product from images of integers, high and low digits apart."""

    def fill(first: int, count: int, targets: tuple[np.ndarray, ...]) -> None:
        def gather(start: int, stop: int) -> None:
            for source, rows in zip(whole, targets, strict=True):
                loops.gather(source, taps, *size, shape, step, colour, first, start, stop, rows)

        _over(gather, count, taps.shape[0] * whole[0].shape[1])

    return fill


def _phase_factor(prepared: ExactConv, taps: tuple[int, ...], how: str) -> _Factor:
    weight = prepared.weight[:, list(taps)].flatten(1)
    return _Factor(weight, prepared.exponent, prepared.bias, how)


def depthwise(x: Tensor, prepared: ExactDepthwise) -> Tensor:
    """As `reference.depthwise`."""
    _require(x)
    y = torch.empty(x.shape)
    if y.numel() == 0:
        return y
    batch, height, width, channels = x.shape
    if "taps" not in prepared.kept:
        taps = np.ascontiguousarray(_array(prepared.weight).astype(np.int32).transpose(1, 2, 0)).reshape(-1)
        prepared.kept["taps"] = taps, _array(reference.power_of_two(prepared.exponent - (n.BITS - 1)))
    taps, scales = prepared.kept["taps"]
    edge, kernel, lines = prepared.weight.shape[-1] // 2, prepared.weight.shape[-1], batch * height
    flat = _array(x).reshape(-1)
    magnitudes = _channel_bits(flat.reshape(-1, channels), batch)
    q, out = np.empty(lines * (width + 2 * edge) * channels, np.int32), y.numpy().reshape(-1)
    size = width * channels
    _over(lambda i, j: loops.integers_of_image(flat, magnitudes, height, width, edge, i, j, q), lines, size)
    _over(
        lambda i, j: loops.depthwise_lines(q, taps, kernel, magnitudes, scales, height, width, i, j, out),
        lines,
        size * 5,
    )
    return y


def _channel_bits(flat: np.ndarray, batch: int) -> np.ndarray:
    """Magnitude bits (B, C) of each channel of each image, from (B P, C), finite."""
    size, channels = flat.shape[0] // batch, flat.shape[1]
    images, found = flat.view(np.int32).reshape(batch, size, channels), np.empty((batch, channels), np.int32)
    rows = max(1, _LEAST // channels)
    for b in range(batch):
        parts = np.empty((-(-size // rows), channels), np.int32)
        image = images[b]
        run_ranges(lambda i, j: loops.largest_of_channels(image, rows, i, j, parts), parts.shape[0])  # noqa: B023
        found[b] = parts.max(axis=0)
    _finite(found)
    return found


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """As `reference.layer_norm`."""
    _require(x)
    reference.check_norm(x, eps)
    y = torch.empty(x.shape)
    flat = _array(x).reshape(-1, x.shape[-1])
    found, bits, out = np.zeros(flat.shape[0], np.int32), flat.view(np.int32), y.numpy().reshape(flat.shape)
    w, b = _array(settle(weight)), _array(settle(bias))
    offset = np.float32(eps) * np.float32(x.shape[-1] ** 2)
    _over(lambda i, j: loops.layer_norm_rows(flat, bits, w, b, offset, i, j, found, out), *flat.shape)
    _finite(found)
    return y


def _checked(x: Tensor) -> np.ndarray:
    """All elements of x, float32 and finite."""
    _require(x)
    flat = _array(x).reshape(-1)
    _rows_bits(flat.reshape(1, -1) if flat.size < _LEAST or flat.size % 64 else flat.reshape(64, -1))
    return flat


def _elementwise(kernel: Any, *inputs: Tensor) -> Tensor:
    y = torch.empty(inputs[0].shape)
    flats = [_checked(x) for x in inputs]
    out = y.numpy().reshape(-1)
    run_ranges(lambda i, j: kernel(*flats, i, j, out), out.size, least=_LEAST)
    return y


def exp(x: Tensor) -> Tensor:
    """As `reference.exp`."""
    return _elementwise(loops.exp_of, x)


def sigmoid(x: Tensor) -> Tensor:
    """As `reference.sigmoid`."""
    return _elementwise(loops.sigmoid_of, x)


def squared_relu(x: Tensor) -> Tensor:
    """As `reference.squared_relu`."""
    return _elementwise(loops.squared_relu_of, x)


def gate(r: Tensor, x: Tensor) -> Tensor:
    """As `reference.gate`."""
    return _elementwise(loops.gate_of, r, x)


def residual(x: Tensor, change: Tensor, gamma: Tensor | None = None) -> Tensor:
    """As `reference.residual`."""
    _require(x)
    y = torch.empty(x.shape)
    if y.numel() == 0:
        return y
    a, b = _array(x).reshape(-1, x.shape[-1]), _array(change).reshape(-1, x.shape[-1])
    _rows_bits(a)
    _rows_bits(b)
    scale = None if gamma is None else _array(settle(gamma))
    out = y.numpy().reshape(a.shape)
    _over(lambda i, j: loops.residual_of(a, b, scale, i, j, out), *a.shape)
    return y


def biwkv(w: Tensor, u: Tensor, k: Tensor, v: Tensor, gate_by: Tensor | None = None) -> Tensor:
    """As `reference.biwkv`."""
    for x in (w, u, k, v):
        _require(x)
    for x in (w, u):
        reference.check(x)
    y = torch.empty(k.shape)
    if y.numel() == 0:
        return y
    batch, tokens, channels = k.shape
    keys, data = _array(k), _array(v)
    _channel_bits(keys.reshape(-1, channels), batch)
    _rows_bits(data.reshape(-1, channels))
    receptance = None
    if gate_by is not None:
        _require(gate_by)
        receptance = _array(gate_by)
        _rows_bits(receptance.reshape(-1, channels))
    limit = n.DECAY_RANGE / tokens
    w64 = w.detach().double().clamp(-limit, limit)
    boosts = u.detach().double().clamp(-n.BOOST_RANGE, n.BOOST_RANGE)
    factors = [np.empty(channels) for _ in range(3)]
    for exponent, factor in zip((-w64, -w64 * min(n.CHUNK, tokens), boosts), factors, strict=True):
        wkv.exps(exponent.numpy(), factor)
    decay, jump, boost = factors
    chunks = -(-tokens // n.CHUNK)
    top = keys.max(axis=1)
    weights, sums = np.empty((batch, tokens, 2, channels)), np.empty((batch * chunks, 4, channels))
    out, width = y.numpy(), n.CHUNK * channels
    _over(lambda i, j: wkv.summaries(keys, data, top, decay, i, j, weights, sums), batch * chunks, width)
    run_ranges(lambda i, j: wkv.chain(jump, chunks, i, j, sums), batch)
    _over(lambda i, j: wkv.values(data, receptance, weights, decay, boost, i, j, sums, out), batch * chunks, width)
    return y


_THRESHOLDS = np.array(n.THRESHOLDS, np.float32)


def scale_index(scales: Tensor) -> Tensor:
    """As `reference.scale_index`."""
    y = torch.empty(scales.shape, dtype=torch.int32)
    flat, out = _checked(scales), y.numpy().reshape(-1)
    run_ranges(lambda i, j: loops.scale_index_of(flat, _THRESHOLDS, i, j, out), out.size, least=_LEAST)
    return y
