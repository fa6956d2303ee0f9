"""Whether the layers inside a module are the plain ones it was made with.

Fused code reads their weights and never calls them, which would leave out a hook, an adapter in a layer's place, or
what pruning and quantisation put there. So modules ask first, and call their layers one by one if the answer is no.
"""

from __future__ import annotations

from typing import Any

from torch import nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_EXPECTED: dict[str, type[nn.Module]] = dict.fromkeys(("key", "value", "receptance", "output"), nn.Linear)
_EXPECTED |= dict.fromkeys(("ln0", "ln1", "ln2", "norm", "key_norm"), nn.LayerNorm) | {"mix": nn.Conv2d}
_OWN = ("lalic", "lalic_kernels")


class PlainLayers:
    """The answer for one module. A look takes about 0.2 us a layer; copies and pickles start empty."""

    keeps_to_itself = True  # for `cache.tensors_of`

    def __init__(self) -> None:
        self._layers: _Layers | None = None

    def __reduce__(self) -> tuple[type[PlainLayers], tuple[()]]:
        return PlainLayers, ()

    def of(self, *modules: nn.Module, inner: bool = True) -> bool:
        """Whether all layers in `modules`, always the same ones, are plain. inner: leave out `modules` themselves."""
        layers = self._layers
        if layers is None or layers.changed():
            layers = self._layers = _Layers(modules, inner)
        return layers.odd is None and not any(layers.hooks) and not any("forward" in d for d in layers.attributes)

    def first_other(self) -> str:
        """The name of a layer that is not plain, for messages, after `of` was False."""
        assert self._layers is not None
        return self._layers.odd or self._layers.hooked()


class _Layers:
    """Layers at one time: what `PlainLayers` compares, in C where it can."""

    def __init__(self, modules: tuple[nn.Module, ...], inner: bool):
        named = [each for module in modules for each in module.named_modules() if each[0] or not inner]
        named = [each for each in named if ".parametrizations" not in f".{each[0]}"]  # a weight comes out of these
        self._names = [name for name, _ in named]
        self._layers = [layer for _, layer in named]
        self._types = [type(layer) for layer in self._layers]
        self._members = [layer._modules for layer in (*modules, *self._layers)]
        self._members_then: list[dict[str, Any]] = [*map(dict.copy, self._members)]
        self.attributes = [layer.__dict__ for layer in self._layers]
        self.hooks = [getattr(layer, kind) for layer in self._layers for kind in _HOOKS]
        self.odd = next((name or type(layer).__name__ for name, layer in named if not _is_plain(name, layer)), None)

    def changed(self) -> bool:
        return self._members != self._members_then or [layer.__class__ for layer in self._layers] != self._types

    def hooked(self) -> str:
        """The name of a layer with hooks, or with a `forward` of its own."""
        for name, layer in zip(self._names, self._layers, strict=True):
            if any(getattr(layer, kind) for kind in _HOOKS) or "forward" in layer.__dict__:
                return name or type(layer).__name__
        return "a layer"


def _is_plain(name: str, layer: nn.Module) -> bool:
    """Whether a layer computes what its place stands for. A parametrised one does: its `weight` is the value."""
    forward = getattr(type(layer), "forward", None)
    expected = _EXPECTED.get(name.rpartition(".")[2])
    if expected is not None and type(layer).__module__.partition(".")[0] not in _OWN:
        return forward is expected.forward
    place = getattr(forward, "__module__", "").partition(".")[0]
    return place in _OWN or str(getattr(forward, "__module__", "")).startswith(("torch.nn.modules.", "torch.nn.utils."))


def plain(cache: PlainLayers, module: nn.Module) -> bool:
    """Whether all layers inside a module are plain. torch.compile asks when it traces, and keeps the answer."""
    return cache.of(module)


plain._dynamo_marked_constant = True  # type: ignore[attr-defined]  # torch.compiler.assume_constant_result imports dynamo
