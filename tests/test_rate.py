"""benchmarks.rate: what it says of a file is true of the file."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import lalic
from benchmarks import rate, report
from lalic.demo import psnr


def test_rows_are_those_of_real_files(tmp_path, monkeypatch, capsys):
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8))
    picture = small.resize((70, 90), Image.Resampling.BICUBIC)
    (tmp_path / "set").mkdir()
    picture.save(tmp_path / "set" / "one.png")
    append = report.append
    monkeypatch.setattr(report, "append", lambda record: append(record, tmp_path / "results"))
    assert rate.main([str(tmp_path / "set"), "--name", "noise", "--save"]) == 0
    (path,) = (tmp_path / "results").iterdir()
    record = json.loads(path.read_text())
    data = lalic.encode(picture)
    (row,) = record["rate"]
    assert row["picture"] == "one" and record["pictures"] == "noise" and record["model"] == "slim"
    assert record["precision"] == "float32"
    assert row["bits_per_pixel"] == 8 * len(data) / (70 * 90) == record["mean_bits_per_pixel"]
    assert row["psnr"] == psnr(picture, lalic.decode(data))
    assert row["jpeg_bits_per_pixel"] > 0
    assert "one" in capsys.readouterr().out


def test_a_folder_without_pictures_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        rate.main([str(tmp_path)])
    assert stop.value.code == 2 and "no pictures" in capsys.readouterr().err
