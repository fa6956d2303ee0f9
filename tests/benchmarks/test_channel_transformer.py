"""ChannelTransformer: the cache changes nothing but the cost, the order of slices holds, the counts are as stated."""

from __future__ import annotations

import doctest

import pytest
import torch
from torch import Tensor

from benchmarks.paper import channel_transformer
from benchmarks.paper.channel_transformer import (
    ChannelTransformer,
    KeyValueCache,
    TransformerConfig,
    TransformerState,
)

# Slices of unequal size; windows that do not fit into 6 x 10 positions; a head has several channels.
SMALL = TransformerConfig(groups=(4, 8, 2), hyper=6, width=16, heads=2, depth=3, window=4)
# Two evaluations of one formula that sum in other orders: a few hundred roundings of values around 1 at most.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 5e-6}


def example(dtype: torch.dtype = torch.float64) -> tuple[ChannelTransformer, Tensor, Tensor]:
    torch.manual_seed(0)
    model = ChannelTransformer(SMALL).to(dtype)
    return model, 3 * torch.randn(2, 14, 6, 10, dtype=dtype), torch.randn(2, 6, 6, 10, dtype=dtype)


def stepped(model: ChannelTransformer, y: Tensor, hyper: Tensor) -> tuple[list[Tensor], TransformerState]:
    """Outputs of all slices as a decoder gets them, joined."""
    state, previous, found = model.start(hyper), None, []
    for part in y.split(list(model.config.groups), dim=1):
        found.append(model.step(state, previous))
        previous = part
    return [torch.cat(parts, dim=1) for parts in zip(*found, strict=True)], state


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_cache_equals_recomputing(dtype: torch.dtype) -> None:
    model, y, hyper = example(dtype)
    with torch.no_grad():
        at_once = model(y, hyper)
        by_step, _ = stepped(model, y, hyper)
    assert len(at_once) == len(by_step) == 2
    for a, b in zip(at_once, by_step, strict=True):
        assert a.shape == b.shape == y.shape
        assert a.std() > 0.01  # there is something to compare
        assert (a - b).abs().max() < TOLERANCE[dtype]


def literal(model: ChannelTransformer, y: Tensor, hyper: Tensor) -> tuple[Tensor, ...]:
    """The definition: positions, heads, channels one at a time. y (1, M, h, w)."""
    c, (h, w) = model.config, y.shape[2:]
    n, inner = len(c.groups), c.width // c.heads
    tokens = [model.start_token(hyper), *y.split(list(c.groups), dim=1)[:-1]]
    x = [lift(token)[0] for lift, token in zip(model.lift, tokens, strict=True)]  # each (width, h, w)

    def linear(layer: torch.nn.Module, token: int, image: Tensor) -> Tensor:
        return torch.einsum("oi,ihw->ohw", layer.weight[token], image) + layer.bias[token][:, None, None]

    def norm(image: Tensor) -> Tensor:
        centred = image - image.mean(0)
        return centred / torch.sqrt((centred**2).mean(0) + 1e-5)

    for layer in model.layers:
        qkv = []
        for i in range(n):
            image = norm(x[i])
            taps = layer.position[i * c.width : (i + 1) * c.width, 0]
            padded = torch.nn.functional.pad(image, (1, 1, 1, 1))
            moved = [taps[:, a, b, None, None] * padded[:, a : a + h, b : b + w] for a in range(3) for b in range(3)]
            qkv.append(linear(layer.qkv, i, image + torch.nn.functional.gelu(sum(moved))).chunk(3))
        mixed = [torch.zeros_like(image) for image in x]
        for top in range(0, h, c.window):
            for left in range(0, w, c.window):
                here = (slice(top, top + c.window), slice(left, left + c.window))
                for head in range(c.heads):
                    own = slice(head * inner, (head + 1) * inner)
                    for i in range(n):
                        keys = torch.cat([qkv[j][1][own][:, *here].flatten(1) for j in range(i + 1)])
                        values = torch.cat([qkv[j][2][own][:, *here].flatten(1) for j in range(i + 1)])
                        for channel in range(inner):
                            query = qkv[i][0][own][channel][here].flatten()
                            weights = torch.softmax((keys @ query) / c.window, dim=0)
                            part = mixed[i][own.start + channel][here]
                            part.copy_((weights @ values).reshape(part.shape))
        for i in range(n):
            x[i] = x[i] + linear(layer.proj, i, mixed[i])
            hidden = torch.nn.functional.gelu(linear(layer.expand, i, norm(x[i])))
            x[i] = x[i] + linear(layer.reduce, i, hidden)
    parts = model.hyper_parts(hyper).split([2 * g for g in c.groups], dim=1)
    found = [head(torch.cat((x[k][None], parts[k]), dim=1)).chunk(2, dim=1) for k, head in enumerate(model.heads)]
    return tuple(torch.cat(part, dim=1) for part in zip(*found, strict=True))


def test_it_is_what_its_docstring_says() -> None:
    model, y, hyper = example()
    with torch.no_grad():
        for a, b in zip(model(y[:1], hyper[:1]), literal(model, y[:1], hyper[:1]), strict=True):
            assert (a - b).abs().max() < 1e-13  # float64, other orders of sums


def test_a_slice_sees_earlier_slices_only() -> None:
    model, y, hyper = example()
    with torch.no_grad():
        before = model(y, hyper)
        start = 0
        for k, g in enumerate(SMALL.groups):
            # From slice k on the latents are something else: scales and means up to slice k are the same to the bit.
            other = y.clone()
            other[:, start:] = 50 * torch.randn_like(other[:, start:])
            after = model(other, hyper)
            assert all(torch.equal(a[:, : start + g], b[:, : start + g]) for a, b in zip(before, after, strict=True))
            if k + 1 < len(SMALL.groups):
                assert not any(
                    torch.equal(a[:, start + g :], b[:, start + g :]) for a, b in zip(before, after, strict=True)
                )
            start += g
        for a, b in zip(before, model(y, -hyper), strict=True):
            assert not torch.isclose(a[:, :4], b[:, :4]).any()


def test_forward_of_the_first_slices() -> None:
    model, y, hyper = example()
    with torch.no_grad():
        for a, b in zip(model(y, hyper, slices=2), model(y, hyper), strict=True):
            assert a.shape[1] == 12
            assert (a - b[:, :12]).abs().max() < TOLERANCE[torch.float64]


def test_the_cache_does_not_move() -> None:
    cache, parts = KeyValueCache(3), torch.randn(3, 2, 5, 4)
    with torch.no_grad():
        places = set()
        for k, part in enumerate(parts):
            keys, values = cache.append(part, -part)
            places.add((keys.data_ptr(), values.data_ptr()))
            assert torch.equal(keys, torch.cat(list(parts[: k + 1]), dim=1)) and torch.equal(values, -keys)
    assert len(places) == 1
    assert cache.bytes() == 2 * parts.numel() * 4


def test_the_example_runs() -> None:
    result = doctest.testmod(channel_transformer, extraglobs={"torch": torch})
    assert result.attempted > 3 and not result.failed
