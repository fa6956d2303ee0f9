"""lalic's files as a codec."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from lalic import codec
from lalic.errors import LalicError
from lalic.eval.codecs.base import Codec, Quality
from lalic.model import LALIC
from lalic.refine import check_effort

__all__ = ["LalicCodec"]


class LalicCodec(Codec):
    """.lalic files of one model, at `qualities` (empty: defaults).

    effort: seconds a picture, as in `lalic.encode`; such files are the codec "lalic-effort". Raises `LalicError` for a
    quality or an effort that the model does not have.
    """

    name = "lalic"
    bounds = (1, 100)
    step = 0.1  # files hold hundredths; a tenth is below a hundredth of a dB

    def __init__(
        self, model: LALIC, qualities: Sequence[Quality] = (), title: str = "lalic", effort: float | None = None
    ) -> None:
        self.model, self.title, self.effort = model, title, effort
        if effort is not None:
            self.name, self.title = "lalic-effort", f"{title}, effort {effort:g} s"
        self.version = f"{model.config.name}, weights {model.weights_hash().hex()}"
        try:
            one_quality = codec.coded_quality(model, None) is None
            check_effort(model, effort)
            for quality in qualities:
                codec.coded_quality(model, quality)
        except LalicError as error:
            raise LalicError(f"{title}: {error}") from None
        self.chosen = bool(qualities)
        self.qualities = tuple(qualities) or ((None,) if one_quality else (5, 20, 35, 50, 65, 80, 95))

    def encode(self, picture: Image.Image, quality: Quality) -> bytes:
        return codec.encode(picture, self.model, quality=quality, effort=self.effort)

    def decode(self, data: bytes) -> Image.Image:
        return codec.decode(data, self.model)
