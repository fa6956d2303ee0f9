"""Scripts: weights, log and card of runs that started from one another; held-out pictures as files."""

from __future__ import annotations

import csv
import hashlib
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from tiny_run import RECIPE, trainer

import lalic
from lalic import weights
from lalic.errors import CheckpointError
from scripts import held_out, ship_weights

HOME = Path(weights.__file__).parent


@pytest.fixture(scope="module")
def runs(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, steps, qualities in (("one", 2, 0), ("two", 4, 3)):
        recipe = replace(RECIPE, steps=steps, optimizer="soap", bf16=qualities > 0)
        trainer(pictures, folder / name, recipe, qualities).run(every=2, save_every=2, held_out=1)
    return [folder / "one", folder / "two"]


def test_weights_log_and_card(runs, tmp_path, capsys):
    words = [*map(str, runs), "--device-time", "two blinks of an eye", "--to", str(tmp_path)]
    assert ship_weights.main(words) == 0
    data = (tmp_path / "custom.safetensors").read_bytes()
    assert data == (runs[1] / "weights.safetensors").read_bytes()
    model = lalic.load_checkpoint(tmp_path / "custom.safetensors")
    card = (tmp_path / "README.md").read_text()
    for words in (
        model.weights_hash().hex(), hashlib.sha256(data).hexdigest(), f"{len(data)} bytes", "| 2 + 4 |",
        "two blinks of an eye", "gains at 3 anchors", "0.0012 at quality 1", "--optimizer soap", "--bf16", "q50 ",
    ):  # fmt: skip
        assert words in card, words
    assert model.weights_hash().hex() in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "training-log.csv").open()))
    assert [(row["run"], row["step"]) for row in rows] == [("1", "2"), ("2", "2"), ("2", "4")]
    assert rows[0]["held_out_bpp_50"] == "" and float(rows[2]["held_out_bpp_50"]) > 0


def test_runs_that_go_on_from_what_ships(runs, tmp_path):
    ship_weights.ship(runs[:1], "a blink", "", tmp_path)
    before = list(csv.DictReader((tmp_path / "training-log.csv").open()))
    ship_weights.ship(runs[1:], "two blinks", "", tmp_path, after="rest")
    card = (tmp_path / "README.md").read_text()
    assert "| 2 + 4 |" in card and "`; then rest; then `lalic train" in card
    rows = list(csv.DictReader((tmp_path / "training-log.csv").open()))
    assert [(row["run"], row["step"]) for row in rows] == [("1", "2"), ("2", "2"), ("2", "4")]
    assert before[0].items() <= rows[0].items()
    (tmp_path / "README.md").write_text("no card")
    with pytest.raises(CheckpointError, match="no field 'recipe'"):
        ship_weights.ship(runs[1:], "", "", tmp_path, after="")


def test_large_weights_do_not_ship(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(ship_weights, "MAX_BYTES", 1000)
    with pytest.raises(CheckpointError, match="at most 1000"):
        ship_weights.ship(runs, "", "", tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_card_in_the_package_is_of_the_weights_beside_it():
    card, data = (HOME / "README.md").read_text(), (HOME / "slim.safetensors").read_bytes()
    assert len(data) <= ship_weights.MAX_BYTES
    assert lalic.slim().weights_hash().hex() in card
    named = re.search(r"SHA-256 `([0-9a-f]{64})`", card)
    assert named is not None and named[1] == hashlib.sha256(data).hexdigest()


def test_held_out_pictures_become_files(pictures, tmp_path):
    assert held_out.main([str(pictures.parent / "pictures.tar"), "-o", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    assert path.name == "000-0.png"
    with Image.open(path) as image, Image.open(pictures / "0.png") as original:
        assert image.tobytes() == original.convert("RGB").tobytes()
