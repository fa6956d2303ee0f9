"""What people put on or in place of the layers inside blocks takes effect, or coding refuses: it is never ignored."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import lalic
from lalic.coder.engines import FLOAT, float_state
from lalic.coder.schedule import Estimate, LayerState, SliceState, code_slices
from lalic.model import LALIC
from lalic_kernels import layers
from lalic_kernels.plain import PlainLayers

LAYERS = ("ln1", "ln2", "att", "ffn", "att.key", "att.value", "att.receptance", "att.output", "att.omni_shift")
LAYERS += ("ffn.key", "ffn.value", "ffn.receptance", "ffn.omni_shift")


def block(form: str = "lalic") -> layers.RWKVBlock:
    torch.manual_seed(0)
    return layers.RWKVBlock(16, 2, form)  # type: ignore[arg-type]


def model() -> LALIC:
    torch.manual_seed(0)
    made = LALIC(4, 16, (8, 8, 8, 16, 8, 8), (1, 1, 1, 1), (4, 12), context_depth=1, context_rate=2)
    made.update()
    return made.eval()


X = torch.rand(1, 6, 5, 16, generator=torch.Generator().manual_seed(1))
PICTURE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))


class Adapter(nn.Module):
    def __init__(self, base: nn.Module):
        super().__init__()
        self.base, self.scale = base, nn.Parameter(torch.tensor(3.0))

    weight = property(lambda self: self.base.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.base(x)


def changed(make: Any, name: str, change: Any) -> nn.Module:
    """A copy with `change(parent, name in it)` done to the layer `name`."""
    made: nn.Module = make()
    parent, _, child = name.rpartition(".")
    change(made.get_submodule(parent), child)
    return made


def hook(parent: nn.Module, name: str) -> None:
    getattr(parent, name).register_forward_hook(lambda module, inputs, result: 3 * result)


def pre_hook(parent: nn.Module, name: str) -> None:
    getattr(parent, name).register_forward_pre_hook(lambda module, inputs: (inputs[0].square(), *inputs[1:]))


def adapter(parent: nn.Module, name: str) -> None:
    setattr(parent, name, Adapter(getattr(parent, name)))


def patched(parent: nn.Module, name: str) -> None:
    layer = getattr(parent, name)
    forward = layer.forward
    layer.forward = lambda *inputs: 3 * forward(*inputs)


CHANGES = {"hook": hook, "pre-hook": pre_hook, "adapter": adapter, "forward": patched}


@pytest.mark.parametrize("form", ["lalic", "restore"])
@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_of_any_layer_takes_effect(kind: str, form: str) -> None:
    plain = block(form)(X)
    for name in LAYERS:
        made = changed(lambda: block(form), name, CHANGES[kind])
        with torch.no_grad():
            first, again = made(X), copy.deepcopy(made)(X)
        assert not torch.allclose(first, plain, atol=1e-4), name
        assert torch.equal(first, again)


@pytest.mark.parametrize("form", ["lalic", "restore"])
def test_layers_one_by_one_give_the_fused_result(form: str) -> None:
    made, fired = block(form), []
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    x = X.clone().requires_grad_()
    plain = made(x)
    (plain_grad,) = torch.autograd.grad(plain.sum(), x)
    handles = [made.get_submodule(n).register_forward_hook(lambda *_, n=n: fired.append(n)) for n in LAYERS]
    result = made(x)
    (grad,) = torch.autograd.grad(result.sum(), x)
    torch.testing.assert_close(result, plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grad, plain_grad, rtol=1e-3, atol=1e-4)
    assert sorted(fired) == sorted(LAYERS)
    for handle in handles:
        handle.remove()
    assert torch.equal(made(x), plain)  # and fused again


def test_pruned_and_quantised_layers() -> None:
    for name in ("att.value", "att.omni_shift.conv3x3", "ffn.key"):
        made = block()
        prune.l1_unstructured(made.get_submodule(name), "weight", amount=0.5)
        with torch.no_grad():
            before = made(X)
            made.get_submodule(name).weight_orig.mul_(3)
            assert not torch.allclose(made(X), before, atol=1e-5), name
            pruned = made(X)
            prune.remove(made.get_submodule(name), "weight")
            torch.testing.assert_close(made(X), pruned, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantised_layers_are_called() -> None:
    plain = block()(X)
    quantised = torch.ao.quantization.quantize_dynamic(block(), {nn.Linear})
    result = quantised(X)
    assert not torch.equal(result, plain)
    torch.testing.assert_close(result, plain, rtol=0.1, atol=0.1)


def test_parametrised_layers_stay_fused() -> None:
    class Triple(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 3 * weight

    made, expected = block(), block()
    parametrize.register_parametrization(made.att.key, "weight", Triple())
    with torch.no_grad():
        expected.att.key.weight.mul_(3)
        assert torch.equal(made(X), expected(X))


def inner(made: nn.Module) -> dict[str, nn.Module]:
    kinds = (nn.Linear, nn.LayerNorm, nn.Conv2d, nn.ConvTranspose2d)
    return {name: m for name, m in made.named_modules() if isinstance(m, kinds)}


def test_hooks_of_a_whole_model_fire_and_change_nothing() -> None:
    made, fired = model(), set()
    with torch.no_grad():
        plain = made(PICTURE)
        for name, layer in inner(made).items():
            layer.register_forward_hook(lambda *_, name=name: fired.add(name))
        result = made(PICTURE)
    assert fired == set(inner(made))
    torch.testing.assert_close(result["x_hat"], plain["x_hat"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(result["likelihoods"]["y"], plain["likelihoods"]["y"], rtol=1e-3, atol=1e-4)
    with pytest.raises(lalic.CheckpointError, match=r"plain layers, and '.*' is another or has hooks"):
        made.compress(PICTURE)


@pytest.mark.parametrize("name", ["h_s.1.att.key", "latent_codec.y.latent_codec.y1.entropy_parameters.0.key"])
@pytest.mark.parametrize("kind", CHANGES)
def test_coding_refuses_what_integers_cannot_be_made_of(kind: str, name: str) -> None:
    made = model()
    made.compress(PICTURE)
    parent, _, child = name.rpartition(".")
    CHANGES[kind](made.get_submodule(parent), child)
    with pytest.raises(lalic.CheckpointError, match=r"key"):
        made.compress(PICTURE)
    with pytest.raises(lalic.CheckpointError, match=r"key"):
        made.encode(PICTURE)


def test_the_entropy_model_layer_by_layer_is_the_scheduled_one() -> None:
    made = model()
    stack = made.latent_codec.y
    y, params = torch.randn(2, 16, 8, 12), torch.randn(2, 16, 8, 12)
    results = []
    for state in (SliceState(stack, params, FLOAT), LayerState(stack, params)):
        coder = Estimate(y, stack.groups, False)
        results.append((code_slices(state, coder), coder.likelihoods()))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-2, atol=1e-4)
    assert isinstance(float_state(stack, params), SliceState)


def test_a_look_at_plain_layers_is_small_work() -> None:
    """A look at a block is a few calls into C, whatever the number of its layers."""
    import sys

    made, cache, calls = block(), PlainLayers(), 0
    assert cache.of(made)

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        cache.of(made)
    finally:
        sys.setprofile(None)
    assert calls < 60
