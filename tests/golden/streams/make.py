"""Made the folders patches and boxes beside it: `make.py patches`, `make.py boxes`. Files are never overwritten."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image

import lalic
from lalic import codec
from lalic.images import Picture
from lalic.model import LALIC
from lalic.nn.checkpoints import save_tensors
from lalic.train.start import linear_start

HERE = Path(__file__).parent
WEIGHTS = HERE / "patches" / "tiny.safetensors"


def model() -> LALIC:
    """A small model of slim's shape with every part, gains among them, that begins as a transform of `rings`."""
    torch.manual_seed(20)
    made = LALIC(
        4, 14, (10, 12, 14, 14, 8, 6), (1, 1, 1, 1), (3, 1, 4, 6), context_depth=1, context_rate=2, context_width=10,
        kernels=(4, 2, 2, 1), aggregation_widths=(9, 8), qualities=3,
    )  # fmt: skip
    made.gains.start(torch.tensor([0.5, 2.0, 6.0]))
    rings = torch.from_numpy(np.array(pictures()["rings"])).permute(2, 0, 1)[None] / 255
    linear_start(made, rings, 0.013)
    made.update()
    return made.eval()


def pictures() -> dict[str, Image.Image]:
    """A smooth one, noise, one pixel, one whose sides are no multiples of 64, and a large one, for several groups."""
    y, x = np.mgrid[0:128, 0:192]
    smooth = np.stack([x * 255 / 191, y * 255 / 127, (np.sin(x / 9) + 1) * 127], axis=2).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    arrays = {"smooth": smooth, "noise": noise, "pixel": noise[:1, :1], "odd": smooth[:65, :130][:, ::-1]}
    y, x = np.mgrid[0:384, 0:512]
    rings = np.sin(np.hypot(x - 200, y - 150) / 3)
    arrays["rings"] = np.stack([rings * 60 + 128, np.roll(rings, 40, 1) * 90 + 128, x / 2], axis=2).astype(np.uint8)
    return {name: Image.fromarray(np.ascontiguousarray(array)) for name, array in arrays.items()}


def patches() -> None:
    """Write the weights, a file for each picture and expected.json."""
    save_tensors(model().converted(), WEIGHTS, overwrite=False)
    made = lalic.load_checkpoint(WEIGHTS)
    files = {
        name: codec.encode(picture, made, quality=quality)
        for quality, (name, picture) in zip((50, 20, 50, 100, 70), pictures().items(), strict=True)
    }
    _write(WEIGHTS.parent, made, files)


def boxes() -> None:
    """Files with every box of the format, by the weights of patches."""
    made, (smooth, *_, rings) = lalic.load_checkpoint(WEIGHTS), pictures().values()
    alpha = Image.linear_gradient("L").resize(smooth.size)
    exif, resolution = Image.Exif(), (720000).to_bytes(4, "big") * 2
    exif[0x010F] = "a camera"
    everything = {"e": exif.tobytes(), "x": b"<x:xmpmeta/>", "t": b'{"Title": "rings"}', "r": resolution, "c": b"P3"}
    files = {"grey": codec.encode(smooth.convert("L"), made), "alpha": codec.encode(Picture(smooth, alpha), made)}
    with mock.patch.multiple(codec, ONE_TILE=0, TILE=128, MARGIN=64):
        files["tiles"] = codec.encode(rings, made)
        mask = alpha.resize(rings.size).point(lambda value: 255 * (value > 99))
        files["everything"] = codec.encode(Picture(rings.convert("L"), mask, everything), made)
    _write(HERE / "boxes", made, files)


def _write(folder: Path, made: LALIC, files: dict[str, bytes]) -> None:
    """Write files, which may not be there, and what they decode to."""
    folder.mkdir(exist_ok=True)
    expected = {}
    for name, data in files.items():
        with open(folder / f"{name}.lalic", "xb") as file:
            file.write(data)
        expected[name] = codec.symbol_hashes(data, made)
    text = json.dumps({"weights_hash": made.weights_hash().hex(), "files": expected}, indent=2)
    with open(folder / "expected.json", "x", encoding="utf-8") as file:
        file.write(text + "\n")


if __name__ == "__main__":
    {"patches": patches, "boxes": boxes}[sys.argv[1]]()
