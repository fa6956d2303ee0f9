"""The codecs that can be measured, with one interface, `Codec`.

    name        what it is                                            quality       needs
    lalic       .lalic files; models of `--checkpoint`                1..100        -
    lalic-effort  lalic's files for more encoding time (`effort`)     1..100        a model of every quality
    jpeg        Pillow, 4:2:0, progressive, optimised Huffman tables  1..95         -
    jpeg-444    jpeg at 4:4:4                                         1..95         -
    webp        Pillow, lossy, method 6 (the slowest)                 0..100        Pillow with WebP
    avif        Pillow, libaom, 4:4:4, speed 6                        0..100        Pillow with AVIF
    avif-psnr   avif with libaom's tune=psnr                          0..100        Pillow with AVIF
    jxl         pillow-jxl-plugin, VarDCT, effort 7                   0..99         pillow-jxl-plugin
    heic        pillow-heif, HEVC intra by x265, 4:4:4                0..100        pillow-heif
    vtm         VTM, the VVC reference software                       QP 0..63      its binaries
    compressai-NAME  CompressAI's pretrained NAME                     1..8          compressai, and its weights

Each codec has its own scale of qualities; equal numbers of two codecs are not comparable.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, Unpack

import torch

from lalic.codec import resolve_device
from lalic.errors import LalicError
from lalic.eval.codecs.base import Codec, Coded, NotInstalled, Quality
from lalic.eval.codecs.compressai import CompressAICodec
from lalic.eval.codecs.lalic import LalicCodec
from lalic.eval.codecs.pillow import FORMATS, PillowCodec
from lalic.eval.codecs.vtm import Vtm
from lalic.files import Name
from lalic.hub import load_model

__all__ = ["NAMES", "Codec", "Coded", "LalicCodec", "NotInstalled", "Quality", "Vtm", "make", "open_codecs", "parse"]

NAMES = ("lalic", "lalic-effort", *FORMATS, "vtm", "compressai-NAME")
EFFORT = 120.0  # seconds a picture


def parse(word: str) -> tuple[str, tuple[float, ...]]:
    """Name and qualities of an argument: "webp" -> ("webp", ()), "webp:20,40.5" -> ("webp", (20, 40.5)).

    Raises `LalicError` for another form. It does not check whether the codec exists.
    """
    name, colon, rest = word.partition(":")
    try:
        qualities = tuple(float(text) for text in rest.split(",")) if colon else ()
    except ValueError:
        raise LalicError(f"{word!r} is no codec with qualities, expected CODEC or CODEC:QUALITY,...") from None
    return name, tuple(int(q) if q == int(q) else q for q in qualities)


def make(name: str, qualities: Sequence[float] = (), *, vtm: Name | None = None, config: Name | None = None) -> Codec:
    """The codec `name` (all but lalic and lalic-effort), to be measured at `qualities` (empty: its defaults).

    vtm, config: VTM's files (`Vtm`). Raises `NotInstalled` if something that the codec needs is missing, `LalicError`
    for another name or a quality out of bounds.
    """
    codec: Codec
    if name in FORMATS:
        codec = PillowCodec(name)
    elif name.startswith("compressai-"):
        codec = CompressAICodec(name)
    elif name == "vtm":
        if vtm is None:
            raise NotInstalled("vtm needs VTM's encoder, which --vtm FILE names")
        codec = Vtm(vtm, config)
    else:
        raise LalicError(f"there is no codec {name!r}, expected one of {', '.join(NAMES)}")
    codec.choose(qualities)
    return codec


class Options(TypedDict, total=False):
    """Options of `open_codecs`, `lalic.eval.evaluate` and `lalic.eval.compare` for lalic and VTM; none is required.

    checkpoints: weights of lalic, one codec for each; empty: the model that ships. qualities: of lalic, 1 to 100.
    effort: seconds a picture of lalic-effort, 120 if none are given. precision: of the transforms, "float32",
    "bfloat16" or "float16". device: of its models, None for the CPU. vtm: VTM's EncoderAppStatic. vtm_config: its
    encoder_intra_vtm.cfg; None: searched in ../cfg of the binary's folder.
    """

    checkpoints: Sequence[Name]
    qualities: Sequence[float]
    effort: float | None
    precision: str | None
    device: str | torch.device | None
    vtm: Name | None
    vtm_config: Name | None


_LALIC = {"lalic", "lalic-effort"}
_CODECS_OF_OPTION = {
    "checkpoints": _LALIC,
    "qualities": _LALIC,
    "precision": _LALIC,
    "effort": {"lalic-effort"},
    "vtm": {"vtm"},
    "vtm_config": {"vtm"},
}


def open_codecs(codecs: Sequence[str | Codec], **options: Unpack[Options]) -> tuple[list[Codec], list[str]]:
    """The codecs with these names, and one sentence for each that is not installed.

    codecs: names, such as "webp" or "webp:20,40", or objects, which are returned. Raises `LalicError` for a codec or a
    device that does not exist, a quality out of bounds, weights that cannot be read, or an option of a codec that is
    not named.
    """
    named = {parse(word)[0] for word in codecs if isinstance(word, str)}
    for option, takers in _CODECS_OF_OPTION.items():
        given = options.get(option)
        if given not in (None, (), []) and not named & takers:
            codec = " or ".join(sorted(takers))
            raise LalicError(f"{option} is {given}, expected none without the codec {codec}, which is not asked for")
    opened: list[Codec] = []
    left_out = []
    device = resolve_device(options.get("device"))
    paths: Sequence[Name | None] = options.get("checkpoints") or [None]
    for word in codecs:
        if isinstance(word, Codec):
            opened.append(word)
            continue
        name, qualities = parse(word)
        if name in _LALIC:
            seconds = options.get("effort")
            effort = None if name == "lalic" else EFFORT if seconds is None else seconds
            for path, title in zip(paths, _titles(paths), strict=True):
                model = load_model(path, device=device, precision=options.get("precision"))
                opened.append(LalicCodec(model, qualities or options.get("qualities", ()), title, effort))
            continue
        try:
            opened.append(make(name, qualities, vtm=options.get("vtm"), config=options.get("vtm_config")))
        except NotInstalled as error:
            left_out.append(str(error))
    return opened, left_out


def _titles(checkpoints: Sequence[Name | None]) -> list[str]:
    """A title for each model: the names of several files, with their folder if there is another file of the name."""
    paths = [Path(path).with_suffix("") for path in checkpoints if path is not None]
    if len(paths) < 2:
        return ["lalic"] * len(checkpoints)
    names = [path.name for path in paths]
    return [f"lalic {path.name if names.count(path.name) == 1 else '/'.join(path.parts[-2:])}" for path in paths]
