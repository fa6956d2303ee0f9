"""Made the golden streams beside it, once: `python tests/golden/streams/make.py`. Run again it refuses to overwrite."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lalic import codec
from lalic.model import LALIC
from lalic.nn.checkpoints import save_tensors

HERE = Path(__file__).parent


def model() -> LALIC:
    """Random weights of a small model with every part: odd groups, blocks in h_s, decays of both signs."""
    torch.manual_seed(20)
    made = LALIC(4, 14, (4, 6, 8, 14, 8, 6), (1, 1, 0, 1), (3, 1, 4, 6), context_depth=1, context_rate=2)
    with torch.no_grad():
        made.h_a[-1].weight.mul_(8)
        made.g_a[-1].weight.mul_(12)  # latents that are not all zero
    made.update()
    return made.eval()


def pictures() -> dict[str, Image.Image]:
    """A smooth one, noise, one pixel, and one whose sides are no multiples of 64."""
    y, x = np.mgrid[0:128, 0:192]
    smooth = np.stack([x * 255 / 191, y * 255 / 127, (np.sin(x / 9) + 1) * 127], axis=2).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    arrays = {"smooth": smooth, "noise": noise, "pixel": noise[:1, :1], "odd": smooth[:65, :130][:, ::-1]}
    return {name: Image.fromarray(np.ascontiguousarray(array)) for name, array in arrays.items()}


def main() -> None:
    """Write tiny.safetensors, a file for each picture and expected.json; none may be there."""
    made = model()
    save_tensors(made.converted(), HERE / "tiny.safetensors", overwrite=False)
    expected = {}
    for name, picture in pictures().items():
        data = codec.encode(picture, made)
        with open(HERE / f"{name}.lalic", "xb") as file:
            file.write(data)
        expected[name] = codec.symbol_hashes(data, made)
    with open(HERE / "expected.json", "x") as file:
        json.dump({"weights_hash": made.weights_hash().hex(), "files": expected}, file, indent=2)
        file.write("\n")


if __name__ == "__main__":
    main()
