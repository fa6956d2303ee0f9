"""The rANS coder: equal bytes from both backends, round trips, sizes, and streams that no encoder wrote."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from lalic_kernels import rans
from lalic_kernels.rans.escapes import count_digits, pack_backwards, write_nibbles

BACKENDS = ("numba", "numpy")
GOLDEN = Path(__file__).parents[1] / "golden" / "entropy.npz"
INT32 = np.iinfo(np.int32)


def random_tables(rng: np.random.Generator, rows: int, longest: int = 40) -> rans.CodingTables:
    """Rows of random lengths and offsets, from nearly even to a single interval with almost everything."""
    lengths = rng.integers(3, longest + 1, rows)
    cdf = np.zeros((rows, longest), np.int64)
    for row, length in enumerate(lengths):
        if row % 3:
            inner = 1 + np.sort(rng.choice(65535, length - 2, replace=False))
        else:  # every interval but one has width 1
            inner = np.arange(1, length - 1)
            cut = rng.integers(0, length - 1)
            inner[cut:] += 65536 - length + 1
        cdf[row, 1 : length - 1] = inner
        cdf[row, length - 1] = 65536
        cdf[row, length:] = -7  # padding must not matter
    return rans.CodingTables(cdf, lengths, rng.integers(-30, 10, rows))


def draw(rng: np.random.Generator, tables: rans.CodingTables, n: int, escapes: float = 0.0):
    """n symbols with indexes, drawn from the rows' own distributions but for a share of escapes."""
    matrix, lengths, offsets = tables.padded(), tables.lengths, tables.offsets
    indexes = rng.integers(0, tables.rows, n)
    slots = rng.integers(0, 65536, n)
    symbols = np.zeros(n, np.int64)
    for row in range(tables.rows):
        at = indexes == row
        position = np.searchsorted(matrix[row, : lengths[row]], slots[at], side="right") - 1
        symbols[at] = offsets[row] + np.minimum(position, lengths[row] - 3)
    outside = rng.random(n) < escapes
    magnitude = np.exp(rng.uniform(0, math.log(2.0**31), n)).astype(np.int64) * rng.choice([-1, 1], n)
    symbols[outside] = magnitude[outside]
    return np.clip(symbols, INT32.min, INT32.max).astype(np.int32), indexes.astype(np.int32)


def gaussian_tables(scales, half_widths) -> rans.CodingTables:
    """Gaussians quantised well enough for a test of sizes."""
    cdf = np.zeros((len(scales), 2 * max(half_widths) + 3), np.int64)
    for row, (scale, c) in enumerate(zip(scales, half_widths, strict=True)):
        edge = np.arange(-c, c + 2) - 0.5
        phi = np.array([0.5 * math.erfc(-e / scale / math.sqrt(2)) for e in edge])
        cdf[row, 1 : 2 * c + 2] = np.round(phi[1:] * (65536 - 2 * c - 2)) + np.arange(1, 2 * c + 2)
        cdf[row, 2 * c + 2] = 65536
    return rans.CodingTables(cdf, [2 * c + 3 for c in half_widths], [-c for c in half_widths])


def decode_all(data, sections, tables, backend):
    decoder = rans.Decoder(data, tables, backend=backend)
    decoded = [decoder.decode(indexes) for _, indexes in sections]
    decoder.finish()
    return decoded


@pytest.fixture(scope="module")
def tables() -> rans.CodingTables:
    return random_tables(np.random.default_rng(1), 12)


@pytest.mark.parametrize("lanes", [None, 1, 2, 4, 32, 256, 4096])
def test_both_backends_make_the_same_bytes_and_read_them_back(lanes):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        tables = random_tables(rng, int(rng.integers(1, 20)), longest=int(rng.choice([3, 9, 300])))
        sizes = rng.choice([0, 1, 2, 31, 32, 33, 500, 3000], int(rng.integers(1, 7)))
        sections = [draw(rng, tables, int(n), escapes=[0, 0.01, 0.5][seed % 3]) for n in sizes]
        streams = {backend: rans.encode(sections, tables, lanes=lanes, backend=backend) for backend in BACKENDS}
        assert streams["numba"] == streams["numpy"]
        for backend in BACKENDS:
            for (symbols, _), got in zip(
                sections, decode_all(streams["numba"], sections, tables, backend), strict=True
            ):
                assert got.dtype == np.int32
                np.testing.assert_array_equal(got, symbols)


@pytest.mark.parametrize("backend", BACKENDS)
def test_escapes_of_both_signs_and_every_magnitude(backend):
    edge = [0, 1, 2, 3, 4, 7, 8, 15, 16, 127, 128, 255, 256]
    powers = [2**k + d for k in range(9, 31) for d in (-1, 0, 1)]
    values = edge + powers + [-v for v in edge + powers] + [INT32.max, INT32.max - 1, INT32.min, INT32.min + 1]
    for offset in (-1, 0, 5, -100000, INT32.min, INT32.max - 3):
        tables = rans.CodingTables([[0, 10, 60000, 65535, 65536]], [5], [offset])
        symbols = np.array(values, np.int64).astype(np.int32)
        sections = [(symbols, np.zeros_like(symbols))] * 2
        data = rans.encode(sections, tables, backend=backend)
        for got in decode_all(data, sections, tables, backend):
            np.testing.assert_array_equal(got, symbols)


def test_escape_nibbles_are_those_of_the_published_coder():
    # worked by hand: 0 -> no digits; 1 -> one digit; 0x2f -> two digits, low first; the widest raw has nine
    raw = np.array([0, 1, 0x2F, 2**33 - 1])
    assert count_digits(raw).tolist() == [0, 1, 2, 9]
    assert write_nibbles(raw).tolist() == [0, 1, 1, 2, 15, 2, 9] + [15] * 8 + [1]
    assert pack_backwards(np.array([1, 2, 3], np.uint8)) == bytes([0x03, 0x21])


def test_the_bytes_of_the_readme():
    """README.md's examples, worked by hand, so that the format cannot change unnoticed."""
    tables = rans.CodingTables([[0, 20000, 60000, 65535, 65536]], [5], [-1])
    for backend in BACKENDS:
        assert rans.encode([([0], [0])], tables, backend=backend).hex() == "e0b10100"
        assert rans.encode([([9], [0])], tables, backend=backend).hex() == "ffff01000000e1"
        assert rans.encode([([0], [0])], tables, lanes=2, backend=backend).hex() == "01000000e0b1010000000100"


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_sections_and_empty_streams(tables, backend):
    nothing = np.zeros(0, np.int32)
    assert rans.encode([], tables, backend=backend) == b""
    assert rans.encode([(nothing, nothing)] * 3, tables, backend=backend) == b""
    decoder = rans.Decoder(b"", tables, backend=backend)
    assert decoder.decode(nothing).shape == (0,)
    decoder.finish()
    with pytest.raises(rans.RansError, match="empty"):
        rans.Decoder(b"", tables, backend=backend).decode([0])
    one = draw(np.random.default_rng(0), tables, 50)
    sections = [(nothing, nothing), one, (nothing, nothing)]
    data = rans.encode(sections, tables, backend=backend)
    assert data == rans.encode([one], tables, backend=backend)
    np.testing.assert_array_equal(decode_all(data, sections, tables, backend)[1], one[0])


def test_tensors_other_integer_types_and_strides(tables):
    symbols, indexes = draw(np.random.default_rng(3), tables, 200)
    data = rans.encode([(symbols, indexes)], tables)
    frozen = np.frombuffer(symbols.tobytes(), np.int32)  # read-only
    for pair in (
        (torch.from_numpy(symbols), torch.from_numpy(indexes)),
        (torch.from_numpy(symbols).long(), indexes.astype(np.uint8)),
        (frozen, np.repeat(indexes, 2)[::2]),
        (symbols.tolist(), indexes.tolist()),
    ):
        assert rans.encode([pair], tables) == data
        np.testing.assert_array_equal(rans.Decoder(data, tables).decode(pair[1]), symbols)
    for kind in (bytearray, memoryview):
        np.testing.assert_array_equal(rans.Decoder(kind(data), tables).decode(indexes), symbols)


def lanes_of(data: bytes) -> int:
    first = int.from_bytes(data[:4], "little")
    return 1 if first >= 65536 else 1 << first


@pytest.mark.parametrize("scale", [0.0, 0.11, 0.2, 0.35, 1.0, 20.0, "mixed"])
@pytest.mark.parametrize("lanes", [None, 1, 64])
def test_size_is_within_half_a_percent_of_the_ideal(scale, lanes):
    scales, half_widths = [0.11, 0.2, 0.35, 1.0, 20.0], [1, 2, 3, 7, 123]
    tables = gaussian_tables(scales, half_widths)
    rng = np.random.default_rng(5)
    n = 300_000
    if scale == "mixed":
        symbols, indexes = draw(rng, tables, n)
    else:  # scale 0 is all zeros in the narrowest row, far below the rate that row expects
        symbols = np.round(rng.normal(0, 1, n) * scale).astype(np.int32)
        indexes = np.full(n, scales.index(scale or 0.11), np.int32)
    ideal = rans.ideal_bits(symbols, indexes, tables) / 8
    data = rans.encode([(symbols, indexes)], tables, lanes=lanes)
    used = lanes_of(data)
    assert lanes in (None, used)
    # a final state takes 4 bytes and carries 0 to 2 of the message; 4 bytes of header, 1 of padding
    assert ideal + 2 * used - 1 <= len(data) <= 1.005 * ideal + 4 * used + 5
    if lanes is None:  # the chosen number of lanes keeps all of it within that share
        assert len(data) <= max(1.005 * ideal, ideal + 5)


def test_eleven_small_streams_have_less_than_64_bytes_of_overhead(tables):
    rng = np.random.default_rng(6)
    overhead = 0.0
    for n in (1, 2, 5, 10, 20, 50, 100, 200, 300, 400, 500):
        section = draw(rng, tables, n, escapes=0.02)
        overhead += len(rans.encode([section], tables)) - rans.ideal_bits(*section, tables) / 8
    assert overhead < 64


def test_lanes_follow_the_payload():
    assert [rans.choose_lanes(size) for size in (0, 100, 2000, 50_000, 1e9)] == [1, 1, 1, 32, 1024]
    for size in np.geomspace(1, 1e6, 50):
        lanes = rans.choose_lanes(size)
        assert lanes == 1 or 4 * lanes <= 0.005 * size


def test_published_coders_symbols():
    """The symbols the published coder wrote, with its table and its lengths as the yardstick."""
    from lalic.coder.tables import gaussian_tables as frozen  # the table is data of the package above

    golden = np.load(GOLDEN)
    ours = theirs = 0
    for case in range(4):
        section = golden[f"rans{case}_symbols"], golden[f"rans{case}_indexes"]
        data = rans.encode([section], frozen())
        published = int(golden[f"rans{case}_bytes"])
        # theirs has 64-bit states, so a long stream of ours may be some 0.2 % longer; a short one is shorter
        assert len(data) <= 1.002 * published
        ours, theirs = ours + len(data), theirs + published
        for backend in BACKENDS:
            np.testing.assert_array_equal(decode_all(data, [section], frozen(), backend)[0], section[0])
    assert ours <= theirs


@pytest.mark.parametrize("backend", BACKENDS)
def test_damaged_streams_are_refused_or_at_least_harmless(backend):
    """Without a checksum some pass; none may do anything but raise RansError or return int32 arrays."""
    rng = np.random.default_rng(7)
    refused = cases = wrong = 0
    for base in range(10):
        tables = random_tables(rng, 6, longest=[3, 20, 300][base % 3])
        sections = [draw(rng, tables, int(n), escapes=0.05 * (base % 2)) for n in (40, 7, 200)]
        data = rans.encode(sections, tables, lanes=[None, 2, 16][base % 3], backend=backend)
        other = rans.encode([draw(rng, tables, 100, escapes=0.1)], tables, backend=backend)
        for case in range(80):
            bad = bytearray(data)
            match case % 6:
                case 0:
                    bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
                case 1:
                    bad = bad[: rng.integers(len(bad))]
                case 2:
                    cut = int(rng.integers(len(bad)))
                    bad = bad[:cut] + other[int(rng.integers(len(other))) :]
                case 3:
                    bad = bytearray(rng.bytes(int(rng.integers(1, 200))))
                    bad[:4] = int(rng.choice([0, 1, 2, 5, 15, 16, 65535, 70000])).to_bytes(4, "little")
                case 4:
                    bad[1:] = bytes([rng.choice([0, 255])]) * (len(bad) - 1)
                case 5:
                    at = int(rng.integers(len(bad)))
                    bad[at:at] = rng.bytes(int(rng.integers(1, 5)))
            cases += 1
            if bytes(bad) == data:  # the cut may have put back what was there
                continue
            try:
                decoded = decode_all(bytes(bad), sections, tables, backend)
            except rans.RansError as error:
                refused += 1
                assert str(error).strip() and "\n" not in str(error)
            else:
                assert [d.dtype for d in decoded] == [np.int32] * 3
                assert [len(d) for d in decoded] == [len(s) for s, _ in sections]
                wrong += base % 2 == 0
    assert cases >= 500
    # The lanes' start values, 16 bits or more, are found again by about one damaged stream in 65536. Only a symbol of
    # frequency 1, whole 16 bits, can be turned into another such symbol of its row by flipping one bit: rows of 18
    # positions and more out of 65536 let at most a few of the 70 flips in these 400 streams without escapes pass.
    assert wrong <= 4
    # The digits of an escaped value are plain bits, whose change nothing can show: with 5 % escapes they are up to a
    # third of a stream, and of its six kinds of damage the one which flips a bit can go there.
    assert refused > (1 - 1 / 3 / 6) * cases


def test_both_backends_refuse_the_same_streams(tables):
    rng = np.random.default_rng(8)
    section = draw(rng, tables, 120, escapes=0.1)
    data = rans.encode([section], tables, lanes=2)
    seen = set()
    for _ in range(400):
        bad = bytearray(data)
        for _ in range(int(rng.integers(1, 4))):
            bad[rng.integers(len(bad))] = rng.integers(256)
        outcome = []
        for backend in BACKENDS:
            try:
                outcome.append([d.tolist() for d in decode_all(bytes(bad), [section], tables, backend)])
            except rans.RansError as error:
                outcome.append(str(error))
        assert outcome[0] == outcome[1]
        seen.add(str(outcome[0])[:30])
    assert len(seen) >= 4  # not the same refusal every time


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_fault_has_its_sentence(backend):
    tables = rans.CodingTables([[0, 20000, 60000, 65535, 65536]], [5], [-1])
    symbols, indexes = np.array([0, 1, -1, 900, -5, 0]), np.zeros(6, np.int32)
    good = rans.encode([(symbols, indexes)], tables)

    def refused(data: bytes, match: str, count: int = 6) -> None:
        decoder = rans.Decoder(data, tables, backend=backend)
        with pytest.raises(rans.RansError, match=match):
            decoder.decode(np.zeros(count, np.int32))
            decoder.finish()
        with pytest.raises(rans.RansError, match="cannot go on"):
            decoder.decode(indexes)

    def escape(nibbles: list[int]) -> bytes:
        return rans.encode([([9], [0])], tables)[:6] + pack_backwards(np.array(nibbles, np.uint8))

    refused(good, "states", count=5)
    refused(good + b"\0", "digits|meet|ends before|zero digit")
    refused(good[:-3], "ends before|digits|meet")
    refused(good[:4], "ends before its symbols")
    refused(escape([]), "ends before its escaped", count=1)
    refused(escape([4, 1]), "ends before its escaped", count=1)
    refused(escape([15, 15, 0, 0]), "more digits", count=1)
    refused(escape([2, 1, 0]), "zero digit", count=1)
    refused(escape([9] + [15] * 8 + [1]), "int32", count=1)
    refused(escape([1, 2, 0, 0]), "do not meet: 1 bytes", count=1)
    refused(escape([0, 5]), "padding", count=1)
    refused(good, "no symbols were asked", count=0)
    two = rans.encode([(symbols, indexes)], tables, lanes=2)
    for data, match in (
        (bytes([16, 0, 0, 0]) + good, "header is 16"),
        (bytes(4) + good, "header is 0"),
        (bytes([0, 1, 0, 0]) + good, "header is 256"),
        (bytes([15, 0, 0, 0]) + good, "too few for the states of its 32768 lanes"),
        (two[:11], "too few for the states of its 2 lanes"),
        (two[:10] + bytes(2) + two[12:], "below 65536"),
        (good[:3], "3 bytes, too few"),
    ):
        with pytest.raises(rans.RansError, match=match):
            rans.Decoder(data, tables, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_small_stream_cannot_ask_for_much_memory(tables, backend):
    section = draw(np.random.default_rng(9), tables, 1000, escapes=0.1)
    data = rans.encode([section], tables, lanes=1, backend=backend)
    decode_all(data, [section], tables, backend)  # what is compiled and imported on first use is not the stream's doing
    for header in range(17):
        tracemalloc.start()
        with pytest.raises(rans.RansError):
            decode_all(bytes([header, 0, 0, 0]) + data, [(None, section[1][:1])], tables, backend)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 20 * len(data) + 50_000  # the stream, its copy, words and states; 50 kB for Python's own objects


def test_arguments_are_named_in_refusals(tables):
    fine = [([0], [0])]
    for call, match in (
        (lambda: rans.encode(fine, tables, lanes=3), "lanes"),
        (lambda: rans.encode(fine, tables, lanes=0), "lanes"),
        (lambda: rans.encode(fine, tables, lanes=65536), "lanes"),
        (lambda: rans.encode(fine, tables, backend="cuda"), "backend"),
        (lambda: rans.encode(fine, "tables"), "tables"),
        (lambda: rans.encode([([0, 1], [0])], tables), r"sections\[0\]"),
        (lambda: rans.encode([[0]], tables), r"sections\[0\]"),
        (lambda: rans.encode([([0.5], [0])], tables), "symbols of sections.*float"),
        (lambda: rans.encode([([2**31], [0])], tables), "symbols of sections.*int32"),
        (lambda: rans.encode([([[0]], [[0]])], tables), "symbols of sections.*dimension"),
        (lambda: rans.ideal_bits([0], [12], tables), "indexes must lie in 0..11"),
        (lambda: rans.Decoder("text", tables), "data"),
        (lambda: tables.concat(3), "other"),
    ):
        with pytest.raises(ValueError, match=match):
            call()
    data = rans.encode(fine, tables)
    for backend in BACKENDS:
        for index in (-1, 12, INT32.max, INT32.min):
            with pytest.raises(ValueError, match=r"indexes of sections.*0\.\.11"):
                rans.encode([([0], [index])], tables, backend=backend)
            with pytest.raises(ValueError, match=r"indexes must lie in 0\.\.11") as caught:
                rans.Decoder(data, tables, backend=backend).decode([index])
            assert not isinstance(caught.value, rans.RansError)  # the caller's fault, not the stream's


@pytest.mark.parametrize(
    ("cdf", "lengths", "offsets", "match"),
    [
        ([[0, 5, 65536]], [2], [0], "lengths"),
        ([[0, 5, 65536]], [4], [0], "lengths"),
        ([[0, 5, 65536]], [3, 3], [0], "lengths"),
        ([[0, 5, 65536]], [3], [0, 0], "offsets"),
        ([[0, 5, 65536]], [3], [INT32.max], "offsets"),
        ([[1, 5, 65536]], [3], [0], "cdf rows must run"),
        ([[0, 5, 65535]], [3], [0], "cdf rows must run"),
        ([[0, 5, 5, 65536]], [4], [0], "cdf rows must increase"),
        ([[0, 9, 5, 65536]], [4], [0], "cdf rows must increase"),
        ([[0, INT32.max, INT32.min, 65536]], [4], [0], "cdf rows must increase"),
        ([[0, 5, 65536], [0, 65536, 65536]], [3, 3], [0, 0], "cdf rows must increase"),
        ([0, 5, 65536], [3], [0], "cdf"),
        ([[0.0, 5.0, 65536.0]], [3], [0], "cdf"),
        (np.zeros((0, 3), int), [], [], "cdf"),
    ],
)
def test_tables_are_checked(cdf, lengths, offsets, match):
    with pytest.raises(ValueError, match=match):
        rans.CodingTables(cdf, lengths, offsets)


def test_concat_and_digest():
    rng = np.random.default_rng(10)
    a, b = random_tables(rng, 3), random_tables(rng, 5)
    joined = a.concat(b)
    assert (joined.rows, joined.lengths.tolist()) == (8, a.lengths.tolist() + b.lengths.tolist())
    rebuilt = rans.CodingTables(joined.padded(), joined.lengths, joined.offsets)
    assert rebuilt.digest() == joined.digest() != a.digest()
    symbols, indexes = draw(rng, b, 300, escapes=0.1)
    assert rans.encode([(symbols, indexes + 3)], joined) == rans.encode([(symbols, indexes)], b)
    matrix = a.padded()
    matrix[1, 1] += 1 if matrix[1, 2] - matrix[1, 1] > 1 else -1
    assert rans.CodingTables(matrix, a.lengths, a.offsets).digest() != a.digest()
    assert rans.CodingTables(a.padded(), a.lengths, a.offsets + 1).digest() != a.digest()


def test_a_missing_numba_means_numpy_and_is_said_when_asked_for(tables, monkeypatch):
    from lalic_kernels.rans import op

    assert rans.available_backends() == ("numba", "numpy")
    section = draw(np.random.default_rng(11), tables, 100)
    data = rans.encode([section], tables)
    monkeypatch.setattr(op, "_numba_backend", lambda: None)
    assert rans.available_backends() == ("numpy",)
    assert rans.encode([section], tables) == data
    np.testing.assert_array_equal(rans.Decoder(data, tables).decode(section[1]), section[0])
    with pytest.raises(ValueError, match="numba is not installed"):
        rans.encode([section], tables, backend="numba")


def test_compiles_where_no_folder_can_be_written(monkeypatch):
    from numba.core import caching

    from lalic_kernels.rans import cpu

    base = getattr(caching, "CacheImpl", None) or caching._CacheImpl  # its name in older versions of numba
    monkeypatch.setattr(base, "_locator_classes", [])  # what numba sees when every folder is read-only
    assert cpu._compiled(lambda x: x + 1)(2) == 3
