"""What a codec is to the measurements: a picture and a quality in, a coded picture, its size and seconds out."""

from __future__ import annotations

import time
from dataclasses import dataclass

from PIL import Image

from lalic.errors import LalicError

__all__ = ["Codec", "Coded", "NotInstalled", "Quality", "check_bounds"]


class NotInstalled(LalicError):
    """A codec cannot be had here; the sentence says what it needs."""


Quality = float | None  # None: the codec has one rate


@dataclass(frozen=True)
class Coded:
    """A picture that went through a codec.

    picture: what was decoded, RGB. size: bytes of the whole file. decode_seconds: None if decoding is no step of its
    own. data: the file, where there is one.
    """

    picture: Image.Image
    size: int
    encode_seconds: float
    decode_seconds: float | None
    data: bytes | None = None


class Codec:
    """One codec. A subclass has `encode` and `decode`, or its own `code`.

    name: on the command line. title: in plots. version: library and release. qualities: those that are measured.
    chosen: whether somebody asked for them, or they are the codec's own choice. bounds: lowest and highest quality,
    which go in steps of `step`. increasing: whether a larger quality means a larger file. extension: of its files.
    """

    name: str
    title: str
    version: str
    qualities: tuple[Quality, ...]
    bounds: tuple[float, float] = (0, 100)
    step = 1.0
    increasing = True
    chosen = False
    extension: str

    def encode(self, picture: Image.Image, quality: Quality) -> bytes:
        """The file of an RGB picture."""
        raise NotImplementedError

    def decode(self, data: bytes) -> Image.Image:
        """The RGB picture of a file."""
        raise NotImplementedError

    def code(self, picture: Image.Image, quality: Quality) -> Coded:
        """Encode and decode, timed; the file stays in memory, so that no disk is timed."""
        start = time.perf_counter()
        data = self.encode(picture, quality)
        middle = time.perf_counter()
        decoded = self.decode(data)
        end = time.perf_counter()
        return Coded(decoded, len(data), middle - start, end - middle, data)


def check_bounds(codec: Codec) -> None:
    """Raise `LalicError` if a quality of the codec is out of its bounds, or between two that there are."""
    low, high = codec.bounds
    for quality in codec.qualities:
        if quality is None:
            continue
        if not low <= quality <= high:
            raise LalicError(f"{codec.name}: quality is {quality:g}, expected {low:g} to {high:g}")
        if codec.step == 1 and quality != int(quality):
            raise LalicError(f"{codec.name}: quality is {quality:g}, expected a whole number")
