"""The interface of a codec: from a picture and a quality to a decoded picture, its size and seconds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from lalic.errors import LalicError

__all__ = ["Codec", "Coded", "NotInstalled", "Quality"]


class NotInstalled(LalicError):
    """A codec needs something that is not installed, which the message names."""


Quality = float | None  # None: the codec has one rate


@dataclass(frozen=True)
class Coded:
    """A coded picture.

    picture: the decoded one, RGB. size: bytes of the whole file. decode_seconds: None if decoding is not a separate
    step. data: the file, if there is one.
    """

    picture: Image.Image
    size: int
    encode_seconds: float
    decode_seconds: float | None
    data: bytes | None = None


class Codec:
    """One codec. A subclass implements `encode` and `decode`, or `code`.

    name: on the command line. title: in plots. version: library and release. qualities: those to measure. chosen: True
    if the user gave them, False for the codec's defaults. bounds: lowest and highest quality. step: between qualities.
    increasing: whether a larger quality means a larger file.
    """

    name: str
    title: str
    version: str
    qualities: tuple[Quality, ...]
    bounds: tuple[float, float] = (0, 100)
    step = 1.0
    increasing = True
    chosen = False

    def encode(self, picture: Image.Image, quality: Quality) -> bytes:
        """The bytes of a file of an RGB picture."""
        raise NotImplementedError

    def decode(self, data: bytes) -> Image.Image:
        """The RGB picture of a file's bytes."""
        raise NotImplementedError

    def code(self, picture: Image.Image, quality: Quality) -> Coded:
        """Encode and decode with timing, in memory."""
        start = time.perf_counter()
        data = self.encode(picture, quality)
        middle = time.perf_counter()
        decoded = self.decode(data)
        end = time.perf_counter()
        return Coded(decoded, len(data), middle - start, end - middle, data)

    def choose(self, qualities: Sequence[float]) -> None:
        """Measure at these qualities in place of the defaults, if there are any.

        Raises `LalicError` if one is out of bounds, or no whole number where that is needed.
        """
        low, high = self.bounds
        for quality in qualities:
            if not low <= quality <= high:
                raise LalicError(f"{self.name}: quality is {quality:g}, expected {low:g} to {high:g}")
            if self.step == 1 and quality != int(quality):
                raise LalicError(f"{self.name}: quality is {quality:g}, expected a whole number")
        if qualities:
            self.qualities, self.chosen = tuple(qualities), True
