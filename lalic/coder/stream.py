"""Streams, the results of decoding them, and their errors."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lalic.errors import BitstreamError
from lalic_kernels import exact
from lalic_kernels.rans import RansError, symbol_checksum


@dataclass(frozen=True)
class Stream:
    """One picture's hyper latents and latents, entropy-coded together. checksum: `SymbolChecksum.value`."""

    data: bytes
    checksum: int


@dataclass(frozen=True)
class Decoded:
    """A decoded stream: y_hat (1, M, h, w), and SHA-256 of the symbols in coding order, z first (64 hex digits)."""

    y_hat: Tensor
    symbols_sha256: str


class SymbolChecksum:
    """48 bits over all symbols of one picture in coding order, z first: 16 over z alone, then 32 over all.

    They are low bits of `lalic_kernels.rans.symbol_checksum`, which a GPU computes while it decodes. `sha256` is over
    the symbols as little-endian int32, to compare machines.
    """

    def __init__(self) -> None:
        self._sum = self._z = self._count = 0
        self.sha256 = hashlib.sha256()

    def add(self, symbols: Tensor) -> None:
        """Append symbols (n,) int32, on the CPU."""
        self._sum = self._sum + int(symbol_checksum(symbols[None], self._count)) & 0xFFFFFFFF
        self._count += symbols.numel()
        self.sha256.update(np.ascontiguousarray(symbols.numpy(), dtype="<i4").tobytes())

    def end_of_z(self) -> None:
        """Call it when all symbols of z have been added."""
        self._z = self._sum & 0xFFFF

    @property
    def value(self) -> int:
        """48 bits: 16 of z, then 32 of all symbols."""
        return joined_sums(self._z, self._sum)


def joined_sums(z: int, everything: int) -> int:
    """`SymbolChecksum.value` from two results of `symbol_checksum`: of z, and of all symbols."""
    return (z & 0xFFFF) << 32 | everything & 0xFFFFFFFF


def check_symbols(checksum: int, stream: Stream, entropy: str, *, z_only: bool = False) -> None:
    """Raise ``BitstreamError`` if `checksum`, `SymbolChecksum.value` of the decoded symbols, is not the stream's.

    entropy: `LALIC.entropy`, which decides what the message names as possible causes. z_only: only z has been decoded.
    """
    if checksum >> 32 != stream.checksum >> 32:
        raise BitstreamError(
            f"the decoded symbols of z are not the encoder's (expected checksum {stream.checksum >> 32:04x}): "
            f"{_possible_causes(entropy)}"
        )
    if not z_only and checksum != stream.checksum:
        raise BitstreamError(
            f"the decoded symbols are not the encoder's (checksum {checksum & 0xFFFFFFFF:08x}, expected "
            f"{stream.checksum & 0xFFFFFFFF:08x}): {_possible_causes(entropy)}"
        )


@contextlib.contextmanager
def as_bitstream_errors(entropy: str) -> Iterator[None]:
    """Raise errors of the entropy coder and of exact arithmetic as ``BitstreamError``. entropy: `LALIC.entropy`."""
    try:
        yield
    except RansError as error:
        raise BitstreamError(f"the symbols cannot be decoded: {error}; {_possible_causes(entropy)}") from error
    except exact.NotFinite as error:
        raise BitstreamError(f"the file does not decode with these weights: {error}") from error


def _possible_causes(entropy: str) -> str:
    if entropy == "exact":
        return "the data is damaged, or an encoder or this decoder departs from the exact arithmetic"
    return "the data is damaged, or the floating point of the encoder's machine differs from this one's"
