"""A stand-in for the model, for tests of what surrounds it: it keeps every pixel, zlib-compressed.

Its stream is the length of z, z, and y. z holds the mean of each 64x64 block and y the picture; both must decompress to
exactly the size that the picture's size calls for and agree with the checksum, as the real model's sections must.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from types import SimpleNamespace

import torch

from lalic.errors import BitstreamError


class FakeModel(torch.nn.Module):
    downsampling = 64

    def __init__(self, name: str = "slim", seed: int = 0) -> None:
        super().__init__()
        self.config = SimpleNamespace(name=name)
        self.seed = seed
        self.decoded = 0  # how often decode_sections was called
        self.precision = "float32"

    def set_precision(self, precision: str) -> FakeModel:
        self.precision = precision
        return self

    def weights_hash(self) -> bytes:
        return hashlib.sha256(f"{self.config.name}{self.seed}".encode()).digest()[:8]

    def encode_sections(self, x: torch.Tensor) -> SimpleNamespace:
        assert x.dtype == torch.float32 and x.shape[0] == 1 and x.shape[1] == 3
        assert x.shape[2] % 64 == 0 and x.shape[3] % 64 == 0
        means = torch.nn.functional.avg_pool2d(x, 64)
        parts = [(t * 255).round().to(torch.uint8).numpy().tobytes() for t in (means, x)]
        z, y = (zlib.compress(part, 1) for part in parts)
        return SimpleNamespace(
            streams=(struct.pack(">I", len(z)) + z + y,), checksum=zlib.crc32(parts[1], zlib.crc32(parts[0]))
        )

    def decode_sections(self, streams: tuple[bytes, ...], height: int, width: int, checksum: int) -> torch.Tensor:
        self.decoded += 1
        (stream,) = streams
        length = int.from_bytes(stream[:4], "big")
        z, y = stream[4 : 4 + length], stream[4 + length :]
        means = _inflate(z, 3 * (height // 64) * (width // 64))
        pixels = _inflate(y, 3 * height * width)
        if zlib.crc32(pixels, zlib.crc32(means)) != checksum:
            raise BitstreamError("the decoded symbols do not match their checksum")
        return torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(1, 3, height, width) / 255


class FakeGained(FakeModel):
    """The same at any quality: it rounds to 1 + quality levels, whose number decoding must be told."""

    def __init__(self, name: str = "slim", seed: int = 0) -> None:
        super().__init__(name, seed)
        self.config.qualities = 6
        self.analysed = 0  # how often latents was called

    def latents(self, x: torch.Tensor) -> torch.Tensor:
        self.analysed += 1
        return x

    def encode_latents(self, y: torch.Tensor, quality: float) -> SimpleNamespace:
        return self.encode_sections((y * (1 + quality)).round() / 255)

    def decode_sections(
        self, streams: tuple[bytes, ...], height: int, width: int, checksum: int, quality: float
    ) -> torch.Tensor:
        levels = super().decode_sections(streams, height, width, checksum) * 255
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
