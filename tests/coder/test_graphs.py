"""When launches become a graph, which graphs are cached, and errors; with a double of torch.cuda, on any machine."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lalic.coder import Stream, gpu
from lalic.coder.gpu import GpuCoder, why_no_graph
from lalic.coder.graphs import Graph, GraphCache, GraphError
from lalic.model import LALIC
from lalic_kernels.cache import tensors_of

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


def sized(size: int = 10) -> SimpleNamespace:
    return SimpleNamespace(bytes=size)


def small(capacity: int = 3, capacity_bytes: int = 100) -> GraphCache:
    return GraphCache(capacity, capacity_bytes)


def test_the_second_request_captures() -> None:
    graphs = small()
    assert graphs.get("a", CPU, sized, None) is None
    assert graphs.get("b", CPU, sized, None) is None
    made = graphs.get("a", CPU, sized, None)
    assert made is not None and graphs.get("a", CPU, pytest.fail, None) is made
    assert graphs.get("c", CPU, sized, True) is not None and len(graphs) == 2


def test_those_used_last_stay() -> None:
    graphs = small(3, 1000)
    for key in "abc":
        graphs.get(key, CPU, sized, True)
    graphs.get("a", CPU, pytest.fail, True)
    graphs.get("d", CPU, sized, True)
    assert [key in graphs._graphs for key in "abcd"] == [True, False, True, True]


def test_bytes_are_bounded_and_what_is_dropped_is_freed() -> None:
    class Graph:
        bytes = 40

    graphs = small(9, 100)
    first = weakref.ref(graphs.get("a", CPU, Graph, True))
    graphs.get("b", CPU, Graph, True)
    assert first() is not None
    graphs.get("c", CPU, Graph, True)
    gc.collect()
    assert first() is None and len(graphs) == 2


def test_one_that_is_too_large_is_not_captured_again() -> None:
    graphs = small(9, 100)
    assert graphs.get("a", CPU, sized, None) is None
    assert graphs.get("a", CPU, lambda: sized(200), None).bytes == 200
    assert graphs.get("a", CPU, pytest.fail, None) is None and len(graphs) == 0


def test_memory_that_does_not_suffice() -> None:
    def make() -> Any:
        raise torch.OutOfMemoryError("no memory")

    graphs = small()
    with pytest.raises(torch.OutOfMemoryError):
        graphs.get("a", CPU, make, True)
    graphs.get("b", CPU, make, None)
    assert graphs.get("b", CPU, make, None) is None, "the picture is decoded without a graph"
    assert graphs.get("b", CPU, pytest.fail, None) is None, "and the next ones of its size too"


def test_threads_capture_once() -> None:
    graphs, made, found = small(), [], []

    def make() -> Any:
        made.append(1)
        threading.Event().wait(0.05)
        return sized()

    threads = [threading.Thread(target=lambda: found.append(graphs.get("a", CPU, make, True))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and len({id(graph) for graph in found}) == 1


# A model's graphs


@pytest.fixture
def model() -> LALIC:
    torch.manual_seed(0)
    made = LALIC(3, 6, (4, 4, 4, 6, 4, 4), (0, 0, 0, 1), (2, 4), context_depth=1, context_rate=2, qualities=2)
    made.update()
    return made.eval()


def graphs_of(model: LALIC) -> GraphCache:
    return model.decoding.look(model).get("graphs", GraphCache)


@torch.no_grad()
def test_a_weight_that_changes_ends_all_graphs(model: LALIC) -> None:
    first = graphs_of(model)
    assert graphs_of(model) is first
    seen = {id(first)}
    changes = (
        lambda: model.g_s[0].weight.add_(1),
        lambda: setattr(model.h_s[0].weight, "data", model.h_s[0].weight.data.clone()),
        lambda: model.gains.log_inverses.zero_(),
        lambda: model.update(force=True),
        lambda: model.load_state_dict(model.state_dict()),
        lambda: setattr(model, "gains", copy.deepcopy(model.gains)),
    )
    kept = [first]
    for change in changes:
        change()
        kept.append(graphs_of(model))
        assert id(kept[-1]) not in seen
        seen.add(id(kept[-1]))


def test_copies_have_graphs_of_their_own_and_a_model_takes_its_with_it(model: LALIC) -> None:
    graphs_of(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert list(other.cache) == [] and other.decoding._last is None and other.launch_lock is not model.launch_lock
    gone = weakref.ref(graphs_of(other))
    assert gone() is not None
    del other
    gc.collect()
    assert gone() is None


def test_what_a_model_leads_to(model: LALIC) -> None:
    from lalic.coder.engines import exact_entropy

    entropy = exact_entropy(model.latent_codec)
    before = {x.untyped_storage()._cdata for x in tensors_of(model)}
    assert {x.untyped_storage()._cdata for x in (*model.parameters(), *model.buffers())} <= before
    assert entropy.slices.hyper.weight.untyped_storage()._cdata in before
    late = torch.zeros(3)
    entropy.slices.hyper.cache.get("gpu", (), lambda: (SimpleNamespace(), [{"x": late}]))
    assert any(x is late for x in tensors_of(model))


def test_a_graph_does_not_hold_the_memory_of_another(model: LALIC) -> None:
    memory = torch.zeros(3)
    graph = Graph()
    graph.results, graph.bytes = memory, 12
    graphs = model.decoding.look(model).get("graphs", small)
    assert graphs.get("a", CPU, lambda: graph, True) is graph
    assert not any(x is memory for x in tensors_of(model))


def test_where_there_can_be_no_graph(model: LALIC) -> None:
    assert why_no_graph(model, 1, (8, 12)) == ""
    assert why_no_graph(model, 1, (32, 32)) == "" and why_no_graph(model, 8, (16, 8)) == ""
    assert "4325376 pixels" in why_no_graph(model, 1, (33, 32)) and "pixels" in why_no_graph(model, 9, (16, 8))
    model.set_precision("float16")
    assert "float16" in why_no_graph(model, 1, (1, 1))
    model.set_precision("float32")
    with torch.autocast("cpu"):
        assert "autocast" in why_no_graph(model, 1, (1, 1))
    model.entropy = "float"
    assert "floating point" in why_no_graph(model, 1, (1, 1))
    with pytest.raises(ValueError, match="graph: expected None or False, because"):
        GpuCoder(model, True).decode([Stream(b"", 0)], (1, 1), [None])
    with torch.inference_mode():
        made = LALIC(3, 6, (4, 4, 4, 6, 4, 4), (0, 0, 0, 0), (6,))
        made.g_s[0].bias = torch.nn.Parameter(torch.zeros_like(made.g_s[0].bias))
    assert "inference_mode" in why_no_graph(made, 1, (1, 1))


def test_a_graph_is_not_asked_for_in_vain(model: LALIC) -> None:
    with pytest.raises(ValueError, match="graph: expected None or False where symbols are not coded on a GPU"):
        model.decode(Stream(b"", 0), 64, 64, graph=True)
    with pytest.raises(ValueError, match="graph: expected None or False where symbols are not coded on a GPU"):
        model.encode(torch.zeros(1, 3, 64, 64), graph=True)


@pytest.mark.parametrize(
    ("heads", "capacity"),
    [
        ([(1, 1)], (4, 16384)),
        ([(4, 9000), (5, 100)], (16, 65536)),
        ([(1, 70000)], (64, 262144)),
        ([(1024, 3_000_000)], (1024, 4194304)),
        ([(3, 5_000_000)], (1024, 1221 * 4096)),
    ],
)
def test_few_capacities_for_all_streams(heads: list[tuple[int, int]], capacity: tuple[int, int]) -> None:
    assert gpu._capacity(heads) == capacity
    assert all(groups <= capacity[0] and words <= capacity[1] for groups, words in heads)


# A capture, with a double of torch.cuda


class Cuda:
    """Records calls of torch.cuda. fail: raised when a capture ends."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail: Exception | None = None) -> None:
        self.log: list[str] = []
        self.now = "caller"
        self.capturing = False
        log = self.log
        cuda = self

        class Stream:
            def __init__(self, name: str = "side") -> None:
                self.name = name

            def wait_stream(self, other: Stream) -> None:
                log.append(f"{self.name} waits for {other.name}")

            def synchronize(self) -> None:
                log.append(f"wait for {self.name}")

        class On:
            def __init__(self, stream: Stream) -> None:
                self.stream = stream

            def __enter__(self) -> None:
                self.before, cuda.now = cuda.now, self.stream.name

            def __exit__(self, *_: object) -> None:
                cuda.now = self.before

        class Capture(On):
            def __init__(self, graph: Any, stream: Stream, capture_error_mode: str) -> None:
                super().__init__(stream)
                log.append(f"capture on {stream.name}, {capture_error_mode}")

            def __enter__(self) -> None:
                super().__enter__()
                cuda.capturing = True

            def __exit__(self, *error: object) -> None:
                cuda.capturing = False
                if fail is not None:
                    raise fail  # as torch does, without giving the stream back
                super().__exit__()

        segments = [{"segment_pool_id": (0, n), "total_size": size} for n, size in ((0, 7), (5, 30), (5, 12))]
        graph = SimpleNamespace(replay=lambda: log.append(f"replay on {self.now}"), pool=lambda: (0, 5))
        for name, value in {
            "Stream": lambda _: Stream(), "stream": On, "device": lambda _: On(Stream(self.now)), "graph": Capture,
            "current_stream": lambda _: Stream(self.now), "CUDAGraph": lambda: graph,
            "memory_snapshot": lambda: segments,
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)


def captured(cuda: Cuda, held: Any = list) -> Graph:
    def launch() -> str:
        cuda.log.append(f"launch on {cuda.now}" + (", captured" if cuda.capturing else ""))
        return "results"

    graph = Graph()
    graph.capture(CPU, lambda: cuda.log.append(f"prepare on {cuda.now}"), launch, held)
    return graph


def test_a_capture_runs_first_and_on_a_stream_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch)
    made = captured(cuda)
    assert cuda.log == [
        "side waits for caller", *["prepare on side", "launch on side"] * 2, "prepare on side", "wait for side",
        "capture on side, thread_local", "launch on side, captured", "caller waits for side",
    ]  # fmt: skip
    assert made.results == "results" and made.bytes == 42
    made.run()
    assert cuda.log[-1] == "replay on caller"


def test_a_capture_that_fails_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch, RuntimeError("operation not permitted\nwhen stream is capturing"))
    with pytest.raises(GraphError, match=r"\(operation not permitted when stream is capturing\); use graph=False"):
        captured(cuda)
    assert cuda.now == "caller"
    with pytest.raises(torch.OutOfMemoryError):
        captured(Cuda(monkeypatch, torch.OutOfMemoryError("none left")))


def test_what_is_wrong_before_the_capture_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    Cuda(monkeypatch)

    def launch() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        Graph().capture(CPU, lambda: None, launch, list)


def test_what_is_kept_is_made_before_and_held(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch)
    kept = [torch.zeros(2)]
    made = captured(cuda, lambda: list(kept))
    gone = weakref.ref(kept.pop())
    assert gone() is not None
    del made
    gc.collect()
    assert gone() is None
    with pytest.raises(GraphError, match="made during the capture"):
        captured(cuda, lambda: [torch.zeros(1)])


def test_an_allocator_that_has_no_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with PYTORCH_CUDA_ALLOC_CONF=backend:cudaMallocAsync."""
    cuda = Cuda(monkeypatch)

    def raises() -> None:
        raise RuntimeError("cudaMallocAsync does not yet support snapshot")

    monkeypatch.setattr(torch.cuda, "memory_snapshot", raises)
    assert captured(cuda).bytes == 0


PRECISIONS = (
    "torch.backends.cuda.matmul.allow_tf32 = True",
    "torch.backends.cudnn.allow_tf32 = False",
    "torch.set_float32_matmul_precision('high')",
    "torch.backends.fp32_precision = 'tf32'",
    "torch.backends.fp32_precision = 'ieee'",
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "torch.backends.cudnn.fp32_precision = 'tf32'",
    "torch.backends.cudnn.conv.fp32_precision = 'ieee'",
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'; torch.backends.cudnn.conv.fp32_precision = 'ieee'",
    "torch.backends.cudnn.deterministic = True",
    "torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False",
)


@pytest.mark.parametrize("setting", PRECISIONS)
def test_keys_see_every_public_setting_of_precision(setting: str) -> None:
    """In a process each: a call of torch's newer interface makes getters of the older one raise, from torch 2.9 on."""
    if "fp32_precision" in setting and not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("torch is older than 2.9")
    code = f"""
import torch
from lalic.coder.graphs import settings

before = settings()
{setting}
after = settings()
assert hash(after) is not None and after == settings()
assert before != after, before
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_run_belongs_to_one_thread_until_it_has_been_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing inputs, running and reading results of one thread are not interrupted by another thread's."""
    log: list[str] = []
    memory = torch.zeros(1)

    class Decoder:
        def load(self, streams: list[bytes]) -> None:
            log.append(f"load {streams[0].decode()}")
            self.name = streams[0].decode()
            threading.Event().wait(0.01)

        def faults(self) -> list[None]:
            log.append(f"look {self.name}")
            return [None]

        def sums(self) -> torch.Tensor:
            return torch.zeros(1, 2, dtype=torch.int64)

    graph = object.__new__(gpu._DecodeGraph)
    decoder: Any = Decoder()
    graph._decoder, graph._qualities = decoder, None
    graph.lock, graph.device, graph.results = threading.Lock(), CPU, (memory, [])
    monkeypatch.setattr(gpu._DecodeGraph, "run", lambda self: memory.fill_(int(decoder.name)))
    found: dict[int, torch.Tensor] = {}

    def call(i: int) -> None:
        found[i] = graph([b"%d" % i], None)[0]

    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    threads = [threading.Thread(target=call, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(int(x) == i for i, x in found.items()) and len(found) == 8
    assert all(a.split()[1] == b.split()[1] for a, b in zip(log[::2], log[1::2], strict=True))
