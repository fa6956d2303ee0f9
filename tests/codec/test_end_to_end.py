"""The slim model: another process makes the same bytes and pixels, and its weights give a recognisable picture."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import astronaut

import lalic
from lalic import codec
from lalic.container import parse

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Random weights with their coding tables, as a file that two processes can load."""
    torch.manual_seed(3)
    model = lalic.slim(pretrained=False)
    model.update()
    path = tmp_path_factory.mktemp("weights") / "slim.pth"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def model(checkpoint):
    return lalic.load_checkpoint(checkpoint)


@pytest.mark.slow
def test_another_process_makes_the_same_bytes_and_pixels(model, checkpoint, tmp_path):
    image = astronaut(150, 30, 130, 65)
    image.save(tmp_path / "in.png")
    data = codec.encode(image, model)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # The analysis and synthesis transforms are floating point: equal bytes and pixels need equal thread counts.
    threads = ["--threads", str(torch.get_num_threads())]
    for words in (["compress", "in.png"], ["decompress", "in.lalic", "-o", "out.png"]):
        command = [sys.executable, "-m", "lalic.cli", *words, "--checkpoint", str(checkpoint), *threads]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "in.lalic").read_bytes() == data
    with Image.open(tmp_path / "out.png") as out:
        assert (np.asarray(out) == np.asarray(codec.decode(data, model))).all()


def test_the_weights_that_ship_make_a_recognisable_picture():
    image = astronaut(150, 30, 256, 256)
    data = lalic.encode(image)
    decoded = lalic.decode(data)
    assert parse(data).model_name == "slim"
    error = np.asarray(decoded, dtype=float) - np.asarray(image, dtype=float)
    # A picture of its mean colour has 10.3 dB; at 20 dB faces and edges are visible.
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 20
    assert len(data) < 256 * 256 * 3 / 8  # below 3 bits per pixel, of 24
