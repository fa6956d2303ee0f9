"""CompressAI's pretrained models as codecs, where the package and its weights are at hand."""

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

    The size counts the coded strings alone, as CompressAI's own tools count, for it has no file format: some bytes less
    than a file would take. Raises `NotInstalled` without the package, `LalicError` if it has no such model.
    """

    extension = ""  # no file format
    bounds = (1, 8)
    qualities = (1, 2, 3, 4, 5, 6)

    def __init__(self, name: str) -> None:
        try:
            zoo = importlib.import_module("compressai.zoo")
        except ImportError:
            raise NotInstalled(f"{name} needs compressai, which is not installed (pip install compressai)") from None
        self.name, self.title = name, name.removeprefix("compressai-")
        self.version = f"compressai {importlib.metadata.version('compressai')}"
        # Those of variable rate are called in another way, and have no published weights.
        known = {key: build for key, build in zoo.image_models.items() if not key.endswith("-vbr")}
        if self.title not in known:
            raise LalicError(f"there is no codec {name!r}, expected compressai- and one of {', '.join(sorted(known))}")
        self._build = known[self.title]
        self._models: dict[int, Any] = {}

    def code(self, picture: Image.Image, quality: Quality) -> Coded:
        """Encode and decode with the model of this quality, which is loaded once, before anything is timed.

        Raises `LalicError` if it cannot be loaded.
        """
        assert quality is not None
        q = int(quality)
        if q not in self._models:
            try:
                self._models[q] = self._build(quality=q, metric="mse", pretrained=True).eval()
            except Exception as error:  # no such quality, no network, a damaged download: whatever the package meets
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
