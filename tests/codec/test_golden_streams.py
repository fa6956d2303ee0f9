"""Committed files decode to committed symbols: tests/golden/streams/README.md."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lalic
from lalic import cli, codec
from lalic.coder import coding
from lalic.coder import exact as exact_model
from lalic.container import Container, parse
from lalic.errors import BitstreamError, ModelMismatchError
from lalic_kernels.rans.grouped import layout

STREAMS = Path(__file__).parents[1] / "golden" / "streams"
# Of each model's streams of version 2: where its weights lie.
WEIGHTS = {"version2": STREAMS / "tiny.safetensors", "patches": STREAMS / "patches" / "tiny.safetensors"}


def expected(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "expected.json").read_text(encoding="utf-8"))


EXPECTED = expected(STREAMS)
SIZES = {"smooth": (192, 128), "noise": (64, 64), "pixel": (1, 1), "odd": (130, 65)}
SIZES_2 = {**SIZES, "rings": (512, 384)}  # several groups of lanes


@pytest.fixture(scope="module")
def model():
    return lalic.load_checkpoint(STREAMS / "tiny.safetensors")


def test_the_weights_keep_their_name(model) -> None:
    assert model.weights_hash().hex() == EXPECTED["weights_hash"]
    assert set(EXPECTED["files"]) == set(SIZES) == {path.stem for path in STREAMS.glob("*.lalic")}
    assert sum(path.stat().st_size for path in STREAMS.iterdir() if path.is_file()) < 200_000


# Triton's interpreter (on a GPU the kernels themselves) gets one file of 64x64: it is slow.
CASES = [*((name, backend) for name in SIZES for backend in (None, "reference")), ("pixel", "triton")]


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_symbols_are_those_of_the_day_they_were_written(model, name, backend, monkeypatch) -> None:
    monkeypatch.setattr(exact_model.EXACT, "backend", backend)
    data = (STREAMS / f"{name}.lalic").read_bytes()
    if backend == "triton":
        here = copy.deepcopy(model).to("cuda" if torch.cuda.is_available() else "cpu")
        assert codec.symbol_hashes(data, here) == EXPECTED["files"][name]
        return
    assert codec.symbol_hashes(data, model) == EXPECTED["files"][name]
    assert codec.decode(data, model).size == SIZES[name]


@pytest.mark.parametrize("folder", WEIGHTS)
@pytest.mark.parametrize("backend", [None, "reference"])
def test_version_2(folder, backend, monkeypatch) -> None:
    monkeypatch.setattr(exact_model.EXACT, "backend", backend)
    model, known = lalic.load_checkpoint(WEIGHTS[folder]), expected(STREAMS / folder)
    assert known["weights_hash"] == model.weights_hash().hex()
    assert set(known["files"]) == set(SIZES_2) == {path.stem for path in (STREAMS / folder).glob("*.lalic")}
    for name in SIZES_2 if backend is None else SIZES:
        data = (STREAMS / folder / f"{name}.lalic").read_bytes()
        assert parse(data).version == 2
        assert codec.symbol_hashes(data, model) == known["files"][name]
        assert codec.decode(data, model).size == SIZES_2[name]


@pytest.mark.parametrize("folder", WEIGHTS)
def test_version_2_of_a_picture_of_several_groups(folder) -> None:
    """Otherwise nothing here would notice how groups share their symbols, or how lanes come to rest."""
    stream = parse((STREAMS / folder / "rings.lalic").read_bytes()).streams[0]
    parts = layout.unpack(np.frombuffer(stream, np.uint8))
    assert parts.highs.shape[0] > 1 and len(parts.stages) == 5 and parts.level > 0


@pytest.mark.parametrize("folder", WEIGHTS)
def test_version_2_where_symbols_stay_on_the_device(folder, monkeypatch) -> None:
    """Triton's interpreter here; on a GPU the model goes there, and this is what it does."""
    pytest.importorskip("triton", reason="decoding on the device needs triton, which is not installed")
    monkeypatch.setattr(coding, "_decodes_there", lambda device: True)
    here = lalic.load_checkpoint(WEIGHTS[folder]).to("cuda" if torch.cuda.is_available() else "cpu")
    data = (STREAMS / folder / "pixel.lalic").read_bytes()
    assert codec.symbol_hashes(data, here) == expected(STREAMS / folder)["files"]["pixel"]
    container = parse(data)
    for bit, what in ((0, "symbols are not the encoder's"), (40, "symbols of z are not the encoder's")):
        with pytest.raises(BitstreamError, match=what):
            here.read_sections(container.streams, 64, 64, container.symbol_checksum ^ 1 << bit)
    with pytest.raises(BitstreamError, match=r"symbols cannot be decoded: .*stream"):
        here.read_sections((container.streams[0] + bytes(2),), 64, 64, container.symbol_checksum)


def test_the_command_prints_them(capsys) -> None:
    files = [str(STREAMS / f"{name}.lalic") for name in SIZES]
    assert cli.main(["info", "--symbols", "--json", "--checkpoint", str(STREAMS / "tiny.safetensors"), *files]) == 0
    described = json.loads(capsys.readouterr().out)
    for name, entry in zip(SIZES, described, strict=True):
        assert {key: entry[key] for key in ("symbols_sha256", "latents_sha256")} == EXPECTED["files"][name]
    assert cli.main(["info", "--symbols", "--checkpoint", str(STREAMS / "tiny.safetensors"), files[0]]) == 0
    out = capsys.readouterr().out
    assert all(value in out for value in EXPECTED["files"]["smooth"].values())
    assert cli.main(["info", "--symbols", files[0]]) == 1  # the weights that ship did not write it
    assert "'custom'" in capsys.readouterr().err


def test_symbols_of_another_checksum_are_never_a_picture(model) -> None:
    container = parse((STREAMS / "smooth.lalic").read_bytes())
    for bit, what in ((0, "symbols are not the encoder's"), (40, "symbols of z are not the encoder's")):
        fields = {**vars(container), "symbol_checksum": container.symbol_checksum ^ 1 << bit}
        with pytest.raises(BitstreamError, match=what):
            codec.decode(Container(**fields).pack(), model)
    fields = {**vars(container), "model_hash": bytes(8)}
    with pytest.raises(ModelMismatchError):
        codec.decode(Container(**fields).pack(), model)
