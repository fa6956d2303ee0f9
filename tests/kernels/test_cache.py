"""Results of all weights of a module: every change of a weight is noticed, and nothing else ends them."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lalic_kernels import cache
from lalic_kernels.cache import ModuleCache, WeightCache, one_look


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 1, bias=False)
        self.derived = nn.Linear(2, 2)
        self.one = nn.Parameter(torch.ones(1))
        self.register_buffer("table", torch.zeros(5))


def matters(name: str) -> bool:
    return "derived" not in name


def other_data(p: torch.Tensor) -> None:
    p.data = p.data.clone()


CHANGES = {
    "written to": lambda net: net.first.weight.add_(1),
    "another storage": lambda net: other_data(net.first.bias),
    "replaced by equal values": lambda net: setattr(net.first, "weight", nn.Parameter(net.first.weight.clone())),
    "one number, replaced by an equal one": lambda net: setattr(net, "one", nn.Parameter(torch.ones(1))),
    "another shape": lambda net: setattr(net.first, "weight", nn.Parameter(torch.zeros(2, 2))),
    "past setattr": lambda net: net.first._parameters.update(bias=nn.Parameter(torch.zeros(4))),
    "removed": lambda net: delattr(net, "table"),
    "a bias where none was": lambda net: setattr(net.second, "bias", nn.Parameter(torch.zeros(1))),
    "another module": lambda net: setattr(net, "second", copy.deepcopy(net.second)),
    "a buffer": lambda net: net.table.zero_(),
    "loaded": lambda net: net.load_state_dict(net.state_dict()),
    "of another dtype": lambda net: net.to(torch.float64),
    "written to through .data": lambda net: net.first.weight.data.mul_(0.9),
    "written to through NumPy": lambda net: net.first.weight.numpy().__imul__(0.9),
    "an average of weights": lambda net: [p.data.lerp_(torch.ones(()), 0.1) for p in net.parameters()],
    "a buffer through .data": lambda net: net.table.data.fill_(1),
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_a_change_is_noticed(change: str) -> None:
    net, results = Net(), ModuleCache(matters)
    before = results.look(net)
    assert before.tracked and before.get("a", lambda: [1]) is before.get("a", pytest.fail)
    assert results.look(net) is before
    CHANGES[change](net)
    after = results.look(net)
    assert after is not before and results.look(net) is after


@torch.no_grad()
def test_what_does_not_matter_ends_nothing() -> None:
    net, results = Net(), ModuleCache(matters)
    before = results.look(net)
    net.derived.weight.zero_()
    net.derived.bias.data = torch.ones(2)
    net.train()
    assert results.look(net) is before


@torch.no_grad()
def test_memory_of_a_weight_is_not_given_to_the_next() -> None:
    """Its address would be the same, and so would its version."""
    net, results = Net(), ModuleCache(matters)
    seen = [results.look(net)]
    for _ in range(20):
        other_data(net.first.weight)
        other_data(net.first.weight)
        seen.append(results.look(net))
    assert len({id(look) for look in seen}) == 21


def test_weights_that_record_no_changes() -> None:
    with torch.inference_mode():
        net = Net()
    results = ModuleCache(matters)
    assert not results.look(net).tracked and results.look(net) is not results.look(net)


@torch.no_grad()
def test_one_look_serves_a_call() -> None:
    net, results = Net(), ModuleCache(matters)
    with one_look():
        before = results.look(net)
        net.first.weight.zero_()
        with one_look():
            assert results.look(net) is before
        assert results.look(net) is before
    assert results.look(net) is not before


def test_copies_are_empty_and_the_module_is_not_held() -> None:
    net, results = Net(), ModuleCache(matters)
    results.look(net)
    assert copy.deepcopy(results)._last is None and pickle.loads(pickle.dumps(results))._last is None
    gone = weakref.ref(net)
    gc.collect()
    gc.disable()
    try:
        del net
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("capturing", [False, True])
def test_what_was_made_on_one_stream_may_be_read_on_another(capturing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host waits once, after a result was made; within a capture, where it must not wait, the graph owns it."""
    waits: list[int] = []
    found: Any = [SimpleNamespace(is_cuda=True, device="cuda:1"), SimpleNamespace(is_cuda=False, device="cpu")]
    monkeypatch.setattr(cache, "tensors_of", lambda _: found)
    monkeypatch.setattr(cache, "_may_be_kept", lambda *_: True)  # stand-ins are no tensors
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    stream = SimpleNamespace(synchronize=lambda: waits.append(1))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    kept, results, net = WeightCache(), ModuleCache(matters), Net()
    for _ in range(3):
        kept.get("a", (), lambda: 1)
        results.look(net).get("a", lambda: 1)
    assert len(waits) == (0 if capturing else 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.rand(3, 5),
        lambda: torch.rand(1),
        lambda: torch.rand(40, 50).t(),
        lambda: torch.rand(9, 9)[2:, ::3],
        lambda: torch.rand(1).expand(7),
        lambda: torch.arange(5),
        lambda: torch.rand(300).bfloat16(),
    ],
)
def test_a_write_through_data_is_noticed_in_any_layout(make: Any) -> None:
    weights, results = [make(), torch.ones(2)], WeightCache()

    def total() -> float:
        return float(results.get("sum", weights, lambda: sum(w.double().sum() for w in weights)))

    assert total() == total()
    before = total()
    weights[0].data.as_strided((1,), (1,), weights[0].storage_offset()).add_(3)
    assert total() != before


def test_what_has_no_memory_is_not_looked_into() -> None:
    """Empty, on the meta device, fake, sparse: nothing to compare, and no address to read."""
    with FakeTensorMode():
        fake = torch.ones(4)
    tensors = [torch.ones(0), torch.ones(4, device="meta"), fake, torch.eye(3).to_sparse()]
    assert cache.Samples(tensors)._places == [] and not cache.Samples(tensors).changed()
    freed = torch.ones(4)
    freed.untyped_storage().resize_(0)
    assert cache.Samples([freed])._places == []
