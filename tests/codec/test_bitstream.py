"""The container: what goes in comes out, at most 48 bytes of overhead, and every other byte string is refused."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import pytest

from lalic.bitstream import MAX_OVERHEAD, MAX_PIXELS, VERSION, Container, parse
from lalic.errors import BitstreamError

SMALL = Container("slim", b"12345678", 300, 200, b"z" * 30, b"y" * 500, 0xC0DEDEADBEEF)


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
    z_length=b"\x1e",
    y_length=b"\xf4\x03",
    z=b"z" * 30,
    y=b"y" * 500,
    checksum=b"\xc0\xde\xde\xad\xbe\xef",
    tail=b"",
) -> bytes:
    """A file written by a hostile hand that knows the format: any field can be wrong, and all the checksums fit."""
    header = magic + bytes([version, len(name)]) + name + model_hash + width + height + z_length + y_length
    header += checksum
    data_crc = zlib.crc32(z + y, zlib.crc32(header))
    return header + struct.pack(">I", zlib.crc32(header)) + z + y + struct.pack(">I", data_crc) + tail


def refused(data: bytes, match: str, **options) -> None:
    with pytest.raises(BitstreamError, match=match) as caught:
        parse(data, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 200


def test_the_layout_is_the_one_in_the_docstring():
    assert SMALL.pack() == raw()


@pytest.mark.parametrize("name", ["a", "slim", "full-v12"])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (127, 128), (5000, 6000), (65535, 1)])
@pytest.mark.parametrize(("z", "y"), [(b"", b""), (b"\0", b"\xff" * 127), (b"a" * 128, b"b" * 20000)])
def test_round_trip(name, width, height, z, y):
    container = Container(name, bytes(range(8)), width, height, z, y, 2**48 - 1)
    data = container.pack()
    assert parse(data) == container
    assert parse(bytearray(data)) == parse(memoryview(data)) == container
    assert container.file_bytes == len(data)
    assert container.bits_per_pixel == pytest.approx(8 * len(data) / (width * height))


def test_overhead_is_at_most_48_bytes_in_the_worst_case():
    """Longest name, largest sides, and sections too large to make here: their lengths count as four-byte varints."""
    section = b"\0" * 2**21  # the shortest section whose length takes four bytes
    worst = Container("abcdefgh", bytes(8), 65535, 65535, section, section, 2**48 - 1)
    assert len(worst.pack()) - 2 * len(section) == MAX_OVERHEAD == 48
    assert len(varint(2**28 - 1)) == 4
    # No container with more can be made: each of the four sizes is checked when one is constructed.
    for field, value in [("width", 65536), ("height", 65536), ("model_name", "abcdefghi"), ("z", _Long())]:
        with pytest.raises(ValueError, match=field):
            Container(**{**vars(worst), field: value})


class _Long(bytes):
    def __len__(self) -> int:
        return 2**28


def test_overhead_of_a_usual_picture():
    container = Container("slim", bytes(8), 768, 512, b"z" * 300, b"y" * 12000, 0)
    assert len(container.pack()) - 12300 == 40


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_name", ""),
        ("model_name", "Slim"),
        ("model_name", "slim\n"),
        ("model_name", "schön"),
        ("model_hash", b"1234567"),
        ("width", 0),
        ("height", -1),
        ("symbol_checksum", 2**48),
        ("symbol_checksum", -1),
    ],
)
def test_a_container_with_a_bad_field_cannot_be_made(field, value):
    with pytest.raises(ValueError, match=field):
        Container(**{**vars(SMALL), field: value})


def test_not_a_lalic_file():
    for data in (b"", b"\x89PNG\r\n\x1a\n", b"LAL", b"\x88LAL" + SMALL.pack()[4:], b"\0" * 1000):
        refused(data, r"not a \.lalic file")


@pytest.mark.parametrize("version", [2, 3, 127, 255])
def test_another_version(version):
    refused(raw(version=version), rf"format version {version} is not readable by this release, which reads version 1$")


def test_version_0_is_refused_with_its_reason():
    refused(raw(version=0), "format version 0 was provisional .* compress the picture again$")


def test_every_truncation_is_refused_and_says_so():
    data = SMALL.pack()
    header = len(data) - 530 - 4
    for length in range(1, len(data)):
        if length < header:
            refused(data[:length], rf"truncated: its {length} bytes end inside the header")
        else:
            refused(data[:length], rf"truncated: expected {len(data)} bytes, got {length}")


def test_trailing_bytes():
    refused(SMALL.pack() + b"\0", r"trailing bytes: expected 569 bytes, got 570")
    refused(SMALL.pack() * 2, r"trailing bytes")


def test_every_bit_flip_is_refused():
    data = SMALL.pack()
    for position in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        refused(bytes(flipped), r"damaged|truncated|trailing|not a \.lalic file|version")


def test_flips_in_the_sections_are_called_damage():
    data = bytearray(SMALL.pack())
    data[-100] ^= 4
    refused(bytes(data), r"the data is damaged: its checksum")
    data = bytearray(SMALL.pack())
    data[8] ^= 4
    refused(bytes(data), r"the header is damaged: its checksum")


def test_sections_behind_another_files_header_are_refused():
    """Both files are sound and their sections are equally long, so only a checksum over both parts can tell."""
    other = Container("slim", b"12345678", 200, 300, b"Z" * 30, b"Y" * 500, 0xC0DEDEADBEEF).pack()
    data = SMALL.pack()
    header = len(data) - 534
    refused(data[:header] + other[header:], r"the data is damaged")
    refused(other[:header] + data[header:], r"the data is damaged")


HOSTILE = {
    "zero width": ({"width": side(0)}, r"0x200, expected at least 1x1"),
    "zero height": ({"height": side(0)}, r"300x0, expected at least 1x1"),
    "many pixels": ({"width": side(65535), "height": side(65535)}, r"4294836225 pixels, and the limit is 33554432"),
    "one pixel too many": ({"width": side(2**13), "height": side(2**12 + 1)}, r"too large"),
    "length without end": ({"z_length": b"\xff" * 10}, r"length of z takes more than 4 bytes"),
    "length not minimal": ({"z_length": b"\x9e\0"}, r"length of z is not in its shortest form"),
    "length of five bytes": ({"y_length": varint(2**28)}, r"length of y takes more than 4 bytes"),
    "z beyond the end": ({"z_length": varint(2**28 - 1)}, r"truncated: expected 2684\d+ bytes, got 572"),
    "y beyond the end": ({"y_length": varint(501)}, r"truncated: expected 570 bytes, got 569"),
    "y too short": ({"y_length": varint(499)}, r"trailing bytes"),
    "no name": ({"name": b""}, r"name has 0 characters"),
    "long name": ({"name": b"abcdefghi"}, r"name has 9 characters"),
    "control characters": ({"name": b"sl\x1b[m"}, r"characters other than"),
    "line break": ({"name": b"slim\n"}, r"characters other than"),
    "capital": ({"name": b"Slim"}, r"characters other than"),
    "tail": ({"tail": b"!"}, r"trailing bytes"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers_whose_checksums_fit(case):
    fields, match = HOSTILE[case]
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
