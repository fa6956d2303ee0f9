"""`make gpu` without a GPU: its commands on their real lists of sizes, with the work left out.

Tensors are on a CUDA device and take no memory; what `torch.cuda` is asked for answers a double. Cases of operations
are built, checked and "timed" by the code that does so on a GPU, host code of launches runs, and grids are checked. Of
whole models the coders give empty results, after they have decided whether there can be a graph.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from test_benchmarks import check_on_a_gpu
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

pytest.importorskip("triton")

from benchmarks import codec, cold, gpu, measure, parts, records, run
from benchmarks.cases.transforms import TINY
from benchmarks.counting import memory
from benchmarks.measure import Setting
from benchmarks.registry import ENTRIES, measure_entry
from lalic import cli
from lalic.coder import Stream
from lalic.coder import gpu as gpu_coder
from lalic.coder.host import HostCoder
from lalic.model import LALIC
from lalic_kernels import dispatch, installed
from lalic_kernels.biwkv import gpu as launches

MAX_GRID = (2**31 - 1, 65535, 65535)
DEVICE, META = torch.device("cuda", 0), torch.device("meta")
GIB = 1 << 30


def real(value: Any) -> Any:
    """The device whose tensors have no memory in the place of any other."""
    named = isinstance(value, str) and value.startswith("cuda")
    return META if named or isinstance(value, torch.device) else value


class OnCuda(TorchFunctionMode):
    """Tensors say that they are on a CUDA device, except what was fetched with `cpu`. Below torch they are on none."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == Tensor.device.__get__:
            return torch.device("cpu") if hasattr(args[0], "fetched") else DEVICE
        if func == Tensor.is_cuda.__get__:
            return not hasattr(args[0], "fetched")
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        if func is Tensor.cpu:
            result = torch.empty_like(args[0])
            result.fetched = True
            return result
        return func(*tree_map(real, args), **{name: real(value) for name, value in (kwargs or {}).items()})


class Values(TorchDispatchMode):
    """Answers for values that are not there, and runs what our ops run on a GPU, so that their launches are made."""

    def __init__(self) -> None:
        super().__init__()
        self.ops = memory._implementations()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if name in ("aten::_local_scalar_dense", "aten::item"):
            return {torch.bool: True}.get(args[0].dtype, 0.0 if args[0].is_floating_point() else 0)
        if name == "aten::equal":
            return True
        if name in self.ops:
            guard = torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False)
            with guard, self, OnCuda():
                return self.ops[name](*args, **kwargs)
        return func(*args, **kwargs)


def launch(self: Any, grid: Any) -> Callable[..., None]:
    assert all(1 <= size <= most for size, most in zip(grid, MAX_GRID, strict=False)), (self, grid)
    return lambda *args, **kwargs: None


class Event:
    def __init__(self, enable_timing: bool = False) -> None: ...
    def record(self) -> None: ...
    def synchronize(self) -> None: ...
    def elapsed_time(self, end: Any) -> float:
        return 1.0


class Generator:
    """Numbers have no values, so none is needed."""

    def __init__(self, device: Any = None) -> None: ...
    def manual_seed(self, seed: int) -> None: ...


def chosen(op: dispatch.Op, device_type: str, dtype: torch.dtype) -> tuple[str, str]:
    return ("torch", "") if dtype == torch.float64 or device_type != "cuda" else ("triton", "")


@contextlib.contextmanager
def no_gpu(gib: int) -> Iterator[None]:
    """torch says that there is a GPU of so much memory. Its load is low, the processor's high."""
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import KernelInterface

    check = records.check
    properties = SimpleNamespace(major=9, minor=0, total_memory=gib * GIB, name="A GPU", uuid="0-1")
    replaced: list[tuple[Any, str, Any]] = [
        (KernelInterface, "__getitem__", launch),
        (installed, "start_triton", lambda: None),
        (dispatch, "choose", chosen),
        (records, "check", lambda *a, **k: check(*a, **k) and DEVICE),
        (records, "_output", lambda *words: "3" if words[0] == "nvidia-smi" else "a commit"),
        (os, "getloadavg", lambda: (5.0, 5.0, 5.0)),
        (torch, "Generator", Generator),
        (torch, "autocast", lambda *a, **k: contextlib.nullcontext()),  # it does not know "meta"
        (measure, "in_fresh_process", lambda call, *a, memory="default": call(*a)),
        (run, "in_fresh_process", lambda call, *a, memory="default": call(*a)),
        (codec, "in_fresh_process", lambda call, *a, memory="default": call(*a)),
        (Setting, "rounds", (2, 2, 0.0)),
    ]
    cuda = {
        "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
        "synchronize": lambda: None,
        "get_device_name": lambda _=None: "A GPU", "get_device_properties": lambda _=None: properties,
        "mem_get_info": lambda _=None: (gib * GIB, gib * GIB), "memory_allocated": lambda: 0, "Event": Event,
        "reset_peak_memory_stats": lambda: None, "max_memory_allocated": lambda: 1 << 20, "empty_cache": lambda: None,
        "device": lambda _: contextlib.nullcontext(), "is_current_stream_capturing": lambda: False,
        "current_stream": lambda: Event(), "_sleep": lambda cycles: None,
    }  # fmt: skip
    replaced += [(torch.cuda, name, value) for name, value in cuda.items()]
    measure.copy_bandwidth.cache_clear()
    measure.product_rate.cache_clear()
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(InterpretedFunction, "__getitem__", launch, create=True))
        for owner, name, replacement in replaced:
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield
    measure.copy_bandwidth.cache_clear()
    measure.product_rate.cache_clear()


@contextlib.contextmanager
def no_memory() -> Iterator[None]:
    with Values(), OnCuda(), META:
        yield


class Subject(codec.Subject):
    """Of real size, with a tiny model; what its coders give is empty."""

    def __init__(self, name: str, height: int, width: int, batch: int, device: torch.device):
        self.x = torch.empty(batch, 3, height, width, device=device)
        self.precision = "bfloat16" if name.endswith("bfloat16") else "float32"
        self.model = LALIC.from_config(TINY).eval().set_precision(self.precision)
        self.drawn = [torch.empty(1, 1)] * batch

    def start(self) -> Subject:
        self.streams = self.encode()
        self.expected = self.decode()
        return self


@contextlib.contextmanager
def no_coding() -> Iterator[list[tuple[int, int, bool]]]:
    """Coders decide what to launch, and launch nothing. Yields (pictures, pixels, in a graph) of what was decoded."""
    seen: list[tuple[int, int, bool]] = []

    def encode(self: Any, x: Tensor, *_: Any) -> Stream:
        if isinstance(self, gpu_coder.GpuCoder):
            self._graphs(self.model.coding, 1, now[0])
        return Stream(b"", 0)

    def decode(self: Any, streams: Any, size: tuple[int, int], *_: Any) -> list[Tensor]:
        now[0] = size
        if isinstance(self, gpu_coder.GpuCoder):
            graphs = self._graphs(self.model.decoding, len(streams), size)
            seen.append((len(streams), 64 * size[0] * 64 * size[1], bool(self.graph and graphs is not None)))
        height, width = 64 * size[0], 64 * size[1]
        return [torch.empty(1, 3, height, width, device=DEVICE) for _ in streams]

    now = [(1, 1)]

    def began(self: Subject, *a: Any) -> None:
        made(self, *a)
        now[0] = (self.x.shape[2] // 64, self.x.shape[3] // 64)

    made = Subject.__init__
    names = ("g_a", "h_a", "h_s", "contexts", "aggregation", "g_s", "rest")
    counted = {name: {"macs": 9, "bytes": 9} for name in names}
    needed = {direction: dict.fromkeys(names, 1.0) for direction, names in parts.NEEDED.items()}
    with contextlib.ExitStack() as stack:
        for coder in (gpu_coder.GpuCoder, HostCoder):
            stack.enter_context(mock.patch.object(coder, "encode", encode))
            stack.enter_context(mock.patch.object(coder, "encode_latents", encode))
            stack.enter_context(mock.patch.object(coder, "decode", decode))
        for owner, name, value in (
            (Subject, "__init__", began), (codec, "Subject", Subject), (LALIC, "device", DEVICE),
            (LALIC, "latents", lambda self, x: x), (parts, "times", lambda call, way, *_: call() and needed[way]),
            (parts, "counts", lambda *_: counted),
        ):  # fmt: skip
            stack.enter_context(mock.patch.object(owner, name, value))
        yield seen


def day(tmp_path: Path) -> dict[str, tuple[str, ...]]:
    return {step.name: step.words for step in gpu.steps(2, tmp_path, tmp_path)}


def rows_of(tmp_path: Path, key: str) -> list[dict[str, Any]]:
    (path,) = tmp_path.glob("*.jsonl")
    return [row for line in path.read_text().splitlines() for row in json.loads(line).get(key, ())]


def call(words: tuple[str, ...]) -> int:
    return importlib.import_module(words[1]).main(list(words[2:]))


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if "cuda" in entry.devices])
def test_what_the_gpu_tests_ask_of_an_entry(name: str) -> None:
    with no_memory(), no_gpu(24):
        check_on_a_gpu(name, measure_entry(name, Setting(DEVICE, quick=True)))


@pytest.mark.parametrize("gib", [24, 139])
@pytest.mark.parametrize("step", ["blocks", "biwkv", "other operations"])
def test_operations(step: str, gib: int, tmp_path: Path) -> None:
    words = day(tmp_path)[step]
    with no_memory(), no_gpu(gib):
        assert call(words) == 0
    rows = rows_of(tmp_path, "rows")
    assert {row["entry"] for row in rows} == {name for name in words if name in ENTRIES}
    sizes = {row["case"] for row in rows if row["entry"] == "biwkv"}
    if step == "biwkv":
        assert any("(8, 2088960, 96)" in case for case in sizes) == (gib == 139)
        assert any("(1, 98304, 96)" in case for case in sizes)


@pytest.mark.parametrize("gib", [24, 139])
def test_the_codec(gib: int, tmp_path: Path) -> None:
    steps = {name: words for name, words in day(tmp_path).items() if name.startswith("codec")}
    with no_memory(), no_gpu(gib), no_coding() as seen:
        for words in steps.values():
            assert call(words) == 0
        rows = rows_of(tmp_path, "codec")
        assert "decode 768x512, graph" in gpu.summary([], [{"codec": rows}])
    assert all("seconds" in row for row in rows)
    ways = {(row["width"], row["batch"], row["way"]) for row in rows if row["side"] == "ours"}
    both = {"graph", "plain launches"}
    assert {way for width, batch, way in ways if (width, batch) == (768, 1)} == both
    assert {way for width, batch, way in ways if (width, batch) == (768, 8)} == (
        both | {f"{way}, in one batch" for way in both}
    )
    assert {way for width, batch, way in ways if (width, batch) == (1920, 1)} == both
    assert {way for width, batch, way in ways if (width, batch) == (3840, 1)} == {"plain launches"}
    assert ("graph, in one batch" in {way for width, batch, way in ways if width == 1920}) is False
    assert ((1920, 8, "plain launches, in one batch") in ways) == (gib == 139)
    assert {row["way"] for row in rows if row["side"] == "baseline"} == {""}
    assert all(batch * pixels <= gpu_coder.MAX_GRAPH_PIXELS for batch, pixels, graph in seen if graph)


# What was wrong once would be found


def graph_for_all(subject: codec.Subject) -> list[tuple[str, str, Callable[[], Any]]]:
    return [("decode", "graph", functools.partial(subject.decode, True))]


def test_a_graph_where_there_can_be_none_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with no_memory(), no_gpu(139), no_coding(), mock.patch.object(codec, "ways", graph_for_all):
        assert call(day(tmp_path)["codec 3840x2160"]) == 1
    assert "graph: expected None or False, because 8355840 pixels" in capsys.readouterr().err


def test_a_graph_for_the_baseline_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with no_memory(), no_gpu(139), no_coding(), mock.patch.object(codec, "ways", graph_for_all):
        assert call(day(tmp_path)["codec 768x512"]) == 1
    assert "where symbols are not coded on a GPU" in capsys.readouterr().err


def test_the_processors_load_is_not_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    busy = records.busy
    with no_gpu(139), mock.patch.object(records, "busy", lambda device: busy("cpu")), pytest.raises(SystemExit):
        call(day(tmp_path)["codec 768x512"])
    assert "load 5.0" in capsys.readouterr().err
    with (
        no_gpu(139),
        mock.patch.object(records, "_output", lambda *words: "97"),
        mock.patch.object(records.time, "sleep", lambda seconds: None),
        pytest.raises(SystemExit),
    ):
        call(day(tmp_path)["codec 768x512"])
    assert "the GPU computes 97 % of the time" in capsys.readouterr().err


def test_a_metric_that_is_missing_is_found() -> None:
    with no_memory(), no_gpu(24):
        rows = measure_entry("transforms", Setting(DEVICE, quick=True))
    with pytest.raises(AssertionError):
        check_on_a_gpu("rwkv_block", rows)
    for row in rows:
        del row["metrics"]["peak MiB"]
    with pytest.raises(KeyError, match="peak MiB"):
        check_on_a_gpu("transforms", rows)


def test_a_grid_that_is_too_large_is_found() -> None:
    with pytest.raises(AssertionError):
        launch(None, (1, 1 << 16))


def test_the_launch_table(tmp_path: Path) -> None:
    before = launches.FILE.read_bytes()
    with no_memory(), no_gpu(139):
        assert call(day(tmp_path)["launch table"]) == 0
    found = launches.parse(json.loads((tmp_path / "launches.json").read_text()))
    assert {row.architecture for row in found} >= {"any", "cuda 90"} and launches.FILE.read_bytes() == before
    assert len(list(tmp_path.glob("*.jsonl"))) == 1


def test_the_first_picture(tmp_path: Path) -> None:
    found = {"nothing cached": {"first decode": [1.0]}, "code cached": {"first decode": [1.0]}}
    with no_gpu(24), mock.patch.object(cold, "first_picture", lambda device, repeats, size: found):
        assert call(day(tmp_path)["first picture of a process"]) == 0


def test_other_steps_are_commands(tmp_path: Path) -> None:
    words = day(tmp_path)
    assert cli.build_parser().parse_args(list(words["warmup"][2:])).device == "cuda"
    assert words["tests"][:5] == ("-m", "pytest", "tests", "-m", "gpu")
    assert importlib.util.find_spec(words["packages and devices"][1])
    measured = {"codec", "run", "cold", "tune"}
    assert {w[1].rpartition(".")[2] for w in words.values() if w[1].startswith("benchmarks")} == measured


# The script itself


def step(code: str, limit: float = 60, needed: bool = False) -> gpu.Step:
    return gpu.Step(f"step {code[:20]}", ("-c", code), limit, needed)


def test_a_step_that_fails_or_hangs_ends_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    hangs = "import subprocess; print('here', flush=True); subprocess.run(['sleep', '60'])"
    found = gpu.run_all([step("1 / 0"), step(hangs, 2.0), step("print('last')", needed=True)], 100, tmp_path)
    assert [done.how for done in found] == ["failed, exit code 1", "cut after 2 s", "done"]
    assert [done.good for done in found] == [False, True, True] and found[1].seconds < 20
    out = capfd.readouterr().out
    assert "ZeroDivisionError" in out and "here" in out and "last" in out
    assert len(list(tmp_path.glob("*.log"))) == 3


def test_what_there_is_no_time_for(tmp_path: Path) -> None:
    found = gpu.run_all([step("0"), step("1", needed=True)], gpu.LEAST - 1, tmp_path)
    assert [(done.how, done.good) for done in found] == [("no time left", True), ("no time left", False)]
    text = gpu.summary(found, [])
    assert "no time left" in text and "prediction" not in text


def test_the_days_limits() -> None:
    found = gpu.steps(2)
    assert gpu.MINUTES <= 12 and next(step for step in found if step.needed).name == "tests"
    first = [step.name for step in found[:4]]
    assert first == ["packages and devices", "warmup", "tests", "codec 768x512"]
    assert sum(step.limit for step in found[:4]) < 60 * gpu.MINUTES


def test_refused_without_a_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        gpu.main([])
    assert stop.value.code == 2 and "no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_parts_of_the_coder_on_a_gpu_are_seen(direction: str) -> None:
    """The marks of `benchmarks.parts` are on the way that a GPU takes; in Triton's interpreter."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "coder"))
    from graph_double import interpreted, picture, tiny
    from test_codec_benchmark import FakeClock

    if torch.cuda.is_available():
        pytest.skip("the interpreter stands in for a GPU")
    model = tiny((4, 7))
    with interpreted(), torch.inference_mode():
        coder = gpu_coder.GpuCoder(model, False)
        stream = coder.encode(picture(1), 50.0)
        calls = {
            "encode": lambda: coder.encode(picture(1), 50.0),
            "decode": lambda: coder.decode([stream], (1, 1), [50.0]),
        }
        found = parts.times(calls[direction], direction, FakeClock(), 1)
    assert parts.NEEDED[direction] <= set(found)
