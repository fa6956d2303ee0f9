"""The grouped coder in Triton: the CPU coder's bytes both ways, state on the device, faults that wait for finish()."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_rans import draw, random_tables
from test_rans_grouped import damaged, quiet_section

from lalic_kernels import rans
from lalic_kernels.rans import grouped
from lalic_kernels.rans.grouped import layout

gpu = pytest.importorskip("lalic_kernels.rans.grouped.gpu", reason="needs triton, which is not installed")
DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def on_device(sections):
    return [tuple(torch.from_numpy(part).to(DEVICE) for part in section) for section in sections]


def decode_all(data, sections, tables):
    decoder = gpu.DeviceDecoder(data, tables, DEVICE)
    decoded = [decoder.decode(indexes) for _, indexes in on_device(sections)]
    decoder.finish()
    return decoded


# The interpreter takes tens of milliseconds a step, so streams are short.
@pytest.mark.parametrize(
    ("choice", "longest", "sizes", "escapes"),
    [
        (None, 9, (33, 0, 31), 0.0),
        ((1, 4, 12), 300, (1, 90, 40), 0.3),
        ((1, 32, 15), 9, (300, 33), 0.02),
        ((3, 32, 0), 20, (40, 500), 0.0),
        ((2, 32, 15), 3, (900, 64, 1), 0.0),
    ],
)
def test_bytes_and_symbols_are_the_cpu_coders(choice, longest, sizes, escapes):
    rng = np.random.default_rng(7)
    tables = random_tables(rng, 6, longest=longest)
    sections = [draw(rng, tables, n, escapes=escapes) for n in sizes]
    data = grouped.encode_with(sections, tables, choice)
    assert gpu.encode(on_device(sections), tables, choice) == data
    for (symbols, _), got in zip(sections, decode_all(data, sections, tables), strict=True):
        assert got.dtype == torch.int32 and got.device.type == DEVICE.type
        np.testing.assert_array_equal(got.cpu().numpy(), symbols)


def test_lanes_that_come_to_rest_and_lists_of_exceptions():
    tables, section = quiet_section(np.random.default_rng(3), 2500)
    sections = [(section[0][:1100], section[1][:1100]), (section[0][1100:], section[1][1100:])]
    data = grouped.encode_with(sections, tables, (2, 32, 9))
    parts = layout.unpack(np.frombuffer(data, np.uint8))
    assert parts.fan == 0 and len(parts.stages) == 5  # it begins in the first section and ends in the second
    assert gpu.encode(on_device(sections), tables, (2, 32, 9)) == data
    for (symbols, _), got in zip(sections, decode_all(data, sections, tables), strict=True):
        np.testing.assert_array_equal(got.cpu().numpy(), symbols)


def test_another_stream_in_the_same_memory():
    """What a captured graph needs: other bytes, other groups and levels, the same launches and tensors."""
    rng = np.random.default_rng(5)
    tables = random_tables(rng, 5, longest=9)
    decoder = gpu.DeviceDecoder(b"", tables, DEVICE, room=(3, 600))
    memory = decoder._memory.data_ptr()
    for choice in ((1, 2, 0), (3, 32, 15), (2, 32, 9), (1, 8, 15)):
        symbols, indexes = draw(rng, tables, 150)
        decoder.load(grouped.encode_with([(symbols, indexes)], tables, choice))
        got = decoder.decode(torch.from_numpy(indexes).to(DEVICE))
        decoder.finish()
        np.testing.assert_array_equal(got.cpu().numpy(), symbols)
    assert decoder._memory.data_ptr() == memory
    large = grouped.encode_with([draw(rng, tables, 150)], tables, (4, 32, 0))
    for wrong in (large, b""):
        with pytest.raises(ValueError, match="1 to 3 groups and 600 words"):
            decoder.load(wrong)


def test_an_empty_stream():
    tables = random_tables(np.random.default_rng(0), 3)
    nothing = torch.zeros(0, dtype=torch.int32, device=DEVICE)
    assert gpu.encode([(nothing, nothing)], tables) == b""
    decoder = gpu.DeviceDecoder(b"", tables, DEVICE)
    assert decoder.decode(nothing).shape == (0,)
    decoder.finish()
    decoder.decode(torch.zeros(1, dtype=torch.int32, device=DEVICE))
    with pytest.raises(rans.RansError, match="empty"):
        decoder.finish()


def test_damaged_streams_are_refused_where_the_cpu_coder_refuses():
    """What the CPU coder raises at once shows in finish(); what it accepts, if it does, is the same here."""
    rng = np.random.default_rng(8)
    tables = random_tables(rng, 4, longest=9)
    sections = [draw(rng, tables, n, escapes=0.03) for n in (30, 70)]
    data = grouped.encode_with(sections, tables, (1, 16, 15))
    other = grouped.encode([sections[0]], tables)
    refused = 0
    for case in range(36):
        bad = damaged(rng, data, other, case)
        try:
            decoder = grouped.Decoder(bad, tables)
            expected = [decoder.decode(indexes).tolist() for _, indexes in sections]
            decoder.finish()
        except rans.RansError:
            refused += 1
            with pytest.raises(rans.RansError) as caught:
                decode_all(bad, sections, tables)
            assert "\n" not in str(caught.value)
        else:
            assert [got.tolist() for got in decode_all(bad, sections, tables)] == expected
    assert refused > 20


def test_indexes_outside_the_tables_are_a_fault_and_not_read():
    rng = np.random.default_rng(9)
    tables = random_tables(rng, 4, longest=9)
    symbols, indexes = draw(rng, tables, 40)
    data = grouped.encode([(symbols, indexes)], tables)
    for bad in (-1, 4, 2**31 - 1, -(2**31)):
        changed = indexes.copy()
        changed[20] = bad
        with pytest.raises(rans.RansError, match="index lies outside"):
            decode_all(data, [(symbols, changed)], tables)
    with pytest.raises(ValueError, match=r"indexes must lie in 0\.\.3"):
        gpu.encode(on_device([(symbols, changed)]), tables)


def test_arguments_are_checked():
    tables = random_tables(np.random.default_rng(0), 3)
    decoder = gpu.DeviceDecoder(b"", tables, DEVICE)
    for wrong in (torch.zeros(3, device=DEVICE), torch.zeros((1, 3), dtype=torch.int32, device=DEVICE)):
        with pytest.raises(ValueError, match="indexes must be int32"):
            decoder.decode(wrong)
    with pytest.raises(ValueError, match="choice must be"):
        gpu.encode([], tables, (1, 3, 0))
    extreme = rans.CodingTables([[0, 1, 65000, 65536]], [4], [2**31 - 3])
    with pytest.raises(ValueError, match="stay within int32 when 2 is added"):
        gpu.DeviceDecoder(b"", extreme, DEVICE)
