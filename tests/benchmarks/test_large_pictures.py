"""Large pictures: a picture of any size, the peak of a process, tiles against one tile."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import astronaut, save, tiny

from benchmarks import large
from benchmarks.codec import photo
from benchmarks.measure import WrongResult
from lalic import codec


def test_a_mirrored_picture_has_no_edges_inside() -> None:
    pixels = np.asarray(photo(1100, 1300)).astype(int)
    assert pixels.shape == (1100, 1300, 3)
    assert (pixels[:, 511] == pixels[:, 512]).all() and (pixels[1023] == pixels[1024]).all()


def test_the_peak_of_a_process() -> None:
    """Its own, whatever the process that asks holds."""
    held = np.ones(1 << 26)
    small, big = (large._peak([sys.executable, "-c", code]) for code in ("pass", "b'x' * (1 << 28)"))
    assert small < 100 < held.nbytes >> 20 and 256 < big < small + 300
    with pytest.raises(WrongResult, match="ended with 3"):
        large._peak([sys.executable, "-c", "raise SystemExit(3)"])


def test_commands_on_pictures_of_some_sizes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also one in strips; each says what it does, and from the second on how long it may take."""
    said: list[str] = []
    monkeypatch.setattr(large, "_peak", lambda command: Path(command[command.index("-o") + 1]).write_bytes(b"1234"))
    monkeypatch.setattr(large, "needs_strips", lambda width, height: False)
    rows = large.all_memory([1, 2], say=said.append)
    assert [row["size"] for row in rows] == [[1155, 866], [1633, 1225]] and rows[0]["picture MiB"] == 4
    assert said[0] == "1 megapixels" and said[3].startswith("2 megapixels, some ") and len(said) == 6
    pytest.importorskip("pyvips", reason="libvips needs pyvips", exc_type=ImportError)
    monkeypatch.setattr(large, "needs_strips", lambda width, height: True)
    assert large.memory(1, say=said.append)["picture MiB"] == 0
    large._write(1300, 1100, str(tmp_path / "a.tif"))
    with Image.open(tmp_path / "a.tif") as made:
        assert (np.asarray(made) == np.asarray(photo(1100, 1300))).all()


def test_regions_of_more_and_more_tiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(codec, "ONE_TILE", 0)
    monkeypatch.setattr(codec, "TILE", 256)
    said: list[str] = []
    rows = large.regions(1, str(save(tmp_path / "weights.pth", tiny())), 2, said.append)
    assert [(row["tiles"], row["read"]) for row in rows] == [(1, 4), (4, 9), (9, 16), (20, 20)] and len(said) == 2
    assert all(row["seconds a tile"] == row["seconds"] / row["tiles"] > 0 for row in rows)


def test_tiles_are_compared_with_one_tile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(codec, "ONE_TILE", 0)
    monkeypatch.setattr(codec, "TILE", 128)
    astronaut(0, 0, 300, 200).save(tmp_path / "a.png")
    row = large.seams(tmp_path / "a.png", None, str(save(tmp_path / "weights.pth", tiny())))
    assert 0 < abs(row["rate"]) < 0.1 and row["size"] == [300, 200]  # a linear model shows no seams
    for name in ("one tile", "tiles"):
        assert 20 < row[f"{name} at borders dB"] < 40 and 20 < row[f"{name} elsewhere dB"] < 40
