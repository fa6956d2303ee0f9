"""Coding through the host: the model computes on its device, symbols are entropy-coded on the CPU, pass by pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from lalic.coder.engines import exact_entropy, float_state
from lalic.coder.schedule import Collect, GpuRead, PassCoder, Read, check_magnitudes, code_slices
from lalic.coder.stream import Decoded, Stream, as_bitstream_errors, check_symbols, checksum_of
from lalic.coder.tables import gaussian_tables
from lalic.errors import BitstreamError
from lalic_kernels import rans

if TYPE_CHECKING:
    from lalic.model import LALIC


class Symbols(NamedTuple):
    """Symbols of a batch: (symbols, table rows) of z and of each pass of y, each (B, n) int32 on the CPU, and y_hat.

    z has rows of the prior's tables, y of the Gaussian tables. y_hat: (B, M, h, w).
    """

    z: tuple[Tensor, Tensor]
    passes: list[tuple[Tensor, Tensor]]
    y_hat: Tensor


def symbols_of(model: LALIC, y: Tensor, quality: float | Tensor | None) -> Symbols:
    """Symbols of latents y (B, M, h, w), before gains. Raises ``LalicError`` for latents that cannot be coded."""
    y = model.gain(y, model.as_qualities(quality, y.shape[0]))
    return symbols_of_gained(model, y, model.hyper_latents(y))


def symbols_of_gained(model: LALIC, y: Tensor, z: Tensor) -> Symbols:
    """Symbols of gained latents y (B, M, h, w) with any hyper latents z (B, C, h / 4, w / 4), else as `symbols_of`."""
    z = torch.round(z - model.medians)
    check_magnitudes("z", z)
    check_magnitudes("y", y)
    coder = Collect(y, model.config.groups)
    y_hat = decode_latents(model, z, coder)
    rows = z_rows(model.config.dims[5], z.shape[2] * z.shape[3]).expand(z.shape[0], -1)
    return Symbols((z.flatten(1).to(torch.int32).cpu(), rows), coder.passes, y_hat)


def decode_latents(model: LALIC, z: Tensor, coder: PassCoder | GpuRead) -> Tensor:
    """Symbols z (B, C, h, w), in any dtype -> y_hat (B, M, 4 h, 4 w), all slices through the pass coder."""
    if model.entropy == "exact":
        return exact_entropy(model.latent_codec).code(z, coder)
    if model.entropy != "float":
        raise ValueError(f'entropy: expected "exact" or "float", got {model.entropy!r}')
    params = model.latent_codec.hyper_parameters(z + model.medians)
    return code_slices(float_state(model.latent_codec.y, params), coder)


def z_rows(channels: int, positions: int) -> Tensor:
    """Row of the prior's tables for every symbol of z, which is its channel: (channels * positions,) int32."""
    return torch.arange(channels, dtype=torch.int32, device="cpu").repeat_interleave(positions)


def stream_of(model: LALIC, coded: Symbols) -> Stream:
    """The stream of one picture's symbols."""
    z, rows = coded.z[0][0], coded.z[1][0] + gaussian_tables().rows
    sections = [(z, rows), *((symbols[0], indexes[0]) for symbols, indexes in coded.passes)]
    checksum = checksum_of(z, torch.cat([symbols for symbols, _ in sections]))
    return Stream(rans.encode(sections, model.tables()), checksum)


class HostCoder:
    """The `lalic.coder.Coder` that codes symbols on the CPU, for a model on any device."""

    def __init__(self, model: LALIC):
        self.model = model

    def encode(self, x: Tensor, quality: float | None) -> Stream:
        """The stream of one picture x (1, 3, H, W)."""
        return self.encode_latents(self.model.latents(x), quality)

    def encode_latents(self, y: Tensor, quality: float | None) -> Stream:
        """The stream of a picture's latents y (1, M, h, w)."""
        return stream_of(self.model, symbols_of(self.model, y, quality))

    def decode(
        self, streams: Sequence[Stream], size: tuple[int, int], qualities: Sequence[float | None]
    ) -> list[Tensor | BitstreamError]:
        """Pictures (1, 3, H, W) in [0, 1], one by one; for a damaged stream its error. size: of hyper latents."""
        results: list[Tensor | BitstreamError] = []
        for stream, quality in zip(streams, qualities, strict=True):
            (found,) = self.read_latents([stream], size)
            if not isinstance(found, BitstreamError):
                found = self.synthesise(found, self.model.as_qualities(quality, 1))
            results.append(found)
        return results

    def read_latents(self, streams: Sequence[Stream], size: tuple[int, int]) -> list[Tensor | BitstreamError]:
        """y_hat (1, M, h, w) of tiles of one size, one by one; for a damaged stream its error."""
        results: list[Tensor | BitstreamError] = []
        for stream in streams:
            try:
                results.append(self.read(stream, size).y_hat)
            except BitstreamError as error:
                results.append(error)
        return results

    def latents(self, x: Tensor) -> Tensor:
        """y (B, M, H / 16, W / 16) of pictures x (B, 3, H, W), before gains."""
        return self.model.latents(x)

    def synthesise(self, y_hat: Tensor, qualities: Tensor | None) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] of decoded latents y_hat (B, M, h, w). qualities: from `as_qualities`."""
        qualities = None if qualities is None else qualities.to(y_hat.device)
        return self.model.synthesise(y_hat, qualities).clamp_(0, 1)

    def read(self, stream: Stream, size: tuple[int, int]) -> Decoded:
        """Decode without the synthesis transform. Raises ``BitstreamError``. size: of hyper latents."""
        model = self.model
        passes: list[Tensor] = []

        def take(_: int, indexes: Tensor) -> Tensor:
            passes.append(torch.from_numpy(decoder.decode(indexes[0])))
            return passes[-1][None]

        with as_bitstream_errors(model.entropy):
            decoder = rans.Decoder(stream.data, model.tables())
            rows = z_rows(model.config.dims[5], size[0] * size[1]) + gaussian_tables().rows
            z = torch.from_numpy(decoder.decode(rows))
            check_symbols(checksum_of(z, z), stream, model.entropy, z_only=True)
            y_hat = decode_latents(model, z.reshape(1, -1, *size).to(model.medians), Read(take))
            decoder.finish()
        symbols = torch.cat([z, *passes])
        check_symbols(checksum_of(z, symbols), stream, model.entropy)
        return Decoded(y_hat, symbols)
