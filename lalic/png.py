"""PNG files that Pillow refuses for the sake of what is not the picture, and the names of colours that it passes over.

Pillow takes no compressed text or profile above 1 MiB, and no texts above 64 MiB together, as small files can hold long
texts. Here a longer one is stored plain, up to the limit of `lalic.metadata`; what is above is left out, and so is a
profile or a text that is none, and what has a wrong checksum. The picture is read in any case.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from typing import IO, NamedTuple

from PIL import PngImagePlugin

from lalic.container import MAX_METADATA
from lalic.errors import ImageWarning

__all__ = ["Prepared", "prepared"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_ANCILLARY = 32  # the bit of a kind which says that a reader may leave the chunk out
_LEAST = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9}  # bytes; Pillow refuses a file with fewer


class Prepared(NamedTuple):
    """A PNG that Pillow takes.

    stream: the given one, or one in memory. profile: the ICC profile, if it is not in `stream` any more. cicp: code
    points of the primaries and the transfer function (ITU-T H.273) that the file names, else None.
    """

    stream: IO[bytes]
    profile: bytes | None = None
    cicp: tuple[int, int] | None = None


def prepared(stream: IO[bytes]) -> Prepared:
    """Look through the chunks of a file, over its pixels; warns about what is left out. It may be no PNG.

    stream: one that can seek; it is at its beginning before and after.
    """
    profile = cicp = None
    changes: list[tuple[int, int, bytes]] = []  # where a chunk begins and ends, and what comes in its place
    texts = 0
    for kind, begin, length in _chunks(stream):
        new: bytes | None = None
        if not kind[0] & _ANCILLARY:
            continue
        contents = stream.read(length)
        if len(contents) < length:
            break
        if stream.read(4) != _checksum(kind, contents) or length < _LEAST.get(kind, 0):
            _warn(f"the chunk {kind.decode('latin-1')} is left out (it is damaged)")
            new = b""
        elif kind == b"cICP" and length == 4:
            cicp = (contents[0], contents[1])
        elif kind == b"iCCP":
            profile, new = _long_profile(contents)
        elif kind in _TEXTS and texts > PngImagePlugin.MAX_TEXT_MEMORY:
            new = b""
        elif kind in _TEXTS:
            size, new = _long_text(kind, contents)
            texts += size
            if texts > PngImagePlugin.MAX_TEXT_MEMORY:
                _warn(f"texts are dropped: the limit is {PngImagePlugin.MAX_TEXT_MEMORY} bytes together")
                new = b""
        if new is not None:
            changes.append((begin, begin + 12 + length, new))
    stream.seek(0)
    return Prepared(_changed(stream, changes) if changes else stream, profile, cicp)


def _chunks(stream: IO[bytes]) -> Iterator[tuple[bytes, int, int]]:
    """(kind, where it begins, length of its contents) of each chunk, the stream being at its contents."""
    if stream.read(8) != _SIGNATURE:
        return
    at = 8
    while len(head := stream.read(8)) == 8 and head[4:] != b"IEND":
        (length,) = struct.unpack(">I", head[:4])
        yield head[4:], at, length
        at += 12 + length
        stream.seek(at)


def _long_profile(contents: bytes) -> tuple[bytes | None, bytes | None]:
    """A profile that Pillow does not take, and what replaces the chunk: None for nothing."""
    _, end, rest = contents.partition(b"\0")
    if not end or rest[:1] != b"\0":
        _warn("the ICC profile is ignored (it is damaged)")
        return None, b""
    profile = _expanded(rest[1:])
    if profile is None or len(profile) <= PngImagePlugin.MAX_TEXT_CHUNK:
        return None, None
    if len(profile) > MAX_METADATA:
        _warn(f"the ICC profile is ignored (it has more than {MAX_METADATA} bytes)")
        return None, b""
    return profile, b""


def _long_text(kind: bytes, contents: bytes) -> tuple[int, bytes | None]:
    """The size of a text, and what replaces its chunk if Pillow does not take it, else None."""
    keyword, _, rest = contents.partition(b"\0")
    before = b""
    if kind == b"zTXt":
        if rest[:1] not in (b"\0", b""):
            _warn("a text is dropped (it is damaged)")
            return 0, b""
        packed = rest[1:]
    elif kind == b"iTXt" and rest[:2] == b"\1\0" and rest.count(b"\0", 2) >= 2:
        language, translated, packed = rest[2:].split(b"\0", 2)
        before = b"\0\0" + language + b"\0" + translated + b"\0"
    else:
        return len(rest), None
    text = _expanded(packed) or b""
    if len(text) <= PngImagePlugin.MAX_TEXT_CHUNK:
        return len(text), None
    if len(text) > MAX_METADATA:
        _warn(f"a text is dropped (it has more than {MAX_METADATA} bytes)")
        return len(text), b""
    return len(text), _chunk(b"tEXt" if kind == b"zTXt" else kind, keyword + b"\0" + before + text)


def _expanded(packed: bytes) -> bytes | None:
    """The contents of a zlib stream, at most one byte more than `MAX_METADATA`; None if it is damaged."""
    try:
        return zlib.decompressobj().decompress(packed, MAX_METADATA + 1)
    except zlib.error:
        return None


def _chunk(kind: bytes, contents: bytes) -> bytes:
    return struct.pack(">I", len(contents)) + kind + contents + _checksum(kind, contents)


def _checksum(kind: bytes, contents: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(contents, zlib.crc32(kind)))


def _changed(stream: IO[bytes], changes: list[tuple[int, int, bytes]]) -> IO[bytes]:
    out = io.BytesIO()
    for begin, end, new in changes:
        out.write(stream.read(begin - stream.tell()))
        out.write(new)
        stream.seek(end)
    out.write(stream.read())
    out.seek(0)
    return out


def _warn(message: str) -> None:
    warnings.warn(message, ImageWarning, stacklevel=4)
