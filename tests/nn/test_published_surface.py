"""What published scripts ask of the class beyond coding: gradients, optimisers, precision, arguments, attributes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from shapes import EACH_SHAPE, published_model, published_weights, small
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import lalic_kernels
from lalic.errors import CheckpointError
from lalic.model import LALIC
from lalic.nn.blocks import RWKVBlock
from lalic.nn.bottleneck import EntropyBottleneck
from lalic.nn.noise import rounded
from lalic_kernels.layers import derived


def picture(batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, 64, 64, generator=torch.Generator().manual_seed(5))


def distortion(model: LALIC, x: Tensor) -> Tensor:
    return (model(x)["x_hat"] - x.detach()).square().mean()


def bits(out: dict[str, Any]) -> Tensor:
    return torch.stack([-t.log2().sum() for t in out["likelihoods"].values()]).sum()


# Optimisers


def test_every_parameter_is_given_to_one_of_two_optimisers() -> None:
    """What the published train.py and CompressAI's net_aux_optimizer assert."""
    model = LALIC(3, 11, (4, 6, 8, 11, 6, 5), (1, 0, 1, 1), (3, 1, 7))
    assert all(p.requires_grad for p in model.parameters())
    out = model(picture())
    (out["x_hat"].square().mean() + bits(out)).backward()
    without = {n for n, p in model.named_parameters() if p.grad is None}
    assert without == {*derived(model), "latent_codec.hyper.entropy_bottleneck.quantiles"}


def test_data_parallel_waits_for_no_gradient_that_never_comes() -> None:
    model = LALIC(3, 11, (4, 6, 8, 11, 6, 5), (1, 0, 1, 1), (3, 1, 7))
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        parallel = DistributedDataParallel(model)
        for _ in range(2):  # the second forward pass would raise
            out = parallel(picture())
            (out["x_hat"].square().mean() + bits(out) + model.aux_loss()).backward()
    finally:
        torch.distributed.destroy_process_group()


# Gradients through rounding


@EACH_SHAPE
def test_gradients_pass_rounding_in_evaluation_too(shape: str) -> None:
    model = small(shape)
    with torch.no_grad():
        expected = model(picture())
    x = picture().requires_grad_()
    out = model(x)
    for got, want in ((out["x_hat"], expected["x_hat"]), *zip_likelihoods(out, expected)):
        assert torch.allclose(got, want, rtol=1e-4, atol=1e-6)
    # Of the distortion h_a has none, as means are subtracted and added again; of the rate it has, through the scales.
    for loss, weight in (
        ((out["x_hat"] - picture()).square().mean(), model.g_a[0].weight),
        (bits(out), model.h_a[0].weight),
    ):
        for gradient in torch.autograd.grad(loss, (x, weight), retain_graph=True):
            assert gradient.isfinite().all() and gradient.abs().max() > 0


def zip_likelihoods(out: dict[str, Any], expected: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
    return [(out["likelihoods"][name], expected["likelihoods"][name]) for name in ("y", "z")]


def test_a_step_on_the_picture_in_evaluation_lessens_the_loss() -> None:
    model = published_model()
    target, x = picture(), picture().requires_grad_()
    loss = (model(x)["x_hat"] - target).square().mean()
    (gradient,) = torch.autograd.grad(loss, x)
    with torch.no_grad():
        lower = min(
            float((model(x - step * gradient)["x_hat"] - target).square().mean()) for step in (1.0, 10.0, 100.0)
        )
    assert lower < float(loss.detach())


def test_rounding_has_the_same_values_with_gradients() -> None:
    x = torch.cat(
        (torch.randn(10_000) * 10.0 ** torch.randint(-3, 6, (10_000,)), torch.tensor([0.5, 1.5, -0.5, 2**24]))
    )
    assert torch.equal(rounded(x.clone().requires_grad_()), torch.round(x))
    with torch.no_grad():
        assert torch.equal(rounded(x), torch.round(x))


# Precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("shape", "qualities"), [("published", 0), ("patches", 3)])
def test_a_model_in_sixteen_bits(shape: str, qualities: int, dtype: torch.dtype) -> None:
    model = small(shape, qualities=qualities)
    with torch.no_grad():
        exact = model(picture(2))
    narrow = copy.deepcopy(model).to(dtype)
    x = picture(2).to(dtype)
    with torch.no_grad():
        out = narrow(x)
    assert out["x_hat"].dtype == dtype and out["x_hat"].shape == x.shape
    # Symbols at a half may differ; the rate and most of the picture do not.
    assert (out["x_hat"].float() - exact["x_hat"]).abs().mean() <= 0.05 * exact["x_hat"].abs().mean()
    for name in ("y", "z"):
        assert out["likelihoods"][name].dtype == torch.float32
        rate, expected = (o["likelihoods"][name].log2().sum() for o in (out, exact))
        assert float(rate) == pytest.approx(float(expected), rel=0.03)
    for entropy in ("exact", "float"):
        narrow.entropy = entropy
        packed = narrow.compress(x)
        decoded = narrow.decompress(packed["strings"], packed["shape"])["x_hat"]
        assert decoded.dtype == dtype and decoded.shape == x.shape
        assert torch.equal(narrow.decode_strings(packed["strings"], packed["shape"]), packed["y_hat"])
        stream = narrow.encode(x[:1])
        assert torch.equal(narrow.decode(stream, 64, 64), decoded[:1])
    narrow.train()
    loss = distortion(narrow, x) + narrow.aux_loss()
    loss.backward()
    assert narrow.g_a[0].weight.grad.dtype == dtype and loss.isfinite()


# Arguments and attributes


def test_the_constructor_takes_use_ckpt() -> None:
    args = (3, 11, (4, 6, 8, 11, 6, 5), (1, 0, 1, 1), (3, 1, 7))
    plain, saving = LALIC(*args), LALIC(*args, use_ckpt=True)
    assert LALIC(*args, True).config == plain.config
    saving.load_state_dict(plain.state_dict())
    blocks = [m for m in saving.modules() if isinstance(m, RWKVBlock)]
    assert blocks and all(block.with_ckpt for block in blocks)
    gradients = []
    for model in (plain, saving):
        torch.manual_seed(1)
        distortion(model, picture()).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.allclose(gradients[1][n], g, rtol=1e-4, atol=1e-7) for n, g in gradients[0].items())


def test_loading_that_is_not_strict() -> None:
    weights = published_weights()
    partial = {n: v for n, v in weights.items() if not n.startswith("g_s.0.")} | {"another": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="does not fit"):
        LALIC.from_state_dict(partial)
    model = LALIC.from_state_dict(partial, strict=False)
    fresh = model.g_s[0].weight
    assert fresh.isfinite().all() and 0 < fresh.abs().max() < 1  # drawn, not whatever was in memory
    assert torch.equal(model.g_a[0].weight, weights["g_a.0.weight"])


@pytest.mark.parametrize("wrapper", ["network", "state_dict", "model_state_dict"])
def test_wrappers_of_training_scripts(wrapper: str) -> None:
    model = LALIC.from_state_dict({wrapper: published_weights(), "epoch": 3})
    assert model.weights_hash() == published_model().weights_hash()


def test_update_takes_the_default_scale_table_alone() -> None:
    model = small()
    assert not model.update(lalic_kernels.scale_table()) and model.update(lalic_kernels.scale_table(), force=True)
    assert model.update(scale_table=lalic_kernels.scale_table().tolist(), force=True)
    for other in (lalic_kernels.scale_table() * 1.01, torch.ones(3)):
        with pytest.raises(ValueError, match="scale_table: expected None or the default table"):
            model.update(other, force=True)


def test_update_can_search_the_quantiles() -> None:
    model = small()
    prior = model.prior
    with torch.no_grad():
        for i in range(5):
            getattr(prior, f"_bias{i}").add_(1.0)
    before = float(model.aux_loss().detach())
    assert model.update(force=True, update_quantiles=True)
    # Three logits a channel, the outer ones of 21, each to some roundings.
    assert float(model.aux_loss().detach()) < min(1e-3 * before, 0.01)
    x = picture()
    packed = model.compress(x)
    assert torch.equal(model.decode_strings(packed["strings"], packed["shape"]), packed["y_hat"])


def test_attributes_by_their_published_names() -> None:
    model = small()
    assert model.groups == [3, 1, 7]
    for holder in (model, model.latent_codec):
        assert holder["y"] is model.latent_codec.y and holder["hyper"] is model.latent_codec.hyper
    with pytest.raises(KeyError, match='expected "y" or "hyper"'):
        model["z"]
    with torch.no_grad():
        y = model.g_a(picture())
        out, expected = model.latent_codec(y), model(picture())
        x_hat = model.g_s(out["y_hat"])
    assert torch.allclose(x_hat, expected["x_hat"], atol=1e-6)
    for got, want in zip_likelihoods(out, expected):
        assert torch.allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("spatial", [(), (3,), (4, 2), (2, 3, 2)])
@pytest.mark.parametrize("training", [False, True])
def test_the_prior_takes_any_number_of_dimensions(spatial: tuple[int, ...], training: bool) -> None:
    prior = EntropyBottleneck(8).train(training)
    nn.init.uniform_(prior.quantiles)
    z = torch.randn(2, 8, *spatial, generator=torch.Generator().manual_seed(1)) * 5
    z_hat, likelihood = prior(z)
    assert z_hat.shape == likelihood.shape == z.shape
    if not training:
        assert torch.equal(likelihood, prior(z.reshape(2, 8, -1, 1))[1].reshape(z.shape))
    for wrong in (torch.zeros(8), torch.zeros(2, 3, 8)):
        with pytest.raises(ValueError, match=r"z: expected shape \(B, 8, ...\), got"):
            prior(wrong)
