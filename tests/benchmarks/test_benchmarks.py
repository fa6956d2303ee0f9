"""The benchmarks run, refuse to time what is wrong, and only ever add to their results."""

from __future__ import annotations

import importlib.metadata
import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import lalic
import lalic.data
import lalic_kernels
from benchmarks import cases, exact_model, measure, records, run, slices
from benchmarks.cases import biwkv, entropy_params
from benchmarks.measure import Call, Case, Setting, WrongResult
from benchmarks.paper.channel_transformer import ChannelTransformer
from benchmarks.registry import ENTRIES, measure_entry
from lalic_kernels import rans
from lalic_kernels.biwkv import reference
from lalic_kernels.op import OPS

QUICK = Setting(torch.device("cpu"), quick=True)
WITHOUT_BANDWIDTH = {"transforms", "slices", "context"}  # of a whole model no bytes are counted


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_verifies_and_runs(name: str) -> None:
    rows = measure_entry(name, QUICK)
    measured = [row for row in rows if not row["yardstick"]]
    assert measured
    for row in rows:
        assert row["entry"] == name
        assert row["seconds"] > 0
        assert row["quartiles"][0] <= row["quartiles"][1]
        beside = {other["call"] for other in rows if other["case"] == row["case"] and other["yardstick"]}
        assert set(row["ratios"]) == (set() if row["yardstick"] else beside)
    json.dumps(rows, allow_nan=False)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if "cuda" in entry.devices])
def test_every_entry_verifies_and_runs_on_a_gpu(name: str) -> None:
    check_on_a_gpu(name, measure_entry(name, Setting(torch.device("cuda"), quick=True)))


def check_on_a_gpu(name: str, rows: list[dict[str, Any]]) -> None:
    """Every call has its peak of memory, every one of ours a share of the copy, but for whole models."""
    assert rows
    for row in rows:
        assert row["seconds"] > 0 and row["metrics"]["peak MiB"] >= 0
        if not row["yardstick"]:
            assert ("of copy bandwidth" in row["metrics"]) == (name not in WITHOUT_BANDWIDTH)
            assert row["metrics"].get("of copy bandwidth", 1) > 0


def test_every_op_has_an_entry() -> None:
    assert set(OPS) <= set(ENTRIES), "an op is missing from benchmarks/registry.py"


def test_shapes_are_those_of_the_published_model() -> None:
    # 768x512: three stages of the transforms, then the hyper transform.
    shapes = [(h * w, c) for h, w, c in cases.stage_shapes()]
    assert shapes == [(98304, 96), (24576, 144), (6144, 256), (384, 256)]
    # 1536 latent positions, half of them a pass; the last slice has 192 channels beside 320 of the hyper parameters.
    assert entropy_params.shapes()[1][:2] == (768, 4 * 192 + 320)
    assert entropy_params.shapes()[-1][2] == 2 * 192


# Wrong results


def _off_by_a_little(function):
    """0.1 %, far above any tolerance and far below what one would see in a picture."""
    return lambda *a, **k: function(*a, **k) * 1.001


def _off_where_it_chooses(function):
    """So for float32 with no backend named; what the checks compare with is not changed."""

    def spoiled(x, *more, backend=None, **named):
        y = function(x, *more, backend=backend, **named)
        return y * 1.001 if backend is None and y.dtype == torch.float32 else y

    return spoiled


def _broken_decoder(decoder):
    class Broken(decoder):
        def decode(self, indexes):
            symbols = super().decode(indexes)
            symbols[-1] += 1
            return symbols

    return Broken


BREAKAGES = {
    "biwkv": (lalic_kernels, "biwkv", _off_by_a_little),
    "token_shift": (lalic_kernels, "token_shift", _off_by_a_little),
    "norm_shift": (lalic_kernels, "norm_shift", _off_by_a_little),
    "spatial_mix": (lalic_kernels, "spatial_mix", _off_where_it_chooses),
    "channel_mix": (lalic_kernels, "channel_mix", _off_where_it_chooses),
    "rwkv_block": (lalic_kernels, "rwkv_block", _off_where_it_chooses),
    "transforms": (lalic.LALIC, "_transform", _off_by_a_little),
    "entropy_params": (lalic_kernels, "entropy_params", _off_by_a_little),
    "gaussian_likelihood": (lalic_kernels, "gaussian_likelihood", _off_by_a_little),
    "loading": (lalic.data, "_tensor", lambda tensor: lambda picture: tensor(picture) // 2),
    "rans": (rans, "Decoder", _broken_decoder),
    "slices": (slices, "code_slices", _off_by_a_little),
    "exact_model": (exact_model._Decoding, "decode", _off_by_a_little),
    "context": (ChannelTransformer, "step", lambda step: lambda *a: tuple(1.01 * out for out in step(*a))),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_what_is_wrong_is_not_timed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, attribute, spoil = BREAKAGES[name]
    monkeypatch.setattr(owner, attribute, spoil(getattr(owner, attribute)))
    timed = []
    monkeypatch.setattr(measure, "_clock_rounds", lambda calls, setting: timed.append(calls))
    with pytest.raises(WrongResult):
        measure_entry(name, QUICK)
    assert not timed


def test_rows_by_the_definition_are_the_reference() -> None:
    w, u, k, v = (x.double() for x in biwkv.biwkv_arguments((2, 23, 3), torch.float32, QUICK))
    rows = [0, 7, 22]
    expected = reference.biwkv(40 * w, u, k, v)[:, rows]
    # Two float64 evaluations of one formula, means of v: a few roundings of 1e-16 apart.
    assert (biwkv.definition_rows(40 * w, u, k, v, rows) - expected).abs().max() < 1e-13


def _row(y):
    y[:, 1000] += 1e-3


def _channel(y):
    y[..., 7] += 1e-3


def _not_a_number(y):
    y[0, 1999, 3] = float("nan")


@pytest.mark.parametrize("spoil", [_row, _channel, _not_a_number])
def test_long_sequences_are_checked_by_rows_and_channels(spoil) -> None:
    arguments = biwkv.biwkv_arguments((1, 2000, 8), torch.float32, QUICK)
    assert biwkv.QUADRATIC_LIMIT < 2000 * 2000 * 8  # else this tests the quadratic reference
    y = lalic_kernels.biwkv(*arguments)
    biwkv.check_biwkv(arguments, y)
    spoil(y)
    with pytest.raises(WrongResult):
        biwkv.check_biwkv(arguments, y)


@pytest.mark.parametrize("shape", [(1, 40, 3), (1, 3000, 6)])  # against the quadratic reference, and the linear path
@pytest.mark.parametrize("which", range(4))
def test_wrong_gradients_are_caught(shape: tuple[int, int, int], which: int) -> None:
    arguments = biwkv.biwkv_arguments(shape, torch.float32, QUICK)
    leaves = [x.requires_grad_() for x in arguments]
    y = lalic_kernels.biwkv(*leaves)
    upstream = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    grads = list(torch.autograd.grad(y, leaves, upstream))
    biwkv.check_biwkv_gradients(arguments, upstream, grads)
    grads[which] = grads[which] * 1.001
    with pytest.raises(WrongResult, match=f"gradient of {'wukv'[which]}"):
        biwkv.check_biwkv_gradients(arguments, upstream, grads)


def test_a_wrong_shape_is_a_wrong_result() -> None:
    with pytest.raises(WrongResult, match="shape"):
        measure.within("y", torch.zeros(3), torch.zeros(3, 1), 1.0)


# The clock


def test_ratios_are_of_medians_measured_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    order = []

    def call(name: str, durations: list[float]):
        durations = [0.0, 0.0, *durations] if name == "ours" else [0.0, *durations]  # the check, the warm-up
        remaining = iter(durations)

        def step() -> str:
            order.append(name)
            now[0] += next(remaining)
            return name

        return step

    monkeypatch.setattr(Setting, "rounds", property(lambda self: (3, 3, 0.0)))
    checked = []
    calls = (
        Call("ours", call("ours", [6.0, 900.0, 5.0]), checked.append, lambda seconds: {"twice": 2 * seconds}),
        Call("theirs", call("theirs", [3.0, 2.0, 1.0])),
    )
    ours, theirs = measure.measure("entry", Case("case", calls), QUICK)
    assert checked == ["ours"]
    assert order[3:] == ["ours", "theirs"] * 3  # after the check and two warm-ups
    assert (ours["seconds"], theirs["seconds"]) == (6.0, 2.0)
    assert ours["ratios"] == {"theirs": 3.0} and theirs["ratios"] == {}
    assert ours["metrics"] == {"twice": 12.0}
    assert ours["repeats"] == 3


# The command and its records


def test_the_command_saves_a_record_and_never_rewrites(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        run, "in_fresh_process", lambda call, name, setting, memory: call(name, replace(setting, quick=True))
    )
    words = ["rans", "--threads", "1", "--save", "--results", str(tmp_path)]
    threads = torch.get_num_threads()
    try:
        assert run.main(words) == 0
        (path,) = tmp_path.iterdir()
        first = path.read_bytes()
        assert run.main(words) == 0
    finally:
        torch.set_num_threads(threads)
    assert list(tmp_path.iterdir()) == [path]
    both = path.read_bytes()
    assert both.startswith(first) and both.count(b"\n") == 2
    record = json.loads(both.splitlines()[1])
    assert record["threads"] == 1 and record["quick"] is False
    assert record["torch"] == importlib.metadata.version("torch")
    assert path.stem == records.slug(record["device"])
    assert {row["call"] for row in record["rows"]} >= {"encode", "decode"}  # and those of what else is installed
    printed = capsys.readouterr().out
    assert record["device"] in printed
    assert "Msymbols/s" in printed


def test_nothing_is_saved_when_a_result_is_wrong(tmp_path: Path, monkeypatch, capsys) -> None:
    def wrong(call, name: str, setting: Setting, memory: str):
        raise WrongResult("it is off by one")

    monkeypatch.setattr(run, "in_fresh_process", wrong)
    assert run.main(["biwkv", "rans", "--save", "--results", str(tmp_path)]) == 1
    assert not list(tmp_path.iterdir())
    errors = capsys.readouterr().err
    assert "biwkv: not timed, it is off by one" in errors and "rans: not timed" in errors


def test_what_cannot_be_measured_is_refused_in_a_sentence(monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for words, sentence in (
        (["nonsense"], "there is no entry 'nonsense'"),
        (["--device", "cuda"], "no CUDA device"),
        (["--threads", "0"], "expected at least 1"),
        (["--quick", "--save"], "its figures are not kept"),
    ):
        with pytest.raises(SystemExit) as stop:
            run.main(words)
        assert stop.value.code == 2
        assert sentence in capsys.readouterr().err


def test_the_allocator_is_set_for_the_measuring_process_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    class Pool:
        def __init__(self, *a, **k) -> None: ...
        def __enter__(self):
            seen.update({name: os.environ.get(name) for name in measure.MEMORY["reused"]})
            return self

        def __exit__(self, *a) -> None: ...
        def submit(self, *a):
            return SimpleNamespace(result=lambda: [])

    monkeypatch.setattr(measure, "ProcessPoolExecutor", Pool)
    before = dict(os.environ)
    assert measure.in_fresh_process(len, memory="reused") == []
    assert seen == measure.MEMORY["reused"]
    assert dict(os.environ) == before
