"""The exact primitives on CPUs through compiled loops and integer products: `reference.py`'s bits, sooner.

Arguments are checked here, work space and threads are shared out here; `cpu_rows.py`, `cpu_loops.py` and
`cpu_wkv_loops.py` compute. `cpu_blocks.py` has the blocks in few calls. Importing this needs numba.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lalic_kernels.exact import cpu_loops as loops
from lalic_kernels.exact import cpu_product as products
from lalic_kernels.exact import cpu_rows as rows
from lalic_kernels.exact import cpu_wkv_loops as wkv
from lalic_kernels.exact import numbers as n
from lalic_kernels.exact import reference
from lalic_kernels.exact.quantise import settle
from lalic_kernels.exact.weights import ExactConv, ExactDepthwise, ExactLinear
from lalic_kernels.threads import run_ranges

_INFINITY = 0x7F800000
WORTH = 60_000  # ns of work that are worth a thread: handing them over takes some 30 us, in Python
NOTHING = np.empty(0, np.float32)
_NO_ROWS = np.empty((0, 1), np.float32)


def array(x: Tensor) -> np.ndarray:
    return x.detach().contiguous().numpy()


def require(x: Tensor) -> None:
    if x.dtype != torch.float32:
        raise TypeError(f"x must be float32 in exact arithmetic, but is {str(x.dtype).removeprefix('torch.')}")


def finite(bits: np.ndarray) -> None:
    """Raise ValueError unless these magnitude bits are those of finite numbers."""
    if bits.size and int(bits.max()) >= _INFINITY:
        raise n.NotFinite("x must be finite in exact arithmetic, but holds an infinity or NaN")


def over(kernel: Callable[[int, int], None], count: int, cost: float) -> None:
    """`kernel` over `count` rows that take about `cost` ns each, on threads where that is worth it.

    Costs are rough, from a processor with AVX-512; results do not depend on them.
    """
    run_ranges(kernel, count, least=max(1, int(WORTH / max(cost, 1e-3))))


def product_cost(*factors: products.Factor) -> float:
    """ns a row takes through products and what is done to their terms and sums."""
    sizes = [(2 * w.shape[1], products.LANES * w.shape[0]) for w, *_ in factors]
    return sum(0.7 * terms + outputs + 0.012 * terms * outputs for terms, outputs in sizes)


def _rows_bits(x: np.ndarray) -> np.ndarray:
    """Magnitude bits of each row of (R, K), finite."""
    bits, found = x.view(np.int32), np.empty(x.shape[0], np.int32)
    over(lambda i, j: loops.largest_of_rows(bits, i, j, found), x.shape[0], 0.2 * x.shape[1])
    finite(found)
    return found


def factor_of(weight: Tensor, exponent: Tensor, bias: Tensor | None) -> products.Factor:
    """Integers (O, K) with their scales as `cpu_rows` takes them."""
    scales = array(reference.power_of_two(exponent - (n.BITS - 1)))
    packed, chunk = products.pack(array(weight))
    return packed, scales, np.zeros(scales.shape, np.float32) if bias is None else array(bias), chunk


def linear_factor(prepared: ExactLinear) -> products.Factor:
    """The same of a prepared weight, made once."""
    found: products.Factor | None = prepared.kept.get("cpu")
    if found is None:
        found = prepared.kept["cpu"] = factor_of(prepared.weight, prepared.exponent, prepared.bias)
    return found


def multiply(x: np.ndarray, factor: products.Factor, squared: bool = False, trusted: bool = False) -> Tensor:
    """(R, O) from x (R, K); `trusted`: x is known to be finite."""
    y, bits = torch.empty(x.shape[0], factor[1].shape[0]), np.empty(x.shape[0], np.int32)
    out = y.numpy()
    over(lambda i, j: rows.linear_rows(x, factor, squared, i, j, bits, out), x.shape[0], product_cost(factor))
    if not trusted:
        finite(bits)
    return y


def linear(x: Tensor, prepared: ExactLinear, squared: bool = False) -> Tensor:
    """As `reference.linear`. `squared`: then squared_relu."""
    require(x)
    factor = linear_factor(prepared)
    shape = (*x.shape[:-1], prepared.weight.shape[0])
    if 0 in shape:
        return torch.empty(shape)
    return multiply(array(x).reshape(-1, x.shape[-1]), factor, squared).reshape(shape)


class _Phase(NamedTuple):
    """One of a convolution's phases: where its outputs lie, what they see, its weights."""

    corner: tuple[int, int]
    taps: np.ndarray
    factor: products.Factor


def _phases(prepared: ExactConv) -> tuple[_Phase, ...]:
    if "cpu" not in prepared.kept:
        prepared.kept["cpu"] = tuple(
            _Phase(
                (phase.row, phase.column),
                np.array(phase.offsets, np.int64).reshape(-1, 2),
                factor_of(prepared.weight[:, list(phase.taps)].flatten(1), prepared.exponent, prepared.bias),
            )
            for phase in prepared.phases
        )
    found: tuple[_Phase, ...] = prepared.kept["cpu"]
    return found


def conv(x: Tensor, prepared: ExactConv, parity: int | None = None) -> Tensor:
    """As `reference.conv`."""
    require(x)
    phases = _phases(prepared)
    if parity is not None and len(phases) > 1:
        return reference.pack(conv(x, prepared), parity)
    batch, height, width, channels = x.shape
    down, across = prepared.output_size(height), prepared.output_size(width)
    columns = across if parity is None else across // 2
    y = torch.empty(batch, down, columns, prepared.weight.shape[0])
    if y.numel() == 0:
        return y
    flat, size = array(x).reshape(-1, channels), height * width
    magnitudes = _rows_bits(flat).reshape(batch, -1).max(axis=1)
    q, out = np.empty(flat.shape, np.int16), y.numpy()
    over(lambda i, j: rows.quantise_image(flat, magnitudes, size, i, j, q), flat.shape[0], 0.4 * channels)
    out_step, in_step = (prepared.stride, 1) if prepared.transposed else (1, prepared.stride)
    colour = -1 if parity is None else parity
    for corner, taps, factor in phases:
        shape = (-(-(down - corner[0]) // out_step), -(-(columns - corner[1]) // out_step))

        def part(i: int, j: int) -> None:
            rows.conv_rows(
                q, magnitudes, taps, (height, width), shape, in_step, out_step, corner, colour, factor, i, j, out  # noqa: B023
            )  # fmt: skip

        over(part, batch * shape[0] * shape[1], product_cost(factor))
    return y


def depthwise(x: Tensor, prepared: ExactDepthwise) -> Tensor:
    """As `reference.depthwise`."""
    require(x)
    if x.numel() == 0:
        return torch.empty(x.shape)
    return torch.from_numpy(shift(array(x), prepared))


def shift(x: np.ndarray, prepared: ExactDepthwise, trusted: bool = False) -> np.ndarray:
    """`depthwise` of x (B, H, W, C), not empty; `trusted`: x is known to be finite."""
    batch, height, width, channels = x.shape
    if "cpu" not in prepared.kept:
        taps = np.ascontiguousarray(array(prepared.weight).astype(np.int32).transpose(1, 2, 0)).reshape(-1)
        prepared.kept["cpu"] = taps, array(reference.power_of_two(prepared.exponent - (n.BITS - 1)))
    taps, scales = prepared.kept["cpu"]
    kernel, lines = prepared.weight.shape[-1], batch * height
    edge, flat = kernel // 2, x.reshape(-1)
    magnitudes = _channel_bits(flat.reshape(-1, channels), batch)
    if not trusted:
        finite(magnitudes)
    q, y = np.empty(lines * (width + 2 * edge) * channels, np.int32), np.empty(x.shape, np.float32)
    size, out = width * channels, y.reshape(-1)
    over(lambda i, j: loops.integers_of_image(flat, magnitudes, height, width, edge, i, j, q), lines, 0.5 * size)
    over(
        lambda i, j: loops.depthwise_lines(q, taps, kernel, magnitudes, scales, height, width, i, j, out),
        lines,
        0.15 * size * kernel**2,
    )
    return y


def _channel_bits(flat: np.ndarray, batch: int) -> np.ndarray:
    """Magnitude bits (B, C) of each channel of each image, from (B P, C)."""
    size, channels = flat.shape[0] // batch, flat.shape[1]
    images, found = flat.view(np.int32).reshape(batch, size, channels), np.empty((batch, channels), np.int32)
    step = max(1, 16384 // channels)
    for b in range(batch):
        parts = np.empty((-(-size // step), channels), np.int32)
        image = images[b]
        over(lambda i, j: loops.largest_of_channels(image, step, i, j, parts), parts.shape[0], 0.2 * step * channels)  # noqa: B023
        found[b] = parts.max(axis=0)
    return found


def norm_offset(channels: int, eps: float) -> np.float32:
    """The definition's eps C^2, one float product."""
    return np.float32(np.float32(eps) * np.float32(channels**2))


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """As `reference.layer_norm`."""
    require(x)
    reference.check_norm(x, eps)
    flat = array(x).reshape(-1, x.shape[-1])
    return torch.from_numpy(normalise(flat, array(settle(weight)), array(settle(bias)), eps).reshape(x.shape))


def normalise(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """LayerNorm of rows (R, C), which must be finite; weight and bias settled."""
    y, bits, offset = np.empty(x.shape, np.float32), np.zeros(x.shape[0], np.int32), norm_offset(x.shape[1], eps)
    over(lambda i, j: loops.layer_norm_rows(x, weight, bias, offset, i, j, bits, y), x.shape[0], 1.5 * x.shape[1])
    finite(bits)
    return y


def _checked(x: Tensor) -> np.ndarray:
    """All elements of x, float32 and finite."""
    require(x)
    flat = array(x).reshape(-1)
    _rows_bits(flat.reshape(1, -1) if flat.size == 0 or flat.size % 64 else flat.reshape(64, -1))
    return flat


def _elementwise(kernel: Any, *inputs: Tensor) -> Tensor:
    y = torch.empty(inputs[0].shape)
    flats = [_checked(x) for x in inputs]
    out = y.numpy().reshape(-1)
    over(lambda i, j: kernel(*flats, i, j, out), out.size, 0.7)
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
    require(x)
    y = torch.empty(x.shape)
    if y.numel() == 0:
        return y
    a, b = array(x).reshape(-1, x.shape[-1]), array(change).reshape(-1, x.shape[-1])
    _rows_bits(a)
    _rows_bits(b)
    scale = NOTHING if gamma is None else array(settle(gamma))
    out = y.numpy().reshape(a.shape)
    over(lambda i, j: loops.residual_of(a, b, scale, i, j, out), a.shape[0], 0.6 * a.shape[1])
    return y


def biwkv(w: Tensor, u: Tensor, k: Tensor, v: Tensor, gate_by: Tensor | None = None) -> Tensor:
    """As `reference.biwkv`."""
    for x in (w, u, k, v, *(() if gate_by is None else (gate_by,))):
        require(x)
    for x in (w, u):
        reference.check(x)
    if k.numel() == 0:
        return torch.empty(k.shape)
    flat = [array(x).reshape(-1, k.shape[2]) for x in (k, v, *(() if gate_by is None else (gate_by,)))]
    for rows_of_one in flat:
        _rows_bits(rows_of_one)
    factors = wkv_factors(w, u, k.shape[1])
    gate_rows = flat[2] if gate_by is not None else _NO_ROWS
    return torch.from_numpy(mix_tokens(flat[0], flat[1], gate_rows, (0, 0, 0), factors, k.shape[0]).reshape(k.shape))


def wkv_factors(w: Tensor, u: Tensor, tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """decay, jump, boost (C,) float64 of w, u (C,), finite."""
    limit = n.DECAY_RANGE / tokens
    w64 = w.detach().double().clamp(-limit, limit)
    boosts = u.detach().double().clamp(-n.BOOST_RANGE, n.BOOST_RANGE)
    decay, jump, boost = (np.empty(w.shape[0]) for _ in range(3))
    for exponent, factor in ((-w64, decay), (-w64 * min(n.CHUNK, tokens), jump), (boosts, boost)):
        wkv.exps(exponent.numpy(), factor)
    return decay, jump, boost


def mix_tokens(
    k: np.ndarray,
    v: np.ndarray,
    r: np.ndarray,
    places: tuple[int, int, int],
    factors: tuple[np.ndarray, np.ndarray, np.ndarray],
    batch: int,
) -> np.ndarray:
    """The gated WKV (B T, C).

    k, v, r: finite, C columns each of these arrays (B T, ...) from `places` on; without a gate r has no rows.
    """
    decay, jump, boost = factors
    channels, tokens = decay.shape[0], k.shape[0] // batch
    chunks, width = math.ceil(tokens / n.CHUNK), n.CHUNK * channels
    top = np.empty((batch, channels), np.float32)
    weights, sums = np.empty((batch, tokens, 2, channels)), np.empty((batch * chunks, 4, channels))
    y = np.empty((batch * tokens, channels), np.float32)
    over(lambda i, j: wkv.tops(k, places[0], tokens, i, j, top), batch, 0.2 * tokens * channels)
    over(lambda i, j: wkv.summaries(k, v, places, top, decay, i, j, weights, sums), batch * chunks, 5 * width)
    over(lambda i, j: wkv.chain(jump, chunks, i, j, sums), batch, 4 * chunks * channels)
    over(lambda i, j: wkv.values(v, r, places, weights, decay, boost, i, j, sums, y), batch * chunks, 7 * width)
    return y


_THRESHOLDS = np.array(n.THRESHOLDS, np.float32)


def scale_index(scales: Tensor) -> Tensor:
    """As `reference.scale_index`."""
    y = torch.empty(scales.shape, dtype=torch.int32)
    flat, out = _checked(scales), y.numpy().reshape(-1)
    over(lambda i, j: loops.scale_index_of(flat, _THRESHOLDS, i, j, out), out.size, 3)
    return y


def gaussian_head(parameters: Tensor) -> tuple[Tensor, Tensor]:
    """As `reference.gaussian_head`, in one call."""
    require(parameters)
    width = parameters.shape[-1] // 2
    index, mean = (torch.empty((*parameters.shape[:-1], width), dtype=kind) for kind in (torch.int32, torch.float32))
    if index.numel() == 0:
        return index, mean
    flat = array(parameters).reshape(-1, 2 * width)
    bits = np.empty(flat.shape[0], np.int32)
    indexes, means = index.numpy().reshape(-1, width), mean.numpy().reshape(-1, width)
    over(lambda i, j: loops.head_rows(flat, _THRESHOLDS, i, j, bits, indexes, means), flat.shape[0], 4 * width)
    finite(bits)
    return index, mean
