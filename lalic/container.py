"""The .lalic file, format version 1. docs/format.md is the specification; this module reads and writes its bytes.

All integers are unsigned. Integers of fixed width are big-endian; a varint is LEB128 (7 bits a byte, low bits first,
the high bit set if another byte follows) in its shortest form.

    field             bytes      meaning
    magic             4          89 4C 41 4C: a byte that is not ASCII, then "LAL"
    version           1          1
    flags             1          bit 0: the picture is grey; bits 1 to 7: the number of boxes
    name length       1          1 to 8
    model name        1 to 8     [a-z0-9-], `config.name` of the model
    model hash        8          `weights_hash()` of the model: integer weights, arithmetic, CDF tables, synthesis
    quality           2          0 for a model of one quality, else hundredths: 100 to 10000
    width, height     1 to 5     varints, each 1 to 2^31 - 1
    header checksum   4          CRC-32 of all bytes above
    boxes             the rest   a type of one letter, the varint length of the payload, the payload, a CRC-32

A capital letter is a box that a reader must know; other boxes may be skipped. Each type comes at most once; P always
comes, and I before it:

    I  tile index     side of a tile / 64, margin of a window / 64, then the length of each tile: all varints
    P  picture        the tiles, row by row. Each: checksum of z's symbols (2 bytes), of all symbols (4), the stream,
                      and a CRC-32 of these. Without I the picture is one tile. P has no checksum after its payload.
    A  alpha          the length of each tile's alpha, varints, then each: a lossless WebP file, whose green is alpha,
                      or nothing where all pixels are opaque. It comes after P
    others            compressed by zlib (`lalic.metadata`): e EXIF, x XMP, t text, r resolution, c colour

Every CRC-32 but the header's is continued from the header checksum, so a part of another file is refused. Checksums do
not protect against files made on purpose, so every field is also checked by itself. The header comes first, so sizes
are checked before memory is allocated. Symbol checksums (lalic_kernels/rans/checksum.py) are compared after entropy
decoding: they detect an encoder or a decoder that departs from the exact arithmetic.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple

from lalic.errors import BitstreamError
from lalic.files import FileBytes, read_stream
from lalic.tiles import MAX_SIDE, MAX_WINDOW, STEP, Grid

__all__ = ["MAGIC", "MAX_OVERHEAD", "MAX_PIXELS", "VERSION", "Container", "parse", "too_large"]

MAGIC = b"\x89LAL"
VERSION = 1
MAX_PIXELS = 2**28  # default limit; a picture itself takes 4 bytes a pixel
MAX_OVERHEAD = 48  # bytes of a file beside the stream: one tile, sides below 2^14, no further boxes
METADATA = "extrc"  # types of the boxes that may be skipped, in their order
_NAME = re.compile(rb"[a-z0-9-]{1,8}")
_HASH_BYTES = 8
_TILE_OVERHEAD = 6 + 4  # checksums
_MAX_STREAM = 2**28 - 1 - _TILE_OVERHEAD
MAX_METADATA = 2**24  # bytes of a box when decompressed: a file made on purpose gets no more memory
_GREY = 1


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class Tile(NamedTuple):
    """The stream of one tile, shorter than 2^28 bytes. checksum: 48 bits, 16 of z and then 32 of all symbols.

    stream: a part of the file if `parse` was asked for that.
    """

    stream: bytes | memoryview | FileBytes
    checksum: int


@dataclass(frozen=True)
class Container:
    """Contents of a .lalic file. The constructor checks every field; a bad one raises `ValueError`.

    model_name: 1 to 8 characters of [a-z0-9-]. model_hash: 8 bytes. grid: size of the picture and its division.
    tiles: one for each tile of the grid, row by row. quality: None, or 1 to 100 in whole hundredths. grey: the picture
    is grey. alpha: a WebP file for each tile, or no bytes. metadata: uncompressed contents of boxes by their letter, of
    "e", "x", "t", "r", "c". metadata_bytes: of a file that was read, their bytes in it, compressed.
    """

    model_name: str
    model_hash: bytes
    grid: Grid
    tiles: tuple[Tile, ...]
    quality: float | None = None
    grey: bool = False
    alpha: tuple[bytes, ...] | None = None
    metadata: Mapping[str, bytes] = field(default_factory=dict)
    metadata_bytes: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.model_name.encode()):
            raise ValueError(f"model_name is {self.model_name!r}, expected 1 to 8 characters of a-z, 0-9 and '-'")
        if len(self.model_hash) != _HASH_BYTES:
            raise ValueError(f"model_hash has {len(self.model_hash)} bytes, expected {_HASH_BYTES}")
        if len(self.tiles) != len(self.grid):
            raise ValueError(f"tiles has {len(self.tiles)} of them, expected {len(self.grid)}")
        for stream, checksum in self.tiles:
            if len(stream) > _MAX_STREAM:
                raise ValueError(f"tiles has a stream of {len(stream)} bytes, expected at most {_MAX_STREAM}")
            if not 0 <= checksum < 2**48:
                raise ValueError(f"tiles has the checksum {checksum}, expected 0 to {2**48 - 1}")
        if self.alpha is not None and len(self.alpha) != len(self.grid):
            raise ValueError(f"alpha has {len(self.alpha)} files, expected {len(self.grid)}")
        # A file that comes back as another quality than it was written with would decode to another picture.
        if self.quality is not None and (
            not 1 <= self.quality <= 100 or round(100 * self.quality) / 100 != self.quality
        ):
            raise ValueError(f"quality is {self.quality}, expected 1 to 100 in whole hundredths")
        if unknown := set(self.metadata) - set(METADATA):
            raise ValueError(f"metadata has the boxes {sorted(unknown)}, expected some of {list(METADATA)}")
        for letter in self.metadata:
            if (size := len(self.metadata[letter])) > MAX_METADATA:
                raise ValueError(f"metadata {letter!r} has {size} bytes, expected at most {MAX_METADATA}")

    @property
    def width(self) -> int:
        return self.grid.width

    @property
    def height(self) -> int:
        return self.grid.height

    @property
    def mode(self) -> str:
        """Pillow's mode of the decoded picture."""
        if self.alpha is not None:
            return "RGBA"
        return "L" if self.grey else "RGB"

    @property
    def stream_bytes(self) -> int:
        """Bytes of all entropy-coded streams."""
        return sum(len(stream) for stream, _ in self.tiles)

    @property
    def alpha_bytes(self) -> int:
        """Bytes of all alpha files."""
        return sum(map(len, self.alpha or ()))

    def pack(self) -> bytes:
        """The bytes of the file."""
        name = self.model_name.encode()
        quality = 0 if self.quality is None else round(100 * self.quality)
        boxes = 1 + bool(self.grid.tile) + (self.alpha is not None) + len(self.metadata)
        parts = [MAGIC, bytes((VERSION, boxes << 1 | self.grey, len(name))), name, self.model_hash]
        parts += [struct.pack(">H", quality), _varint(self.width), _varint(self.height)]
        header = b"".join(parts)
        crc = zlib.crc32(header)

        def checked(data: bytes) -> bytes:
            return data + struct.pack(">I", zlib.crc32(data, crc))

        def box(letter: str, payload: bytes) -> bytes:
            return checked(letter.encode() + _varint(len(payload)) + payload)

        # Of each tile a checksum, the stream and a CRC: they are joined once, at the end.
        tiles: list[bytes] = []
        for part, checksum in self.tiles:
            begin, stream = checksum.to_bytes(6, "big"), bytes(part)
            tiles += [begin, stream, struct.pack(">I", zlib.crc32(stream, zlib.crc32(begin, crc)))]
        out: list[bytes] = [header, struct.pack(">I", crc)]
        if self.grid.tile:
            lengths = (len(stream) + _TILE_OVERHEAD for stream, _ in self.tiles)
            sizes = [self.grid.tile // STEP, self.grid.margin // STEP, *lengths]
            out.append(box("I", b"".join(map(_varint, sizes))))
        out += [b"P" + _varint(sum(map(len, tiles))), *tiles]
        if self.alpha is not None:
            out.append(box("A", b"".join([*(_varint(len(each)) for each in self.alpha), *self.alpha])))
        out += [box(letter, zlib.compress(self.metadata[letter], 9)) for letter in METADATA if letter in self.metadata]
        return b"".join(out)


class _Reader:
    """Reads fields in order, and continues a CRC over them. Raises `BitstreamError` if the data ends too early."""

    def __init__(self, data: memoryview | FileBytes) -> None:
        self.data = data
        self.at = 0
        self.crc = 0  # what checksums are continued from

    def take(self, count: int, what: str) -> memoryview | FileBytes:
        if self.at + count > len(self.data):
            raise BitstreamError(f"the file is truncated: its {len(self.data)} bytes end inside {what}")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, count: int, what: str) -> int:
        """An integer of `count` bytes."""
        return int.from_bytes(bytes(self.take(count, what)), "big")

    def varint(self, what: str) -> int:
        value = 0
        for i in range(5):
            byte = self.take(1, what)[0]
            value |= (byte & 0x7F) << (7 * i)
            if byte < 0x80:
                if byte == 0 and i > 0:
                    break
                return value
        raise BitstreamError(f"{what} is damaged: a number is not a varint in its shortest form, of at most five bytes")

    def check(self, begin: int, what: str) -> None:
        """Compare the checksum that comes next with that of the bytes since `begin`."""
        part = self.data[begin : self.at]
        crc = zlib.crc32(bytes(part) if isinstance(part, FileBytes) else part, self.crc)
        if self.number(4, what) != crc:
            raise BitstreamError(f"{what} is damaged: its checksum does not match")


FileSource = bytes | bytearray | memoryview | FileBytes | str | os.PathLike[str] | IO[bytes]


def contents(source: FileSource) -> memoryview | FileBytes:
    """The bytes of a file that is given as bytes, by its path, or as an open file, which is read to its end.

    `FileBytes` stay what they are.
    """
    if isinstance(source, FileBytes):
        return source
    if isinstance(source, str | os.PathLike):
        with open(source, "rb") as file:
            return memoryview(read_stream(file, MAGIC))
    data = source.read() if hasattr(source, "read") else source
    try:
        view = memoryview(data).cast("B")
        return view if view.readonly else memoryview(bytes(view))  # which the caller cannot change meanwhile
    except TypeError:
        kind = "a text file" if isinstance(data, str) else f"of type {type(source).__name__}"
        raise TypeError(f"data is {kind}, expected the bytes of a .lalic file, its path or a binary file") from None


def too_large(max_pixels: int, width: int = 0, height: int = 0) -> str:
    """The sentence about a picture above a limit. width, height: 0 if they are not known."""
    size = f"{width}x{height} is {width * height} pixels, and " if width else ""
    return f"the picture is too large: {size}the limit is {max_pixels} pixels (max_pixels, --max-pixels)"


def parse(data: FileSource, max_pixels: int | None = MAX_PIXELS, *, copy: bool = True) -> Container:
    """Read a whole .lalic file. A missing, changed or additional byte is an error.

    data: the file, its path or an open binary file. max_pixels: limit on width * height, None for no limit beyond 2^31
    - 1 a side. copy: False for streams of tiles that are parts of `data`. Metadata is limited to 2^24 bytes a box, a
    window to 2^20 pixels; nothing else larger than `data` is allocated. Raises `BitstreamError` with one sentence about
    the fault.
    """
    reader = _Reader(contents(data))
    fields, boxes = _read_header(reader, max_pixels)
    grid = fields.pop("grid")
    found: dict[str, Any] = {}
    compressed = 0
    for _ in range(boxes):
        begin = reader.at
        letter = chr(reader.take(1, "a box")[0])
        what = f"the box {letter!r}"
        if not (letter.isascii() and letter.isalpha()):
            raise BitstreamError(f"a box is damaged: its type is byte {ord(letter)}, expected a letter")
        if letter.isupper() and letter not in "IPA":
            raise BitstreamError(f"the picture cannot be read without {what}, which this release does not know")
        if letter in found:
            raise BitstreamError(f"{what} comes twice")
        length = reader.varint(what)
        if letter == "P":
            grid, lengths = found.get("I", (grid, [length]))
            if grid.window_pixels > MAX_WINDOW:
                raise BitstreamError(
                    f"the file is invalid: its windows have {grid.window_pixels} pixels, expected at most {MAX_WINDOW}"
                )
            found[letter] = _read_tiles(reader, lengths, length, copy)
            continue
        payload = bytes(reader.take(length, what))
        reader.check(begin, what)
        if (letter == "I" and "P" in found) or (letter == "A" and "P" not in found):
            raise BitstreamError(f"{what} comes {'after' if letter == 'I' else 'before'} the picture")
        if letter == "I":
            found[letter] = _read_index(payload, grid)
        elif letter == "A":
            found[letter] = _read_alpha(payload, len(grid))
        elif letter in METADATA:
            found[letter] = _decompress(payload, what)
            compressed += length
        else:
            found[letter] = payload
    if reader.at < len(reader.data):
        raise BitstreamError(f"the file has trailing bytes: expected {reader.at} bytes, got {len(reader.data)}")
    if "P" not in found:
        raise BitstreamError("the file is damaged: it has no box 'P', the picture")
    metadata = {letter: found[letter] for letter in METADATA if letter in found}
    return Container(
        **fields, grid=grid, tiles=found["P"], alpha=found.get("A"), metadata=metadata, metadata_bytes=compressed
    )


def _read_header(reader: _Reader, max_pixels: int | None) -> tuple[dict[str, Any], int]:
    """Fields of the header under their names in `Container`, grid being one of a single tile; the number of boxes."""
    what, data = "the header", reader.data
    if bytes(data[: len(MAGIC)]) != MAGIC[: len(data)] or len(data) == 0:
        raise BitstreamError("this is not a .lalic file: it does not begin with the bytes 89 4C 41 4C")
    reader.take(len(MAGIC), what)
    version = reader.take(1, what)[0]
    if version != VERSION:
        raise BitstreamError(f"format version {version} is not readable by this release, which reads version {VERSION}")
    flags, name_length = bytes(reader.take(2, what))
    if not 1 <= name_length <= 8:
        raise BitstreamError(f"the header is damaged: the model name has {name_length} characters, expected 1 to 8")
    name = bytes(reader.take(name_length, what))
    model_hash = bytes(reader.take(_HASH_BYTES, what))
    hundredths = reader.number(2, what)
    width, height = reader.varint(what), reader.varint(what)
    reader.crc = zlib.crc32(bytes(data[: reader.at]))
    if reader.number(4, what) != reader.crc:
        raise BitstreamError("the header is damaged: its checksum does not match")

    # The header is as written. Checksums of a file made on purpose match too, so each value is checked.
    if not _NAME.fullmatch(name):
        raise BitstreamError("the header is invalid: the model name has characters other than a-z, 0-9 and '-'")
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise BitstreamError(f"the header is invalid: the picture is {width}x{height}, expected sides of 1 to 2^31 - 1")
    if max_pixels is not None and width * height > max_pixels:
        raise BitstreamError(too_large(max_pixels, width, height))
    if hundredths and not 100 <= hundredths <= 10000:
        raise BitstreamError(f"the header is invalid: its quality is {hundredths}, expected 0 or 100 to 10000")
    fields = {
        "model_name": name.decode(), "model_hash": model_hash, "grid": Grid(width, height), "grey": bool(flags & _GREY),
        "quality": hundredths / 100 if hundredths else None,
    }  # fmt: skip
    return fields, flags >> 1


def _read_index(payload: bytes, grid: Grid) -> tuple[Grid, list[int]]:
    """The payload of I: the picture's grid, and the length of each tile."""
    what, reader = "the box 'I'", _Reader(memoryview(payload))
    tile, margin = reader.varint(what) * STEP, reader.varint(what) * STEP
    if tile == 0:
        raise BitstreamError(f"{what} is invalid: its tiles have side 0")
    if margin > tile:  # a window is computed for each tile: small tiles with wide margins take time without end
        raise BitstreamError(f"{what} is invalid: margins of {margin} pixels are larger than tiles of {tile}")
    grid = Grid(grid.width, grid.height, tile, margin)
    if len(grid) > len(payload):  # each length takes a byte or more
        raise BitstreamError(f"{what} is invalid: {len(payload)} bytes cannot hold the lengths of {len(grid)} tiles")
    lengths = [reader.varint(what) for _ in range(len(grid))]
    if reader.at < len(payload):
        raise BitstreamError(f"{what} is invalid: it is longer than the lengths of {len(grid)} tiles")
    return grid, lengths


def _read_tiles(reader: _Reader, lengths: list[int], length: int, copy: bool) -> tuple[Tile, ...]:
    """The payload of P, whose length and the lengths of whose tiles are given."""
    if sum(lengths) != length or min(lengths) < _TILE_OVERHEAD:
        raise BitstreamError(f"the box 'P' is invalid: tiles of {sum(lengths)} bytes do not fill its {length}")
    tiles = []
    for number, size in enumerate(lengths):
        what, begin = f"tile {number} of the picture", reader.at
        checksum = reader.number(6, what)
        stream = reader.take(size - _TILE_OVERHEAD, what)
        reader.check(begin, what)
        tiles.append(Tile(bytes(stream) if copy else stream, checksum))
    return tuple(tiles)


def _read_alpha(payload: bytes, count: int) -> tuple[bytes, ...]:
    """The payload of A: a file for each of `count` tiles."""
    what, reader = "the box 'A'", _Reader(memoryview(payload))
    if count > len(payload):  # each length takes a byte or more
        raise BitstreamError(f"{what} is invalid: {len(payload)} bytes cannot hold the lengths of {count} files")
    lengths = [reader.varint(what) for _ in range(count)]
    if reader.at + sum(lengths) != len(payload):
        raise BitstreamError(f"{what} is invalid: files of {sum(lengths)} bytes do not fill it")
    return tuple(bytes(reader.take(length, what)) for length in lengths)


def _decompress(payload: bytes, what: str) -> bytes:
    stream = zlib.decompressobj()
    try:
        contents = stream.decompress(payload, MAX_METADATA)
    except zlib.error:
        raise BitstreamError(f"{what} is invalid: it is not compressed by zlib") from None
    if not stream.eof or stream.unused_data:
        raise BitstreamError(f"{what} is invalid: it does not end with its payload, or has over {MAX_METADATA} bytes")
    return contents
