"""The container: round trips, its overhead, and that every other byte string is refused."""

from __future__ import annotations

import io
import tracemalloc
import zlib
from dataclasses import replace

import pytest

from lalic import container as container_module
from lalic.container import MAX_OVERHEAD, MAX_PIXELS, VERSION, Container, Tile, parse
from lalic.errors import BitstreamError
from lalic.files import FileBytes
from lalic.tiles import Grid

SMALL = Container("slim", b"12345678", Grid(300, 200), (Tile(b"s" * 530, 0xC0DEDEADBEEF),), 33.25)
TILED = replace(
    SMALL, grid=Grid(300, 200, 128, 64), tiles=tuple(Tile(bytes([i]) * i, i) for i in range(6)), grey=True,
    alpha=(b"", b"a file", b"", b"another", b"", b""), metadata={"e": b"EXIF" * 30, "c": "sRGB from ¼".encode()},
)  # fmt: skip
BOTH = pytest.mark.parametrize("container", [SMALL, TILED], ids=["one tile", "all boxes"])


def varint(value: int) -> bytes:
    out = b""
    while value >= 128:
        out += bytes([value % 128 + 128])
        value //= 128
    return out + bytes([value])


def big(value: int, size: int = 4) -> bytes:
    return value.to_bytes(size, "big")


class File:
    """A file made on purpose: any field can be wrong, and all checksums are correct."""

    def __init__(self, version=VERSION, flags=2, name=b"slim", quality=3325, width=b"\xac\2", height=b"\xc8\1") -> None:
        header = b"\x89LAL" + bytes([version, flags, len(name)]) + name + b"12345678" + big(quality, 2) + width + height
        self.crc = zlib.crc32(header)
        self.data = header + big(self.crc)

    def checked(self, data: bytes) -> bytes:
        return data + big(zlib.crc32(data, self.crc))

    def box(self, letter: str, payload: bytes, length: bytes | None = None) -> File:
        self.data += self.checked(letter.encode() + (varint(len(payload)) if length is None else length) + payload)
        return self

    def picture(self, *tiles: bytes, length: int | None = None) -> File:
        payload = b"".join(self.checked(big(0xC0DEDEADBEEF, 6) + stream) for stream in tiles)
        self.data += b"P" + varint(len(payload) if length is None else length) + payload
        return self


def refused(data: bytes, match: str, **options) -> None:
    with pytest.raises(BitstreamError, match=match) as caught:
        parse(data, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 200
    with pytest.raises(BitstreamError) as caught:
        parse(FileBytes(io.BytesIO(data)), **options)
    assert str(caught.value) == message


def test_the_layout_is_the_one_in_the_docstring() -> None:
    assert File().picture(b"s" * 530).data == SMALL.pack()
    assert VERSION == 1


@pytest.mark.parametrize("name", ["a", "full-v12"])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (127, 128), (65535, 1), (2**31 - 1, 2**31 - 1)])
@pytest.mark.parametrize("stream", [b"", b"\xff" * 127, b"b" * 20000])
def test_round_trip(name, width, height, stream, monkeypatch) -> None:
    monkeypatch.setattr(container_module, "MAX_WINDOW", 2**64)
    container = Container(name, bytes(range(8)), Grid(width, height), (Tile(stream, 2**48 - 1),))
    data = container.pack()
    assert parse(data, None) == container
    assert parse(bytearray(data), None) == parse(memoryview(data), None) == container
    assert parse(FileBytes(io.BytesIO(data)), None) == container
    assert container.stream_bytes == len(stream) and (container.width, container.height) == (width, height)


def test_round_trip_of_every_box() -> None:
    assert parse(TILED.pack()) == parse(FileBytes(io.BytesIO(TILED.pack()))) == TILED
    for letter in "extrc":
        container = replace(SMALL, metadata={letter: bytes(1000)})
        assert parse(container.pack()) == container
        assert len(container.pack()) < len(SMALL.pack()) + 100, "metadata is compressed"
        added = len(container.pack()) - len(SMALL.pack())
        assert parse(container.pack()).metadata_bytes == added - 6, "less type, length and checksum of the box"


def test_parts_of_a_file_are_read_when_they_are_needed() -> None:
    """A container of a large file takes no memory for its streams; a file that is cut meanwhile is said to be."""
    stream = bytes(range(256)) * 4096
    file = io.BytesIO(replace(TILED, tiles=(Tile(stream, 1),) * 6).pack())
    tracemalloc.start()
    container = parse(FileBytes(file), copy=False)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 20000 and peak < 2.1 * len(stream)
    assert container.stream_bytes == 6 * len(stream) and bytes(container.tiles[3].stream) == stream
    assert container.pack() == file.getvalue()
    file.truncate(5 * len(stream))
    assert bytes(container.tiles[0].stream) == stream
    with pytest.raises(BitstreamError, match=r"was cut while it was read: \d+ bytes are missing"):
        bytes(container.tiles[5].stream)


@pytest.mark.parametrize("quality", [1.0, 1.01, 33.33, 50.0, 99.99, 100.0])
def test_qualities_come_back_as_they_were(quality) -> None:
    container = replace(SMALL, quality=quality)
    assert parse(container.pack()).quality == quality
    assert len(container.pack()) == len(replace(SMALL, quality=None).pack())


def test_overhead_of_one_tile() -> None:
    """Longest name, sides below 2^14, and a stream with a length of a four-byte varint."""
    stream = b"\0" * 2**21  # the shortest such
    worst = replace(SMALL, model_name="abcdefgh", grid=Grid(16383, 16383), tiles=(Tile(stream, 0),))
    assert len(worst.pack()) - len(stream) == MAX_OVERHEAD == 48
    usual = replace(SMALL, grid=Grid(768, 512), tiles=(Tile(b"s" * 12300, 0),))
    assert len(usual.pack()) - 12300 == 42


@pytest.mark.parametrize(
    "change",
    [
        {"model_name": ""}, {"model_name": "Slim"}, {"model_name": "slim\n"}, {"model_name": "schön"},
        {"model_name": "abcdefghi"}, {"model_hash": b"1234567"}, {"tiles": ()}, {"tiles": (Tile(b"", 2**48),)},
        {"tiles": (Tile(b"", -1),)}, {"quality": 0.99}, {"quality": 100.01}, {"quality": 33.333},
        {"quality": float("nan")}, {"metadata": {"q": b""}}, {"metadata": {"t": bytes(2**24 + 1)}}, {"alpha": ()},
        {"grid": Grid(300, 200, 64)},
    ],
)  # fmt: skip
def test_a_container_with_a_bad_field_cannot_be_made(change) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(change)).replace('grid', 'tiles')} "):
        replace(SMALL, **change)


class _Long(bytes):
    def __len__(self) -> int:
        return 2**28 - 10


def test_a_stream_that_is_too_long_is_no_field() -> None:
    with pytest.raises(ValueError, match="tiles has a stream of 268435446 bytes, expected at most 268435445"):
        replace(SMALL, tiles=(Tile(_Long(), 0),))


def test_not_a_lalic_file() -> None:
    for data in (b"", b"\x89PNG\r\n\x1a\n", b"LAL", b"\x88LAL" + SMALL.pack()[4:], b"\0" * 1000):
        refused(data, r"not a \.lalic file")


@pytest.mark.parametrize("version", [0, 2, 127, 255])
def test_another_version(version) -> None:
    data = File(version=version).picture(b"").data
    refused(data, rf"format version {version} is not readable by this release, which reads version 1$")


@BOTH
def test_every_truncation_is_refused_and_says_so(container) -> None:
    data = container.pack()
    for length in range(1, len(data)):
        refused(data[:length], rf"truncated: its {length} bytes end inside (the header|a box|the box|tile)")


@BOTH
def test_trailing_bytes(container) -> None:
    data = container.pack()
    refused(data + b"\0", rf"trailing bytes: expected {len(data)} bytes, got {len(data) + 1}")
    refused(data * 2, r"trailing bytes")


@BOTH
def test_every_bit_flip_is_refused(container) -> None:
    data = container.pack()
    for position in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        refused(bytes(flipped), r"damaged|truncated|trailing|not a \.lalic file|version|does not know|comes|invalid")


def test_flips_are_called_damage_of_their_part() -> None:
    for container, part in ((SMALL, "tile 0 of the picture"), (TILED, "the box 'c'")):
        data = bytearray(container.pack())
        data[-10] ^= 4
        refused(bytes(data), rf"{part} is damaged: its checksum")
        data = bytearray(container.pack())
        data[8] ^= 4
        refused(bytes(data), r"the header is damaged: its checksum")


def test_a_part_behind_another_files_header_is_refused() -> None:
    """Both files are good and their parts have one length, so only a checksum over both detects it."""
    other = replace(SMALL, grid=Grid(200, 300), tiles=(Tile(b"S" * 530, 0xC0DEDEADBEEF),)).pack()
    data, header = SMALL.pack(), len(File().data)
    refused(data[:header] + other[header:], r"tile 0 of the picture is damaged")
    refused(other[:header] + data[header:], r"tile 0 of the picture is damaged")


def test_what_a_later_release_may_add() -> None:
    """A box with a small letter is skipped; one with a capital letter is refused by name."""
    assert parse(File(flags=4).box("q", b"new").picture(b"s" * 530).data) == SMALL
    assert parse(File(flags=4).picture(b"s" * 530).box("z", b"").data) == SMALL
    refused(File(flags=4).picture(b"s").box("Q", b"new").data, r"without the box 'Q', which this release does not")


INDEX = bytes((2, 1))  # tiles of 128 pixels, of which 300x200 has six, with a margin of 64
HOSTILE = {
    "zero width": (File(width=b"\0").picture(b""), r"0x200, expected sides of 1 to"),
    "zero height": (File(height=b"\0").picture(b""), r"300x0, expected sides of 1 to"),
    "a side over 31 bits": (File(width=varint(2**31)).picture(b""), r"2147483648x200, expected sides"),
    "many pixels": (
        File(width=varint(65535), height=varint(65535)).picture(b""), r"4294836225 pixels, and the limit is 268435456"
    ),
    "one pixel too many": (File(width=varint(2**14), height=varint(2**14 + 1)).picture(b""), r"too large"),
    "a side without end": (File(width=b"\xff" * 10).picture(b""), r"the header is damaged: a number is not a varint"),
    "a side not minimal": (File(width=b"\x9e\0").picture(b""), r"the header is damaged: a number is not a varint"),
    "beyond the end": (File().picture(b"s", length=2**28), r"truncated: its \d+ bytes end inside tile 0"),
    "one beyond the end": (File().picture(b"s" * 530, length=541), r"truncated: its \d+ bytes end inside tile 0"),
    "too short": (File().picture(b"s" * 530, length=539), r"tile 0 of the picture is damaged"),
    "no room for checksums": (File().picture(b"", length=9), r"'P' is invalid"),
    "quality below 1": (File(quality=99).picture(b""), r"its quality is 99, expected 0 or 100 to 10000"),
    "quality above 100": (File(quality=10001).picture(b""), r"its quality is 10001"),
    "no name": (File(name=b"").picture(b""), r"name has 0 characters"),
    "long name": (File(name=b"abcdefghi").picture(b""), r"name has 9 characters"),
    "control characters": (File(name=b"sl\x1b[m").picture(b""), r"characters other than"),
    "line break": (File(name=b"slim\n").picture(b""), r"characters other than"),
    "no picture": (File(flags=0), r"no box 'P'"),
    "no picture but an index": (File().box("I", INDEX + bytes(6)), r"no box 'P'"),
    "two pictures": (File(flags=4).picture(b"").picture(b""), r"'P' comes twice"),
    "an index too late": (File(flags=4).picture(b"").box("I", INDEX + bytes(6)), r"'I' comes after the picture"),
    "tiles of side 0": (File(flags=4).box("I", bytes(8)).picture(b""), r"'I' is invalid: its tiles have side 0"),
    "a margin above the side": (
        File(flags=4).box("I", b"\2\3" + bytes([10] * 6)).picture(*[b""] * 6), r"margins of 192 pixels are larger than"
    ),
    "a window too long": (File(width=varint(2**14 + 1), height=b"\1").picture(b""), r"its windows have 1052672 pixels"),
    "a window too large": (
        File(flags=4, width=varint(2000), height=varint(1000)).box("I", b"\x0c\3" + b"\x0a" * 6).picture(*[b""] * 6),
        r"windows have 1179648 pixels, expected at most 1048576",
    ),
    "too few lengths": (File(flags=4).box("I", INDEX + bytes(5)), r"cannot hold the lengths of 6 tiles|truncated"),
    "too many lengths": (File(flags=4).box("I", INDEX + bytes(7)), r"longer than the lengths of 6 tiles"),
    "lengths that do not fill": (File(flags=4).box("I", INDEX + bytes([10] * 6)).picture(b""), r"'P' is invalid"),
    "a tile below its checksums": (
        File(flags=4).box("I", INDEX + bytes([9, 11, 10, 10, 10, 10])).picture(*[b""] * 6), r"'P' is invalid"
    ),
    "a tile without end": (File(flags=4).box("I", INDEX + b"\xff" * 10), r"'I' is damaged: a number is not a varint"),
    "alpha before the picture": (File(flags=4).box("A", b"\0").picture(b""), r"'A' comes before the picture"),
    "no length of alpha": (File(flags=4).picture(b"").box("A", b""), r"'A' is invalid: 0 bytes cannot hold"),
    "alpha that does not fill": (File(flags=4).picture(b"").box("A", b"\2x"), r"'A' is invalid: files of 2 bytes"),
    "a box that is no letter": (File(flags=4).picture(b"").box("7", b""), r"its type is byte 55, expected a letter"),
    "metadata that is not compressed": (File(flags=4).picture(b"").box("e", b"EXIF"), r"'e' is invalid: it is not"),
    "metadata that goes on": (
        File(flags=4).picture(b"").box("e", zlib.compress(b"EXIF") + b"!"), r"'e' is invalid: it does not end"
    ),
    "metadata that is cut off": (
        File(flags=4).picture(b"").box("e", zlib.compress(b"EXIF")[:-1]), r"'e' is invalid: it does not end"
    ),
    "metadata twice": (
        File(flags=6).picture(b"").box("e", zlib.compress(b"")).box("e", zlib.compress(b"")), r"'e' comes twice"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_whose_checksums_fit(name) -> None:
    file, match = HOSTILE[name]
    tracemalloc.start()
    refused(file.data, match)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20  # whatever sizes the file claims, it has 600 bytes


def test_the_largest_window() -> None:
    assert len(parse(File(width=varint(2**14), height=b"\1").picture(b"").data).grid) == 1


def test_metadata_is_decompressed_to_a_limit() -> None:
    bomb = zlib.compress(bytes(2**24 + 1), 9)
    tracemalloc.start()
    refused(File(flags=4).picture(b"").box("x", bomb).data, r"'x' is invalid: .*over 16777216 bytes")
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()


def test_the_pixel_limit_is_the_callers(monkeypatch) -> None:
    monkeypatch.setattr(container_module, "MAX_WINDOW", 2**64)
    data = File(width=varint(16385), height=varint(16385)).picture(b"").data
    refused(data, r"too large", max_pixels=MAX_PIXELS)
    assert parse(data, max_pixels=16385 * 16385).width == 16385
    assert parse(data, max_pixels=None).height == 16385
    refused(data, r"limit is 268468224", max_pixels=16385 * 16385 - 1)
