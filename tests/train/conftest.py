"""Pictures to train on."""

from __future__ import annotations

import tarfile

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with five pictures of smooth noise, one of them smaller than a crop, and a tar file of the same."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i, size in enumerate([(150, 140), (200, 130), (40, 90), (128, 128), (300, 100)]):
        small = Image.fromarray(rng.integers(0, 256, (6, 5, 3), np.uint8))
        small.resize(size, Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    with tarfile.open(folder.parent / "pictures.tar", "w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    return folder


@pytest.fixture
def one_thread(threads):
    """Sums in one order."""
    threads(1)
