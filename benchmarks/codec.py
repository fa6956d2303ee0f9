"""Cases of the whole codec: a tensor to streams and back, at 768x512, beside the mean-scale hyperprior.

Our models' times are of `encode_sections` and `decode_sections`, entropy coding and checksums included; reading the
picture file and writing the container are left out, as they are for the yardsticks.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from functools import partial
from importlib import resources

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import lalic
from benchmarks import peers
from benchmarks.measure import Call, Case, Setting, WrongResult
from benchmarks.networks import MeanScaleHyperprior
from lalic import images
from lalic.coder.coding import EncodedSections


def picture(height: int, width: int) -> Tensor:
    """The photo that ships, mirrored to the right and below as far as needed: (1, 3, height, width) in [0, 1]."""
    with resources.files(lalic).joinpath("assets/astronaut.png").open("rb") as file:
        pixels = np.asarray(Image.open(file).convert("RGB"))
    missing = [max(0, wanted - have) for wanted, have in zip((height, width), pixels.shape[:2], strict=True)]
    pixels = np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="symmetric")
    return images.to_tensor(Image.fromarray(np.ascontiguousarray(pixels[:height, :width])))


def models(setting: Setting) -> list[tuple[str, lalic.LALIC]]:
    """(name, model) of those to time."""
    torch.manual_seed(0)
    if setting.quick:
        tiny = lalic.LALIC(2, 8, (4, 4, 4, 8, 4, 4), (1, 1, 1, 1), (4, 4))
        tiny.update()
        return [("tiny, random weights", tiny.eval().to(setting.device))]
    full = lalic.LALIC()
    full.update()
    return [
        ("LALIC slim", lalic.slim(pretrained=True).to(setting.device)),
        ("LALIC full, random weights", full.eval().to(setting.device)),
        ("LALIC full, random weights, bfloat16", copy.deepcopy(full).set_precision("bfloat16")),
    ]


class _Subject:
    """A model of ours with what it must give back: the encoder's own reconstruction, to the bit."""

    @torch.inference_mode()
    def __init__(self, model: lalic.LALIC, x: Tensor):
        self.model, self.x = model, x
        self.expected = model._synthesise(model.compress(x)["y_hat"], None).clamp(0, 1)
        self.sections = model.encode_sections(x)

    @torch.inference_mode()
    def encode(self) -> EncodedSections:
        return self.model.encode_sections(self.x)

    @torch.inference_mode()
    def decode(self, sections: EncodedSections | None = None) -> Tensor:
        s = self.sections if sections is None else sections
        return self.model.decode_sections(s.streams, self.x.shape[2], self.x.shape[3], s.checksum)

    def check_streams(self, sections: EncodedSections) -> None:
        self.check_picture(self.decode(sections))

    def check_picture(self, x_hat: Tensor) -> None:
        if not torch.equal(x_hat, self.expected):
            raise WrongResult("codec: the decoded picture is not the encoder's own reconstruction")

    def size(self, seconds: float) -> dict[str, float]:
        """Bits a pixel of the streams, and millions of pixels a second."""
        pixels = self.x.shape[2] * self.x.shape[3]
        bits = 8 * sum(map(len, self.sections.streams))
        return {"bits per pixel": bits / pixels, "Mpixel/s": 1e-6 * pixels / seconds}


def cases(setting: Setting) -> Iterator[Case]:
    """Encoding, then decoding, each of all models and yardsticks in turn."""
    height, width = (64, 128) if setting.quick else (512, 768)
    x = picture(height, width).to(setting.device)
    subjects = [(name, _Subject(model, x)) for name, model in models(setting)]
    torch.manual_seed(0)
    networks = MeanScaleHyperprior(*((8, 12) if setting.quick else ())).eval().to(setting.device)
    with torch.inference_mode():
        y, z, _ = networks.encoding(x)
    label = f"mean-scale hyperprior {networks.N}/{networks.M}, networks only"
    encoding = [Call(name, s.encode, s.check_streams, s.size) for name, s in subjects]
    decoding = [Call(name, s.decode, s.check_picture, s.size) for name, s in subjects]
    encoding.append(Call(label, torch.inference_mode()(lambda: networks.encoding(x))))
    decoding.append(Call(label, torch.inference_mode()(lambda: networks.decoding(y, z))))
    for peer in [] if setting.quick else peers.installed(setting.device):
        streams = peer.encode(x)
        encoding.append(Call(peer.name, partial(peer.encode, x)))
        decoding.append(Call(peer.name, partial(peer.decode, streams)))
    yield Case(f"encode {width}x{height}", tuple(encoding), wall_clock=True)
    yield Case(f"decode {width}x{height}", tuple(decoding), wall_clock=True)


if __name__ == "__main__":
    from benchmarks.codec_command import main

    sys.exit(main())
