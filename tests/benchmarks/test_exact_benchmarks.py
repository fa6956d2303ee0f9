"""benchmarks.exact_model and benchmarks.portability: what they write down is what they saw."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import lalic
from benchmarks import exact_model, portability, records
from lalic import images


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """One picture, and results that go elsewhere."""
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 8, 3), np.uint8))
    (tmp_path / "set").mkdir()
    small.resize((128, 64), Image.Resampling.BICUBIC).save(tmp_path / "set" / "one.png")
    append = records.append
    monkeypatch.setattr(records, "append", lambda record, _=None: append(record, tmp_path / "results"))
    return tmp_path


def saved(folder):
    (path,) = (folder / "results").iterdir()
    return json.loads(path.read_text())


def test_bits(folder) -> None:
    assert exact_model.main([str(folder / "set"), "--name", "noise", "--save"]) == 0
    record = saved(folder)
    (row,) = record["ideal_bits"]
    model = lalic.slim()
    x = images.to_tensor(images.load(folder / "set" / "one.png"))
    assert row == {"picture": "one", "exact": portability.ideal_code_length(model, x), "float": row["float"]}
    assert record["mean_bits_ratio"] == row["exact"] / row["float"]
    stream = model.encode(x)
    # What the coder writes is the ideal length and a few bytes a lane.
    assert 0 < 8 * len(stream.data) - row["exact"] < 8 * 64


def test_a_decoder_that_differs_is_counted(folder, monkeypatch) -> None:
    seen = []

    def elsewhere(prepared, setting):
        seen.append(setting)
        got = {path.parent.name: portability.decode(path.parent) for path in prepared.glob("*/work.json")}
        if len(seen) == 2:
            got["all"]["exact"]["one"] = "refused"
        return got

    monkeypatch.setattr(portability, "in_another_process", elsewhere)
    monkeypatch.setattr(portability, "SETTINGS", portability.FEW[:1])
    assert portability.main([str(folder / "set"), "--save"]) == 0
    (row,) = saved(folder)["portability"]
    alike = {"pictures": 1, "equal": 1, "in_batches": 0, "equal_in_batches": 0}
    assert row == {"setting": portability.FEW[0], "exact": alike, "float": alike}
    assert portability.main([str(folder / "set")]) == 1


def test_batches_are_of_four_pictures_of_one_size() -> None:
    work = [{"name": str(i), "size": [64, 64 * (1 + i % 2)]} for i in range(11)]
    batches = [[item["name"] for item in group] for group in portability._batches(work)]
    assert batches == [["0", "2", "4", "6"], ["1", "3", "5", "7"]]
    assert portability._hash(torch.zeros(1, 2)) != portability._hash(torch.ones(1, 2))
