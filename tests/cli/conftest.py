"""Commands with a stand-in model in an empty folder."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # fake_model, shared with tests/codec

from fake_model import FakeModel

import lalic
from lalic import cli, codec, hub
from lalic.errors import CheckpointError


@pytest.fixture
def fake() -> FakeModel:
    return FakeModel()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder, and stand-ins for the weights that ship and for --checkpoint."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lalic, "slim", lambda pretrained: FakeModel(), raising=False)
    monkeypatch.setattr(hub, "slim", lambda pretrained: FakeModel())
    monkeypatch.setattr(hub, "load_checkpoint", load_checkpoint)
    monkeypatch.setattr(codec, "_cache", {})
    return tmp_path


def load_checkpoint(path):
    if not os.path.exists(path):
        raise CheckpointError(f"{path} cannot be read")
    return FakeModel("full", seed=7)


@pytest.fixture
def run(here, capfd):
    """Runs one command and returns its exit code, lines of output and lines of errors; no traceback may be in it."""

    def call(*words):
        code = cli.main([str(word) for word in words])
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return SimpleNamespace(code=code, out=out.splitlines(), err=err.splitlines())

    return call
