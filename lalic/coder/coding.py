"""Between latents and bytes: what `lalic.model.LALIC` does besides its transforms."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lalic.coder import gpu_decode, gpu_encode
from lalic.coder.exact import exact_entropy
from lalic.coder.graphs import Launching
from lalic.coder.slices import (
    Checksum,
    Collect,
    CrcChecksum,
    Read,
    SliceCoder,
    check_symbols,
    code_slices,
)
from lalic.coder.tables import gaussian_tables
from lalic.config import Config
from lalic.errors import BitstreamError
from lalic_kernels import exact, installed
from lalic_kernels.cache import WeightCache
from lalic_kernels.rans import CodingTables, Decoder, RansError, encode, grouped

if TYPE_CHECKING:
    from lalic_kernels.rans.grouped.gpu import DeviceDecoder

Sections = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class EncodedSections:
    """One picture's streams, and `Checksum` of all their symbols.

    One stream holds hyper latents and then latents. Two, hyper latents' and latents', are what files of version 1 have.
    """

    streams: tuple[bytes, ...]
    checksum: int


@dataclass(frozen=True)
class DecodedSections:
    """What the symbols of one picture say: y_hat (1, M, h, w), and SHA-256 of the symbols in coding order, z first."""

    y_hat: Tensor
    symbols_sha256: str


class Coding(nn.Module):
    """The half of a model that makes streams of pictures and reads them; `LALIC` is the other, and says what is what.

    It needs a model's `latent_codec` and `h_s`, and the methods below that raise ``NotImplementedError``.
    """

    downsampling = 64
    config: Config
    latent_codec: Any
    h_s: nn.Module
    entropy: str
    graphs: bool | None  # as `decode_sections` has graph
    _cache: WeightCache
    _launching: Launching

    def latents(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W) -> y (B, M, H / 16, W / 16), before gains and rounding: the same for every quality."""
        raise NotImplementedError

    def _hyper_latents(self, y: Tensor) -> Tensor:
        """Gained latents -> hyper latents, not rounded."""
        raise NotImplementedError

    def _gained(self, y: Tensor, quality: float | Tensor | None) -> Tensor:
        """Latents as they are coded."""
        raise NotImplementedError

    def _synthesise(self, y_hat: Tensor, quality: float | Tensor | None) -> Tensor:
        """The picture behind decoded latents, not clamped."""
        raise NotImplementedError

    def _gained_at(self, y: Tensor, qualities: Tensor | None) -> Tensor:
        """`_gained` at what `_levels` gave, on the device. Nothing waits for the device."""
        raise NotImplementedError

    def _levels(self, qualities: Sequence[float | None]) -> Tensor | None:
        """Qualities (B,) float32 on the CPU, looked at; None for a model of one quality."""
        raise NotImplementedError

    def _synthesise_at(self, y_hat: Tensor, qualities: Tensor | None) -> Tensor:
        """`_synthesise` at what `_levels` gave, on the device. Nothing waits for the device."""
        raise NotImplementedError

    # Tensors to bytes

    @torch.no_grad()
    def compress(self, x: Tensor, quality: float | Tensor | None = None) -> dict[str, Any]:
        """x (B, 3, H, W) -> ``{"strings", "shape", "y_hat"}``.

        ``strings`` is a list of 2 * slices + 1 lists (each slice's anchors and others, then z) of one ``bytes`` per
        picture; ``shape`` is ``{"y": [(g, h, w), ...], "hyper": (h / 4, w / 4)}``. Each stream stands for itself;
        `encode_sections` makes the smaller streams that files hold.
        """
        y_passes, z_pass, y_hat = self._symbols(x, quality)
        tables = [gaussian_tables()] * len(y_passes) + [self._bottleneck_tables()]
        strings = [
            [encode([(s, i)], table) for s, i in zip(*section, strict=True)]
            for section, table in zip([*y_passes, z_pass], tables, strict=True)
        ]
        h, w = y_hat.shape[2:]
        shape = {"y": [torch.Size((g, h, w)) for g in self.config.groups], "hyper": torch.Size((h // 4, w // 4))}
        return {"strings": strings, "shape": shape, "y_hat": y_hat}

    @torch.no_grad()
    def decompress(
        self, strings: Sequence[Sequence[bytes]], shape: Mapping[str, Any], quality: float | Tensor | None = None
    ) -> dict[str, Tensor]:
        """Inverse of `compress`: ``{"x_hat": (B, 3, H, W)}`` clamped to [0, 1]. Raises ``BitstreamError``."""
        return {"x_hat": self._synthesise(self.decode_strings(strings, shape), quality).clamp_(0, 1)}

    @torch.no_grad()
    def decode_strings(self, strings: Sequence[Sequence[bytes]], shape: Mapping[str, Any]) -> Tensor:
        """`decompress` up to y_hat (B, M, h, w), which is the encoder's to the last bit."""
        count = 2 * len(self.config.groups) + 1
        if len(strings) != count or len({len(s) for s in strings}) != 1 or not strings[0]:
            raise ValueError(f"strings: expected {count} lists of one bytes a picture, got {[len(s) for s in strings]}")
        size = tuple(int(n) for n in shape["hyper"])

        def read(number: int, indexes: Tensor) -> Tensor:
            table = gaussian_tables() if number < count - 1 else self._bottleneck_tables()
            rows = []
            for data, row in zip(strings[number], indexes, strict=True):
                decoder = Decoder(data, table)
                rows.append(torch.from_numpy(decoder.decode(row)))
                decoder.finish()
            return torch.stack(rows)

        try:
            z = read(count - 1, self._z_indexes(len(strings[0]), size))
            y_hat = self._decode_latents(z, size, Read(read))
        except RansError as error:
            raise BitstreamError(f"strings: {error}") from error
        return y_hat

    @torch.no_grad()
    def encode_sections(self, x: Tensor, quality: float | None = None, *, graph: bool | None = None) -> EncodedSections:
        """Streams of one picture x (1, 3, H, W), as files hold them: all in one, so lanes are paid for once.

        On a GPU symbols are coded there, to the same bytes; graph: as of `decode_sections`.
        """
        if self.entropy == "exact" and _decodes_there(self._coding_device()):
            self._check_one(x)
            return self._encode_there(x, True, quality, graph)
        return self.encode_latents(self.latents(x), quality, graph=graph)

    @torch.no_grad()
    def encode_latents(self, y: Tensor, quality: float | None = None, *, graph: bool | None = None) -> EncodedSections:
        """`encode_sections` of a picture whose `latents` y (1, M, H / 16, W / 16) are known."""
        self._check_one(y)
        if self.entropy == "exact" and _decodes_there(self._coding_device()):
            return self._encode_there(y, False, quality, graph)
        if graph:
            raise ValueError("graph: expected None or False where symbols are not coded on a GPU, got True")
        y_passes, z_pass, _ = self._latent_symbols(y, quality)
        checksum = Checksum()
        checksum.add(z_pass[0][0])
        checksum.end_of_z()
        for symbols, _ in y_passes:
            checksum.add(symbols[0])
        z_rows = z_pass[1] + gaussian_tables().rows
        sections = [(s[0], i[0]) for s, i in [(z_pass[0], z_rows), *y_passes]]
        return EncodedSections((grouped.encode(sections, self._joined_tables()),), checksum.value)

    def _check_one(self, x: Tensor) -> None:
        if x.shape[0] != 1:
            raise ValueError(f"x: expected one picture, shape (1, 3, H, W), got {x.shape[0]} of them")

    def _encode_there(self, x: Tensor, analyse: bool, quality: float | None, graph: bool | None) -> EncodedSections:
        graph = self.graphs if graph is None else graph
        return EncodedSections(*gpu_encode.encode(self, x, analyse, quality, graph))

    @torch.no_grad()
    def decode_sections(
        self,
        streams: Sequence[bytes],
        height: int,
        width: int,
        checksum: int,
        quality: float | None = None,
        *,
        graph: bool | None = None,
    ) -> Tensor:
        """Inverse of `encode_sections`: x_hat (1, 3, height, width) clamped to [0, 1].

        graph: on a GPU, True for launches captured as a CUDA graph, False for plain ones; None for what `graphs` says,
        and if that is None too, a graph from the second picture of a size on (docs/gpu-decoder.md).

        Raises ``BitstreamError`` when a stream is malformed or the symbols are not the encoder's; never returns a wrong
        picture. On a GPU nothing waits for the device before the picture is done, and then what went wrong is raised.
        """
        device = self._coding_device()
        if len(streams) == 1 and _decodes_there(device):
            size = self._latent_size(height, width)
            (found,) = self._pictures_there(streams, size, device, [checksum], [quality], graph)
            if isinstance(found, BitstreamError):
                raise found
            return found
        if graph:
            raise ValueError("graph: expected None or False where symbols are not decoded on a GPU, got True")
        y_hat = self.read_sections(streams, height, width, checksum).y_hat
        return self._synthesise(y_hat, quality).clamp_(0, 1)

    @torch.no_grad()
    def decode_batch(
        self,
        streams: Sequence[bytes],
        height: int,
        width: int,
        checksums: Sequence[int],
        qualities: Sequence[float | None],
        *,
        graph: bool | None = None,
    ) -> list[Tensor | BitstreamError]:
        """`decode_sections` of several pictures of one size, a stream each: the picture, or what is wrong with it.

        On a GPU all of them go through the launches of one. Raises ``ValueError`` for lists of different lengths.
        """
        if not len(streams) == len(checksums) == len(qualities):
            raise ValueError(
                f"streams, checksums, qualities: expected one of each a picture, got {len(streams)}, {len(checksums)} "
                f"and {len(qualities)}"
            )
        device = self._coding_device()
        if streams and _decodes_there(device):
            return self._pictures_there(
                streams, self._latent_size(height, width), device, checksums, qualities, graph
            )  # fmt: skip
        found: list[Tensor | BitstreamError] = []
        for stream, checksum, quality in zip(streams, checksums, qualities, strict=True):
            try:
                found.append(self.decode_sections((stream,), height, width, checksum, quality, graph=graph))
            except BitstreamError as error:
                found.append(error)
        return found

    @torch.no_grad()
    def read_sections(self, streams: Sequence[bytes], height: int, width: int, checksum: int) -> DecodedSections:
        """`decode_sections` without the synthesis transform. With exact arithmetic the same bits on every machine."""
        size = self._latent_size(height, width)
        found = Checksum() if len(streams) == 1 else CrcChecksum()
        device = self._coding_device()
        with self._named_faults():
            if len(streams) == 1 and _decodes_there(device):
                decoder, y_hat = self._read_there(streams[0], size, device)
                decoder.finish()
                symbols = [section[0].cpu() for section in decoder.symbols()]
                found.add(symbols[0])
                self._check_z(found.end_of_z(), checksum)
                found.add(torch.cat(symbols[1:]))
            else:
                y_hat = self._read_here(streams, size, found, checksum)
        self._check_all(found.value, checksum)
        return DecodedSections(y_hat, found.sha256.hexdigest())

    def _read_here(self, streams: Sequence[bytes], size: tuple[int, int], found: Checksum, checksum: int) -> Tensor:
        """y_hat; symbols go through the host, pass by pass, and into `found`."""
        z_decoder: Decoder | grouped.Decoder
        y_decoder: Decoder | grouped.Decoder
        if len(streams) == 1:
            z_decoder = y_decoder = grouped.Decoder(streams[0], self._joined_tables())
            z_first = gaussian_tables().rows
        else:
            z_decoder, z_first = Decoder(streams[0], self._bottleneck_tables()), 0
            y_decoder = Decoder(streams[1], gaussian_tables())

        def read(decoder: Decoder | grouped.Decoder, indexes: Tensor) -> Tensor:
            symbols = torch.from_numpy(decoder.decode(indexes[0]))
            found.add(symbols)
            return symbols[None]

        z_symbols = read(z_decoder, self._z_indexes(1, size) + z_first)
        if z_decoder is not y_decoder:
            z_decoder.finish()
        self._check_z(found.end_of_z(), checksum)
        y_hat = self._decode_latents(z_symbols, size, Read(lambda _, indexes: read(y_decoder, indexes)))
        y_decoder.finish()
        return y_hat

    def _pictures_there(
        self,
        streams: Sequence[bytes],
        size: tuple[int, int],
        device: torch.device,
        checksums: Sequence[int],
        qualities: Sequence[float | None],
        graph: bool | None = None,
    ) -> list[Tensor | BitstreamError]:
        """`decode_sections` of pictures of one size, a stream each; what is wrong with one is in its place."""
        graph = self.graphs if graph is None else graph
        return gpu_decode.pictures(self, streams, size, device, checksums, qualities, graph)

    def _read_there(self, stream: bytes, size: tuple[int, int], device: torch.device) -> tuple[DeviceDecoder, Tensor]:
        """The decoder, to be finished, and y_hat."""
        from lalic_kernels.rans.grouped.gpu import DeviceDecoder

        decoder = DeviceDecoder(stream, self._joined_tables(), device)
        rows = gpu_decode.z_rows(self.config.dims[5], size[0] * size[1], device)
        with self._launching:
            return decoder, gpu_decode.latents(self, decoder, size, rows)

    def _coding_device(self) -> torch.device:
        device: torch.device = self.latent_codec.hyper.entropy_bottleneck.quantiles.device
        return device

    def _latent_size(self, height: int, width: int) -> tuple[int, int]:
        """Of hyper latents."""
        step = self.downsampling
        if min(height, width) < step or height % step or width % step:
            raise ValueError(f"height, width: expected positive multiples of {step}, got {height}, {width}")
        return height // step, width // step

    @contextlib.contextmanager
    def _named_faults(self) -> Iterator[None]:
        """What a coder, or exact arithmetic at the end of many calls, says of a stream, as ``BitstreamError``."""
        try:
            yield
        except RansError as error:
            raise BitstreamError(f"the symbols cannot be decoded: {error}; {self._whose_fault()}") from error
        except exact.NotFinite as error:
            raise BitstreamError(f"the file does not decode with these weights: {error}") from error

    def _check_z(self, found: int, checksum: int) -> None:
        if found != checksum >> 32:
            raise BitstreamError(
                f"the decoded symbols of z are not the encoder's (expected checksum {checksum >> 32:04x}): "
                f"{self._whose_fault()}"
            )

    def _check_all(self, found: int, checksum: int) -> None:
        if found != checksum:
            raise BitstreamError(
                f"the decoded symbols are not the encoder's (checksum {found & 0xFFFFFFFF:08x}, expected "
                f"{checksum & 0xFFFFFFFF:08x}): {self._whose_fault()}"
            )

    def _whose_fault(self) -> str:
        if self.entropy == "exact":
            return "the data is damaged, or an encoder or this decoder departs from the exact arithmetic"
        return "the data is damaged, or the floating point of the encoder's machine differs from this one's"

    # Shared steps

    def _symbols(
        self, x: Tensor, quality: float | Tensor | None = None
    ) -> tuple[Sections, tuple[Tensor, Tensor], Tensor]:
        """(symbols, indexes) of each pass of y and of z, all (B, n) int32, and y_hat."""
        return self._latent_symbols(self.latents(x), quality)

    def _latent_symbols(
        self, y: Tensor, quality: float | Tensor | None
    ) -> tuple[Sections, tuple[Tensor, Tensor], Tensor]:
        prior = self.latent_codec.hyper.entropy_bottleneck
        y = self._gained(y, quality)
        medians = prior.medians().reshape(1, -1, 1, 1)
        z = torch.round(self._hyper_latents(y) - medians)
        check_symbols("z", z)
        check_symbols("y", y)
        coder = Collect(y, self.config.groups)
        y_hat = self._code(z, coder)
        indexes = self._z_indexes(z.shape[0], (z.shape[2], z.shape[3]))
        return coder.passes, (z.flatten(1).to(torch.int32).cpu(), indexes), y_hat

    def _decode_latents(self, z: Tensor, size: tuple[int, ...], coder: SliceCoder | gpu_decode.ReadThere) -> Tensor:
        symbols = z.reshape(z.shape[0], -1, *size).to(self.latent_codec.hyper.entropy_bottleneck.quantiles)
        try:
            return self._code(symbols, coder)
        except exact.NotFinite as error:
            raise BitstreamError(f"the file does not decode with these weights: {error}") from error

    def _code(self, z: Tensor, coder: SliceCoder | gpu_decode.ReadThere) -> Tensor:
        """All slices behind z (B, C, h, w), whole numbers: y_hat."""
        if self.entropy not in ("exact", "float"):
            raise ValueError(f'entropy: expected "exact" or "float", got {self.entropy!r}')
        if self.entropy == "exact":
            return exact_entropy(self.latent_codec).code(z, coder)
        medians = self.latent_codec.hyper.entropy_bottleneck.medians().reshape(1, -1, 1, 1)
        return code_slices(
            self.latent_codec.y, self.h_s((z + medians).contiguous(memory_format=torch.channels_last)), coder
        )

    def _z_indexes(self, batch: int, size: tuple[int, ...]) -> Tensor:
        """Table row of every z symbol, its channel: (B, C * h * w) int32."""
        channels = torch.arange(self.config.dims[5], dtype=torch.int32)
        return channels.repeat_interleave(size[0] * size[1]).expand(batch, -1)

    def _bottleneck_tables(self) -> CodingTables:
        buffers = self._table_buffers()
        return self._cache.get("z tables", buffers, lambda: CodingTables(*(x.cpu().numpy() for x in buffers)))

    def _joined_tables(self) -> CodingTables:
        """Rows of the Gaussian tables and then z's: those of a stream that holds everything."""

        def make() -> CodingTables:
            return gaussian_tables().concat(self._bottleneck_tables())

        return self._cache.get("tables", self._table_buffers(), make)

    def _table_buffers(self) -> list[Tensor]:
        prior = self.latent_codec.hyper.entropy_bottleneck
        if prior._quantized_cdf.numel() == 0:
            raise ValueError("the model has no coding tables yet: call update() after training or loading weights")
        return [prior._quantized_cdf, prior._cdf_length, prior._offset]


def _decodes_there(device: torch.device) -> bool:
    """Whether symbols are decoded on the device where the model lies."""
    return device.type == "cuda" and installed.TRITON
