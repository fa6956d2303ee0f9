"""Cached coding of slices against the published schedule: values, gradients, symbols, caches."""

from __future__ import annotations

import copy

import pytest
import torch
from shapes import golden, published_model, small
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import lalic
from benchmarks.peers import slices as published
from lalic.coder.engines import FLOAT
from lalic.coder.schedule import Collect, Estimate, Read, SliceState, code_slices, neighbours, stack_weights
from lalic.errors import BitstreamError
from lalic.model import LALIC
from lalic.nn.context import pack


def one_slice() -> LALIC:
    torch.manual_seed(0)
    return LALIC(4, 6, (4, 4, 4, 6, 4, 4), (0, 0, 0, 0), (6,)).eval()


MODELS = {
    "slim": lalic.slim,
    "published": published_model,
    "odd": small,
    "patches": lambda: small("patches"),
    "one slice": one_slice,
}
EACH = pytest.mark.parametrize("name", MODELS)


def coded(model: LALIC, params: Tensor, coder: object) -> Tensor:
    return code_slices(SliceState(model.latent_codec.y, params, FLOAT), coder)


class Straight:
    """Does not round latents, so that no symbol depends on rounding errors."""

    def __init__(self, y: Tensor, groups: tuple[int, ...]):
        self.known = Collect(y, groups)
        self.seen: list[Tensor] = []

    def __call__(self, k: int, parity: int, scales: Tensor, means: Tensor) -> Tensor:
        self.seen += [scales, means]
        return pack(self.known.slices[k], parity)


def latents(model: LALIC, dtype: torch.dtype, batch: int = 2) -> tuple[Tensor, Tensor]:
    """Random (hyper parameters, y) on a small grid that is not square."""
    channels = model.config.hyper_width, model.config.M
    generator = torch.Generator().manual_seed(3)
    params, y = (torch.randn(batch, c, 4, 10, generator=generator, dtype=dtype) for c in channels)
    return params, 3 * y


@EACH
@pytest.mark.parametrize("full_grid", [False, True])
def test_equals_the_published_schedule(name: str, full_grid: bool) -> None:
    """In float64, where only the order of sums differs: values and all gradients."""
    model = copy.deepcopy(MODELS[name]()).double()
    stack = model.latent_codec.y
    found = []
    for loop in (
        lambda y, p, c: code_slices(SliceState(y, p, FLOAT), c),
        lambda *a: published.code_slices(*a, full_grid=full_grid),
    ):
        params, y = (x.requires_grad_() for x in latents(model, torch.float64))
        coder = Straight(y, model.config.groups)
        y_hat = loop(stack, params, coder)
        weights = [p for p in stack.parameters() if p.requires_grad]
        loss = y_hat.square().sum() + sum((x * torch.cos(torch.arange(x.numel()).view_as(x))).sum() for x in coder.seen)
        grads = torch.autograd.grad(loss, [params, y, *weights], allow_unused=True)
        found.append([y_hat.detach(), *(x.detach() for x in coder.seen), *grads])
    assert len(found[0]) == len(found[1])
    # Sums of some thousand terms through at most five slices of ten layers each: 1e-13 as measured.
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert (one - other).abs().max() <= 1e-10 * max(float(other.abs().max()), 1.0)


@pytest.mark.parametrize("name", ["slim", "published"])
def test_symbols_are_the_published_schedules(name: str) -> None:
    model = MODELS[name]()
    x = golden()["128/x"]
    with torch.no_grad():
        y = model.g_a(x)
        z = torch.round(model.h_a(y) - model.latent_codec.hyper.entropy_bottleneck.medians().reshape(1, -1, 1, 1))
        params = model.h_s(z)
        coders = [Collect(y, model.config.groups) for _ in range(2)]
        coded(model, params, coders[0])
        published.code_slices(model.latent_codec.y, params, coders[1])
    for (symbols, indexes), (others, other_indexes) in zip(coders[0].passes, coders[1].passes, strict=True):
        assert torch.equal(symbols, others) and torch.equal(indexes, other_indexes)


def test_training_numbers_are_the_coders() -> None:
    """The encoder without gradients and a training step with them run the same schedule."""
    model = small()
    params, y = latents(model, torch.float32)
    with torch.no_grad():
        expected = coded(model, params, Collect(y, model.config.groups))
    coder = Estimate(y, model.config.groups, training=True)
    y_hat = coded(model, params.requires_grad_(), coder)
    assert y_hat.requires_grad and (y_hat - expected).abs().max() <= 1e-5
    likelihoods = coder.likelihoods()
    assert likelihoods.shape == y.shape and float(likelihoods.detach().min()) > 0


def test_the_encoder_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake tensors have no values, so reading one, for which a GPU's host would wait, fails."""
    model = small()
    copied: list[Tensor] = []
    monkeypatch.setattr(Tensor, "cpu", lambda x: copied.append(x) or x)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        params, y = torch.empty(2, 11, 4, 10), torch.empty(2, 11, 4, 10)
        coder = Collect(y, model.config.groups)
        coded(model, params, coder)
        assert not copied
        with pytest.raises(DataDependentOutputException):
            _ = coder.passes
        with pytest.raises(DataDependentOutputException):
            coded(model, params, Read(lambda number, indexes: indexes))
        assert len(copied) == 1


def test_latents_that_cannot_be_coded_are_refused() -> None:
    model = small()
    params, y = latents(model, torch.float32)
    for bad in (float("nan"), float("inf"), 1e9):
        spoilt = y.clone()
        spoilt[1, 5, 2, 3] = bad
        coder = Collect(spoilt, model.config.groups)
        with torch.no_grad():
            coded(model, params, coder)
        with pytest.raises(ValueError, match="y: latents of magnitude"):
            _ = coder.passes


def test_a_decoder_that_is_lost_says_so() -> None:
    model = small()
    params, _ = latents(model, torch.float32)
    passes = []

    def read(number: int, indexes: Tensor) -> Tensor:
        assert indexes.dtype == torch.int32 and int(indexes.min()) >= 0
        passes.append(number)
        return torch.zeros_like(indexes)

    with torch.no_grad():
        model.latent_codec.y.latent_codec["y1"].context_prediction.bias.fill_(float("nan"))
        with pytest.raises(BitstreamError, match="a predicted mean is not finite"):
            coded(model, params, Read(read))
    assert passes == [0, 1, 2]


def test_neighbours_by_hand() -> None:
    h, w = 4, 6
    for b, picture in enumerate(neighbours(2, h, w)):
        for place, seen in enumerate(picture):
            row, column = place // 3, 2 * (place % 3) + 1 - (place // 3) % 2
            expected = []
            for i in range(row - 2, row + 3):
                for j in range(column - 2, column + 3):
                    if (i + j) % 2 == 0:  # an anchor
                        expected.append(b * 13 + (i * 3 + j // 2 if 0 <= i < h and 0 <= j < w else 12))
            assert seen.tolist() == expected


def test_a_fake_forward_leaves_nothing_behind() -> None:
    """A size that a program first tries with tensors without memory, as estimators do."""
    model, x = small(), torch.rand(1, 3, 128, 448)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert model(mode.from_tensor(x))["x_hat"].shape == x.shape
    with torch.no_grad():
        assert model(x)["x_hat"].isfinite().all()


def test_weights_are_kept_until_one_changes() -> None:
    model = small()
    stack = model.latent_codec.y
    with torch.no_grad():
        first = stack_weights(stack, FLOAT)
        assert stack_weights(stack, FLOAT) is first
        changes = [
            lambda: stack.channel_context["y2"][0].weight.add_(1),
            lambda: stack.latent_codec["y1"].context_prediction.weight.mul_(2),
            lambda: setattr(stack.latent_codec["y0"].entropy_parameters[0].mix.bias, "data", torch.ones(13)),
            lambda: model.double(),
            lambda: model.load_state_dict(small().double().state_dict()),
        ]
        for change in changes:
            change()
            again = stack_weights(stack, FLOAT)
            assert again is not first and stack_weights(stack, FLOAT) is again
            first = again
    assert stack_weights(stack, FLOAT) is not first  # with gradients: made again, and differentiable
    assert stack_weights(stack, FLOAT).hyper.weight.requires_grad
    with torch.no_grad():
        assert stack_weights(stack, FLOAT) is first and not first.hyper.weight.requires_grad


def test_weights_made_in_inference_mode_are_not_kept_stale() -> None:
    with torch.inference_mode():
        model = one_slice()
        stack = model.latent_codec.y
        stack.latent_codec["y0"].entropy_parameters[0].mix.weight.zero_()
        assert not stack_weights(stack, FLOAT).hyper.weight.any()
        stack.latent_codec["y0"].entropy_parameters[0].mix.weight.fill_(1)
        assert stack_weights(stack, FLOAT).hyper.weight.all()


def test_calls_out_of_turn_are_refused() -> None:
    model = small()
    params, _ = latents(model, torch.float32)
    state = SliceState(model.latent_codec.y, params, FLOAT)
    with pytest.raises(RuntimeError, match="add: parameters"):
        state.add(torch.zeros(2, 4, 5, 3))
    scales, _ = state.parameters()
    assert scales.shape == (2, 4, 5, 3)
    with pytest.raises(RuntimeError, match="parameters: add"):
        state.parameters()
    with pytest.raises(RuntimeError, match="y_hat: 0 of 3"):
        state.y_hat()
