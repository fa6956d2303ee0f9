"""Pillow reads and writes .lalic files after `import lalic.pillow`, and so does what opens pictures through Pillow.

>>> import lalic.pillow
>>> from PIL import Image
>>> Image.open("photo.png").save("photo.lalic", quality=50)  # doctest: +SKIP
>>> Image.open("photo.lalic").thumbnail((256, 256))  # doctest: +SKIP

`Image.open` reads the file and checks all its bytes: size, mode and metadata are known then. Pixels are decoded when
they are first needed. `draft` and `thumbnail` decode a picture reduced by 2, 4, ... 64, which takes the time of the
whole, but the memory of the result. Pillow's limit on pixels holds. Faults of a file are `OSError`, as of every format.

`Image.save` takes ``quality`` (1 to 100, 50 if it is left out), ``background`` (a colour below transparent pixels) and
``strip`` (drop metadata), as `lalic.encode` does. ``exif``, ``xmp``, ``dpi``, ``comment`` and ``icc_profile`` replace
what is in `image.info`.
"""

from __future__ import annotations

import math
from typing import IO, TYPE_CHECKING, Any

from PIL import Image, ImageFile

from lalic import container, metadata
from lalic.errors import LalicError
from lalic.tiles import SCALES

if TYPE_CHECKING:
    import torch

    from lalic.model import LALIC

__all__ = ["LalicImageFile", "use"]

_coder: dict[str, Any] = {"model": None, "device": None}


def use(model: LALIC | None = None, *, device: str | torch.device | None = None) -> None:
    """Choose what Pillow codes .lalic files with from now on, in this process.

    model: None for the slim model that ships, or one from `lalic.load`. device: of the shipped model, None
    for the CPU; a given model stays on its device.
    """
    _coder.update(model=model, device=device)


class LalicImageFile(ImageFile.ImageFile):
    """A .lalic file that `Image.open` opened."""

    format = "LALIC"
    format_description = "LALIC learned image compression"

    def _open(self) -> None:
        assert self.fp is not None
        data = self.fp.read()
        try:
            # Nothing is allocated by the number of pixels; Pillow's limit is checked after this.
            parsed = container.parse(data, max_pixels=None)
            metadata.attach(self, parsed.metadata)
        except LalicError as error:
            raise OSError(str(error)) from error
        self._data: bytes | None = data
        self._scale = 1
        self._whole = (parsed.width, parsed.height)
        self._size = self._whole
        self._mode = parsed.mode

    def draft(self, mode: str | None, size: tuple[int, int] | None) -> tuple[str, tuple[int, int, float, float]] | None:
        """Reduce the picture before it is decoded, to no less than `size`. The mode is not changed."""
        if self._data is None or size is None:
            return None
        width, height = self._whole
        self._scale = max((s for s in SCALES if width >= size[0] * s and height >= size[1] * s), default=1)
        self._size = (math.ceil(width / self._scale), math.ceil(height / self._scale))
        return self.mode, (0, 0, width / self._scale, height / self._scale)

    def load(self) -> Any:
        """Decode the pixels, once."""
        if self._data is not None:
            from lalic.codec import decode

            try:
                picture = decode(self._data, scale=self._scale, max_pixels=self._whole[0] * self._whole[1], **_coder)
            except LalicError as error:
                raise OSError(str(error)) from error
            self.im = picture.im
            self._data = None
            if self.fp is not None and self._exclusive_fp:
                self.fp.close()
            self.fp = None
        return super().load()

    def __setstate__(self, state: list[Any]) -> None:
        self._data = None  # pickled with its pixels
        super().__setstate__(state)


def _save(image: Image.Image, out: IO[bytes], filename: str | bytes) -> None:
    from lalic.codec import encode

    options = dict(image.encoderinfo)
    taken = {name: options[name] for name in ("quality", "background", "strip") if options.get(name) is not None}
    told = {name: options[name] for name in ("exif", "xmp", "dpi", "comment", "icc_profile") if name in options}
    if isinstance(told.get("exif"), Image.Exif):
        told["exif"] = told["exif"].tobytes()
    if told:
        image = image.copy()
        image.info = {name: value for name, value in (image.info | told).items() if value is not None}
    try:
        out.write(encode(image, **taken, **_coder))
    except LalicError as error:
        raise OSError(str(error)) from error


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(container.MAGIC)


Image.register_open(LalicImageFile.format, LalicImageFile, _accept)
Image.register_save(LalicImageFile.format, _save)
Image.register_extension(LalicImageFile.format, ".lalic")
Image.register_mime(LalicImageFile.format, "image/x-lalic")
