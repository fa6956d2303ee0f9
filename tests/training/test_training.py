"""Training: what a batch holds, what a step does, and that a resumed run is the run that was not interrupted."""

from __future__ import annotations

import csv
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

import lalic
from lalic.cli import main
from lalic.errors import CheckpointError, ImageError
from lalic.model import LALIC
from lalic.training.data import Crops
from lalic.training.loop import Recipe, Trainer, learning_rate, rate_distortion, start_weights


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with five pictures of smooth noise, one of them smaller than a crop, and a tar file of the same."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i, size in enumerate([(150, 140), (200, 130), (40, 90), (128, 128), (300, 100)]):
        small = Image.fromarray(rng.integers(0, 256, (6, 5, 3), np.uint8))
        small.resize(size, Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    with tarfile.open(folder.parent / "pictures.tar", "w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    return folder


def tiny_model() -> LALIC:
    torch.manual_seed(5)
    model = LALIC(3, 8, (4, 6, 8, 8, 6, 5), (1, 0, 0, 1), (3, 5))
    start_weights(model)
    return model


RECIPE = Recipe(lmbda=0.01, steps=6, batch=2, patch=64, lr=1e-3, warmup=2, seed=3)


def trainer(pictures, folder, recipe=RECIPE) -> Trainer:
    return Trainer(tiny_model(), Crops([pictures], recipe.patch, recipe.batch, recipe.seed), recipe, folder)


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


def test_learning_rate_rises_then_falls():
    rates = [learning_rate(RECIPE, step) for step in range(7)]
    assert rates[0] == pytest.approx(5e-4) and max(rates) == rates[1] == pytest.approx(1e-3)
    assert rates[2:] == sorted(rates[2:], reverse=True) and rates[6] == pytest.approx(1e-5)


def test_a_step_moves_weights_quantiles_and_average(pictures, tmp_path):
    run = trainer(pictures, tmp_path)
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    numbers = run.update()
    assert set(numbers) == {"loss", "bpp", "mse", "psnr", "aux"}
    moved = {n for n, p in run.model.named_parameters() if not torch.equal(p, before[n])}
    assert {"g_a.0.weight", "g_s.4.bias", "latent_codec.hyper.entropy_bottleneck.quantiles"} <= moved
    assert not any("conv5x5_reparam" in n for n in moved)


@pytest.fixture
def one_thread():
    """Sums in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_killed_and_resumed_equals_not_killed(pictures, tmp_path, one_thread):
    whole = trainer(pictures, tmp_path / "whole")
    whole.run(every=2, save_every=2, held_out=1)
    first = trainer(pictures, tmp_path / "parts")
    for _ in range(3):
        first.update()
    first.save()
    second = trainer(pictures, tmp_path / "parts")
    assert second.resume() and second.step == 3
    second.run(every=2, save_every=2, held_out=1)
    for a, b in zip(whole.model.state_dict().values(), second.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(a, b) for a, b in zip(whole.average, second.average, strict=True))
    rows = list(csv.DictReader((tmp_path / "whole" / "log.csv").open()))
    assert [row["step"] for row in rows] == ["2", "4", "6"] and float(rows[-1]["held_out_bpp"]) > 0
    weights = lalic.load_checkpoint(tmp_path / "whole" / "weights.safetensors")
    x = torch.rand(1, 3, 64, 64)
    sections = weights.encode_sections(x)
    assert weights.decode_sections(sections.streams, 64, 64, sections.checksum).shape == x.shape


def test_another_recipe_is_not_resumed(pictures, tmp_path):
    trainer(pictures, tmp_path).save()
    other = Recipe(**{**RECIPE.__dict__, "lr": 0.5})
    with pytest.raises(CheckpointError, match="another recipe"):
        trainer(pictures, tmp_path, other).resume()


def test_training_lowers_the_loss(pictures, tmp_path):
    run = trainer(pictures, tmp_path, Recipe(**{**RECIPE.__dict__, "steps": 80, "lr": 1e-2}))
    losses = [run.update()["loss"] for _ in range(80)]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])  # about 0.4 as measured


def test_command_refuses_bad_numbers(pictures, tmp_path, capsys):
    assert main(["train", str(pictures), "-o", str(tmp_path), "--patch", "100"]) != 0
    assert "--patch" in capsys.readouterr().err
    assert main(["train", str(pictures), "-o", str(tmp_path), "--steps", "0"]) != 0
    assert "--steps" in capsys.readouterr().err
