"""A folder of pictures for the tests of `lalic.eval`."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import astronaut, tiny

from lalic import cli, hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of two pictures, in a folder of results that may be written to."""
    path = tmp_path / "pictures"
    (path / "more").mkdir(parents=True)
    astronaut(150, 20, 192, 176).save(path / "face.png")
    astronaut(300, 250, 200, 170).save(path / "more" / "arm.png")
    (path / "notes.txt").write_text("no picture")
    return path


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., SimpleNamespace]:
    """Runs one command with the tiny model, and returns its exit code, output and errors."""
    monkeypatch.setattr(hub, "slim", lambda pretrained: tiny())

    def call(*words: object) -> SimpleNamespace:
        code = cli.main([str(word) for word in words])
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return SimpleNamespace(code=code, out=out, err=err)

    return call
