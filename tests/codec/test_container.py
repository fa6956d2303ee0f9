"""The container: round trips, its overhead, and that every other byte string is refused."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import pytest

from lalic.container import MAX_OVERHEAD, MAX_PIXELS, VERSION, Container, parse
from lalic.errors import BitstreamError

SMALL = Container("slim", b"12345678", 300, 200, b"s" * 530, 0xC0DEDEADBEEF, 33.25)


def varint(value: int) -> bytes:
    out = b""
    while value >= 128:
        out += bytes([value % 128 + 128])
        value //= 128
    return out + bytes([value])


def side(value: int) -> bytes:
    return value.to_bytes(2, "big")


def raw(
    magic=b"\x89LAL",
    version=VERSION,
    name=b"slim",
    model_hash=b"12345678",
    width=b"\x01\x2c",  # 300
    height=b"\x00\xc8",  # 200
    quality=b"\x0c\xfd",  # 33.25
    lengths=b"\x92\x04",
    streams=b"s" * 530,
    checksum=b"\xc0\xde\xde\xad\xbe\xef",
    tail=b"",
) -> bytes:
    """A file made on purpose: any field can be wrong, and all checksums are correct."""
    header = magic + bytes([version, len(name)]) + name + model_hash + width + height + quality + lengths + checksum
    data_crc = zlib.crc32(streams, zlib.crc32(header))
    return header + struct.pack(">I", zlib.crc32(header)) + streams + struct.pack(">I", data_crc) + tail


def refused(data: bytes, match: str, **options) -> str:
    with pytest.raises(BitstreamError, match=match) as caught:
        parse(data, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 200
    return message


def test_the_layout_is_the_one_in_the_docstring():
    assert SMALL.pack() == raw()
    assert VERSION == 1


@pytest.mark.parametrize("name", ["a", "slim", "full-v12"])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (127, 128), (5000, 6000), (65535, 1)])
@pytest.mark.parametrize("stream", [b"", b"\xff" * 127, b"a" * 128, b"b" * 20000])
def test_round_trip(name, width, height, stream):
    container = Container(name, bytes(range(8)), width, height, stream, 2**48 - 1)
    data = container.pack()
    assert parse(data) == container
    assert parse(bytearray(data)) == parse(memoryview(data)) == container
    assert container.file_bytes == len(data) == container.overhead_bytes + len(stream)
    assert container.bits_per_pixel == pytest.approx(8 * len(data) / (width * height))


@pytest.mark.parametrize("quality", [1.0, 1.01, 33.33, 50.0, 99.99, 100.0])
def test_qualities_come_back_as_they_were(quality):
    container = Container("slim", bytes(8), 64, 64, b"", 0, quality)
    assert parse(container.pack()).quality == quality
    assert len(container.pack()) == len(Container("slim", bytes(8), 64, 64, b"", 0).pack())


def test_overhead_is_at_most_46_bytes_in_the_worst_case():
    """Longest name, largest sides, and a stream with a length of a four-byte varint."""
    stream = b"\0" * 2**21  # the shortest such
    worst = Container("abcdefgh", bytes(8), 65535, 65535, stream, 2**48 - 1, 100.0)
    assert len(worst.pack()) - len(stream) == worst.overhead_bytes == MAX_OVERHEAD == 46
    assert len(varint(2**28 - 1)) == 4
    assert Container("slim", bytes(8), 768, 512, b"s" * 12300, 0).overhead_bytes == 40  # of a usual picture
    # No container with more can be made: each of the four sizes is checked when one is constructed.
    for field, value in [("width", 65536), ("height", 65536), ("model_name", "abcdefghi"), ("stream", _Long())]:
        with pytest.raises(ValueError, match=field):
            Container(**{**vars(worst), field: value})


class _Long(bytes):
    def __len__(self) -> int:
        return 2**28


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("model_name", ["", "Slim", "slim\n", "schön"]),
        ("model_hash", [b"1234567"]),
        ("width", [0]),
        ("height", [-1]),
        ("symbol_checksum", [2**48, -1]),
        ("quality", [0.99, 100.01, 33.333, float("nan")]),
    ],
)
def test_a_container_with_a_bad_field_cannot_be_made(field, values):
    for value in values:
        with pytest.raises(ValueError, match=field):
            Container(**{**vars(SMALL), field: value})


def test_not_a_lalic_file():
    for data in (b"", b"\x89PNG\r\n\x1a\n", b"LAL", b"\x88LAL" + SMALL.pack()[4:], b"\0" * 1000):
        refused(data, r"not a \.lalic file")


@pytest.mark.parametrize("version", [0, 2, 127, 255])
def test_another_version(version):
    refused(raw(version=version), rf"format version {version} is not readable by this release, which reads version 1$")


def test_every_truncation_is_refused_and_says_so():
    data = SMALL.pack()
    for length in range(1, len(data)):
        inside = length < len(data) - 530 - 4
        end = f"its {length} bytes end inside the header" if inside else f"expected {len(data)} bytes, got {length}"
        refused(data[:length], f"truncated: {end}")


def test_trailing_bytes():
    refused(SMALL.pack() + b"\0", r"trailing bytes: expected 570 bytes, got 571")
    refused(SMALL.pack() * 2, r"trailing bytes")


def test_every_bit_flip_is_refused():
    data = SMALL.pack()
    kinds = set()
    for position in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        kinds.add(refused(bytes(flipped), r"damaged|truncated|trailing|not a \.lalic file|version"))
    assert {kind[:24] for kind in kinds} >= {"the header is damaged: i", "the data is damaged: its"}


def test_a_stream_behind_another_files_header_is_refused():
    """Both files are good and their streams have one length, so only a checksum over both parts detects it."""
    other = Container("slim", b"12345678", 200, 300, b"S" * 530, 0xC0DEDEADBEEF, 33.25).pack()
    data = SMALL.pack()
    header = len(data) - 534
    refused(data[:header] + other[header:], r"the data is damaged")
    refused(other[:header] + data[header:], r"the data is damaged")


HOSTILE = {
    "zero width": ({"width": side(0)}, r"0x200, expected at least 1x1"),
    "zero height": ({"height": side(0)}, r"300x0, expected at least 1x1"),
    "many pixels": ({"width": side(65535), "height": side(65535)}, r"4294836225 pixels, and the limit is 33554432"),
    "one pixel too many": ({"width": side(2**13), "height": side(2**12 + 1)}, r"too large"),
    "length without end": ({"lengths": b"\xff" * 10}, r"length of the stream takes more than 4 bytes"),
    "length not minimal": ({"lengths": b"\x9e\0"}, r"length of the stream is not in its shortest form"),
    "length of five bytes": ({"lengths": varint(2**28)}, r"length of the stream takes more than 4 bytes"),
    "beyond the end": ({"lengths": varint(2**28 - 1)}, r"truncated: expected 2684\d+ bytes, got 572"),
    "one beyond the end": ({"lengths": varint(531)}, r"truncated: expected 571 bytes, got 570"),
    "too short": ({"lengths": varint(529)}, r"trailing bytes"),
    "quality below 1": ({"quality": side(99)}, r"its quality is 99, expected 0 or 100 to 10000"),
    "quality above 100": ({"quality": side(10001)}, r"its quality is 10001"),
    "no name": ({"name": b""}, r"name has 0 characters"),
    "long name": ({"name": b"abcdefghi"}, r"name has 9 characters"),
    "control characters": ({"name": b"sl\x1b[m"}, r"characters other than"),
    "line break": ({"name": b"slim\n"}, r"characters other than"),
    "capital": ({"name": b"Slim"}, r"characters other than"),
    "tail": ({"tail": b"!"}, r"trailing bytes"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_whose_checksums_fit(name):
    fields, match = HOSTILE[name]
    tracemalloc.start()
    refused(raw(**fields), match)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20  # whatever sizes the header claims, the file has 600 bytes


def test_the_pixel_limit_is_the_callers():
    data = raw(width=side(5793), height=side(5793))
    refused(data, r"too large", max_pixels=MAX_PIXELS)
    assert parse(data, max_pixels=5793 * 5793).width == 5793
    assert parse(data, max_pixels=None).height == 5793
    refused(data, r"limit is 33558848", max_pixels=5793 * 5793 - 1)
