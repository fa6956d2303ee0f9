"""CompressAI's pretrained models as codecs, if the package is installed and its weights can be loaded."""

from __future__ import annotations

import importlib
import importlib.metadata
import time
from typing import Any

import torch
from PIL import Image

from lalic import images
from lalic.errors import LalicError
from lalic.eval.codecs.base import Codec, Coded, NotInstalled, Quality

__all__ = ["CompressAICodec"]

_STEP = 64


class CompressAICodec(Codec):
    """`compressai-NAME`: the model NAME of CompressAI's zoo, trained for MSE, at its qualities.

    CompressAI has no file format, so the size is that of the coded strings, as in its own tools: some bytes less than a
    file. Raises `NotInstalled` without the package, `LalicError` if it has no such model.
    """

    bounds = (1, 8)
    qualities = (1, 2, 3, 4, 5, 6)

    def __init__(self, name: str) -> None:
        try:
            zoo = importlib.import_module("compressai.zoo")
        except ImportError:
            raise NotInstalled(f"{name} needs compressai, which is not installed (pip install compressai)") from None
        self.name, self.title = name, name.removeprefix("compressai-")
        self.version = f"compressai {importlib.metadata.version('compressai')}"
        # Models of variable rate have another interface, and no published weights.
        builders = {key: build for key, build in zoo.image_models.items() if not key.endswith("-vbr")}
        if self.title not in builders:
            names = ", ".join(sorted(builders))
            raise LalicError(f"there is no codec {name!r}, expected compressai- and one of {names}")
        self._build = builders[self.title]
        self._models: dict[int, Any] = {}

    def code(self, picture: Image.Image, quality: Quality) -> Coded:
        """Encode and decode with the model of this quality, which is loaded once and without timing.

        Raises `LalicError` if it cannot be loaded.
        """
        assert quality is not None
        q = int(quality)
        if q not in self._models:
            try:
                self._models[q] = self._build(quality=q, metric="mse", pretrained=True).eval()
            except Exception as error:  # such as no such quality, no network, a damaged download
                raise LalicError(f"{self.name} cannot be loaded at quality {q} ({error})") from error
        model, x = self._models[q], images.to_tensor(picture)
        height, width = x.shape[-2:]
        with torch.inference_mode():
            padded = torch.nn.functional.pad(x, (0, -width % _STEP, 0, -height % _STEP), mode="replicate")
            start = time.perf_counter()
            packed = model.compress(padded)
            middle = time.perf_counter()
            decoded = model.decompress(packed["strings"], packed["shape"])["x_hat"]
            end = time.perf_counter()
        size = sum(len(strings[0]) for strings in packed["strings"])
        return Coded(images.from_tensor(decoded[..., :height, :width]), size, middle - start, end - middle)
