"""Committed files decode to committed symbols: tests/golden/streams/README.md."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lalic
from lalic import cli, codec, coder
from lalic.coder import Stream, engines
from lalic.container import parse
from lalic.errors import BitstreamError, ModelMismatchError
from lalic.model import LALIC
from lalic_kernels.rans import layout

STREAMS = Path(__file__).parents[1] / "golden" / "streams"
FOLDERS = ("published", "patches")
EACH_FOLDER = pytest.mark.parametrize("folder", FOLDERS)
SIZES = {"smooth": (192, 128), "noise": (64, 64), "pixel": (1, 1), "odd": (130, 65), "rings": (512, 384)}


def expected(folder: str) -> dict[str, Any]:
    return json.loads((STREAMS / folder / "expected.json").read_text(encoding="utf-8"))


def model_of(folder: str) -> LALIC:
    return lalic.load_checkpoint(STREAMS / folder / "tiny.safetensors")


@EACH_FOLDER
def test_the_weights_keep_their_name(folder) -> None:
    assert model_of(folder).weights_hash().hex() == expected(folder)["weights_hash"]
    assert set(expected(folder)["files"]) == set(SIZES) == {path.stem for path in (STREAMS / folder).glob("*.lalic")}
    assert sum(path.stat().st_size for path in (STREAMS / folder).iterdir()) < 250_000


@EACH_FOLDER
@pytest.mark.parametrize("backend", [None, "reference"])
def test_symbols_are_those_of_the_day_they_were_written(folder, backend, monkeypatch) -> None:
    monkeypatch.setattr(engines.EXACT, "backend", backend)
    model = model_of(folder)
    for name, size in SIZES.items():
        if backend == "reference" and name == "rings":
            continue
        data = (STREAMS / folder / f"{name}.lalic").read_bytes()
        assert codec.symbol_hashes(data, model) == expected(folder)["files"][name]
        assert codec.decode(data, model).size == size


BOXES = {"grey": ("L", 1), "alpha": ("RGBA", 1), "tiles": ("RGB", 12), "everything": ("RGBA", 12)}


@pytest.mark.parametrize("name", BOXES)
def test_files_with_every_box(name) -> None:
    model, data = model_of("patches"), (STREAMS / "boxes" / f"{name}.lalic").read_bytes()
    assert codec.symbol_hashes(data, model) == expected("boxes")["files"][name]
    mode, tiles = BOXES[name]
    container, decoded = parse(data), codec.decode(data, model)
    assert (decoded.mode, len(container.grid)) == (mode, tiles) and parse(container.pack()) == container
    assert decoded.size == (SIZES["smooth"] if tiles == 1 else SIZES["rings"])
    assert "".join(container.metadata) == ("extrc" if name == "everything" else "")


@pytest.mark.slow
@EACH_FOLDER
def test_kernels_decode_the_same_symbols(folder, monkeypatch) -> None:
    """Triton's interpreter (on a GPU the kernels themselves) gets one file of 64x64: it is slow."""
    pytest.importorskip("triton")
    monkeypatch.setattr(engines.EXACT, "backend", "triton")
    model = model_of(folder).to("cuda" if torch.cuda.is_available() else "cpu")
    data = (STREAMS / folder / "pixel.lalic").read_bytes()
    assert codec.symbol_hashes(data, model) == expected(folder)["files"]["pixel"]


@EACH_FOLDER
def test_one_of_several_groups(folder) -> None:
    """One stream has several groups and lanes that end early, so that these parts of the format are tested."""
    parts = layout.unpack(
        np.frombuffer(parse((STREAMS / folder / "rings.lalic").read_bytes()).tiles[0].stream, np.uint8)
    )
    assert parts.highs.shape[0] > 1 and len(parts.ramp_steps) == 5


@pytest.mark.slow
@EACH_FOLDER
def test_symbols_that_stay_on_the_device(folder, monkeypatch) -> None:
    """Decoding on the device: on a GPU, or else in Triton's interpreter."""
    pytest.importorskip("triton", reason="decoding on the device needs triton, which is not installed")
    monkeypatch.setattr(coder, "codes_on_gpu", lambda device: True)
    model = model_of(folder).to("cuda" if torch.cuda.is_available() else "cpu")
    data = (STREAMS / folder / "pixel.lalic").read_bytes()
    assert codec.symbol_hashes(data, model) == expected(folder)["files"]["pixel"]
    stream, checksum = parse(data).tiles[0]
    for bit, what in ((0, "symbols are not the encoder's"), (40, "symbols of z are not the encoder's")):
        with pytest.raises(BitstreamError, match=what):
            model.read(Stream(stream, checksum ^ 1 << bit), 64, 64)
    with pytest.raises(BitstreamError, match=r"symbols cannot be decoded: .*stream"):
        model.read(Stream(stream + bytes(2), checksum), 64, 64)


def test_the_command_prints_them(capsys) -> None:
    known, weights = expected("published")["files"], str(STREAMS / "published" / "tiny.safetensors")
    files = [str(STREAMS / "published" / f"{name}.lalic") for name in SIZES]
    assert cli.main(["info", "--symbols", "--json", "--checkpoint", weights, *files]) == 0
    described = json.loads(capsys.readouterr().out)
    for name, entry in zip(SIZES, described, strict=True):
        assert {key: entry[key] for key in ("symbols_sha256", "latents_sha256")} == known[name]
    assert cli.main(["info", "--symbols", "--checkpoint", weights, files[0]]) == 0
    out = capsys.readouterr().out
    assert all(value in out for value in known["smooth"].values())
    assert cli.main(["info", "--symbols", files[0]]) == 1  # the weights that ship did not write it
    assert "'custom'" in capsys.readouterr().err


def test_symbols_of_another_checksum_are_never_a_picture() -> None:
    model = model_of("published")
    container = parse((STREAMS / "published" / "smooth.lalic").read_bytes())
    (tile,) = container.tiles
    for bit, what in ((0, "symbols are not the encoder's"), (40, "symbols of z are not the encoder's")):
        with pytest.raises(BitstreamError, match=what):
            changed = tile._replace(checksum=tile.checksum ^ 1 << bit)
            codec.decode(replace(container, tiles=(changed,)).pack(), model)
    with pytest.raises(ModelMismatchError):
        codec.decode(replace(container, model_hash=bytes(8)).pack(), model)
