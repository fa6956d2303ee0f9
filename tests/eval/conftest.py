"""A folder of pictures for the tests of `lalic.eval`."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # fake_model, shared with tests/codec

from eval_pictures import crop


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of two pictures, in a folder of results that may be written to."""
    path = tmp_path / "pictures"
    (path / "more").mkdir(parents=True)
    crop(150, 20).save(path / "face.png")
    crop(300, 250, 200, 170).save(path / "more" / "arm.png")
    (path / "notes.txt").write_text("no picture")
    return path
