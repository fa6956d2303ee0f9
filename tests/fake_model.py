"""A stand-in for the model, for tests of what surrounds it: it keeps every pixel, zlib-compressed.

Its stream is the length of z, z, and y. z holds the mean of each 64x64 block and y the picture; both must decompress to
exactly the size that the picture's size calls for and agree with the checksum, as the real model's streams must.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from types import SimpleNamespace

import torch

from lalic.coder import Stream
from lalic.errors import BitstreamError, QualityError
from lalic.nn import gains


class FakeModel(torch.nn.Module):
    downsampling = 64

    def __init__(self, name: str = "slim", seed: int = 0) -> None:
        super().__init__()
        self.config = SimpleNamespace(name=name, qualities=0)
        self.device = torch.device("cpu")
        self.seed = seed
        self.decoded = 0  # how often decode was called
        self.precision = "float32"

    def set_precision(self, precision: str) -> FakeModel:
        self.precision = precision
        return self

    def weights_hash(self) -> bytes:
        return hashlib.sha256(f"{self.config.name}{self.seed}".encode()).digest()[:8]

    def as_qualities(self, quality: float | None, batch: int) -> torch.Tensor | None:
        if not self.config.qualities:
            if quality is not None:
                name = self.config.name
                raise QualityError(
                    f"quality is {quality:g}, expected none: the model {name!r} was trained for one quality"
                )
            return None
        return gains.as_qualities(50.0 if quality is None else quality, batch)

    def encode(self, x: torch.Tensor, quality: float | None = None, *, graph: bool | None = None) -> Stream:
        assert x.dtype == torch.float32 and x.shape[0] == 1 and x.shape[1] == 3
        assert x.shape[2] % 64 == 0 and x.shape[3] % 64 == 0
        means = torch.nn.functional.avg_pool2d(x, 64)
        parts = [(t * 255).round().to(torch.uint8).numpy().tobytes() for t in (means, x)]
        z, y = (zlib.compress(part, 1) for part in parts)
        return Stream(struct.pack(">I", len(z)) + z + y, zlib.crc32(parts[1], zlib.crc32(parts[0])))

    def decode(
        self, stream: Stream, height: int, width: int, quality: float | None = None, *, graph: bool | None = None
    ) -> torch.Tensor:
        self.decoded += 1
        length = int.from_bytes(stream.data[:4], "big")
        z, y = stream.data[4 : 4 + length], stream.data[4 + length :]
        means = _inflate(z, 3 * (height // 64) * (width // 64))
        pixels = _inflate(y, 3 * height * width)
        if zlib.crc32(pixels, zlib.crc32(means)) != stream.checksum:
            raise BitstreamError("the decoded symbols do not match their checksum")
        return torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(1, 3, height, width) / 255

    def decode_batch(
        self, streams: list[Stream], height: int, width: int, qualities: list[float | None], *, graph: bool | None
    ) -> list[torch.Tensor | BitstreamError]:
        found: list[torch.Tensor | BitstreamError] = []
        for stream, quality in zip(streams, qualities, strict=True):
            try:
                found.append(self.decode(stream, height, width, quality, graph=graph))
            except BitstreamError as error:
                found.append(error)
        return found


class FakeGained(FakeModel):
    """The same at any quality: it rounds to 1 + quality levels, whose number decoding must be told."""

    def __init__(self, name: str = "slim", seed: int = 0) -> None:
        super().__init__(name, seed)
        self.config.qualities = 6
        self.analysed = 0  # how often latents was called

    def latents(self, x: torch.Tensor) -> torch.Tensor:
        self.analysed += 1
        return x

    def encode(self, x: torch.Tensor, quality: float | None = None, *, graph: bool | None = None) -> Stream:
        return self.encode_latents(self.latents(x), quality, graph=graph)

    def encode_latents(self, y: torch.Tensor, quality: float, *, graph: bool | None = None) -> Stream:
        return super().encode((y * (1 + quality)).round() / 255)

    def decode(
        self, stream: Stream, height: int, width: int, quality: float, *, graph: bool | None = None
    ) -> torch.Tensor:
        levels = super().decode(stream, height, width) * 255
        return (levels / (1 + quality)).clamp(0, 1)


def _inflate(data: bytes, size: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        out = inflater.decompress(data, size + 1)
    except zlib.error:
        raise BitstreamError("a section is damaged") from None
    if len(out) != size or not inflater.eof or inflater.unused_data:
        raise BitstreamError("a section has another length than the picture's size calls for")
    return out
