"""A folder of pictures for the tests of `lalic.eval`."""

from pathlib import Path

import pytest
from tiny import astronaut


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of two pictures, in a folder of results that may be written to."""
    path = tmp_path / "pictures"
    (path / "more").mkdir(parents=True)
    astronaut(150, 20, 192, 176).save(path / "face.png")
    astronaut(300, 250, 200, 170).save(path / "more" / "arm.png")
    (path / "notes.txt").write_text("no picture")
    return path
