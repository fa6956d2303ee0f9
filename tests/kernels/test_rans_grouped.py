"""The grouped coder: equal bytes everywhere, round trips, sizes, steps, and streams that no encoder wrote."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from test_rans import INT32, draw, gaussian_tables, random_tables

from lalic_kernels import rans
from lalic_kernels.rans import grouped
from lalic_kernels.rans.grouped import layout, reference

BACKENDS = ("numba", "numpy")
CHOICES = [None, (1, 1, 0), (1, 2, 15), (1, 8, 12), (1, 32, 9), (3, 32, 0), (5, 32, 15)]
EXAMPLE = rans.CodingTables([[0, 20000, 60000, 65535, 65536]], [5], [-1])


def decode_all(data, sections, tables, backend):
    decoder = grouped.Decoder(data, tables, backend=backend)
    decoded = [decoder.decode(indexes) for _, indexes in sections]
    decoder.finish()
    return decoded


def quiet_section(rng: np.random.Generator, n: int, odd: float = 0.002):
    """Tables and a section: half of the rows are quiet, and a share of `odd` symbols is anything."""
    tables = gaussian_tables([0.11, 0.15, 0.2, 1.0], [2, 2, 2, 7])
    indexes = rng.integers(0, 4, n).astype(np.int32)
    symbols = np.round(rng.normal(0, 1, n) * np.array([0.11, 0.15, 0.2, 1.0])[indexes]).astype(np.int32)
    replaced = rng.random(n) < odd
    symbols[replaced] = rng.integers(-40, 40, int(replaced.sum()))
    return tables, (symbols, indexes)


@pytest.fixture(scope="module")
def tables() -> rans.CodingTables:
    return random_tables(np.random.default_rng(1), 12)


@pytest.mark.parametrize("choice", CHOICES)
def test_both_backends_make_the_same_bytes_and_read_them_back(choice):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        tables = random_tables(rng, int(rng.integers(1, 20)), longest=int(rng.choice([3, 9, 300])))
        sizes = rng.choice([0, 1, 2, 31, 32, 33, 500, 3000], int(rng.integers(1, 7)))
        sections = [draw(rng, tables, int(n), escapes=[0, 0.01, 0.5][seed % 3]) for n in sizes]
        streams = {name: grouped.encode_with(sections, tables, choice, backend=name) for name in BACKENDS}
        assert streams["numba"] == streams["numpy"]
        for backend in BACKENDS:
            decoded = decode_all(streams["numba"], sections, tables, backend)
            for (symbols, _), got in zip(sections, decoded, strict=True):
                assert got.dtype == np.int32
                np.testing.assert_array_equal(got, symbols)


@pytest.mark.parametrize("choice", [None, (1, 1, 12), (1, 32, 12), (4, 32, 15)])
def test_quiet_rows(choice):
    rng = np.random.default_rng(3)
    tables, section = quiet_section(rng, 40_000)
    sections = [(section[0][:100], section[1][:100]), (section[0][100:], section[1][100:])]
    streams = {name: grouped.encode_with(sections, tables, choice, backend=name) for name in BACKENDS}
    assert streams["numba"] == streams["numpy"]
    assert streams["numba"][0] & 15  # some rows are quiet, in the choice that is made as well
    for backend in BACKENDS:
        for (symbols, _), got in zip(sections, decode_all(streams["numpy"], sections, tables, backend), strict=True):
            np.testing.assert_array_equal(got, symbols)


@pytest.mark.parametrize("backend", BACKENDS)
def test_escapes_of_both_signs_and_every_magnitude(backend):
    edge = [0, 1, 2, 3, 4, 7, 8, 15, 16, 127, 128, 255, 256]
    powers = [2**k + d for k in range(9, 31) for d in (-1, 0, 1)]
    values = edge + powers + [-v for v in edge + powers] + [INT32.max, INT32.max - 1, INT32.min, INT32.min + 1]
    for offset in (-1, 0, 5, -100000, INT32.min, INT32.max - 3):
        tables = rans.CodingTables(
            [[0, 10, 60000, 65535, 65536], [0, 65533, 65534, 65535, 65536]], [5, 5], [offset] * 2
        )
        symbols = np.array(values * 2, np.int64).astype(np.int32)
        indexes = np.repeat(np.arange(2, dtype=np.int32), len(values))  # the second row is quiet
        sections = [(symbols, indexes)] * 2
        for choice in ((1, 1, 0), (1, 4, 2)):
            data = grouped.encode_with(sections, tables, choice, backend=backend)
            for got in decode_all(data, sections, tables, backend):
                np.testing.assert_array_equal(got, symbols)


def test_the_bytes_of_the_readme():
    """README.md's examples, worked by hand, so that the format cannot change unnoticed."""
    quiet = rans.CodingTables([[0, 5, 65530, 65535, 65536]], [5], [-1])
    for backend in BACKENDS:

        def made(symbols, choice, tables=EXAMPLE, backend=backend):
            return grouped.encode_with([(symbols, [0] * len(symbols))], tables, choice, backend=backend).hex()

        assert made([0], (1, 1, 0)) == "000000e0b1"
        assert made([9], (1, 1, 0)) == "0000080effff0010"
        assert made([0, 0], (1, 2, 0)) == "100000e0b1e0b1"
        assert made([0] * 9, (1, 1, 4), quiet) == "040005000000"
        assert made([0, 0, 1], (1, 1, 4), quiet) == "04000c0205010d"


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_sections_and_empty_streams(tables, backend):
    nothing = np.zeros(0, np.int32)
    assert grouped.encode([], tables, backend=backend) == b""
    assert grouped.encode([(nothing, nothing)] * 3, tables, backend=backend) == b""
    decoder = grouped.Decoder(b"", tables, backend=backend)
    assert decoder.decode(nothing).shape == (0,)
    decoder.finish()
    with pytest.raises(rans.RansError, match="empty"):
        grouped.Decoder(b"", tables, backend=backend).decode([0])
    one = draw(np.random.default_rng(0), tables, 50)
    sections = [(nothing, nothing), one, (nothing, nothing)]
    data = grouped.encode(sections, tables, backend=backend)
    assert data == grouped.encode([one], tables, backend=backend)
    np.testing.assert_array_equal(decode_all(data, sections, tables, backend)[1], one[0])


def test_tensors_other_integer_types_and_strides(tables):
    symbols, indexes = draw(np.random.default_rng(3), tables, 200)
    data = grouped.encode([(symbols, indexes)], tables)
    for pair in (
        (torch.from_numpy(symbols), torch.from_numpy(indexes)),
        (torch.from_numpy(symbols).long(), indexes.astype(np.uint8)),
        (np.frombuffer(symbols.tobytes(), np.int32), np.repeat(indexes, 2)[::2]),
        (symbols.tolist(), indexes.tolist()),
    ):
        assert grouped.encode([pair], tables) == data
        np.testing.assert_array_equal(grouped.Decoder(data, tables).decode(pair[1]), symbols)
    for kind in (bytearray, memoryview):
        np.testing.assert_array_equal(grouped.Decoder(kind(data), tables).decode(indexes), symbols)


@pytest.mark.parametrize("scale", [0.12, 0.2, 0.35, 1.0, 20.0, "mixed"])
@pytest.mark.parametrize("count", [150_000, 600_000])
def test_size_over_the_ideal(scale, count):
    """Within 0.5 % of the ideal beside the lanes, and those at most 1 %, from 10 kB up: 1.5 % in all."""
    scales, half_widths = [0.12, 0.2, 0.35, 1.0, 20.0], [2, 2, 3, 7, 123]
    tables = gaussian_tables(scales, half_widths)
    rng = np.random.default_rng(5)
    if scale == "mixed":
        symbols, indexes = draw(rng, tables, count)
    else:
        symbols = np.round(rng.normal(0, 1, count) * scale).astype(np.int32)
        indexes = np.full(count, scales.index(scale))
    halves = [(symbols[: count // 2], indexes[: count // 2]), (symbols[count // 2 :], indexes[count // 2 :])]
    ideal = rans.ideal_bits(symbols, indexes, tables) / 8
    data = grouped.encode(halves, tables)
    single = grouped.encode_with(halves, tables, (1, 1, 0))
    assert ideal < len(single) <= 1.005 * ideal + 16
    if ideal > 10_000:
        assert len(data) <= 1.01 * ideal + 0.005 * ideal
        assert len(data) - len(single) <= 0.01 * ideal
    else:
        assert len(data) <= 1.005 * ideal + 0.01 * ideal + 32


def lanes_of(data: bytes) -> int:
    parts = layout.unpack(np.frombuffer(data, np.uint8))
    return parts.highs.size


def test_lanes_follow_the_payload():
    tables = layout.grouped_tables(EXAMPLE)

    def lanes(payload: int) -> tuple[int, int]:
        survey = layout.Survey.empty(tables)
        survey.costs[0] = payload << 27
        return layout.choose_lanes(survey)

    sizes = (0, 79, 160, 2000, 2559, 2560, 14_000, 350_000, 1 << 30)
    assert [lanes(size) for size in sizes] == [
        (1, 1), (1, 1), (1, 2), (1, 16), (1, 16), (1, 32), (5, 32), (136, 32), (1024, 32),
    ]  # fmt: skip


def test_steps_of_a_picture():
    """What a GPU waits for, one after the other: the figure of README.md."""
    tables, section = quiet_section(np.random.default_rng(4), 100_000, odd=0)
    data = grouped.encode([section], tables)
    steps = count_steps(data, [section[1]], tables)
    plain = -(-100_000 // lanes_of(data))
    # Half of the rows are quiet; the end, where lanes come to rest, costs some steps more.
    assert 0.5 * plain < steps < 0.62 * plain


def count_steps(data: bytes, indexes: list, tables: rans.CodingTables) -> int:
    """Steps of the first group, which has the most, while the reference decodes."""
    steps = 0
    original = reference._refill

    def counting(state, group, x):
        nonlocal steps
        steps += group == 0
        original(state, group, x)

    reference._refill = counting
    try:
        decoder = grouped.Decoder(data, tables, backend="numpy")
        for part in indexes:
            decoder.decode(part)
        decoder.finish()
    finally:
        reference._refill = original
    return steps


def damaged(rng: np.random.Generator, data: bytes, other: bytes, case: int) -> bytes:
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
            bad = bytearray(rng.bytes(int(rng.integers(1, 300))))
            bad[0] = int(rng.choice([0, 9, 0x10, 0x2C, 0x50, 0x5F, 0x60, 0xFF]))
        case 4:
            bad[2:] = bytes([rng.choice([0, 255])]) * (len(bad) - 2)
        case 5:
            at = int(rng.integers(len(bad)))
            bad[at:at] = rng.bytes(int(rng.integers(1, 5)))
    return bytes(bad)


def test_damaged_streams_are_refused_alike_or_at_least_harmless():
    """Without a checksum some pass; none may do anything but raise RansError or return int32 arrays."""
    rng = np.random.default_rng(7)
    refused = cases = 0
    seen = set()
    tracemalloc.start()
    for base in range(12):
        tables = random_tables(rng, 6, longest=[3, 20, 300][base % 3])
        sections = [draw(rng, tables, int(n), escapes=0.05 * (base % 2)) for n in (40, 7, 400)]
        choice = [None, (1, 2, 0), (1, 16, 15), (2, 32, 14)][base % 4]
        data = grouped.encode_with(sections, tables, choice)
        other = grouped.encode([draw(rng, tables, 100, escapes=0.1)], tables)
        for case in range(80):
            bad = damaged(rng, data, other, case)
            if bad in (data, b""):
                continue
            cases += 1
            outcomes = []
            for backend in BACKENDS:
                try:
                    decoded = decode_all(bad, sections, tables, backend)
                    assert [d.dtype for d in decoded] == [np.int32] * 3
                    outcomes.append([d.tolist() for d in decoded])
                except rans.RansError as error:
                    assert str(error).strip() and "\n" not in str(error)
                    outcomes.append(str(error))
            assert outcomes[0] == outcomes[1]
            refused += isinstance(outcomes[0], str)
            seen.add(str(outcomes[0])[:24])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24
    assert cases > 850 and len(seen) > 8
    # The digits of an escaped value are plain bits whose change nothing shows, up to a third of a stream with 5 % of
    # escapes (half of the streams here), and one of six kinds of damage flips a bit.
    assert refused > (1 - 1 / 3 / 6) * cases


def test_a_small_stream_that_claims_much_is_refused_without_memory(tables):
    tracemalloc.start()
    for head in ("5fff0700", "50ffffff7f", "5f0001ffffff7fffffff7fffffff7fffffff7fffffff7f", "5080800100"):
        with pytest.raises(rans.RansError):
            decode_all(bytes.fromhex(head) + bytes(200), [([0], [0])], tables, None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_fault_has_its_sentence(backend):
    symbols, indexes = np.array([0, 1, -1, 0, 1, 0]), np.zeros(6, np.int32)
    good = grouped.encode_with([(symbols, indexes)], EXAMPLE, (1, 1, 0), backend=backend)

    def refused(data: bytes, match: str, count: int = 6, tables: rans.CodingTables = EXAMPLE) -> None:
        with pytest.raises(rans.RansError, match=match):
            decoder = grouped.Decoder(data, tables, backend=backend)
            decoder.decode(np.zeros(count, np.int32))
            decoder.finish()

    refused(good, "states do not return", count=5)
    refused(good + bytes(2), "1 words of the stream are left")
    refused(good + bytes(1), "ends within a word")
    refused(good, "ends before its symbols", count=60)
    refused(good, "no symbols were asked", count=0)
    refused(good[:1], "ends within its header")
    refused(good[:2], "too few for the states of its 1 lanes")
    refused(good[:5], "has 0 words, fewer than its 1 lanes")
    refused(b"\x60" + good[1:], r"2\^6 lanes")
    refused(b"\x00\x01" + good[2:], "single lane, and says that lanes halve")
    refused(b"\x50\x80\x08\x00", "1025 groups, more than 1024")
    refused(b"\x50\x80\x00\x00", "not in its shortest form")
    refused(b"\x50\xff\xff\xff\xff\x01", "more than four bytes")
    refused(good[:2] + bytes([good[2] | 0x10]) + good[3:], "padding after the stream's states")
    decoder = grouped.Decoder(good, EXAMPLE, backend=backend)
    with pytest.raises(ValueError, match=r"indexes must lie in 0\.\.0") as caught:
        decoder.decode([1])
    assert not isinstance(caught.value, rans.RansError)
    with pytest.raises(rans.RansError, match="cannot go on"):
        decoder.decode([0])

    def forged(lists: list[tuple[list[int], list[int]]], level: int = 0, shared: bool = False) -> bytes:
        """A stream of one lane whose fields are these values of these widths."""
        entries = [(layout.field_entries(np.array(v), np.array(w)), shared) for v, w in lists]
        highs, words, fan, stages = reference.push(entries, 1, 1)
        return layout.pack(layout.Parts(level, fan, stages, highs, words[0], np.array([0, len(words[0])])))

    quiet = rans.CodingTables([[0, 5, 65530, 65535, 65536]], [5], [-1])
    refused(forged([([31], [5])], level=4), "list of exceptions is longer", tables=quiet)
    refused(forged([([3], [5]), ([3, 0, 0], [2, 0, 4])], level=4), "list of exceptions is longer", tables=quiet)
    fields = [([2], [5]), ([0, 0, 2], [1, 0, 4]), ([5, 2], [3, 3])]
    refused(forged(fields, level=4), "goes beyond its symbols", tables=quiet)
    escape = ([65535], [16])  # the interval of EXAMPLE's escape
    refused(forged([escape, ([10], [4])]), "more digits", count=1)
    refused(forged([escape, ([2], [4]), ([1], [8]), ([0], [0]), ([0], [0])]), "zero digit", count=1)
    nine = [escape, ([9], [4]), ([0xFFFF], [16]), ([0xFFFF], [16]), ([15], [4])]
    refused(forged(nine), "does not fit int32", count=1)


@pytest.mark.parametrize(
    "choice", [(0, 1, 0), (2, 16, 0), (1, 3, 0), (1, 64, 0), (1025, 32, 0), (1, 1, 16), (1, 1, -1)]
)
def test_choices_that_no_stream_has(tables, choice):
    with pytest.raises(ValueError, match="choice must be groups"):
        grouped.encode_with([([0], [0])], tables, choice)


def test_arguments_are_checked(tables):
    with pytest.raises(ValueError, match="tables must be CodingTables"):
        grouped.encode([], None)
    with pytest.raises(ValueError, match="backend must be"):
        grouped.encode([([0], [0])], tables, backend="cuda")
    with pytest.raises(ValueError, match="data must be bytes"):
        grouped.Decoder("text", tables)
    for backend in BACKENDS:
        for index in (-1, 12):
            with pytest.raises(ValueError, match=r"indexes of sections\[1\].*0\.\.11"):
                grouped.encode([([], []), ([0], [index])], tables, backend=backend)
