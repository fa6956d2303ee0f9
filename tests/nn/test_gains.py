"""Gains: their effect on latents, files and hashes of weights, and what they do not change."""

from __future__ import annotations

import pytest
import torch
from shapes import small

import lalic
from lalic.config import FULL, SLIM, Config
from lalic.errors import CheckpointError
from lalic.model import LALIC
from lalic.nn import checkpoints
from lalic.nn.gains import Gains, anchor_qualities, as_qualities


@pytest.fixture
def gains() -> Gains:
    torch.manual_seed(0)
    gains = Gains(5, 4)
    for p in gains.parameters():
        torch.nn.init.normal_(p)
    return gains


def gained(qualities: int = 3) -> LALIC:
    model = small("patches", qualities=qualities)
    if model.gains is not None:
        model.gains.start(torch.tensor([4.0, 20.0, 100.0]))
    return model


def test_anchors_have_their_own_factors(gains):
    y = torch.rand(4, 5, 2, 3)
    expected = y * gains.log_gains.exp()[:, :, None, None]
    torch.testing.assert_close(gains.gain(y, anchor_qualities(4)), expected)  # default tolerances of float32: rounding
    expected = y * gains.log_inverses.exp()[:, :, None, None]
    torch.testing.assert_close(gains.inverse(y, anchor_qualities(4)), expected)


def test_between_anchors_factors_are_geometric_means(gains):
    y = torch.ones(1, 5, 1, 1)
    at = [gains.gain(y, torch.tensor([q])) for q in (34.0, 50.5, 67.0)]  # anchors 1 and 2, and their middle
    torch.testing.assert_close(at[1], (at[0] * at[2]).sqrt())


def test_every_picture_of_a_batch_has_its_own_quality(gains):
    y, qualities = torch.rand(3, 5, 2, 2), torch.tensor([1.0, 42.42, 100.0])
    together = gains.gain(y, qualities)
    for i in range(3):
        assert torch.equal(together[i : i + 1], gains.gain(y[i : i + 1], qualities[i : i + 1]))


def test_gains_are_float32_under_autocast(gains):
    with torch.autocast("cpu", torch.bfloat16):
        assert gains.gain(torch.rand(1, 5, 2, 2, dtype=torch.bfloat16), torch.tensor([7.0])).dtype == torch.float32


def test_start_is_one_over_the_other(gains):
    gains.start(torch.tensor([0.5, 1.0, 2.0, 4.0]))
    y, quality = torch.rand(2, 5, 1, 1), torch.tensor([1.0, 77.0])
    torch.testing.assert_close(gains.inverse(gains.gain(y, quality), quality), y)


@pytest.mark.parametrize("wrong", [0.5, 100.5, float("nan"), torch.tensor([1.0, 2.0, 3.0])])
def test_wrong_qualities_are_refused(wrong):
    with pytest.raises(ValueError, match=r"quality is|quality: expected"):
        as_qualities(wrong, 2)


def test_published_models_have_no_gains():
    assert FULL.qualities == 0 and SLIM.qualities == 6
    model = gained(qualities=0)
    assert not any(name.startswith("gains") for name in model.state_dict())
    x = torch.rand(1, 3, 64, 64)
    for call in (model, model.compress, model.encode):
        with pytest.raises(ValueError, match="trained for one quality"):
            call(x, 50.0)


def test_higher_quality_takes_more_bits_and_fits_better():
    model, x = gained(), torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    sizes = []
    for quality in (1.0, 50.0, 100.0):
        sections = model.encode(x, quality)
        sizes.append(len(sections.data))
        decoded = model.decode(sections, 64, 64, quality)
        made = model.compress(x, quality)
        assert torch.equal(decoded, model.synthesise(made["y_hat"], model.as_qualities(quality, 1)).clamp(0, 1))
        assert torch.equal(decoded, model.decompress(made["strings"], made["shape"], quality)["x_hat"])
    assert sizes == sorted(sizes) and sizes[0] < sizes[2]


def test_no_quality_is_fifty_both_ways():
    model, x = gained(), torch.rand(1, 3, 64, 64)
    sections, fifty = model.encode(x), model.encode(x, 50.0)
    assert sections == fifty
    decoded = [model.decode(sections, 64, 64, q) for q in (None, 50.0)]
    assert torch.equal(*decoded)


def test_a_batch_codes_each_picture_at_its_own_quality():
    model, x = gained(), torch.rand(2, 3, 64, 64)
    model.entropy = "float"  # `forward` is floating point
    out = model(x, torch.tensor([3.0, 88.0]))
    for i, quality in enumerate((3.0, 88.0)):
        alone = model(x[i : i + 1], quality)
        # Batches of other sizes sum in another order: float32 rounding through a dozen layers.
        torch.testing.assert_close(out["x_hat"][i : i + 1], alone["x_hat"], atol=1e-5, rtol=1e-4)


def test_the_hash_covers_what_decoding_needs():
    model = gained()
    before = model.weights_hash()
    with torch.no_grad():
        model.gains.log_gains.add_(0.1)
    assert model.weights_hash() == before
    with torch.no_grad():
        model.gains.log_inverses[1, 2] += 0.1
    assert model.weights_hash() != before


def test_configuration_is_read_off_the_tensors():
    for model, anchors in ((gained(qualities=3), 3), (gained(qualities=0), 0)):
        assert checkpoints.infer_config(model.state_dict()) == model.config
        assert model.config.qualities == anchors
    slim = lalic.slim(pretrained=False)
    assert checkpoints.infer_config(slim.state_dict()) == SLIM == slim.config
    without = LALIC.from_config(Config(**{**SLIM.__dict__, "qualities": 0}))
    assert without.config.name == "slim" and checkpoints.infer_config(without.state_dict()) == without.config


def test_one_anchor_is_no_configuration():
    with pytest.raises(ValueError, match="qualities"):
        gained(qualities=1)


def test_saved_weights_keep_gains_in_full_precision(tmp_path):
    model = gained()
    checkpoints.save_weights(model, tmp_path / "w.safetensors")
    loaded = lalic.load_checkpoint(tmp_path / "w.safetensors")
    assert loaded.config == model.config
    for name, value in model.gains.state_dict().items():
        assert torch.equal(loaded.gains.state_dict()[name], value)
    loaded = LALIC.from_state_dict(model.converted())
    assert loaded.weights_hash() == model.weights_hash()


def test_gains_without_inverses_are_refused():
    sd = gained().state_dict()
    del sd["gains.log_inverses"]
    with pytest.raises(CheckpointError, match="does not fit"):
        LALIC.from_state_dict(sd)
