"""Streams, the results of decoding them, and their errors."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from lalic.errors import BitstreamError
from lalic_kernels import exact
from lalic_kernels.rans import RansError, symbol_checksum


@dataclass(frozen=True)
class Stream:
    """One picture's hyper latents and latents, entropy-coded together. checksum: `checksum_of` its symbols."""

    data: bytes
    checksum: int


@dataclass(frozen=True)
class Decoded:
    """A decoded stream: y_hat (1, M, h, w), and all symbols in coding order, z first, (n,) int32 on the CPU."""

    y_hat: Tensor
    symbols: Tensor

    @property
    def symbols_sha256(self) -> str:
        """SHA-256 of the symbols as little-endian int32, to compare machines: 64 hex digits."""
        return hashlib.sha256(self.symbols.numpy().astype("<i4").tobytes()).hexdigest()


def checksum_of(z: Tensor, symbols: Tensor) -> int:
    """48 bits over the symbols of one picture, (n,) int32, of which z are the first: 16 of z alone, then 32 of all.

    They are low bits of `lalic_kernels.rans.symbol_checksum`, which a GPU computes while it decodes.
    """
    return joined_sums(int(symbol_checksum(z[None])), int(symbol_checksum(symbols[None])))


def joined_sums(z: int, everything: int) -> int:
    """`checksum_of` from two results of `symbol_checksum`: of z, and of all symbols."""
    return (z & 0xFFFF) << 32 | everything & 0xFFFFFFFF


def check_symbols(checksum: int, stream: Stream, entropy: str, *, z_only: bool = False) -> None:
    """Raise ``BitstreamError`` if `checksum`, `checksum_of` the decoded symbols, is not the stream's.

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
