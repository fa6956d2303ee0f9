"""Coding the latents slice by slice, two checkerboard passes each: one loop for training, encoder and decoder.

`lalic.coder.decoder.SliceDecoder` says what a pass knows, and what is kept from one to the next. What happens to
(scales, means) is the coder's business: `Estimate` knows y and gives likelihoods, `Collect` knows y and keeps
symbols, `Read` and `ReadThere` take them from streams. As the loop is the same, so is every number in it.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

import lalic_kernels
from lalic.coder.decoder import ReadThere, SliceDecoder
from lalic.coder.engine import FLOAT, Engine
from lalic.errors import BitstreamError, LalicError
from lalic.nn.context import SliceStack, full_precision, interleave, pack
from lalic.nn.noise import ALL, Share, uniform_like
from lalic_kernels.rans.checksum import symbol_checksum


class SliceCoder(Protocol):
    """Called once a pass. scales, means (B, h, w / 2, g) -> y_hat at those positions, same shape.

    An engine whose head makes indexes of the scales gives those in their place, int32.
    """

    def __call__(self, k: int, parity: int, scales: Tensor, means: Tensor) -> Tensor: ...


def code_slices(stack: SliceStack, params: Tensor, coder: SliceCoder | ReadThere, engine: Engine = FLOAT) -> Tensor:
    """Run all slices. params (B, M, h, w) from h_s, h and w even -> y_hat (B, M, h, w), channels last."""
    return run_slices(SliceDecoder(stack, params, engine), coder)


def run_slices(state: SliceDecoder, coder: SliceCoder | ReadThere) -> Tensor:
    """All slices of a fresh state: y_hat."""
    for k in range(len(state.weights.slices)):
        for parity in (0, 1):
            if isinstance(coder, ReadThere):
                state.take(coder)
            else:
                state.add(coder(k, parity, *state.parameters()))
    return state.y_hat()


class _KnowsLatents:
    def __init__(self, y: Tensor, groups: Sequence[int]):
        self.slices = full_precision(y).permute(0, 2, 3, 1).split(list(groups), dim=3)


class Estimate(_KnowsLatents):
    """Rounds y and keeps its likelihoods. In training the rate sees noise and rounding passes gradients."""

    def __init__(self, y: Tensor, groups: Sequence[int], training: bool, share: Share = ALL):
        super().__init__(y, groups)
        self.training, self.share = training, share
        self._likelihoods: list[Tensor] = []

    def __call__(self, k: int, parity: int, scales: Tensor, means: Tensor) -> Tensor:
        y = pack(self.slices[k], parity)
        t = y - means
        y_hat = ((torch.round(t) - t).detach() + t) + means if self.training else torch.round(t) + means
        seen = y + uniform_like(y, self.share) if self.training else y_hat
        self._likelihoods.append(lalic_kernels.gaussian_likelihood(seen, scales, means))
        return y_hat

    def likelihoods(self) -> Tensor:
        """Probability of every latent, shape (B, M, h, w)."""
        pairs = zip(self._likelihoods[0::2], self._likelihoods[1::2], strict=True)
        return torch.cat([interleave(anchors, others) for anchors, others in pairs], dim=3).permute(0, 3, 1, 2)


def _rows(scales: Tensor) -> Tensor:
    """Rows of the Gaussian tables, int32: of the scales, unless an engine has made them already."""
    return lalic_kernels.scale_index(scales) if scales.is_floating_point() else scales


def _stream_order(x: Tensor) -> Tensor:
    """(B, h, w / 2, g) -> (B, g * h * w / 2) int32, in the order channel, row, place in the row."""
    return x.permute(0, 3, 1, 2).flatten(1).to(torch.int32)


class Collect(_KnowsLatents):
    """Rounds y against the means and keeps symbols and indexes. Nothing waits for the device before `passes`.

    kept: (symbols, indexes) where the model computes, each (B, n) int32, a pair a pass. largest: of each pass the
    largest magnitude, for `check_symbols`; what is kept means something if that raises nothing.
    """

    def __init__(self, y: Tensor, groups: Sequence[int]):
        super().__init__(y, groups)
        self.kept: list[tuple[Tensor, Tensor]] = []
        self.largest: list[Tensor] = []

    def __call__(self, k: int, parity: int, scales: Tensor, means: Tensor) -> Tensor:
        symbols = torch.round(pack(self.slices[k], parity) - means)
        self.largest.append(symbols.abs().amax())
        self.kept.append((_stream_order(symbols), _stream_order(_rows(scales))))
        return symbols.to(means) + means

    @cached_property
    def passes(self) -> list[tuple[Tensor, Tensor]]:
        """(symbols, indexes) on the CPU, each (B, n) int32, a pair a pass. Raises as `check_symbols` does."""
        check_symbols("y", torch.stack(self.largest))
        return [(symbols.cpu(), indexes.cpu()) for symbols, indexes in self.kept]


class Read:
    """Takes symbols from ``read(pass number, indexes (B, n) int32) -> symbols (B, n) int32``, both on the CPU.

    An engine that makes rows of the scales looks at the means itself.
    """

    def __init__(self, read: Callable[[int, Tensor], Tensor]):
        self.read = read

    def __call__(self, k: int, parity: int, scales: Tensor, means: Tensor) -> Tensor:
        B, h, half, g = means.shape
        rows = _rows(scales)
        if scales.is_floating_point():  # a mean that is not finite shows as an index that no table has
            rows = torch.where(torch.isfinite(means), rows, -1)
        indexes = _stream_order(rows).cpu()
        if scales.is_floating_point() and int(indexes.min()) < 0:
            raise BitstreamError("the file does not decode with these weights: a predicted mean is not finite")
        symbols = self.read(2 * k + parity, indexes)
        return symbols.reshape(B, g, h, half).permute(0, 2, 3, 1).to(means) + means


def check_symbols(name: str, symbols: Tensor) -> None:
    """Raise ``LalicError`` unless rounded values fit the coder; such a picture or such weights cannot be coded."""
    largest = float(symbols.detach().abs().max()) if symbols.numel() else 0.0
    if not largest < 2**24:  # also when not finite; floats count exactly up to here
        raise LalicError(f"{name}: latents of magnitude {largest:g} cannot be coded; expected finite values below 2^24")


class Checksum:
    """48 bits over all symbols of one picture in coding order, z first: 16 over z alone, then 32 over everything.

    They are low bits of `lalic_kernels.rans.checksum.symbol_checksum`, which a GPU computes as it decodes. Beside them
    a SHA-256 over the symbols as little-endian int32, for people who compare machines.
    """

    def __init__(self) -> None:
        self._sum = self._z = self._count = 0
        self.sha256 = hashlib.sha256()

    def add(self, symbols: Tensor) -> None:
        """Append symbols (n,) int32, on the CPU."""
        self._add(symbols)
        self._count += symbols.numel()
        self.sha256.update(np.ascontiguousarray(symbols.numpy(), dtype="<i4").tobytes())

    def _add(self, symbols: Tensor) -> None:
        self._sum = self._sum + int(symbol_checksum(symbols[None], self._count)) & 0xFFFFFFFF

    def end_of_z(self) -> int:
        """All symbols of z have been added; their 16 bits."""
        self._z = self._sum & 0xFFFF
        return self._z

    @property
    def value(self) -> int:
        return self._z << 32 | self._sum


class CrcChecksum(Checksum):
    """As files of version 1 have it: low bits of the CRC-32 over the symbols as little-endian int32."""

    def _add(self, symbols: Tensor) -> None:
        self._sum = zlib.crc32(np.ascontiguousarray(symbols.numpy(), dtype="<i4").tobytes(), self._sum)
