"""`python -m benchmarks.codec`: what it times is checked first, parts add up, a stream has the rate asked for."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from benchmarks import codec, measure, parts, streams
from benchmarks.cases.transforms import TINY
from benchmarks.counting import memory, operations
from benchmarks.measure import Setting, WrongResult
from benchmarks.peers import plain
from lalic.model import LALIC

CPU = torch.device("cpu")


class FakeClock:
    """Each mark is a second after the last."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)

    def mark(self) -> float:
        self.now += 1.0
        return self.now

    def between(self, first: float, second: float) -> float:
        return second - first


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def here(call, *arguments, memory="default"):
        return call(*arguments)

    monkeypatch.setattr(codec, "in_fresh_process", here)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)


# Streams


def test_scales_cost_what_was_asked_for() -> None:
    scales = streams.channel_scales(320, 0.29)
    assert float(streams.entropy_bits(scales).sum()) / 256 == pytest.approx(0.29, rel=1e-3)
    # A wide Gaussian has log2(scale sqrt(2 pi e)) bits.
    assert float(streams.entropy_bits(torch.tensor([20.0]))[0]) == pytest.approx(4.3219 + 2.0471, abs=1e-3)


@pytest.mark.parametrize("rate", [0.0, 1e4])
def test_a_rate_out_of_reach_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="bits_per_pixel: expected a rate that 8 channels can have"):
        streams.channel_scales(8, rate)


def test_a_stream_has_its_rate() -> None:
    """Against the 4.8 bits of the same weights as they are; lanes and escapes cost a small picture some more."""
    torch.manual_seed(0)
    model = LALIC.from_config(TINY).eval()
    scales = streams.imitate(model, 0.1)
    stream = model.encode_latents(streams.latents(scales, 1, 256, 256))
    assert 8 * len(stream.data) / 256**2 == pytest.approx(0.1, rel=0.15)
    assert model.decode(stream, 256, 256).shape == (1, 3, 256, 256)


# Parts


def test_stretches_belong_to_the_innermost_part() -> None:
    stretches = parts.Stretches(FakeClock())
    with stretches, stretches.part("outer"), stretches.part("inner"):
        pass
    assert stretches.seconds() == {"rest": 2.0, "outer": 2.0, "inner": 1.0}


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_parts_add_up_to_the_whole(direction: str) -> None:
    subject = codec.Subject("tiny", 64, 128, 1, CPU).start()
    clock = FakeClock()
    found = parts.times(getattr(subject, direction), direction, clock, 1)
    assert parts.NEEDED[direction] <= set(found) and "rest" in found
    assert sum(found.values()) == pytest.approx(clock.now - 1)
    assert len(clock.waits) == 1 and clock.waits[0] > 0  # before what is timed, as long as a call takes


def test_a_part_that_is_not_seen_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PLACES", [place for place in parts.PLACES if place[3] != "aggregation"])
    subject = codec.Subject("tiny", 64, 128, 1, CPU).start()
    with pytest.raises(WrongResult, match="decode: no time was seen of aggregation"):
        parts.times(subject.decode, "decode", FakeClock(), 1)


def test_counts_of_parts_are_those_of_the_whole() -> None:
    found = parts.counts(TINY, 64, 128)
    model = LALIC.from_config(TINY).eval()
    whole = next(operations.operations(model, model, [(64, 128)]))
    assert sum(row["macs"] for row in found.values()) == whole["layers"]
    assert {"g_a", "h_a", "h_s", "g_s", "contexts", "aggregation"} <= set(found)


def test_floors() -> None:
    counted = {"g_s": {"macs": 100, "bytes": 10}, "aggregation": {"macs": 10, "bytes": 400}}
    rates = {"float32": 10.0, "bfloat16": 100.0, "int8": 400.0, "copy": 100.0}
    found = parts.beside_floors({"g_s": 4.0, "aggregation": 8.0, "rest": 4.0}, counted, rates, "bfloat16", 2)
    assert found["g_s"]["floor"] == 2.0 and found["g_s"]["bound"] == "unit" and found["g_s"]["of floor"] == 0.5
    assert found["aggregation"]["floor"] == 8.0 and found["aggregation"]["bound"] == "copy"  # exact, so float32 bytes
    assert found["aggregation"]["unit"] == "int8" and found["aggregation"]["share"] == 0.5
    assert set(found["rest"]) == {"seconds", "share"}


# The baseline


def test_the_baseline_runs_none_of_our_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    from lalic_kernels import dispatch

    chosen = []
    by_torch = plain._by_torch
    monkeypatch.setattr(plain, "_by_torch", lambda *a: chosen.append(by_torch(*a)[0]) or by_torch(*a))
    subject = codec.Subject("tiny", 64, 128, 1, CPU)
    with torch.inference_mode():
        ours = subject.start().expected
        with plain.baseline(subject.model):
            other = subject.start()
            other.check(other.decode())
            assert dispatch.choose is plain._by_torch and subject.model.entropy == "float"
    assert set(chosen) == {"torch"} and subject.model.entropy == "exact"
    assert torch.allclose(ours[0], other.expected[0], atol=0.05)  # the same model, whose means differ by 1e-3 or so


# The command


def test_the_command_saves_whole_rows(in_this_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 0.0, 0.0))
    monkeypatch.setattr(Setting, "rounds", (2, 2, 0.0))
    words = ["--models", "tiny", "--sizes", "100x60", "--batches", "1", "2", "--save", "--results", str(tmp_path)]
    assert codec.main(words) == 0
    (path,) = tmp_path.glob("*.jsonl")
    appended = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(appended) == 2  # at once for each batch, so that a run which is cut short keeps what it has
    rows = [row for record in appended for row in record["codec"]]
    found = {(row["side"], row["direction"], row["batch"]) for row in rows}
    directions = ("encode", "decode", "decode to the host")
    assert found == {(s, d, b) for s in ("ours", "baseline") for d in directions for b in (1, 2)}
    for row in rows:
        low, high = row["quartiles"]
        assert row["model"] == "LALIC tiny" and (row["width"], row["height"]) == (100, 60) and low <= high
        assert (row["bits per pixel"] > 0 and row["peak bytes"] is None) or row["peak bytes"] >= 0
        if "parts" in row:
            assert sum(part["share"] for part in row["parts"].values()) == pytest.approx(1)
    assert sum("parts" in row for row in rows) == 4  # ours, in both directions and batches


def test_what_is_wrong_is_not_timed(in_this_process: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    decode = codec.Subject.decode
    monkeypatch.setattr(codec.Subject, "decode", lambda self, *a: [x + 1e-6 for x in decode(self, *a)])
    monkeypatch.setattr(parts, "ceilings", lambda *a: {})
    monkeypatch.setattr(measure, "_clock_rounds", lambda *a: pytest.fail("timed"))
    assert codec.main(["--quick", "--results", str(tmp_path)]) == 1
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    (row,) = codec.measured("tiny", (64, 128), 1, Setting(CPU, quick=True))
    assert "needs about" in row["skipped"]


@pytest.mark.parametrize("words", [["--sizes", "768"], ["--sizes", "0x4"], ["--batches", "0"]])
def test_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        codec.main(words)
    assert error.value.code == 2 and words[0] in capsys.readouterr().err
