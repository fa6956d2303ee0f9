"""The .lalic file, format version 1.

All integers are unsigned. Integers of fixed width are big-endian; `varint` is LEB128 (7 bits a byte, low bits first,
the high bit set if another byte follows) in its shortest form.

    field             bytes      meaning
    magic             4          89 4C 41 4C: a byte that is not ASCII, then "LAL"
    version           1          1
    name length       1          1 to 8
    model name        1 to 8     [a-z0-9-], `config.name` of the model
    model hash        8          `weights_hash()` of the model: integer weights, arithmetic, CDF tables, synthesis
    width, height     2 each     1 to 65535, of the picture before padding
    quality           2          0 for a model of one quality, else hundredths: 100 to 10000
    length of stream  1 to 4     varint, bytes, below 2^28
    z symbol checksum 2          low bits of the sum of z's decoded symbols, made by the encoder
    symbol checksum   4          low bits of the sum of all symbols, z's and then y's (lalic_kernels/rans/checksum.py)
    header checksum   4          CRC-32 of all bytes above
    stream            its length hyper latent and latent, entropy-coded together
    data checksum     4          CRC-32 of all bytes above except the header checksum

Everything but the stream has at most 4+1+1+8+8+2+2+2+4+2+4+4+4 = 46 bytes, for any picture (`MAX_OVERHEAD`).

There are three kinds of checksums. The header checksum is read first, so sizes are checked before memory is allocated.
The data checksum detects damage in the stream; it continues the header's CRC, so a stream with the header of another
file is refused, even if the lengths agree. (It leaves the header checksum out: a CRC over a message and then over the
CRC of that message has the same value for every message.) The symbol checksums are compared after entropy decoding, on
a CPU z's before y is decoded: they detect an encoder or a decoder that departs from the exact arithmetic. Checksums do
not protect against files made on purpose, so every field is also checked by itself.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass

from lalic.errors import BitstreamError

__all__ = ["MAGIC", "MAX_OVERHEAD", "MAX_PIXELS", "MAX_SIDE", "VERSION", "Container", "parse"]

MAGIC = b"\x89LAL"
VERSION = 1
MAX_OVERHEAD = 46
MAX_SIDE = 65535
MAX_PIXELS = 2**25  # default limit, about 33 million: decoding needs memory in proportion
_MAX_STREAM = 2**28 - 1  # what a varint of four bytes holds
_NAME = re.compile(rb"[a-z0-9-]{1,8}")
_HASH_BYTES = 8


def _pack_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


@dataclass(frozen=True)
class Container:
    """Contents of a .lalic file. The constructor checks every field; a bad one raises `ValueError`.

    model_name: 1 to 8 characters of [a-z0-9-]. model_hash: 8 bytes. width, height: pixels, 1 to 65535.
    stream: shorter than 2^28 bytes. symbol_checksum: 48 bits, 16 of z and then 32 of all symbols. quality: None, or 1
    to 100 in whole hundredths.
    """

    model_name: str
    model_hash: bytes
    width: int
    height: int
    stream: bytes
    symbol_checksum: int
    quality: float | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.model_name.encode()):
            raise ValueError(f"model_name is {self.model_name!r}, expected 1 to 8 characters of a-z, 0-9 and '-'")
        if len(self.model_hash) != _HASH_BYTES:
            raise ValueError(f"model_hash has {len(self.model_hash)} bytes, expected {_HASH_BYTES}")
        for name, side in (("width", self.width), ("height", self.height)):
            if not 1 <= side <= MAX_SIDE:
                raise ValueError(f"{name} is {side}, expected 1 to {MAX_SIDE}")
        if len(self.stream) > _MAX_STREAM:
            raise ValueError(f"stream has {len(self.stream)} bytes, expected at most {_MAX_STREAM}")
        if not 0 <= self.symbol_checksum < 2**48:
            raise ValueError(f"symbol_checksum is {self.symbol_checksum}, expected 0 to {2**48 - 1}")
        # A file that comes back as another quality than it was written with would decode to another picture.
        if self.quality is not None and (
            not 1 <= self.quality <= 100 or round(100 * self.quality) / 100 != self.quality
        ):
            raise ValueError(f"quality is {self.quality}, expected 1 to 100 in whole hundredths")

    def pack(self) -> bytes:
        """The whole file: `len(pack()) - len(stream) <= MAX_OVERHEAD`."""
        header = self._header()
        header_crc = zlib.crc32(header)
        crc = zlib.crc32(self.stream, header_crc)
        return b"".join((header, struct.pack(">I", header_crc), self.stream, struct.pack(">I", crc)))

    def _header(self) -> bytes:
        name = self.model_name.encode()
        quality = struct.pack(">H", 0 if self.quality is None else round(100 * self.quality))
        return b"".join(
            (
                MAGIC,
                bytes((VERSION, len(name))),
                name,
                self.model_hash,
                struct.pack(">HH", self.width, self.height),
                quality,
                _pack_varint(len(self.stream)),
                self.symbol_checksum.to_bytes(6, "big"),
            )
        )

    @property
    def overhead_bytes(self) -> int:
        """Size of the packed file in bytes, without the stream."""
        return len(self._header()) + 8

    @property
    def file_bytes(self) -> int:
        """Size of the packed file in bytes."""
        return self.overhead_bytes + len(self.stream)

    @property
    def bits_per_pixel(self) -> float:
        """Bits of the whole file, header and checksums included, per pixel of the picture."""
        return 8 * self.file_bytes / (self.width * self.height)


class _Reader:
    """Reads the fields of a header in order. Raises `BitstreamError` if the data ends too early."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise BitstreamError(f"the file is truncated: its {len(self.data)} bytes end inside the header")
        self.at += count
        return bytes(self.data[self.at - count : self.at])

    def varint(self, name: str, max_bytes: int) -> int:
        value = 0
        for i in range(max_bytes):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << (7 * i)
            if byte < 0x80:
                if byte == 0 and i > 0:
                    raise BitstreamError(f"the header is damaged: {name} is not in its shortest form")
                return value
        raise BitstreamError(f"the header is damaged: {name} takes more than {max_bytes} bytes")


def parse(data: bytes | bytearray | memoryview, max_pixels: int | None = MAX_PIXELS) -> Container:
    """Read a whole .lalic file. A missing, changed or additional byte is an error.

    data: the file. max_pixels: limit on width * height, None for no limit beyond 65535 a side. Nothing larger than
    `data` is allocated. Raises `BitstreamError` with one sentence about the fault.
    """
    data = memoryview(data).cast("B")
    if bytes(data[: len(MAGIC)]) != MAGIC[: len(data)] or len(data) == 0:
        raise BitstreamError("this is not a .lalic file: it does not begin with the bytes 89 4C 41 4C")
    reader = _Reader(data)
    reader.take(len(MAGIC))
    version = reader.take(1)[0]
    if version != VERSION:
        raise BitstreamError(f"format version {version} is not readable by this release, which reads version {VERSION}")
    name_length = reader.take(1)[0]
    if not 1 <= name_length <= 8:
        raise BitstreamError(f"the header is damaged: the model name has {name_length} characters, expected 1 to 8")
    name = reader.take(name_length)
    model_hash = reader.take(_HASH_BYTES)
    width, height = struct.unpack(">HH", reader.take(4))
    hundredths = int.from_bytes(reader.take(2), "big")
    length = reader.varint("the length of the stream", 4)
    symbol_checksum = int.from_bytes(reader.take(6), "big")
    header_crc = zlib.crc32(data[: reader.at])
    if struct.unpack(">I", reader.take(4))[0] != header_crc:
        raise BitstreamError("the header is damaged: its checksum does not match")

    # The header is as written. Checksums of a file made on purpose match too, so each value is checked.
    if not _NAME.fullmatch(name):
        raise BitstreamError("the header is invalid: the model name has characters other than a-z, 0-9 and '-'")
    if width == 0 or height == 0:
        raise BitstreamError(f"the header is invalid: the picture is {width}x{height}, expected at least 1x1")
    if max_pixels is not None and width * height > max_pixels:
        raise BitstreamError(
            f"the picture is too large: {width}x{height} is {width * height} pixels, and the limit is {max_pixels}"
        )
    if hundredths and not 100 <= hundredths <= 10000:
        raise BitstreamError(f"the header is invalid: its quality is {hundredths}, expected 0 or 100 to 10000")
    begin = reader.at
    end = begin + length
    expected = end + 4
    if len(data) < expected:
        raise BitstreamError(f"the file is truncated: expected {expected} bytes, got {len(data)}")
    if len(data) > expected:
        raise BitstreamError(f"the file has trailing bytes: expected {expected} bytes, got {len(data)}")
    if struct.unpack(">I", data[end:])[0] != zlib.crc32(data[begin:end], header_crc):
        raise BitstreamError("the data is damaged: its checksum does not match")
    quality = hundredths / 100 if hundredths else None
    return Container(name.decode(), model_hash, width, height, bytes(data[begin:end]), symbol_checksum, quality)
