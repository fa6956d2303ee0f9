"""Made the golden streams beside it, once: `python tests/golden/streams/make.py`. Run again it refuses to overwrite.

The streams in this folder are of format version 1, made by the release that wrote it, and their weights. What stands
here now makes the streams of version 2, in the folder version2, with the same weights of the same pictures.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

import lalic
from lalic import codec
from lalic.model import LALIC

HERE = Path(__file__).parent
FOLDER = HERE / "version2"


def model() -> LALIC:
    """Random weights of a small model with every part, as the release of version 1 saved them: odd groups, blocks in
    h_s, decays of both signs.

    They were LALIC(4, 14, (4, 6, 8, 14, 8, 6), (1, 1, 0, 1), (3, 1, 4, 6), context_depth=1, context_rate=2) after
    torch.manual_seed(20), with the weights of the last layers of h_a and g_a times 8 and 12, so that latents are not
    all zero.
    """
    return lalic.load_checkpoint(HERE / "tiny.safetensors")


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
    """Write a file for each picture and expected.json; none may be there."""
    made = model()
    FOLDER.mkdir(exist_ok=True)
    expected = {}
    for name, picture in pictures().items():
        data = codec.encode(picture, made)
        with open(FOLDER / f"{name}.lalic", "xb") as file:
            file.write(data)
        expected[name] = codec.symbol_hashes(data, made)
    with open(FOLDER / "expected.json", "x") as file:
        json.dump({"weights_hash": made.weights_hash().hex(), "files": expected}, file, indent=2)
        file.write("\n")


if __name__ == "__main__":
    main()
