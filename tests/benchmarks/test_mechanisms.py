"""The mechanisms of Table 5 equal their textbook definitions; what they execute is counted as by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from test_records import check_mechanisms

from benchmarks import measure
from benchmarks.counting import memory, operations
from benchmarks.counting.memory import Live
from benchmarks.measure import Setting, WrongResult
from benchmarks.paper import mechanisms as sweep
from benchmarks.paper import selective_scan as scan
from benchmarks.paper.mechanism_modules import MECHANISMS, Mechanism, grid

NAMES = list(MECHANISMS)
CPU = torch.device("cpu")


def made(name: str, width: int, length: int, dtype: torch.dtype = torch.float64) -> tuple[Mechanism, tuple]:
    torch.manual_seed(3)
    mechanism = MECHANISMS[name](width).to(dtype).requires_grad_(False)
    parts = mechanism.sample(length, torch.Generator().manual_seed(5))
    return mechanism, tuple(part.to(dtype) for part in parts)


def width_of(name: str) -> int:
    return 64 if name == "window attention" else 6


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [64, 128])
def test_mix_equals_the_definition(name: str, length: int) -> None:
    mechanism, parts = made(name, width_of(name), length)
    want = mechanism.definition(*parts)
    assert want.shape == (length, mechanism.width)
    # Two float64 evaluations of one formula on numbers of order one: a hundred roundings of 2e-16 at the most.
    assert (mechanism.mix(*parts) - want).abs().max() < 1e-12


@pytest.mark.parametrize(("length", "chunk"), [(1, 1), (2, 1), (35, 6), (35, 35), (36, 6), (37, None), (1, 4)])
def test_chunked_scan_of_any_length(length: int, chunk: int | None) -> None:
    mechanism, (u, delta, B, C) = made("selective scan", 5, length)
    A, skip = -torch.exp(mechanism.A_log[0]), mechanism.skip[0]
    want = scan.recurrence(u, 10 * delta, A, B, C, skip)
    assert (scan.chunked(u, 10 * delta, A, B, C, skip, chunk) - want).abs().max() < 1e-13


@pytest.mark.parametrize("width", [1, 33, 64])
def test_compiled_scan(width: int) -> None:
    pytest.importorskip("numba")
    mechanism, (u, delta, B, C) = made("selective scan", width, 300, torch.float32)
    arguments = (u, delta, -torch.exp(mechanism.A_log[0]), B, C, mechanism.skip[0])
    assert scan.implementation(CPU, torch.float32) == "compiled"
    want = scan.recurrence(*(x.double() for x in arguments))
    # Sixteen states, each of some ten effective steps, in float32: values up to ten, a hundred roundings of 1e-7.
    assert (scan.selective_scan(*arguments) - want).abs().max() < 1e-4


def test_a_wide_decay_does_not_overflow() -> None:
    """exp(A sum delta) underflows to zero over a chunk; a form that divides by it would give NaN."""
    u, B = torch.ones(400, 1, dtype=torch.float64), torch.ones(400, 2, dtype=torch.float64)
    A, skip = torch.tensor([[-1.0, -200.0]], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    want = scan.recurrence(u, 5 * u, A, B, B, skip)
    assert (scan.chunked(u, 5 * u, A, B, B, skip) - want).abs().max() < 1e-13


def test_the_grid_is_nearly_square() -> None:
    assert [grid(n) for n in (1 << 10, 1 << 11, 1, 7, 12)] == [(32, 32), (32, 64), (1, 1), (1, 7), (3, 4)]


def test_tokens_that_fill_no_windows_are_refused() -> None:
    mechanism, _ = made("window attention", 32, 64)
    with pytest.raises(ValueError, match="whole windows of 8 x 8, got 6 x 6"):
        mechanism.mix(*mechanism.sample(36, torch.Generator()))
    with pytest.raises(ValueError, match="positive multiple of 32, got 48"):
        MECHANISMS["window attention"](48)


# Counts


def test_theoretical_counts_are_the_papers() -> None:
    assert [MECHANISMS[name](96).coefficient for name in NAMES] == [7, 57, 79, 128, 144, 576]


def test_transforms_of_fourier_and_complex_numbers_by_hand() -> None:
    """A real picture of 8 x 8 there and back, 3 channels, with a product of 8 x 5 complex numbers between."""
    x = torch.ones(3, 8, 8)
    found, _ = operations.count(lambda: torch.fft.irfft2(torch.fft.rfft2(x) * (1 + 2j), s=(8, 8)))
    one_way = 3 * 2.5 * 64 * 6  # log2 of 64 points
    assert found.elementwise == 2 * one_way + 3 * 40 * 6
    twice, _ = operations.count(lambda: torch.fft.fft2(x + 1j))
    assert twice.elementwise == 2 * one_way + 2 * 192


def test_executed_operations_by_hand() -> None:
    """In multiples of L D, at L = 256 and D = 64; what is per channel alone comes on top."""
    pytest.importorskip("numba")
    length, width = 256, 64
    by_hand = {
        # Largest, difference, exponential, product, two sums; sigmoid 3, product. A division a channel.
        "AFT-simple": (0, 10 + 1 / length),
        "AFT-simple + shift": (100, 10 + 1 / length),
        # Decay and bonus over L: a division a channel each.
        "BiWKV + shift": (100 + 29, 2 / length),
        # Two products with 64 tokens, a multiply-add being two; a score is scaled, and softmax takes five, 32 channels.
        "window attention": (256, 6 * 64 / 32),
        # 7 N + 2; the rates' exponential and sign, N a channel.
        "selective scan": (114, 2 * 16 / length),
        "selective scan 2D": (4 * 114, 4 * 2 * 16 / length + 3),
    }
    for name in NAMES:
        found = sweep.operations_of(name, length, width, CPU)
        assert (found.formula / length / width, found.elementwise / length / width) == by_hand[name], name


def test_counting_takes_no_memory_and_is_linear() -> None:
    small, large = (sweep.operations_of("window attention", length, 320, CPU) for length in (1 << 10, 1 << 20))
    assert large.total == small.total << 10


def test_the_form_in_chunks_is_counted_as_it_runs() -> None:
    """Where there are no compiled loops; 32 chunks of 32 tokens, states twice, their outputs once."""
    found = sweep.operations_of("selective scan", 1 << 10, 64, torch.device("meta"))
    states, tokens = 16 * 64, 1 << 10
    # Twice: delta u a channel, and of a state its product with B, delta A, exponential, product, sum. Once: a product
    # with C. Between: a sum of steps, a factor (two) a chunk, two operations a chunk but the first; skip u added (two).
    # The rates' exponential and sign.
    between = 32 * 2 * states + 31 * 2 * states + tokens * 64
    assert found.formula == 2 * tokens * states
    assert found.elementwise == 2 * tokens * (64 + 5 * states) + between + 2 * tokens * 64 + 2 * states


def test_what_no_rule_counts_is_named() -> None:
    with pytest.raises(ValueError, match="no rule counts aten::digamma"):
        operations.count(lambda: torch.digamma(torch.ones(3)))


def test_the_rules_of_counting() -> None:
    x, w = torch.randn(4, 6), torch.randn(5, 6)
    for call, formula, elementwise in (
        (lambda: torch.nn.functional.linear(x, w), 2 * 4 * 5 * 6, 0),
        (lambda: x.t().reshape(3, 8), 0, 0),
        (lambda: torch.add(x, x, alpha=2), 0, 48),
        (lambda: x.clone().add_(1), 0, 24),
        (lambda: torch.softmax(x, 1), 0, 5 * 24),
        (lambda: torch.nn.functional.layer_norm(x, (6,)), 0, 8 * 24),
        (lambda: x.sum(0), 0, 24),
        (lambda: torch.nn.functional.silu(x), 0, 4 * 24),
    ):
        found, _ = operations.count(call)
        assert (found.formula, found.elementwise) == (formula, elementwise)
        with torch.inference_mode():
            assert operations.count(call)[0] == found


# Measuring

QUICK = Setting(CPU, quick=True)


@pytest.mark.parametrize("name", NAMES)
def test_the_guard_knows_what_lives(name: str) -> None:
    """`copies` covers the storages that live during `mix`; it is an estimate, but never a low one."""
    mechanism, parts = made(name, 96, 1 << 12, torch.float32)
    live = Live()
    for part in parts:
        live.add(part)
    with torch.no_grad(), live:
        mechanism.mix(*parts)
    estimate = sweep.needed_bytes(mechanism, 1 << 12)
    assert live.peak <= estimate - sweep.FLOOR <= 2.5 * live.peak


@pytest.mark.parametrize("name", NAMES)
def test_a_sweep_measures_and_says_what_it_leaves_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 40 << 20)
    rows = sweep.rows(name, 96, (1 << 8, 1 << 20), QUICK)
    done, left_out = rows
    assert done["seconds"] > 0 and done["quartiles"][0] <= done["quartiles"][1] and done["operations"]["total"] > 0
    assert done["peak bytes"] is None or done["peak bytes"] >= 0
    assert done["theoretical"] == MECHANISMS[name](96).coefficient * 256 * 96
    assert "seconds" not in left_out and "GiB" in left_out["skipped"]
    assert left_out["operations"]["total"] > 1000 * done["operations"]["total"]
    json.dumps(rows, allow_nan=False)


def test_what_would_take_too_long_is_left_out() -> None:
    rows = sweep.rows("AFT-simple", 96, (1 << 8, 1 << 9), QUICK, 1e-9)
    assert "seconds" in rows[0] and "a call" in rows[1]["skipped"]


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_a_sweep_on_a_gpu(name: str) -> None:
    (row,) = sweep.rows(name, 96, (1 << 12,), Setting(torch.device("cuda"), quick=True))
    assert row["seconds"] > 0 and row["peak bytes"] > 0 and row["operations"]["total"] > 0


@pytest.mark.parametrize("name", NAMES)
def test_what_is_wrong_is_not_timed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(MECHANISMS[name](96))
    true = kind.mix
    # Only what is measured is wrong: the truth that it is compared with is computed in float64.
    monkeypatch.setattr(
        kind, "mix", lambda self, *parts: true(self, *parts) * (1.001 if parts[0].dtype == torch.float32 else 1)
    )
    monkeypatch.setattr(measure, "_clock_rounds", lambda *a: pytest.fail("timed"))
    with pytest.raises(WrongResult):
        sweep.rows(name, 96, (1 << 8,), QUICK)


def test_a_long_call_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong beyond the lengths that the definition is compared at."""
    kind = type(MECHANISMS["selective scan"](96))
    true = kind.mix

    def spoiled(self, *parts):
        y = true(self, *parts)
        if len(y) > sweep.SMALL and y.dtype == torch.float32:
            y[sweep.SMALL :] += 1e-2
        return y

    monkeypatch.setattr(kind, "mix", spoiled)
    with pytest.raises(WrongResult):
        sweep.rows("selective scan", 96, (1 << 11,), QUICK)


def test_the_command_saves_and_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 0.0, 0.0))
    words = ["AFT-simple", "--lengths", "256", "512", "--widths", "32", "--save", "--results", str(tmp_path)]
    assert sweep.main(words) == 0
    (path,) = tmp_path.glob("*.jsonl")
    (record,) = (json.loads(line) for line in path.read_text().splitlines())
    assert (record["mechanism"], record["width"], record["quick"]) == ("AFT-simple", 32, False)
    assert [row["length"] for row in record["mechanisms"]] == [256, 512]
    check_mechanisms(record)
    assert "AFT-simple" in capsys.readouterr().out
    assert sweep.main(words) == 0
    assert len(path.read_text().splitlines()) == 1
    assert capsys.readouterr().out.count("is recorded") == 1
