"""Training: batches, steps, and that a resumed run equals an uninterrupted one."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import RECIPE, same, tiny_model, trainer
from torch._dynamo.backends.debugging import aot_eager

import lalic
from lalic.cli import main
from lalic.errors import CheckpointError, ImageError
from lalic.metrics import ms_ssim
from lalic.model import LALIC
from lalic.nn import checkpoints
from lalic.nn.noise import ALL, Share
from lalic.train.data import Crops
from lalic.train.objective import rate_distortion
from lalic.train.start import init_from


def test_batches_depend_on_seed_and_index_alone(pictures):
    crops = Crops([pictures], 64, 4, seed=1)
    assert len(crops) == 4  # the first of every fifty is held out
    later = crops[7]
    assert later.shape == (4, 3, 64, 64) and later.min() >= 0 and later.max() <= 1
    again = Crops([pictures.parent / "pictures.tar"], 64, 4, seed=1)
    assert torch.equal(again[7], later)
    assert not torch.equal(Crops([pictures], 64, 4, seed=2)[7], later)


def test_every_picture_comes_once_an_epoch(pictures):
    crops = Crops([pictures], 64, 4, seed=1)
    means = {round(float(crop.mean()), 3) for crop in crops[0]}
    assert len(means) == 4


def test_held_out_pictures_are_multiples_of_64(pictures):
    held_out = Crops([pictures], 64, 4, seed=1).held_out(3, side=128)
    assert [tuple(x.shape) for x in held_out] == [(1, 3, 128, 128)]


def test_no_pictures_is_an_error(tmp_path):
    with pytest.raises(ImageError, match="no pictures"):
        Crops([tmp_path], 64, 4, seed=1)
    with pytest.raises(ImageError, match="expected a folder"):
        Crops([tmp_path / "absent"], 64, 4, seed=1)


def test_loss_is_the_published_one():
    x, x_hat = torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.1)
    out = {"x_hat": x_hat, "likelihoods": {"y": torch.full((1, 1, 1, 4), 0.5), "z": torch.full((1, 1, 1, 2), 0.25)}}
    parts = rate_distortion(out, x, 0.01)
    assert float(parts["bpp"]) == pytest.approx((4 * 1 + 2 * 2) / 4)
    assert float(parts["loss"]) == pytest.approx(0.01 * 255**2 * 0.01 + 2, rel=1e-5)


def test_every_sample_has_its_own_lambda():
    x = torch.zeros(2, 3, 2, 2)
    x_hat = torch.stack([torch.full((3, 2, 2), 0.1), torch.full((3, 2, 2), 0.2)])
    out = {"x_hat": x_hat, "likelihoods": {"y": torch.tensor([0.5, 0.25])[:, None, None, None].expand(2, 1, 1, 4)}}
    parts = rate_distortion(out, x, torch.tensor([0.01, 0.02]), torch.tensor([3.0, 1.0]))
    alone = [0.01 * 255**2 * 0.01 + 1, 0.02 * 255**2 * 0.04 + 2]
    assert float(parts["loss"]) == pytest.approx((3 * alone[0] + alone[1]) / 2, rel=1e-5)
    assert float(parts["bpp"]) == pytest.approx(1.5) and float(parts["mse"]) == pytest.approx(0.025, rel=1e-5)


def test_a_step_moves_weights_quantiles_and_average(pictures, tmp_path):
    run = trainer(pictures, tmp_path)
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    numbers = run.update()
    assert set(numbers) == {"loss", "bpp", "mse", "psnr", "gradient", "aux"}
    moved = {n for n, p in run.model.named_parameters() if not torch.equal(p, before[n])}
    assert {"g_a.0.weight", "g_s.4.bias", "latent_codec.hyper.entropy_bottleneck.quantiles"} <= moved
    assert not any("conv5x5_reparam" in n for n in moved)


@pytest.mark.parametrize(
    ("changes", "qualities", "shape"),
    [({}, 0, "published"), ({"optimizer": "soap", "bf16": True, "batch": 4, "large": 2}, 3, "patches")],
)
def test_stopped_and_resumed_equals_not_stopped(pictures, tmp_path, one_thread, changes, qualities, shape):
    recipe = replace(RECIPE, **changes)
    whole = trainer(pictures, tmp_path / "whole", recipe, qualities, shape)
    whole.run(every=2, save_every=2, held_out=1)
    first = trainer(pictures, tmp_path / "parts", recipe, qualities, shape)
    for _ in range(3):
        first.update()
    first.save()
    second = trainer(pictures, tmp_path / "parts", recipe, qualities, shape)
    assert second.resume() and second.step == 3
    second.run(every=2, save_every=2, held_out=1)
    assert same(whole, second)
    rows = list(csv.DictReader((tmp_path / "whole" / "log.csv").open()))
    assert [row["step"] for row in rows] == ["2", "4", "6"] and float(rows[-1]["held_out_bpp"]) > 0
    weights = lalic.load_checkpoint(tmp_path / "whole" / "weights.safetensors")
    x = torch.rand(1, 3, 64, 64)
    sections = weights.encode(x)
    assert weights.decode(sections, 64, 64).shape == x.shape


def test_another_recipe_is_not_resumed(pictures, tmp_path):
    trainer(pictures, tmp_path).save()
    for change in ({"lr": 0.5}, {"steps": 7}):  # a cosine depends on its end from the beginning
        with pytest.raises(CheckpointError, match="another recipe"):
            run = trainer(pictures, tmp_path, RECIPE)
            run.step = 3
            run.save()
            trainer(pictures, tmp_path, replace(RECIPE, **change)).resume()


def test_a_trapezoid_takes_another_end_before_its_decay(pictures, tmp_path, one_thread):
    """6 steps, the last 3 of them falling; 12 steps, the last 6; each from the other's steps before."""
    short = replace(RECIPE, schedule="trapezoid", decay=0.5, warmup=1)
    long = replace(short, steps=12)
    whole = trainer(pictures, tmp_path / "whole", long)
    whole.run(every=3, save_every=100, held_out=1)
    first = trainer(pictures, tmp_path / "parts", short)
    first.run(every=3, save_every=100, held_out=1)
    assert first.step == 6
    second = trainer(pictures, tmp_path / "parts", long)
    assert second.resume() and second.step == 3  # `last.pt` has decayed; `plateau.pt` has not
    second.run(every=3, save_every=100, held_out=1)
    assert same(whole, second)
    again = trainer(pictures, tmp_path / "parts", short)
    with pytest.raises(CheckpointError, match="another recipe"):
        again.resume()  # past the end of the short one by now


def test_a_run_starts_from_a_checkpoint_without_gains(pictures, tmp_path):
    before = trainer(pictures, tmp_path / "before")
    before.update()
    before.save()
    weights = before.averaged().state_dict()
    model = tiny_model(3)
    init_from(model, tmp_path / "before" / "weights.safetensors")
    state = model.state_dict()
    for name in ("g_a.0.weight", "latent_codec.hyper.entropy_bottleneck._matrix0"):
        # Matrices are saved in half precision: 11 bits.
        torch.testing.assert_close(state[name], weights[name], rtol=2**-11, atol=1e-7)
    assert state["latent_codec.hyper.entropy_bottleneck._quantized_cdf"].numel() == 0
    gains = model.gains.log_gains.exp()[:, 0]
    expected = [(at / RECIPE.lmbda) ** 0.5 for at in (0.0012, (0.0012 * 0.06) ** 0.5, 0.06)]
    assert gains.tolist() == pytest.approx(expected, rel=1e-4)
    checkpoints.save_weights(trainer(pictures, tmp_path, qualities=4).averaged(), tmp_path / "four.safetensors")
    with pytest.raises(CheckpointError, match="4 anchors"):
        init_from(model, tmp_path / "four.safetensors")
    with pytest.raises(CheckpointError, match="another shape"):
        init_from(LALIC(3, 8, (4, 6, 8, 8, 6, 5), (0, 0, 0, 1), (3, 5)), tmp_path / "four.safetensors")


def test_held_out_figures_at_every_quality(pictures, tmp_path):
    run = trainer(pictures, tmp_path, qualities=3)
    found = run.evaluate(run.crops.held_out(1, side=64))
    assert {"loss", "bpp", "psnr", "bpp_10", "psnr_10", "bpp_90", "psnr_90"} <= set(found)
    assert found["bpp"] == pytest.approx(sum(found[f"bpp_{q}"] for q in (10, 30, 50, 70, 90)) / 5)


def test_ms_ssim_is_trained_and_logged(pictures, tmp_path):
    recipe = replace(RECIPE, metric="ms-ssim", patch=192, lmbda=8.0)
    run = trainer(pictures, tmp_path, recipe)
    numbers = run.update()
    assert {"ms_ssim", "mse"} <= set(numbers) and 0 <= numbers["ms_ssim"] < 1
    assert numbers["loss"] == pytest.approx(numbers["bpp"] + 8 * (1 - numbers["ms_ssim"]), rel=1e-5)
    with pytest.raises(ValueError, match="patch: expected at least 192"):
        replace(recipe, patch=128)


def test_ms_ssim_and_mse_are_weighted_as_published():
    x = torch.rand(1, 3, 192, 192, generator=torch.Generator().manual_seed(0))
    x_hat = (x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    out = {"x_hat": x_hat, "likelihoods": {"y": torch.full((1, 1, 2, 2), 0.5)}}
    parts = rate_distortion(out, x, 3.0, metric="ms-ssim")
    expected = 3 * (1 - float(ms_ssim(x_hat, x))) + 4 / 192**2
    assert float(parts["loss"]) == pytest.approx(expected, rel=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_weights(pictures, tmp_path):
    run = trainer(pictures, tmp_path)
    with torch.no_grad():
        run.model.g_s[-1].bias.fill_(float("inf"))
    before = run.model.g_a[0].weight.detach().clone()
    with pytest.raises(FloatingPointError, match="step 0"):
        run.update()
    assert torch.equal(run.model.g_a[0].weight, before) and run.step == 0


def test_without_an_average_the_weights_are_the_average(pictures, tmp_path):
    run = trainer(pictures, tmp_path, replace(RECIPE, ema=0.0))
    run.update()
    assert all(torch.equal(a, b) for a, b in zip(run.average, run.weights, strict=True))


@pytest.mark.slow
def test_compiled_training_takes_the_same_step(pictures, tmp_path, monkeypatch):
    """Traced, differentiated by AOTAutograd and run operator by operator: all of torch.compile but its code."""
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    inner = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: inner(module, backend=counting))
    torch.compiler.reset()
    run = trainer(pictures, tmp_path, qualities=3, compiled=True)
    compiled = [run.update() for _ in range(2)]
    torch.compiler.reset()
    other = trainer(pictures, tmp_path, qualities=3)
    assert len(graphs) > 0
    for step in compiled:
        assert step == pytest.approx(
            other.update(), rel=1e-3
        )  # float32, a dozen layers, the second after a step of Adam


def test_crops_may_be_scaled_down(pictures):
    crops = Crops([pictures], 64, 4, seed=1, shrink=2.0)
    batch = crops[3]
    assert batch.shape == (4, 3, 64, 64) and not torch.equal(batch, Crops([pictures], 64, 4, seed=1)[3])
    assert torch.equal(batch, Crops([pictures], 64, 4, seed=1, shrink=2.0)[3])
    parts = torch.cat([crops.part(3, Share(0, 2)), crops.part(3, Share(1, 2))])
    assert torch.equal(parts, batch)


def test_large_crops_are_a_quarter_as_many(pictures):
    crops = Crops([pictures], 64, 8, seed=1)
    batch = crops.part(3, ALL, large=True)
    assert batch.shape == (2, 3, 128, 128) and torch.equal(batch, crops.part(3, ALL, large=True))
    assert torch.equal(torch.cat([crops.part(3, Share(i, 2), large=True) for i in (0, 1)]), batch)
    recipe = replace(RECIPE, large=3, batch=4)
    assert [step for step in range(9) if recipe.large_crops(step)] == [2, 5, 8]
    assert not any(RECIPE.large_crops(step) for step in range(9))
    assert [recipe.crops(step) for step in range(3)] == [4, 4, 1]
    for wrong in ({"large": -1}, {"large": 2, "batch": 6}):
        with pytest.raises(ValueError, match="large"):
            replace(RECIPE, **wrong)


def test_small_pictures_are_held_out_too(tmp_path):
    for i in range(2):
        Image.fromarray(np.full((50, 70, 3), 100, np.uint8)).save(tmp_path / f"{i}.png")
    (found,) = Crops([tmp_path], 64, 1, seed=1).held_out(2)
    assert found.shape == (1, 3, 64, 64)


def test_a_folder_of_another_model_is_refused(pictures, tmp_path):
    trainer(pictures, tmp_path).save()
    with pytest.raises(CheckpointError, match=r"is a run of another model \(saved, given\): .*'qualities': \(0, 3\)"):
        trainer(pictures, tmp_path, qualities=3).resume()


def test_crops_are_flipped_and_transposed(tmp_path):
    """Crops of a picture with distinct corners have four of the eight orientations, equally often."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[0, 0], pixels[0, 63], pixels[63, 0], pixels[63, 63] = 50, 100, 150, 200
    for i in range(2):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    batch = Crops([tmp_path], 64, 400, seed=1)[0] * 255
    found = Counter(tuple(crop[0, [0, 0, 63], [0, 63, 0]].round().int().tolist()) for crop in batch)
    assert set(found) == {(50, 100, 150), (100, 50, 200), (50, 150, 100), (100, 200, 50)}
    assert min(found.values()) > 70  # of 100 expected, three standard deviations of 9


@pytest.mark.parametrize(("qualities", "shape"), [(0, "published"), (3, "patches")])
def test_training_lowers_the_loss(pictures, tmp_path, qualities, shape):
    run = trainer(pictures, tmp_path, replace(RECIPE, steps=80, lr=1e-2), qualities, shape)
    losses = [run.update()["loss"] for _ in range(80)]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])  # about 0.4 as measured


def test_command_refuses_bad_numbers(pictures, tmp_path, capsys):
    assert main(["train", str(pictures), "-o", str(tmp_path), "--patch", "100"]) != 0
    assert "--patch" in capsys.readouterr().err
    assert main(["train", str(pictures), "-o", str(tmp_path), "--steps", "0"]) != 0
    assert "--steps" in capsys.readouterr().err
