"""Made the folder patches beside it, once: `python tests/golden/streams/make.py`. Run again it refuses to overwrite."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import lalic
from lalic import codec
from lalic.model import LALIC
from lalic.nn.checkpoints import save_tensors
from lalic.train.start import linear_start

FOLDER = Path(__file__).parent / "patches"


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


def main() -> None:
    """Write the weights, a file for each picture and expected.json; none may be there."""
    FOLDER.mkdir()
    weights = FOLDER / "tiny.safetensors"
    save_tensors(model().converted(), weights, overwrite=False)
    made = lalic.load_checkpoint(weights)
    expected = {}
    for quality, (name, picture) in zip((50, 20, 50, 100, 70), pictures().items(), strict=True):
        data = codec.encode(picture, made, quality=quality)
        (FOLDER / f"{name}.lalic").write_bytes(data)
        expected[name] = codec.symbol_hashes(data, made)
    text = json.dumps({"weights_hash": made.weights_hash().hex(), "files": expected}, indent=2)
    (FOLDER / "expected.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
