"""The codecs that are compared, behind one interface, `Codec`.

    name        what it is                                            quality       needs
    lalic       .lalic files; models of `--checkpoint`                1..100        -
    jpeg        Pillow, 4:2:0, progressive, optimised Huffman tables  1..95         -
    jpeg-444    the same at 4:4:4                                     1..95         -
    webp        Pillow, lossy, method 6 (the slowest)                 0..100        Pillow with WebP
    avif        Pillow, libaom, 4:4:4, speed 6                        0..100        Pillow with AVIF
    avif-psnr   the same with libaom's tune=psnr                      0..100        Pillow with AVIF
    jxl         pillow-jxl-plugin, VarDCT, effort 7                   0..99         pillow-jxl-plugin
    heic        pillow-heif, HEVC intra by x265, 4:4:4                0..100        pillow-heif
    vtm         the VVC reference software                            QP 0..63      its binaries
    compressai-NAME  CompressAI's pretrained NAME                     1..8          compressai, and its weights

Qualities are each codec's own: equal numbers mean nothing across codecs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, Unpack

import torch

from lalic.codec import resolve_device
from lalic.errors import LalicError
from lalic.eval.codecs.base import Codec, Coded, NotInstalled, Quality, check_bounds
from lalic.eval.codecs.compressai import CompressAICodec
from lalic.eval.codecs.lalic import LalicCodec
from lalic.eval.codecs.pillow import FORMATS, PillowCodec
from lalic.eval.codecs.vtm import Vtm
from lalic.files import Name
from lalic.hub import load_model

__all__ = ["NAMES", "Codec", "Coded", "LalicCodec", "NotInstalled", "Quality", "Vtm", "make", "open_codecs", "parse"]

NAMES = ("lalic", *FORMATS, "vtm", "compressai-NAME")


def parse(word: str) -> tuple[str, tuple[Quality, ...]]:
    """A codec as the command line names it: "webp" -> ("webp", ()), "webp:20,40.5" -> ("webp", (20, 40.5)).

    Raises `LalicError` for another form. Whether there is such a codec is not looked at here.
    """
    name, colon, rest = word.partition(":")
    try:
        qualities = tuple(float(text) for text in rest.split(",")) if colon else ()
    except ValueError:
        raise LalicError(f"{word!r} is no codec with qualities, expected CODEC or CODEC:QUALITY,...") from None
    return name, tuple(int(q) if q == int(q) else q for q in qualities)


def make(name: str, qualities: Sequence[Quality] = ()) -> Codec:
    """The codec called `name` (jpeg ... heic, compressai-NAME), to be measured at `qualities` (none: its own choice).

    Raises `NotInstalled` if something that it needs is not, `LalicError` if there is no such codec or a quality is out
    of its bounds.
    """
    codec: Codec
    if name in FORMATS:
        codec = PillowCodec(name=name, **FORMATS[name])
    elif name.startswith("compressai-"):
        codec = CompressAICodec(name)
    else:
        raise LalicError(f"there is no codec {name!r}, expected one of {', '.join(NAMES)}")
    if qualities:
        codec.qualities, codec.chosen = tuple(qualities), True
    check_bounds(codec)
    return codec


class Options(TypedDict, total=False):
    """What `open_codecs`, `lalic.eval.evaluate` and `lalic.eval.compare` take for lalic and VTM; all may be left out.

    checkpoints: weights of lalic, a codec each; none: the model that ships. qualities: lalic's, 1 to 100. precision: of
    its transforms, "float32", "bfloat16" or "float16". device: of its models, None for the CPU. vtm: VTM's
    EncoderAppStatic. vtm_config: its encoder_intra_vtm.cfg, None: looked for in ../cfg beside it.
    """

    checkpoints: Sequence[Name]
    qualities: Sequence[float]
    precision: str | None
    device: str | torch.device | None
    vtm: Name | None
    vtm_config: Name | None


def open_codecs(codecs: Sequence[str | Codec], **options: Unpack[Options]) -> tuple[list[Codec], list[str]]:
    """The codecs that were asked for, and a sentence for each that is not installed.

    codecs: words such as "webp" or "webp:20,40", or codecs as they are. Raises `LalicError` for a codec that does not
    exist, a quality out of bounds, a device that is not there, or weights that cannot be read.
    """
    opened: list[Codec] = []
    left_out = []
    device, checkpoints, vtm = resolve_device(options.get("device")), options.get("checkpoints", ()), options.get("vtm")
    for word in codecs:
        if isinstance(word, Codec):
            opened.append(word)
            continue
        name, own = parse(word)
        try:
            if name == "lalic":
                paths: Sequence[Name | None] = checkpoints or [None]
                for path in paths:
                    model = load_model(path, device=device, precision=options.get("precision"))
                    title = "lalic" if path is None or len(checkpoints) == 1 else f"lalic {Path(path).stem}"
                    opened.append(LalicCodec(model, own or tuple(options.get("qualities", ())), title))
            elif name == "vtm":
                if vtm is None:
                    raise NotInstalled("vtm needs VTM's encoder, which --vtm FILE names")
                opened.append(Vtm(vtm, options.get("vtm_config"), own))
                check_bounds(opened[-1])
            else:
                opened.append(make(name, own))
        except NotInstalled as error:
            left_out.append(str(error))
    return opened, left_out
