"""The four context models through their one interface."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from benchmarks.paper.context_models import (
    CONTEXT_MODELS,
    ContextModel,
    ConvContext,
    ConvPlusContext,
    DepthConvBlock,
    Pointwise,
    TransformerContext,
)
from lalic.coder.engines import FLOAT
from lalic.coder.schedule import SliceState, code_slices
from lalic.config import FULL, Config
from lalic.nn.context import SliceStack, pack, unpack

SMALL = Config("small", N=3, M=20, dims=(8, 8, 8, 20, 8, 8), depths=(1, 1, 1, 1), groups=(2, 6, 12), context_depth=1)
OPTIONS = {"transformer": {"heads": 2, "depth": 2, "window": 4}}
NAMES = tuple(CONTEXT_MODELS)


def example(name: str) -> tuple[ContextModel, Tensor, Tensor]:
    torch.manual_seed(0)
    model = CONTEXT_MODELS[name](SMALL, **OPTIONS.get(name, {})).double()
    return model, torch.randn(2, 20, 8, 4, dtype=torch.float64), 4 * torch.randn(2, 20, 8, 4, dtype=torch.float64)


def run(model: ContextModel, hyper: Tensor, y: Tensor) -> list[Tensor]:
    """The loop of the module's docstring with known latents: scales | means of each slice, (B, 2 g, h, w)."""
    state, previous, found = model.start(hyper), None, []
    for k, latents in enumerate(y.split(list(model.groups), dim=1)):
        context = model.channel(state, previous)
        assert (0 if context is None else context.shape[1]) == model.context_channels(k)
        rest = [*([] if context is None else [context]), hyper]
        halves = []
        for parity in (0, 1):
            inputs = rest
            if parity:
                anchors = unpack(pack(latents.permute(0, 2, 3, 1), 0), 0).permute(0, 3, 1, 2)
                inputs = [model.spatial(k, anchors), *rest]
            packed = pack(torch.cat(inputs, dim=1).permute(0, 2, 3, 1), parity)
            out = model.aggregate(k, packed.flatten(1, 2)).unflatten(1, packed.shape[1:3])
            halves.append(unpack(out, parity))
        found.append((halves[0] + halves[1]).permute(0, 3, 1, 2))
        previous = latents
    return found


@pytest.mark.parametrize("name", NAMES)
def test_each_slice_depends_on_what_comes_before_it(name: str) -> None:
    model, hyper, y = example(name)
    board = (torch.arange(8)[:, None] + torch.arange(4)) % 2
    with torch.no_grad():
        before = run(model, hyper, y)
        assert [out.shape[1] for out in before] == [4, 12, 24]
        start = 0
        for k, g in enumerate(SMALL.groups):
            other = y.clone()
            other[:, start : start + g] += 1
            after = run(model, hyper, other)
            assert all(torch.equal(a, b) for a, b in zip(before[:k], after[:k], strict=True))
            changed = (after[k] != before[k]).any(dim=1).any(dim=0)
            assert not changed[board == 0].any() and changed[board == 1].all()  # others see anchors, anchors nothing
            assert all((a != b).all() for a, b in zip(before[k + 1 :], after[k + 1 :], strict=True))
            start += g
        assert all((a != b).all() for a, b in zip(before, run(model, 2 * hyper, y), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_missing_leading_inputs_count_as_zero(name: str) -> None:
    model, _, _ = example(name)
    for k, g in enumerate(SMALL.groups):
        x = torch.randn(2, 5, model.context_channels(k) + SMALL.M, dtype=torch.float64)
        padded = torch.cat([torch.zeros(2, 5, 2 * g, dtype=torch.float64), x], dim=2)
        assert (model.aggregate(k, x) - model.aggregate(k, padded)).abs().max() < 1e-12  # float64, one sum longer


def test_rwkv_is_the_published_stack() -> None:
    """Same names, and the same numbers as the loop that codes."""
    model, hyper, y = example("rwkv")
    stack = SliceStack(SMALL).double()
    stack.load_state_dict(model.state_dict())
    seen: list[Tensor] = []
    slices = y.permute(0, 2, 3, 1).split(list(SMALL.groups), dim=3)

    def coder(k: int, parity: int, scales: Tensor, means: Tensor) -> Tensor:
        seen.append(unpack(torch.cat((scales, means), dim=3), parity).permute(0, 3, 1, 2))
        return pack(slices[k], parity)

    with torch.no_grad():
        assert torch.equal(code_slices(SliceState(stack, hyper, FLOAT), coder), y)
        for anchors, others, out in zip(seen[0::2], seen[1::2], run(model, hyper, y), strict=True):
            # The same products of the same numbers, packed before or after they are joined.
            assert (anchors + others - out).abs().max() < 1e-12


def test_layers_are_those_of_the_supplement() -> None:
    with torch.device("meta"):
        conv, plus = CONTEXT_MODELS["conv"](FULL), CONTEXT_MODELS["conv-plus"](FULL, kernel=7)
    for k in range(1, 5):
        layers = [m for m in conv.channel_context[f"y{k}"].modules() if isinstance(m, torch.nn.Conv2d)]
        assert [m.kernel_size for m in layers] == [(5, 5)] * 3
        assert [m.out_channels for m in layers] == [224, 128, 2 * FULL.groups[k]]
        blocks = [m for m in plus.channel_context[f"y{k}"] if isinstance(m, DepthConvBlock)]
        assert [m.depth.kernel_size for m in blocks] == [(7, 7)] * 2
        assert [m.depth.groups for m in blocks] == [448, 256]
    for model, k in itertools.product((conv, plus), range(5)):
        mixes = [m for m in model.latent_codec[f"y{k}"].entropy_parameters if isinstance(m, Pointwise)]
        assert len(mixes) == 3 and mixes[-1].out_features == 2 * FULL.groups[k]
    # Parameters of all channel contexts, by hand: weights and biases of three 5x5 convolutions each.
    expected = sum(
        25 * (sum(FULL.groups[:k]) * 224 + 224 * 128 + 128 * 2 * FULL.groups[k]) + 224 + 128 + 2 * FULL.groups[k]
        for k in range(1, 5)
    )
    assert sum(p.numel() for p in conv.channel_context.parameters()) == expected
    assert isinstance(plus, ConvContext) and isinstance(plus, ConvPlusContext)


def test_depth_conv_block_in_its_parts() -> None:
    torch.manual_seed(0)
    block = DepthConvBlock(4, 5, 6).double()
    x = torch.randn(1, 4, 7, 9, dtype=torch.float64)

    def point(layer: torch.nn.Conv2d, image: Tensor) -> Tensor:
        return torch.einsum("oi,bihw->bohw", layer.weight[:, :, 0, 0], image) + layer.bias[:, None, None]

    def leaky(image: Tensor) -> Tensor:
        return torch.where(image > 0, image, 0.01 * image)

    wide = torch.nn.functional.pad(leaky(point(block.enter, x)), (2, 2, 2, 2))
    moved = sum(
        block.depth.weight[:, 0, a, b, None, None] * wide[:, :, a : a + 7, b : b + 9]
        for a in range(5) for b in range(5)
    )  # fmt: skip
    expected = x + point(block.leave, moved + block.depth.bias[:, None, None])
    expected = expected + point(block.reduce, leaky(point(block.expand, expected)))
    assert (block(x) - expected).abs().max() < 1e-13


def test_the_transformers_context_is_its_scales_and_means() -> None:
    model, hyper, y = example("transformer")
    assert isinstance(model, TransformerContext)
    with torch.no_grad():
        state = model.start(hyper)
        model.channel(state, None)
        scales, means = (out[:, 2:8] for out in model.transformer(y, hyper))
        expected = torch.cat((scales, means), dim=1)
        # float64, sums in another order.
        assert (model.channel(state, y[:, :2]) - expected).abs().max() < 1e-13


def test_the_transformer_of_the_full_model_has_the_published_width() -> None:
    with torch.device("meta"):
        model = CONTEXT_MODELS["transformer"](FULL)
    assert isinstance(model, TransformerContext)
    c = model.transformer.config
    assert (c.width, c.heads, c.depth, c.window, c.outputs) == (256, 16, 12, 8, 2)
