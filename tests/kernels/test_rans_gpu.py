"""The rANS coder in Triton: the CPU coder's bytes and symbols, state on the device, faults raised by finish()."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from calls import Calls, computes
from test_rans import damaged, draw, gaussian_tables, random_tables

from lalic_kernels import installed, rans
from lalic_kernels.exact.numbers import THRESHOLDS, NotFinite
from lalic_kernels.rans import layout
from lalic_kernels.rans.checksum import by_torch

gpu = pytest.importorskip("lalic_kernels.rans.gpu", reason="needs triton, which is not installed")
DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def on_device(sections):
    return [tuple(torch.from_numpy(part).to(DEVICE) for part in section) for section in sections]


def decode_all(data, sections, tables):
    decoder = gpu.DeviceDecoder(data, tables, DEVICE)
    decoded = [decoder.decode(indexes) for _, indexes in on_device(sections)]
    decoder.finish()
    return decoded


# A step takes tens of milliseconds in the interpreter, so streams are short.
@pytest.mark.parametrize(
    ("lanes", "longest", "sizes", "escapes"),
    [
        (None, 9, (33, 0, 31), 0.0),
        ((1, 4), 300, (1, 90), 0.3),
        ((1, 32), 9, (300, 33), 0.02),
        ((3, 32), 20, (40, 500), 0.0),
        ((2, 32), 3, (900, 64, 1), 0.0),
    ],
)
def test_bytes_and_symbols_are_the_cpu_coders(lanes, longest, sizes, escapes):
    rng = np.random.default_rng(7)
    tables = random_tables(rng, 6, longest=longest)
    sections = [draw(rng, tables, n, escapes=escapes) for n in sizes]
    data = rans.encode(sections, tables, lanes=lanes)
    assert gpu.encode(on_device(sections), tables, lanes=lanes) == data
    for (symbols, _), got in zip(sections, decode_all(data, sections, tables), strict=True):
        assert got.dtype == torch.int32 and got.device.type == DEVICE.type
        np.testing.assert_array_equal(got.cpu().numpy(), symbols)


def test_lanes_that_stop():
    rng = np.random.default_rng(3)
    tables = gaussian_tables([0.11, 0.2, 1.0], [2, 2, 7])
    indexes = rng.integers(0, 3, 2500).astype(np.int32)
    symbols = np.round(rng.normal(0, 1, 2500) * np.array([0.11, 0.2, 1.0])[indexes]).astype(np.int32)
    sections = [(symbols[:1100], indexes[:1100]), (symbols[1100:], indexes[1100:])]
    data = rans.encode(sections, tables, lanes=(2, 32))
    parts = layout.unpack(np.frombuffer(data, np.uint8))
    assert parts.ramp == 0 and len(parts.ramp_steps) == 5  # it begins in the first section and ends in the second
    assert gpu.encode(on_device(sections), tables, lanes=(2, 32)) == data
    for (symbols, _), got in zip(sections, decode_all(data, sections, tables), strict=True):
        np.testing.assert_array_equal(got.cpu().numpy(), symbols)


def test_another_stream_in_the_same_memory():
    """As a captured graph needs it: other bytes and groups, the same launches and tensors."""
    rng = np.random.default_rng(5)
    tables = random_tables(rng, 5, longest=9)
    decoder = gpu.DeviceDecoder(b"", tables, DEVICE, capacity=(3, 600))
    memory = decoder._memory.data_ptr()
    for lanes in ((1, 2), (3, 32), (2, 32), (1, 8)):
        symbols, indexes = draw(rng, tables, 150)
        decoder.load(rans.encode([(symbols, indexes)], tables, lanes=lanes))
        got = decoder.decode(torch.from_numpy(indexes).to(DEVICE))
        decoder.finish()
        np.testing.assert_array_equal(got.cpu().numpy(), symbols)
    assert decoder._memory.data_ptr() == memory
    large = rans.encode([draw(rng, tables, 150)], tables, lanes=(4, 32))
    with pytest.raises(ValueError, match="1 to 3 groups and 600 words, but one has 4 and"):
        decoder.load(large)
    with pytest.raises(ValueError, match="1 to 3 groups and 600 words, but one has 4 and"):
        gpu.DeviceDecoder(large, tables, DEVICE, capacity=(3, 600))
    with pytest.raises(ValueError, match="capacity must be numbers of groups and words of at least 1"):
        gpu.DeviceDecoder(large, tables, DEVICE, capacity=(3, 0))
    with pytest.raises(ValueError, match="data must be 1 streams, as before, but is 2"):
        decoder.load([b"", b""])


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


def test_the_same_damaged_streams_are_refused_as_by_the_cpu_coder():
    """finish() raises if the CPU coder raises; otherwise both decode the same symbols."""
    rng = np.random.default_rng(8)
    tables = random_tables(rng, 4, longest=9)
    sections = [draw(rng, tables, n, escapes=0.03) for n in (30, 70)]
    data = rans.encode(sections, tables, lanes=(1, 16))
    other = rans.encode([sections[0]], tables)
    refused = 0
    for case in range(36):
        bad = damaged(rng, data, other, case)
        try:
            decoder = rans.Decoder(bad, tables)
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
    data = rans.encode([(symbols, indexes)], tables)
    for bad in (-1, 4, 2**31 - 1, -(2**31)):
        changed = indexes.copy()
        changed[20] = bad
        with pytest.raises(rans.RansError, match="index is outside"):
            decode_all(data, [(symbols, changed)], tables)
    with pytest.raises(ValueError, match=r"indexes must lie in 0\.\.3"):
        gpu.encode(on_device([(symbols, changed)]), tables)


def parameters_of(rng, indexes, positions):
    """(1, P, 2 g) for table rows indexes (g P,), channel by channel: scales at, between and beyond thresholds."""
    edges = np.array(THRESHOLDS, np.float32)
    low = np.append(np.float32(-1), np.nextafter(edges, np.float32(np.inf)))
    high = np.append(edges, np.float32(300))
    scales = np.where(rng.random(indexes.size) < 0.5, low[indexes], high[indexes])
    means = rng.normal(0, 20, indexes.size).astype(np.float32)
    joint = np.concatenate([scales.reshape(-1, positions).T, means.reshape(-1, positions).T], axis=1)
    return torch.from_numpy(joint.astype(np.float32))[None].to(DEVICE)


def batch(rng, all_lanes):
    """Tables, pictures, streams, inputs. Sections: z, by rows; 5 positions with 9 channels; 7 with 4."""
    scaled, others = random_tables(rng, 64, longest=9), random_tables(rng, 3)
    tables = scaled.concat(others)
    rows = 64 + draw(rng, others, 33)[1]
    pictures = [
        [(draw(rng, others, 33)[0], rows), draw(rng, scaled, 45, escapes=0.05), draw(rng, scaled, 28)]
        for _ in all_lanes
    ]
    streams = [rans.encode(s, tables, lanes=lanes) for s, lanes in zip(pictures, all_lanes, strict=True)]
    inputs = [torch.from_numpy(rows).to(DEVICE)]
    for number, positions in ((1, 5), (2, 7)):
        inputs.append(torch.cat([parameters_of(rng, picture[number][1], positions) for picture in pictures]))
    return tables, pictures, streams, inputs


def decode_batch(decoder, inputs):
    return [decoder.decode(inputs[0]), *(decoder.decode_parameters(x) for x in inputs[1:])]


def check_batch(decoder, pictures, inputs, decoded, only=None):
    """Check that symbols, values and sums of all pictures, or of one, are those that were encoded."""
    numbers = range(len(pictures)) if only is None else [only]
    for number in numbers:
        decoded_symbols = [section[number].cpu() for section in decoder.symbols()]
        for (symbols, _), got in zip(pictures[number], decoded_symbols, strict=True):
            np.testing.assert_array_equal(got.numpy(), symbols)
        np.testing.assert_array_equal(decoded[0][number].cpu().numpy(), pictures[number][0][0])
        for x, values, symbols in zip(inputs[1:], decoded[1:], decoded_symbols[1:], strict=True):
            means = x[number, :, x.shape[2] // 2 :].cpu()
            expected = symbols.reshape(means.shape[1], means.shape[0]).T.float() + means
            assert torch.equal(values[number].cpu(), expected)
        sums = [int(by_torch(part[None])) for part in (decoded_symbols[0], torch.cat(decoded_symbols))]
        assert decoder.sums()[number].tolist() == sums


def test_a_batch_of_streams_and_another_in_the_same_memory(poisoned_memory):
    decoder = None
    for all_lanes in ([(1, 4), (2, 32), (1, 1)], [(3, 32), (1, 32), (1, 8)]):
        tables, pictures, streams, inputs = batch(np.random.default_rng(11), all_lanes)
        if decoder is None:
            decoder = gpu.DeviceDecoder(streams, tables, DEVICE, capacity=(3, 400))
        else:
            decoder.load(streams)
        decoded = decode_batch(decoder, inputs)
        assert decoder.faults() == [None] * 3
        decoder.finish()
        check_batch(decoder, pictures, inputs, decoded)


def test_values_go_to_their_views(poisoned_memory):
    """Both colours into some channels of an image, with maxima; and symbols plus medians."""
    rng = np.random.default_rng(29)
    tables, _, streams, inputs = batch(rng, [(1, 4), (1, 32)])
    expected = gpu.DeviceDecoder(streams, tables, DEVICE)
    plain = decode_batch(expected, inputs)
    decoder = gpu.DeviceDecoder(streams, tables, DEVICE)
    decoder.decode(inputs[0])
    for colour, x in enumerate(inputs[1:]):
        height, g = x.shape[1], x.shape[2] // 2  # two positions wide, one of each colour
        image = torch.zeros((2, height, 2, 20), device=DEVICE)[..., 3 : 3 + g]
        absmax = torch.zeros(2, dtype=torch.int32, device=DEVICE)
        assert decoder.decode_parameters(x, rans.OutputView(image, colour, absmax)) is image
        values = plain[1 + colour]
        for line in range(height):
            pixels = image[:, line, (line + colour) % 2 :: 2]
            assert torch.equal(pixels[:, 0], values[:, line])
            assert not image[:, line, (line + colour + 1) % 2 :: 2].any()
        assert torch.equal(absmax, values.abs().flatten(1).amax(1).view(torch.int32))
    decoder.finish()
    assert torch.equal(decoder.sums(), expected.sums())

    symbols = plain[0]
    medians, image = torch.arange(11, device=DEVICE) + 0.25, torch.zeros((2, 1, 3, 11), device=DEVICE)
    decoder = gpu.DeviceDecoder(streams, tables, DEVICE)
    decoder.decode_channels(inputs[0], medians, rans.OutputView(image, None))
    assert torch.equal(image, symbols.reshape(2, 11, 1, 3).permute(0, 2, 3, 1).float() + medians)


def test_views_are_checked():
    image = torch.zeros((1, 2, 3, 4), device=DEVICE)
    with pytest.raises(ValueError, match="w even with a colour, but is 0, w 3"):
        rans.OutputView(image, 0)
    with pytest.raises(ValueError, match="colour must be 0, 1 or None"):
        rans.OutputView(image, 2)
    with pytest.raises(ValueError, match="positions one after the other"):
        rans.OutputView(image.transpose(1, 2), None)
    tables = rans.CodingTables([[0, 20000, 60000, 65536]] * 64, [4] * 64, [-1] * 64)
    some = np.zeros(4, np.int32)
    decoder = gpu.DeviceDecoder(rans.encode([(some, some)], tables), tables, DEVICE)
    with pytest.raises(ValueError, match="view must be of parameters"):
        decoder.decode_parameters(torch.zeros((1, 6, 2), device=DEVICE), rans.OutputView(image, None))
    with pytest.raises(ValueError, match="rows and medians must be those of an image"):
        decoder.decode_channels(
            torch.zeros(4, dtype=torch.int32, device=DEVICE), torch.zeros(4), rans.OutputView(image, None)
        )


def test_a_section_takes_three_launches_and_no_other_operation(monkeypatch):
    """Other streams have the same kernels, grids and numbers, so a captured graph can be replayed."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    if not installed.interpreting():
        pytest.skip("launches are counted in Triton's interpreter")
    rng = np.random.default_rng(12)
    launches, calls = [], []
    run = interpreter.GridExecutor.__call__

    def launch(self, *args, **kwargs):
        numbers = [arg for arg in args if isinstance(arg, int)]
        launches.append((self.fn.__name__, self.grid, numbers, kwargs))
        with torch.utils._python_dispatch._disable_current_modes():
            return run(self, *args, **kwargs)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", launch)
    all_launches = []
    for all_lanes in ([(1, 4), (1, 1)], [(2, 32), (1, 32)]):
        tables, _, streams, inputs = batch(rng, all_lanes)
        decoder = gpu.DeviceDecoder(streams, tables, DEVICE, capacity=(2, 300))
        with Calls(lambda func, args, result: calls.append(func) if computes(func) else None):
            decode_batch(decoder, inputs)
        decoder.finish()
        all_launches.append(launches[:])
        launches.clear()
    assert all_launches[0] == all_launches[1]
    kernels = [f"rans_{name}_kernel" for name in ("rows", "symbols", "values")]
    assert [name for name, *_ in all_launches[0]] == kernels * 3
    assert not calls


def test_a_fault_in_a_batch_has_the_number_of_its_picture():
    """The other pictures are decoded."""
    rng = np.random.default_rng(13)
    tables, pictures, streams, inputs = batch(rng, [(1, 16)] * 2)
    for case in range(6):
        bad = damaged(rng, streams[0], streams[1], case)
        try:
            decoder = gpu.DeviceDecoder([streams[1], bad], tables, DEVICE)
        except rans.RansError:  # its header
            continue
        decoded = decode_batch(decoder, [inputs[0], *(x.flip(0) for x in inputs[1:])])
        first, second = decoder.faults()
        assert first is None
        if second is not None:
            with pytest.raises(rans.RansError, match="picture 1: ") as caught:
                decoder.finish()
            assert str(caught.value) == f"picture 1: {second}"
        check_batch(decoder, pictures[::-1], [inputs[0], *(x.flip(0) for x in inputs[1:])], decoded, only=0)
    decoder = gpu.DeviceDecoder([b"", streams[1]], tables, DEVICE)
    decode_batch(decoder, inputs)
    with pytest.raises(rans.RansError, match="picture 0: the stream is empty"):
        decoder.finish()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("which", [0, 1])
def test_parameters_that_are_not_finite(bad, which):
    """One scale or mean, of the last channel at the last position, in one of two pictures."""
    tables, _, streams, inputs = batch(np.random.default_rng(14), [(1, 8)] * 2)
    decoder = gpu.DeviceDecoder(streams, tables, DEVICE)
    inputs[2][1, -1, 3 + 4 * which] = bad
    decode_batch(decoder, inputs)
    first, second = decoder.faults()
    assert first is None and isinstance(second, NotFinite)
    with pytest.raises(NotFinite, match="picture 1: scales and means must be finite"):
        decoder.finish()


def test_the_counter_orders_the_stores_of_programs():
    """In PTX: a program's stores, a barrier, the counter's increment with acq_rel for the whole device, a barrier."""
    code = """
from benchmarks.compiled import rans
from benchmarks.compiled.core import compile_job, target_of

(job,) = (job for job in rans.jobs(("fp32",), "") if job.label == "rans symbols")
print(compile_job(job, target_of("cuda", "80")).asm["ptx"])
"""
    root = Path(__file__).parents[2]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(root)
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    kinds = re.findall(r"\b(st\.global|ld\.global|bar\.\w*sync|atom\.global\S*add)", done.stdout)
    (at,) = (i for i, kind in enumerate(kinds) if kind.endswith(".add") and "acq_rel" in kind)
    assert kinds[at].startswith("atom.global.gpu.acq_rel")
    before = [kind for kind in kinds[:at] if not kind.startswith(("ld", "atom"))]
    assert before[-1].startswith("bar") and "st.global" in before
    assert kinds[at + 1].startswith("bar")


def test_a_stream_without_decode_calls():
    rng = np.random.default_rng(15)
    tables = random_tables(rng, 4, longest=9)
    decoder = gpu.DeviceDecoder(rans.encode([draw(rng, tables, 5)], tables), tables, DEVICE)
    assert decoder.symbols() == []
    with pytest.raises(rans.RansError, match="no symbols were requested"):
        decoder.finish()


def test_arguments_are_checked():
    tables = random_tables(np.random.default_rng(0), 3)
    decoder = gpu.DeviceDecoder(b"", tables, DEVICE)
    for wrong in (torch.zeros(3, device=DEVICE), torch.zeros((2, 3), dtype=torch.int32, device=DEVICE)):
        with pytest.raises(ValueError, match="indexes must be int32"):
            decoder.decode(wrong)
    for shape, dtype in (((1, 3, 5), torch.float32), ((3, 4), torch.float32), ((1, 3, 4), torch.float64)):
        with pytest.raises(ValueError, match="parameters must be float32"):
            decoder.decode_parameters(torch.zeros(shape, dtype=dtype, device=DEVICE))
    with pytest.raises(ValueError, match="parameters must be of 1 pictures"):
        decoder.decode_parameters(torch.zeros((2, 3, 4), device=DEVICE))
    with pytest.raises(ValueError, match="tables must have 64 rows for scales, but have 3"):
        decoder.decode_parameters(torch.zeros((1, 3, 4), device=DEVICE))
    with pytest.raises(ValueError, match="data must be a stream or a list"):
        gpu.DeviceDecoder([], tables, DEVICE)
    with pytest.raises(ValueError, match="lanes must be"):
        gpu.encode([], tables, lanes=(1, 3))
