"""Layers under published names: values and gradients against plain torch, state dicts, precision, torch.compile."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lalic_kernels.biwkv import reference as biwkv_reference
from lalic_kernels.layers import BiWKVAttention, ChannelMix, OmniShift, RWKVBlock, derived

B, H, W, C = 2, 5, 3, 10
EPS = torch.finfo(torch.float32).eps

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "shift": lambda: OmniShift(C),
    "attention, lalic": lambda: BiWKVAttention(C),
    "attention, restore": lambda: BiWKVAttention(C, "restore"),
    "attention, vision": lambda: BiWKVAttention(C, "vision"),
    "attention, vision, norm": lambda: BiWKVAttention(C, "vision", key_norm=True),
    "channels, lalic": lambda: ChannelMix(C, 3),
    "channels, restore": lambda: ChannelMix(C, form="restore"),
    "channels, vision": lambda: ChannelMix(C, 2, "vision", key_norm=True),
    "block, lalic": lambda: RWKVBlock(C, 3),
    "block, lalic, checkpointed": lambda: RWKVBlock(C, with_ckpt=True),
    "block, restore": lambda: RWKVBlock(C, 2, "restore"),
    "block, vision": lambda: RWKVBlock(C, 2, "vision", first=True),
    "block, vision, post": lambda: RWKVBlock(C, 2, "vision", layer_scale=0.3, post_norm=True, key_norm=True),
}
EACH_LAYER = pytest.mark.parametrize("name", LAYERS)


# Plain torch


def plain(layer: Any, x: Tensor) -> Tensor:
    """The layer by its published equations; x (B, H, W, C)."""
    if isinstance(layer, OmniShift):
        image = x.permute(0, 3, 1, 2)
        out = layer.alpha[0] * image
        for place, branch in enumerate((layer.conv1x1, layer.conv3x3, layer.conv5x5), start=1):
            out = out + layer.alpha[place] * F.conv2d(image, branch.weight, padding="same", groups=x.shape[3])
        return out.permute(0, 2, 3, 1)
    if isinstance(layer, RWKVBlock):
        x = x if layer.ln0 is None else layer.ln0(x)
        for half, norm, gamma in ((layer.att, layer.ln1, layer.gamma1), (layer.ffn, layer.ln2, layer.gamma2)):
            y = norm(plain(half, x)) if layer.post_norm else plain(half, norm(x))
            x = x + (1 if gamma is None else gamma) * y
        return x
    inputs = [x, x, x]
    if layer.form == "vision":
        names = [name for name in ("k", "v", "r") if hasattr(layer, f"spatial_mix_{name}")]
        mixes = [getattr(layer, f"spatial_mix_{name}") for name in names]
        moved = from_neighbours(x)
        inputs = [x * m + moved * (1 - m) for m in mixes]
    else:
        inputs = [plain(layer.omni_shift, x)] * 3
    if isinstance(layer, ChannelMix):
        k = torch.relu(layer.key(inputs[0])) ** 2
        k = k if layer.key_norm is None else layer.key_norm(k)
        return torch.sigmoid(layer.receptance(inputs[-1])) * layer.value(k)
    k, v, r = (m(t) for m, t in zip((layer.key, layer.value, layer.receptance), inputs, strict=True))
    if layer.form == "lalic":
        y = scan(layer.decay, layer.boost, k, v)
    elif layer.form == "vision":
        y = scan(layer.spatial_decay, layer.spatial_first, k, v)
        y = y if layer.key_norm is None else layer.key_norm(y)
    else:
        v = scan(layer.spatial_decay[0], layer.spatial_first[0], k, v)
        turned = (t.transpose(1, 2).contiguous() for t in (k, v))
        y = scan(layer.spatial_decay[1], layer.spatial_first[1], *turned).transpose(1, 2)
    return layer.output(torch.sigmoid(r) * y)


def scan(decay: Tensor, boost: Tensor, k: Tensor, v: Tensor) -> Tensor:
    tokens = k.shape[1] * k.shape[2]
    return biwkv_reference.biwkv(decay / tokens, boost / tokens, k.flatten(1, 2), v.flatten(1, 2)).view(k.shape)


def from_neighbours(x: Tensor) -> Tensor:
    edges, moved = [x.shape[3] * i // 4 for i in range(5)], torch.zeros_like(x)
    for i, (dy, dx) in enumerate(((0, 1), (0, -1), (1, 0), (-1, 0))):
        part = slice(edges[i], edges[i + 1])
        for row in range(x.shape[1]):
            for column in range(x.shape[2]):
                if 0 <= row - dy < x.shape[1] and 0 <= column - dx < x.shape[2]:
                    moved[:, row, column, part] = x[:, row - dy, column - dx, part]
    return moved


# Inputs


def make(name: str) -> Any:
    """A layer whose weights are all of some size, also those that start at one value."""
    torch.manual_seed(0)
    layer = LAYERS[name]()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return layer


def image(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(B, H, W, C, generator=torch.Generator().manual_seed(1)).to(dtype)


def upstream() -> Tensor:
    return torch.randn(B, H, W, C, generator=torch.Generator().manual_seed(2))


def gradients(layer: nn.Module, call: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Result and gradients, those of parameters by name and x's as "x"."""
    x = x.clone().requires_grad_()
    layer.zero_grad(set_to_none=True)
    y = call(x)
    y.backward(upstream().to(y.dtype))
    assert x.grad is not None
    return y.detach(), {"x": x.grad} | {n: p.grad for n, p in layer.named_parameters() if p.grad is not None}


# Tests


@EACH_LAYER
def test_values_and_gradients_are_those_of_plain_torch(name: str) -> None:
    layer = make(name)
    truth = copy.deepcopy(layer).double()
    y, grads = gradients(layer, layer, image())
    expected, expected_grads = gradients(truth, lambda x: plain(truth, x), image().double())
    # float32 sums of some tens of terms in another order, through a few layers.
    assert (y - expected).abs().max() <= 50 * EPS * expected.abs().max()
    assert grads.keys() == expected_grads.keys()
    assert set(grads) == {"x", *dict(layer.named_parameters())} - set(derived(layer))
    for key, grad in grads.items():
        assert (grad - expected_grads[key]).abs().max() <= 200 * EPS * expected_grads[key].abs().max(), key


@EACH_LAYER
@torch.no_grad()
def test_tokens_are_pixels_in_rows(name: str) -> None:
    layer, x = make(name), image()
    y = layer(x)
    assert torch.equal(layer(x.flatten(1, 2), (H, W)), y.flatten(1, 2))
    assert torch.equal(layer(x, (H, W)), y)
    strided = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert torch.allclose(layer(strided), y, atol=1e-6)
    assert layer(x[:0]).shape == (0, H, W, C)


@EACH_LAYER
def test_misfits_are_explained(name: str) -> None:
    layer, x = make(name), image()
    who = type(layer).__name__
    for given, resolution, message in (
        (x[0, 0], None, r"x must be \(B, H, W, C\), or \(B, T, C\) with a resolution, but is \(3, 10\)"),
        (x.flatten(1, 2), None, r"resolution must be \(H, W\) beside x of shape \(B, T, C\), but is None"),
        (x.flatten(1, 2), (4, 4), r"resolution is \(4, 4\), but x has 15 tokens"),
        (x, (W, H), r"resolution is \(3, 5\), but x has shape \(2, 5, 3, 10\)"),
    ):
        with pytest.raises(ValueError, match=f"^{who}: {message}"):
            layer(given, resolution)


def test_options_of_other_forms_are_refused() -> None:
    for make_layer in (BiWKVAttention, ChannelMix, RWKVBlock):
        with pytest.raises(ValueError, match=f'{make_layer.__name__}: form must be "lalic", "restore" or "vision"'):
            make_layer(C, form="rwkv7")
        with pytest.raises(ValueError, match='key_norm is of form "vision"'):
            make_layer(C, form="restore", key_norm=True)
    for option in ({"first": True}, {"layer_scale": 1.0}, {"post_norm": True}):
        with pytest.raises(ValueError, match='first, layer_scale and post_norm are of form "vision"'):
            RWKVBlock(C, **option)  # type: ignore[arg-type]


SHIFT = {"alpha": (4,), "conv1x1.weight": (C, 1, 1, 1), "conv3x3.weight": (C, 1, 3, 3), "conv5x5.weight": (C, 1, 5, 5),
         "conv5x5_reparam.weight": (C, 1, 5, 5)}  # fmt: skip
MATRICES = {f"{name}.weight": (C, C) for name in ("key", "value", "receptance", "output")}
HIDDEN = {"key.weight": (4 * C, C), "receptance.weight": (C, C), "value.weight": (C, 4 * C)}
MIX = (1, 1, C)


def within(prefix: str, shapes: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


ATTENTION = {
    "lalic": {"decay": (C,), "boost": (C,), **within("omni_shift", SHIFT), **MATRICES},
    "restore": {"spatial_decay": (2, C), "spatial_first": (2, C), **within("omni_shift", SHIFT), **MATRICES},
    "vision": {"spatial_decay": (C,), "spatial_first": (C,), "spatial_mix_k": MIX, "spatial_mix_v": MIX,
               "spatial_mix_r": MIX, **MATRICES},
}  # fmt: skip
CHANNELS = {
    "lalic": {**within("omni_shift", SHIFT), **HIDDEN},
    "restore": {"key.weight": (4 * C, C), **within("omni_shift", SHIFT), **HIDDEN},
    "vision": {"spatial_mix_k": MIX, "spatial_mix_r": MIX, **HIDDEN},
}
NORM = {"weight": (C,), "bias": (C,)}


@pytest.mark.parametrize("form", ["lalic", "restore", "vision"])
def test_names_shapes_and_their_order_are_the_published_ones(form: Any) -> None:
    first = form == "vision"
    block = {} if first else {"gamma1": (C,), "gamma2": (C,)}
    block |= within("ln1", NORM) | within("ln2", NORM) | (within("ln0", NORM) if first else {})
    block |= within("att", ATTENTION[form]) | within("ffn", CHANNELS[form])
    for layer, expected in (
        (OmniShift(C), SHIFT),
        (BiWKVAttention(C, form), ATTENTION[form]),
        (ChannelMix(C, form=form), CHANNELS[form]),
        (RWKVBlock(C, form=form, first=first), block),
    ):
        assert [(n, tuple(p.shape)) for n, p in layer.named_parameters()] == list(expected.items())
        assert list(layer.state_dict()) == list(expected)
        assert all(p.requires_grad for p in layer.parameters())  # published optimisers are made of all of them


def test_an_old_folded_kernel_in_a_state_dict_changes_nothing() -> None:
    layer, x = make("block, lalic"), image()
    expected = layer(x)
    state = layer.state_dict()
    key = "att.omni_shift.conv5x5_reparam.weight"
    assert torch.equal(state[key][:, 0], layer.att.omni_shift.kernel())
    layer.load_state_dict(state | {key: torch.zeros_like(state[key])})
    assert torch.equal(layer(x), expected)


@EACH_LAYER
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    layer = make(name).to(dtype)
    truth = copy.deepcopy(layer).double()
    y, grads = gradients(layer, layer, image(dtype))
    expected, expected_grads = gradients(truth, lambda x: plain(truth, x), image(dtype).double())
    assert y.dtype == dtype and all(grad.dtype == dtype for grad in grads.values())
    # Roundings of activations to 16 bits, some tens of them; of gradients, which are sums of products of such.
    eps = torch.finfo(dtype).eps
    assert (y - expected).abs().max() <= 8 * eps * expected.abs().max()
    for key, grad in grads.items():
        assert (grad - expected_grads[key]).norm() <= 8 * eps * expected_grads[key].norm(), key


@EACH_LAYER
def test_autocast(name: str) -> None:
    layer = make(name)
    with torch.autocast("cpu", torch.bfloat16):
        y, grads = gradients(layer, layer, image())
    expected, expected_grads = gradients(layer, layer, image())
    eps = torch.finfo(torch.bfloat16).eps
    assert (y - expected).abs().max() <= 8 * eps * expected.abs().max()
    for key, grad in grads.items():
        assert grad.dtype == torch.float32
        assert (grad - expected_grads[key]).norm() <= 8 * eps * expected_grads[key].norm(), key


@EACH_LAYER
def test_autocast_takes_what_a_convolution_before_gives(name: str) -> None:
    """An image in 16 bits beside parameters in float32. torch.cat refuses float16 in an autocast to bfloat16."""
    layer = make(name)
    with torch.no_grad():
        expected = layer(image())
    for dtype in (torch.bfloat16,) if "vision" in name else (torch.bfloat16, torch.float16):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            y = layer(image().to(dtype))
        assert (y - expected).abs().max() <= 8 * torch.finfo(torch.bfloat16).eps * expected.abs().max()


@EACH_LAYER
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(name: str, reentrant: bool) -> None:
    layer = make(name)
    y, grads = gradients(layer, layer, image())
    again, again_grads = gradients(layer, lambda x: checkpoint(layer, x, use_reentrant=reentrant), image())
    assert torch.equal(again, y) and again_grads.keys() == grads.keys()
    for key, grad in grads.items():
        assert (again_grads[key] - grad).abs().max() <= 50 * EPS * grad.abs().max(), key


def test_a_checkpointed_block_saves_its_input_alone() -> None:
    saved: dict[bool, int] = {}
    for with_ckpt in (False, True):
        block, kept = RWKVBlock(C, with_ckpt=with_ckpt), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            block(image().requires_grad_())
        saved[with_ckpt] = sum(t.numel() for t in kept if t.shape[:1] == (B,) or t.shape[1:2] == (B,))
    assert saved[True] <= image().numel() < saved[False]


@EACH_LAYER
def test_compiles(name: str) -> None:
    layer = make(name)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    y, grads = gradients(layer, layer, image())
    again, again_grads = gradients(layer, compiled, image())
    torch.compiler.reset()
    assert torch.allclose(again, y, atol=1e-6)
    for key, grad in grads.items():
        assert (again_grads[key] - grad).abs().max() <= 200 * EPS * grad.abs().max(), key
