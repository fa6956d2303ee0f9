"""Commands with a tiny model in an empty folder."""

from copy import deepcopy
from types import SimpleNamespace

import pytest
from tiny import tiny

import lalic
from lalic import cli, codec, hub


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder, and the tiny model in place of the one that ships."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lalic, "slim", lambda pretrained: tiny(), raising=False)
    monkeypatch.setattr(hub, "slim", lambda pretrained: deepcopy(tiny()))
    monkeypatch.setattr(codec, "_cache", {})
    return tmp_path


@pytest.fixture
def run(here, capfd):
    """Runs one command and returns its exit code, lines of output and lines of errors; no traceback may be in it."""

    def call(*words):
        code = cli.main([str(word) for word in words])
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return SimpleNamespace(code=code, out=out.splitlines(), err=err.splitlines())

    return call
