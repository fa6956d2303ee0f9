"""Models from files, folders and the Hugging Face Hub. What needs its package is slow, and offline."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import save, tiny

import lalic
from lalic import pretrained
from lalic.errors import CheckpointError
from lalic.nn import checkpoints


def same(a: lalic.LALIC, b: lalic.LALIC) -> bool:
    weights = [{n: v for n, v in m.state_dict().items() if checkpoints.matters(n)} for m in (a, b)]
    return weights[0].keys() == weights[1].keys() and all(torch.equal(v, weights[1][n]) for n, v in weights[0].items())


def test_a_file_or_a_folder_of_a_run(tmp_path: Path) -> None:
    assert same(lalic.load(save(tmp_path / "a.pth", tiny())), tiny())
    assert lalic.load_checkpoint is lalic.load
    with pytest.raises(CheckpointError, match="the folder has no model"):
        lalic.load(tmp_path)
    checkpoints.save_weights(tiny(), tmp_path / "weights.safetensors")
    assert lalic.load(tmp_path).config == lalic.LALIC.from_pretrained(tmp_path).config == tiny(name="custom").config


def test_what_is_taken_for_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("user/model", "user/model-1.2", "user/model@v2", "User_1/a@refs/pr/3"):
        assert pretrained.looks_like_an_id(name), name
    for name in (
        "model",
        "a/b/c",
        "runs/best",
        "user/model.pth",
        "user/w.safetensors",
        "./model",
        "../x",
        "/a/b",
        "a b/c",
    ):
        assert not pretrained.looks_like_an_id(name), name
    for name in ("runs/best", "user/model.pth", "absent"):
        with pytest.raises(CheckpointError, match=f"^{name}: no such file$"):
            lalic.load(name)


def test_without_the_package_one_sentence_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrained._mixin.cache_clear()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for error, call in (
        (CheckpointError, lambda: lalic.load("user/model")),
        (CheckpointError, lambda: lalic.LALIC.from_pretrained("user/model")),
        (ImportError, lambda: tiny().save_pretrained(tmp_path)),
        (ImportError, lambda: tiny().push_to_hub("user/model")),
    ):
        with pytest.raises(error, match=r"need its package .*: pip install lalic\[hub\]$"):
            call()


def test_importing_does_not_load_the_package() -> None:
    code = "import sys, lalic.model, lalic.hub; assert not {'huggingface_hub', 'compressai'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# With the package


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Any:
    found = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    monkeypatch.setattr(importlib.import_module("huggingface_hub.constants"), "HF_HUB_OFFLINE", True)
    pretrained._mixin.cache_clear()
    return found


@pytest.mark.slow
def test_saved_and_loaded(package: Any, tmp_path: Path) -> None:
    model = tiny(name="custom", qualities=3)
    model.save_pretrained(tmp_path / "model")
    assert {f.name for f in (tmp_path / "model").iterdir()} == {"model.safetensors", "config.json", "README.md"}
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["M"] == model.config.M and config["qualities"] == 3
    card = (tmp_path / "model" / "README.md").read_text()
    assert "library_name: lalic" in card and 'lalic.load("user/model")' in card
    for again in (lalic.load(tmp_path / "model"), lalic.LALIC.from_pretrained(str(tmp_path / "model"))):
        assert same(again, model) and again.weights_hash() == model.weights_hash() and not again.training


@pytest.mark.slow
def test_a_model_of_the_local_cache(package: Any, tmp_path: Path) -> None:
    """Where a download leaves files, so that the package finds them without the network."""
    repository = tmp_path / "models--user--model"
    for revision in ("a" * 40, "b" * 40):
        tiny(name="custom", qualities=3 if revision[0] == "b" else 0).save_pretrained(
            repository / "snapshots" / revision
        )
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    (repository / "refs" / "v2").write_text("b" * 40)
    load = lalic.LALIC.from_pretrained
    assert same(load("user/model", cache_dir=tmp_path), tiny(name="custom"))
    assert same(load("user/model", cache_dir=tmp_path, revision="v2"), tiny(name="custom", qualities=3))
    assert same(load("user/model@v2", cache_dir=tmp_path), tiny(name="custom", qualities=3))
    with pytest.raises(CheckpointError, match="it cannot be reached"):
        load("user/model@v3", cache_dir=tmp_path)
    with pytest.raises(TypeError, match="flavour"):
        load("user/model", cache_dir=tmp_path, flavour="plain")


@pytest.mark.slow
def test_offline_in_one_sentence(package: Any, tmp_path: Path) -> None:
    message = "^user/model: no such file, and no model of the Hugging Face Hub: it cannot be reached$"
    with pytest.raises(CheckpointError, match=message):
        lalic.LALIC.from_pretrained("user/model", cache_dir=tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "lalic", "compress", "none.png", "--checkpoint", "user/model"],
        capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode != 0 and "it cannot be reached" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_what_is_put_on_the_hub(package: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sent: dict[str, Any] = {}

    class Api:
        def __init__(self, token: str | None = None) -> None:
            sent["token"] = token

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return type("Url", (), {"repo_id": repo_id})()

        def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str, **_: Any) -> str:
            sent["files"] = sorted(f.name for f in Path(folder_path).iterdir())
            sent["model"] = lalic.load(folder_path)
            return f"address/{repo_id}"

    monkeypatch.setattr(importlib.import_module("huggingface_hub.hub_mixin"), "HfApi", Api)
    assert tiny().push_to_hub("user/model", token="secret") == "address/user/model"
    assert sent["token"] == "secret" and sent["files"] == ["README.md", "config.json", "model.safetensors"]
    assert same(sent["model"], tiny())
    monkeypatch.setattr(Api, "create_repo", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("no route")))
    with pytest.raises(
        CheckpointError, match=r"^user/model: cannot be put on the Hugging Face Hub: it cannot be reached$"
    ):
        tiny().push_to_hub("user/model")
