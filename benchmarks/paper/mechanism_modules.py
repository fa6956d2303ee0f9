"""The rows of Table 5 as modules of one form: y = mechanism.mix(*parts), L tokens of D channels each.

The parts are what products with D x D matrices would make of L tokens: those are in every row alike, neither counted
nor timed. Tokens that a mechanism sees as a picture lie on `grid(L)`, row by row. No batch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lalic_kernels
from benchmarks.paper.selective_scan import implementation, recurrence, selective_scan

Parts = tuple[Tensor, ...]


def grid(length: int) -> tuple[int, int]:
    """Rows and columns of `length` tokens, as near to a square as whole numbers allow, rows the fewer."""
    rows = next(n for n in range(math.isqrt(length), 0, -1) if length % n == 0)
    return rows, length // rows


class Mechanism(nn.Module):
    """A row of the table.

    Attributes:
        coefficient: operations that Table 5 gives, in multiples of L D.
        unit: channels that do not depend on others; a width is a multiple of it.
        copies: (L, D) tensors that live at the peak of `mix`, its arguments included: for a guard, not a figure.
        axes: the dimension along which a parameter's channels lie; 0 where it is not named.
    """

    coefficient: int
    unit = 1
    copies: float
    axes: dict[str, int] = {}  # noqa: RUF012

    def __init__(self, width: int):
        super().__init__()
        if width < 1 or width % self.unit:
            raise ValueError(f"width: expected a positive multiple of {self.unit}, got {width}")
        self.width = width

    def mix(self, *parts: Tensor) -> Tensor:
        """The mechanism: (L, D)."""
        raise NotImplementedError

    def definition(self, *parts: Tensor) -> Tensor:
        """`mix` by the textbook, for small L."""
        raise NotImplementedError

    def sample(self, length: int, generator: torch.Generator) -> Parts:
        """Random arguments of `mix`, of the scale that a norm and projections give; on the generator's device.

        Values have mean one, so that what a mechanism averages over many tokens is not lost in rounding.
        """
        q, k, v = (_normal((length, self.width), generator) for _ in range(3))
        return q, k, v.add_(1)

    def narrowed(self, channels: slice) -> Mechanism:
        """A copy of some channels only, `unit` of them or a multiple; `narrowed_parts` are its arguments."""
        other = copy.copy(self)
        other._parameters = {
            name: None if p is None else nn.Parameter(_cut(p.detach(), self.axes.get(name, 0), channels))
            for name, p in self._parameters.items()
        }
        other._modules = {
            name: module.narrowed(channels) if isinstance(module, Mechanism) else module
            for name, module in self._modules.items()
        }
        other.width = len(range(*channels.indices(self.width)))
        return other

    def narrowed_parts(self, parts: Parts, channels: slice) -> Parts:
        """The arguments of `narrowed(channels).mix`."""
        return tuple(part[..., channels] for part in parts)

    def runs(self, device: torch.device, dtype: torch.dtype) -> str:
        """What computes `mix` there, in a word or two."""
        return "torch"


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)


def _cut(x: Tensor, axis: int, part: slice) -> Tensor:
    return x[(slice(None),) * axis + (part,)].contiguous()


class AFTSimple(Mechanism):
    """AFT-simple (Zhai et al., 2021): every token sees one and the same weighted mean, through its own gate."""

    coefficient, copies = 7, 6.5

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # type: ignore[override]
        weights = torch.exp(k - k.amax(0))
        mean = (weights * v).sum(0) / weights.sum(0)
        return torch.sigmoid(q) * mean

    def definition(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # type: ignore[override]
        """Equation 5: sigmoid(q_t) * sum_i exp(k_i) v_i / sum_i exp(k_i)."""
        weights = torch.exp(k) / torch.exp(k).sum(0)
        return torch.stack([torch.sigmoid(q[t]) * sum(weights[i] * v[i] for i in range(len(k))) for t in range(len(q))])


class BiWKV(Mechanism):
    """Bidirectional WKV, our op (`lalic_kernels.biwkv`), decay and bonus divided by the number of tokens."""

    coefficient, copies = 29, 3.5

    def __init__(self, width: int):
        super().__init__(width)
        self.decay = nn.Parameter(torch.randn(width))
        self.boost = nn.Parameter(torch.randn(width))

    def mix(self, k: Tensor, v: Tensor) -> Tensor:  # type: ignore[override]
        return lalic_kernels.biwkv(self.decay / len(k), self.boost / len(k), k[None], v[None])[0]

    def definition(self, k: Tensor, v: Tensor) -> Tensor:  # type: ignore[override]
        w, u = self.decay / len(k), self.boost / len(k)
        return lalic_kernels.biwkv(w, u, k[None], v[None], backend="reference")[0]

    def sample(self, length: int, generator: torch.Generator) -> Parts:
        return super().sample(length, generator)[1:]

    def runs(self, device: torch.device, dtype: torch.dtype) -> str:
        return "lalic_kernels"


class Shifted(Mechanism):
    """A mechanism between the two 5x5 shifts of a block: of what it is given, and of what the channel mix is given.

    In `mix` the arguments are x, which is shifted, and those of the mechanism.
    """

    def __init__(self, width: int, inner: Mechanism):
        super().__init__(width)
        self.inner = inner
        self.before = nn.Parameter(torch.randn(width, 5, 5) / 5)
        self.after = nn.Parameter(torch.randn(width, 5, 5) / 5)
        self.coefficient, self.copies = inner.coefficient + 50, inner.copies + 3

    def _shift(self, x: Tensor, weight: Tensor) -> Tensor:
        return lalic_kernels.token_shift(x.view(1, *grid(len(x)), -1), weight).view_as(x)

    def mix(self, x: Tensor, *parts: Tensor) -> Tensor:  # type: ignore[override]
        self._shift(x, self.before)
        return self._shift(self.inner.mix(*parts), self.after)

    def definition(self, x: Tensor, *parts: Tensor) -> Tensor:  # type: ignore[override]
        image = self.inner.definition(*parts).view(1, *grid(len(x)), -1)
        return lalic_kernels.token_shift(image, self.after, backend="reference").view_as(x)

    def sample(self, length: int, generator: torch.Generator) -> Parts:
        return (_normal((length, self.width), generator), *self.inner.sample(length, generator))

    def runs(self, device: torch.device, dtype: torch.dtype) -> str:
        inner = self.inner.runs(device, dtype)
        return inner if inner == "lalic_kernels" else f"{inner}, lalic_kernels"


class WindowAttention(Mechanism):
    """Softmax attention inside windows of 8 x 8 (Swin, Liu et al. 2021), heads of 32 channels; no bias, no shift."""

    coefficient, copies, unit = 128, 8, 32
    window = 8

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # type: ignore[override]
        rows, columns = grid(len(q))
        w, head = self.window, self.unit
        if rows % w or columns % w:
            raise ValueError(f"x: expected tokens on a grid of whole windows of {w} x {w}, got {rows} x {columns}")

        def windows(x: Tensor) -> Tensor:  # (L, D) -> (windows, heads, w * w, head)
            cut = x.view(rows // w, w, columns // w, w, -1, head).permute(0, 2, 4, 1, 3, 5)
            return cut.reshape(-1, self.width // head, w * w, head)

        y = F.scaled_dot_product_attention(windows(q), windows(k), windows(v))
        y = y.view(rows // w, columns // w, -1, w, w, head).permute(0, 3, 1, 4, 2, 5)
        return y.reshape(q.shape)

    def definition(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # type: ignore[override]
        """Attention over all tokens, with -inf outside the query's own window."""
        w, head, (_, width) = self.window, self.unit, grid(len(q))
        place = torch.arange(len(q))
        row, column = place // width, place % width
        own = (row // w) * width + column // w
        outside = own[:, None] != own[None, :]
        parts = []
        for one in range(0, q.shape[1], head):
            part = slice(one, one + head)
            scores = (q[:, part] @ k[:, part].T / math.sqrt(head)).masked_fill(outside, -math.inf)
            parts.append(torch.softmax(scores, 1) @ v[:, part])
        return torch.cat(parts, 1)


class SelectiveScan(Mechanism):
    """Selective scan (Mamba) with N = 16 states a channel."""

    coefficient, copies = 9 * 16, 4
    states, directions = 16, 1
    axes = {"A_log": 1, "skip": 1}  # noqa: RUF012

    def __init__(self, width: int):
        super().__init__(width)
        count = self.directions
        # As Mamba starts: rates 1 .. N.
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, self.states + 1)).repeat(count, width, 1))
        self.skip = nn.Parameter(torch.ones(count, width))

    def _scan(self, number: int, u: Tensor, delta: Tensor, B: Tensor, C: Tensor) -> Tensor:
        return selective_scan(u, delta, -torch.exp(self.A_log[number]), B, C, self.skip[number])

    def mix(self, u: Tensor, delta: Tensor, B: Tensor, C: Tensor) -> Tensor:  # type: ignore[override]
        return self._scan(0, u, delta, B, C)

    def definition(self, *parts: Tensor) -> Tensor:
        u, delta, B, C = parts
        return recurrence(u, delta, -torch.exp(self.A_log[0]), B, C, self.skip[0])

    def sample(self, length: int, generator: torch.Generator) -> Parts:
        shape = () if self.directions == 1 else (self.directions,)
        u = _normal((length, self.width), generator)
        delta = torch.rand((*shape, length, self.width), generator=generator, device=generator.device).mul_(0.1)
        B, C = (_normal((*shape, length, self.states), generator) for _ in range(2))
        return u, delta, B, C

    def narrowed_parts(self, parts: Parts, channels: slice) -> Parts:
        u, delta, B, C = parts
        return u[..., channels], delta[..., channels], B, C

    def runs(self, device: torch.device, dtype: torch.dtype) -> str:
        return implementation(device, dtype)


class SelectiveScan2D(SelectiveScan):
    """SS2D (VMamba, Liu et al. 2024): the sum of four scans, by rows, by columns, and both backwards.

    In `mix` u is by rows; delta (4, L, D), B and C (4, L, N) are each in their scan's order.
    """

    coefficient, directions, copies = 4 * 9 * 16, 4, 11

    @staticmethod
    def _along(x: Tensor, number: int) -> Tensor:
        if number % 2:
            x = x.view(*grid(len(x)), -1).transpose(0, 1).reshape(x.shape)
        return x.flip(0) if number >= 2 else x

    @staticmethod
    def _back(y: Tensor, number: int) -> Tensor:
        y = y.flip(0) if number >= 2 else y
        rows, columns = grid(len(y))
        return y.view(columns, rows, -1).transpose(0, 1).reshape(y.shape) if number % 2 else y

    def mix(self, u: Tensor, delta: Tensor, B: Tensor, C: Tensor) -> Tensor:  # type: ignore[override]
        y = self._scan(0, u, delta[0], B[0], C[0])
        for number in range(1, 4):
            along = self._scan(number, self._along(u, number), delta[number], B[number], C[number])
            y += self._back(along, number)
        return y

    def definition(self, *parts: Tensor) -> Tensor:
        u, delta, B, C = parts
        height, width = grid(len(u))
        rows = torch.arange(len(u))
        columns = rows.view(height, width).T.flatten()
        y = torch.zeros_like(u)
        for number, path in enumerate((rows, columns, rows.flip(0), columns.flip(0))):
            rates = -torch.exp(self.A_log[number])
            y[path] += recurrence(u[path], delta[number], rates, B[number], C[number], self.skip[number])
        return y


MECHANISMS: dict[str, Callable[[int], Mechanism]] = {
    "AFT-simple": AFTSimple,
    "AFT-simple + shift": lambda width: Shifted(width, AFTSimple(width)),
    "BiWKV + shift": lambda width: Shifted(width, BiWKV(width)),
    "window attention": WindowAttention,
    "selective scan": SelectiveScan,
    "selective scan 2D": SelectiveScan2D,
}
"""Table 5, from its first row to its last: by name, a module of a width."""
